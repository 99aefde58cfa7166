"""Whole models: a saved role as one, its adapter merged into the base's weights, and reward models
in folders that are no adapters.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

from alignkit.data.group import Group, Response
from alignkit.errors import DataError
from alignkit.io.atomic import replace_folder
from alignkit.kernels import capabilities
from alignkit.models.adapters import Base, is_adapter
from alignkit.models.loading import (
    dtype_of,
    ends_of,
    load_base,
    load_tokenizer,
    load_weights,
    locate,
    read_weights,
    saved_head,
    saved_unread,
    scorer,
    with_padding,
)
from alignkit.models.memory import within_memory
from alignkit.models.models import LoadedBase, RolePolicy
from alignkit.models.saved import has_score
from alignkit.tokens.encoder import Encoder, Ids, RowRefused, answers_of

if TYPE_CHECKING:
    from alignkit.settings import ModelSpec

WEIGHTS = "adapter_model.safetensors"
CPU = torch.device("cpu")


def save(policy: RolePolicy, folder: Path) -> list[str]:
    """See `alignkit.Policy.save`."""
    model, tokenizer, saved = policy.model, policy.model.tokenizer, None
    if policy.reference != policy.base.name:
        saved = policy.base.artifact(policy.reference)
        if has_score(saved):
            tokenizer = with_padding(tokenizer, model.model.config)
    return export(
        saved, folder, model.base, model.spec, model.dtype, tokenizer, policy.encoder.end_ids
    )


def export(
    saved: Path | None,
    folder: Path,
    base: Base,
    spec: ModelSpec,
    dtype: torch.dtype,
    tokenizer: Any,
    end_ids: Iterable[int],
) -> list[str]:
    """Write a saved role as a model folder, complete or not at all; returns what its user must
    know.

    saved: the role's folder; None: the base itself. dtype: of the written weights; an adapter is
    merged in fp32, on the CPU. tokenizer: with the chat template of the run. end_ids: the tokens
    that end a response.
    """
    if saved is not None and not is_adapter(saved):
        with replace_folder(folder) as new:
            shutil.copytree(saved, new, dirs_exist_ok=True)
        return ["it was trained without an adapter, so its weights are copied"]
    model, notes = whole_model(saved, base, spec, dtype, tokenizer)
    end_with(getattr(model, "generation_config", None), end_ids)
    with replace_folder(folder) as new:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
    return notes


def whole_model(
    saved: Path | None, base: Base, spec: ModelSpec, dtype: torch.dtype, tokenizer: Any
) -> tuple[Any, list[str]]:
    """The whole model of a saved adapter or of the base, on the CPU, and what its user must know of
    how it was made.

    It is a language model, or a classifier with one label. tokenizer: pads the batches of a reward
    model whose base has no padding. Raises RunFailed if the adapter is for another base.
    """
    quantized = spec.quantization != "none"
    # Rounded as in the run: what bitsandbytes makes of bf16 and of fp32 differs.
    device = CPU if spec.device == "cpu" else capabilities.default_device()
    stored = dtype_of(spec, device) if quantized else torch.float32
    network = load_base(spec, locate(base.source, base.revision), base.revision, stored, CPU, None)
    if quantized:
        network = network.dequantize(torch.float32).float()
    notes = []
    if saved is not None:
        base.check(saved)
        network = _with_adapter(network, saved).merge_and_unload(safe_merge=True)
        if quantized:
            notes.append(
                f"merged into the values that {spec.quantization} rounds the weights to, as it "
                "was trained"
            )
        if spec.quantization == "int8":
            notes.append(
                "int8 also rounds the inputs of every layer, which the merged model does not"
            )
    network = network.to(dtype)
    if dtype != torch.float32:
        notes.append(f"stored in {str(dtype).removeprefix('torch.')}, so weights are rounded")
    if saved is not None and has_score(saved):
        unread = saved_unread(saved)
        network = scorer(
            network, saved_head(saved), tokenizer.pad_token_id if unread is None else unread
        )
    return network.eval(), notes


def _with_adapter(network: Any, saved: Path) -> Any:
    """The network with a saved adapter, without the adapter's scalar head."""
    from peft import PeftConfig, PeftModel

    read_weights(saved / WEIGHTS)  # refuses what is damaged
    config = PeftConfig.from_pretrained(str(saved))
    config.task_type, config.modules_to_save = "CAUSAL_LM", None
    return PeftModel.from_pretrained(network, str(saved), config=config).eval()


def end_with(generation: Any, end_ids: Iterable[int]) -> None:
    """Let a generation configuration end responses where the run ended them. Its own tokens stay in
    front.
    """
    if generation is None:
        return
    own = ends_of(generation)
    ends = [*own, *sorted(set(end_ids) - set(own))]
    generation.eos_token_id = ends[0] if len(ends) == 1 else ends or None


# Reward models in a folder that is no adapter, such as the hub's: with their own tokenizer and
# template

DEFAULT_CONTEXT = 2048  # tokens, if the model's configuration names no limit


class WholeRewardModel(RolePolicy):
    """Scores text with the device and dtype of a base model of the run."""

    def __init__(self, base: LoadedBase, reference: str):
        """Raises RunFailed if the folder holds no complete reward model."""
        super().__init__(base, reference)
        folder, trust = base.artifact(reference), self.model.spec.trust_remote_code
        # The folder may still hold the language head of the original model.
        options = {"dtype": self.model.dtype, "num_labels": 1, "trust_remote_code": trust}
        self.network = load_weights(
            AutoModelForSequenceClassification, folder, ("lm_head.weight",), **options
        )
        self.network.to(self.model.device).eval()
        self.memory = self.model.memory
        self.encoder = Encoder(load_tokenizer(folder, str(folder), trust_remote_code=trust))

    @torch.no_grad()
    def scores(self, groups: Sequence[Group]) -> list[float | None]:
        """Score all responses in order; None if the prompt does not fit."""
        limit = getattr(self.network.config, "max_position_embeddings", DEFAULT_CONTEXT)
        rows: list[Ids | None] = []
        for group in groups:
            # Text, because this model has another vocabulary than the policy.
            rows += [self._row(group, response, limit) for response in group.responses]
        fitting = [row for row in rows if row is not None]
        scored = iter(within_memory(self.memory, lambda: self._score(fitting)))
        self.report_unread()
        return [None if row is None else next(scored) for row in rows]

    def _row(self, group: Group, response: Response, limit: int) -> Ids | None:
        """A conversation as the template renders it; None if the prompt does not fit.

        It needs no prompt of its own in front of the answer. Counts as `Encoder.encode` does, and
        raises RowRefused.
        """
        encoder = self.encoder
        try:
            text = encoder.chat.render(
                encoder.chat.prepare([*group.prompt, *answers_of(response)]), False, group.tools
            )
            ids = encoder.rendered.ids(text)
            if len(ids) <= limit:
                return ids
            prompt = encoder.prompt(group.prompt, group.tools)
        except DataError as error:
            raise RowRefused(group, str(error)) from error
        if len(prompt) + 1 + len(encoder.closing) > limit:
            encoder.count("no_room", group)
            return None
        encoder.count("cut", group)
        return ids[: limit - len(encoder.closing)] + encoder.closing

    def _score(self, rows: Sequence[Ids]) -> list[float]:
        """Score rows of similar lengths together, padded on the right."""
        scores = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        while order:
            longest = len(rows[order[-1]])
            # As many tokens as any pass without gradients
            batch = order[-max(1, 4 * self.memory.tokens // longest) :]
            del order[-len(batch) :]
            for index, score in zip(
                batch, self._logits([rows[index] for index in batch]).tolist(), strict=True
            ):
                scores[index] = score
        return scores

    def _logits(self, rows: Sequence[Ids]) -> Tensor:
        """The scores of some rows, [rows]. Transformers reads each at its last token that does not
        count as padding.
        """
        config = self.network.config
        own = pad = config.pad_token_id
        if pad is None:
            used = set(itertools.chain.from_iterable(rows))
            pad = next(token for token in itertools.count() if token not in used)
        ids = [torch.tensor(row) for row in rows]
        tokens = pad_sequence(ids, batch_first=True, padding_value=pad).to(self.network.device)
        mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        mask = mask.to(self.network.device)
        config.pad_token_id = pad if len(rows) > 1 else own
        try:
            logits: Tensor = self.network(input_ids=tokens, attention_mask=mask).logits[:, 0]
        finally:
            config.pad_token_id = own
        return logits
