"""Reward models in a folder that is no adapter, such as the hub's: with their own tokenizer and
chat template.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

from alignkit.data.group import Group, Response
from alignkit.errors import DataError
from alignkit.models.loading import load_tokenizer, load_weights
from alignkit.models.memory import within_memory
from alignkit.models.models import LoadedBase, RolePolicy
from alignkit.tokens.encoder import Encoder, Ids, RowRefused, answers_of

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
