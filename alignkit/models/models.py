"""The models of a run by reference: the base model with the policies and reward models on it, and
whole models.

A reference is the base model (`base`), a stage (`sft`), a kept version (`sft@2`), or a folder. An
adapter is loaded onto the shared base on first use. A whole model in a folder has
its own weights.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from alignkit.contract.reward import Progress, no_progress
from alignkit.contract.settings import Sampling
from alignkit.data.group import Group, Message, Response, preview
from alignkit.errors import DataError, OtherTokenizer, RunFailed, SameFirstToken
from alignkit.io.text import Say
from alignkit.kernels.memory import release_cached, trim
from alignkit.models.adapters import is_adapter
from alignkit.models.generate import StageEngine, attach, build_request
from alignkit.models.loading import load_tokenizer, load_weights, with_padding
from alignkit.models.memory import within_memory
from alignkit.models.packing import by_response, cut, measure, read_prompts
from alignkit.models.saved import has_score
from alignkit.models.shared_model import UNMODIFIED, HeadKind, SharedModel, Wants
from alignkit.models.whole_model import export
from alignkit.recipe.schema import BASE
from alignkit.tokens.encoder import Encoder, Ids, RowRefused, answers_of

DEFAULT_CONTEXT_LENGTH = 2048  # tokens of a whole reward model whose configuration names no limit


@dataclass(eq=False)
class LoadedModel:
    """A model with its own weights in memory, its encoder, and the roles on it by reference.

    artifact: the adapter or model folder of a reference. max_length: of a prompt with response, in
    tokens. name: the reference that means the unmodified model: BASE, or its folder.
    """

    model: SharedModel
    artifact: Callable[[str], Path]
    max_length: int = 1024
    say: Say = lambda text: None
    progress: Progress = no_progress
    name: str = BASE

    def __post_init__(self) -> None:
        self.engine = StageEngine()
        self.max_length = min(self.max_length, self.model.context_length)
        self.encoder = self.model.encoder()
        self.encoder.foreign = self.name != BASE
        # Reward models with their own network and tokenizer
        self._whole: dict[str, RolePolicy] = {}

    def close_engine(self) -> None:
        """End the stage's engine; alignkit's own decoder samples from now on."""
        engine, self.engine = self.engine, StageEngine()
        engine.close()

    def __getitem__(self, reference: str) -> RolePolicy:
        """The policy or reward model of a reference on this model."""
        if reference == self.name or not Path(reference).is_absolute():
            return RolePolicy(self, reference)
        folder = self.artifact(reference)
        # Next to adapters there is no other whole model.
        if is_adapter(folder) or (self.model.spec.lora is None and not has_score(folder)):
            return RolePolicy(self, reference)
        if reference not in self._whole:
            self._whole[reference] = WholeRewardModel(self, reference)
        return self._whole[reference]

    def role(self, reference: str) -> str:
        """Load the role of a reference, with its scalar head if it has one, and return the role's
        name.
        """
        if reference == self.name:
            return UNMODIFIED
        name = reference.replace("/", "|")  # a folder's path has slashes, which role names do not
        if name not in self.model.roles:
            folder = self.artifact(reference)
            head: HeadKind = "scalar" if has_score(folder) else "language"
            self.model.add_role(name, start=folder, head=head)
        return name


class RolePolicy:
    """A role of a loaded model; implements `alignkit.Policy`."""

    def __init__(self, loaded: LoadedModel, reference: str):
        self.loaded, self.reference = loaded, reference
        self.model, self.encoder = loaded.model, loaded.encoder

    def scores(self, groups: Sequence[Group]) -> list[float | None]:
        """See `alignkit.Policy`."""
        self.encoder.forget_counts()
        scores = self._measured(groups, Wants(logprobs=False, scores=True))
        self.report_unread()
        return [float(found["scores"]) if found else None for found in scores]

    def _measured(self, groups: Sequence[Group], wants: Wants) -> list[dict[str, Tensor]]:
        """The outputs for every response by name; none where the prompt does not fit."""
        encoded = [
            self.encoder.encode(group, self.loaded.max_length, scoring=wants.scores)
            for group in groups
        ]
        fitting = [e for e in encoded if e is not None and e.responses]
        role = self.loaded.role(self.reference)
        with self.loaded.progress(f"measuring {self.reference}", len(fitting)) as done:
            measured = iter(by_response(measure(self.model, role, fitting, wants, done)))
        outputs: list[dict[str, Tensor]] = []
        for group, e in zip(groups, encoded, strict=True):
            for _ in group.responses:
                outputs.append({} if e is None else next(measured))
        return outputs

    def report_unread(self) -> None:
        """Report responses that the reward model could not read in full."""
        counts = self.encoder.counts
        if counts["cut"] or counts["no_room"]:
            self.loaded.say(
                f"{self.reference}: at max_length {counts['cut']} responses were cut before "
                f"scoring, and {counts['no_room']} groups have no score, because their prompts "
                "fill it"
            )
        self.encoder.forget_counts()

    def logprobs(self, groups: Sequence[Group], *, temperature: float = 1.0) -> list[Tensor]:
        """See `alignkit.Policy`."""
        self._check_tokens(groups)
        measured = self._measured(groups, Wants(temperature=temperature))
        return [found.get("logprobs", torch.zeros(0)) for found in measured]

    def predictions(self, groups: Sequence[Group]) -> list[tuple[Tensor, ...]]:
        """See `alignkit.Policy`."""
        self._check_tokens(groups)
        names, none = ("logprobs", "likeliest"), torch.zeros(0)
        measured = self._measured(groups, Wants(likeliest=True))
        return [tuple(found.get(name, none) for name in names) for found in measured]

    def _check_tokens(self, groups: Sequence[Group]) -> None:
        """Raise OtherTokenizer for sampled tokens that mean something else to this model."""
        for group in groups:
            named = {
                response.tokenizer for response in group.responses if response.tokens is not None
            }
            if named - {None, self.encoder.digest}:
                raise OtherTokenizer(
                    f"'{self.reference}' has another tokenizer, or ends its turns with another "
                    f"token, than the model that answered {preview(group)}: log-probabilities of "
                    "these tokens mean nothing\n"
                    "help: compare models with the same tokenizer and chat template, or compare "
                    "texts with a reward"
                )

    @torch.no_grad()
    def next_token_logprobs(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[str], *, prefill: str = ""
    ) -> Tensor:
        """See `alignkit.Policy`. Raises SameFirstToken if two answers begin with the same token."""
        model, role = self.model, self.loaded.role(self.reference)
        logprobs = torch.full((len(prompts), len(answers)), float("nan"))
        first = torch.zeros(logprobs.shape, dtype=torch.long)
        questions: list[Ids] = []
        fitting: list[list[int]] = []
        for index, prompt in enumerate(prompts):
            ids, tokens = self.encoder.answers(prompt, prefill, answers)
            if not ids:
                raise DataError(
                    "cannot answer an empty prompt: this tokenizer does not begin texts with a "
                    "special token"
                )
            beginnings = [answer[0] for answer in tokens]
            if len(set(beginnings)) < len(answers):
                raise SameFirstToken(
                    f"the answers {list(answers)} begin with the same token; choose others"
                )
            first[index] = torch.tensor(beginnings)
            questions.append(ids)
            if len(ids) <= model.context_length:
                fitting.append([index])

        with self.loaded.progress(f"asking {self.reference}", len(fitting)) as done:

            def measure_all() -> None:
                measured = 0
                for batch in cut(
                    fitting, lambda unit: len(questions[unit[0]]), model.inference_budget
                ):
                    _, hidden = read_prompts(model, role, [questions[index] for index in batch])
                    next_logprobs = torch.log_softmax(model.next_logits(role, hidden), dim=-1)
                    logprobs[batch] = next_logprobs.cpu().gather(1, first[batch])
                    done(measured := measured + len(batch))

            within_memory(model.memory, measure_all)
        return logprobs

    def sample(
        self, prompts: Sequence[Group], *, seed: int, samples_per_prompt: int = 1, **sampling: Any
    ) -> list[Group]:
        """See `alignkit.Policy`."""
        options, loaded = Sampling(**sampling), self.loaded
        role = loaded.role(self.reference)
        if self.model.roles[role].head is not None:
            raise RunFailed(f"'{self.reference}' is a reward model: it cannot answer prompts")
        groups = [Group(group.prompt, tools=group.tools) for group in prompts]
        room = loaded.max_length - options.max_new_tokens
        fitting = []
        for i, group in enumerate(groups):
            if len(self.encoder.prompt(group.prompt, group.tools)) <= room:
                fitting.append(i)
        # Streams are named by the index among all prompts, so that leaving one out changes no other
        # sample.
        answerable = [groups[i] for i in fitting]
        request = build_request(
            self.model,
            role,
            self.encoder,
            answerable,
            options,
            seed=seed,
            path=(),
            numbers=fitting,
            samples_per_prompt=samples_per_prompt,
        )
        with loaded.progress(
            f"sampling from {self.reference}", len(fitting) * samples_per_prompt
        ) as done:
            sampled = attach(request, answerable, loaded.engine.request(request).result(done))
        for i, group in zip(fitting, sampled, strict=True):
            groups[i] = group
        return groups

    def save(self, folder: Path) -> list[str]:
        """See `alignkit.Policy`."""
        model, tokenizer, saved = self.model, self.model.tokenizer, None
        if self.reference != self.loaded.name:
            saved = self.loaded.artifact(self.reference)
            if has_score(saved):
                tokenizer = with_padding(tokenizer, model.model.config)
        return export(
            saved, folder, model.origin, model.spec, model.dtype, tokenizer, self.encoder.end_ids
        )


class WholeRewardModel(RolePolicy):
    """A reward model in a folder that is no adapter, such as the hub's. It scores text, by its own
    tokenizer and template, with the device and dtype of a model of the run.
    """

    def __init__(self, loaded: LoadedModel, reference: str):
        """Raises RunFailed if the folder holds no complete reward model."""
        from transformers import AutoModelForSequenceClassification

        super().__init__(loaded, reference)
        folder, trust = loaded.artifact(reference), self.model.spec.trust_remote_code
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
        limit = getattr(self.network.config, "max_position_embeddings", DEFAULT_CONTEXT_LENGTH)
        texts: list[Ids | None] = []
        for group in groups:
            # Text, because this model has another vocabulary than the policy.
            texts += [self._ids(group, response, limit) for response in group.responses]
        fitting = [ids for ids in texts if ids is not None]
        scored = iter(within_memory(self.memory, lambda: self._score(fitting)))
        self.report_unread()
        return [None if ids is None else next(scored) for ids in texts]

    def _ids(self, group: Group, response: Response, limit: int) -> Ids | None:
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

    def _score(self, texts: Sequence[Ids]) -> list[float]:
        """Score texts of similar lengths together, padded on the right."""
        scores = [0.0] * len(texts)
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        while order:
            longest = len(texts[order[-1]])
            # As many tokens as any pass without gradients
            batch = order[-max(1, 4 * self.memory.tokens // longest) :]
            del order[-len(batch) :]
            for index, score in zip(
                batch, self._logits([texts[index] for index in batch]).tolist(), strict=True
            ):
                scores[index] = score
        return scores

    def _logits(self, texts: Sequence[Ids]) -> Tensor:
        """The scores of some texts, [texts]. Transformers reads each at its last token that does not
        count as padding.
        """
        config = self.network.config
        own = pad = config.pad_token_id
        if pad is None:
            used = set(itertools.chain.from_iterable(texts))
            pad = next(token for token in itertools.count() if token not in used)
        ids = list(map(torch.tensor, texts))
        tokens = pad_sequence(ids, batch_first=True, padding_value=pad).to(self.network.device)
        mask = pad_sequence(list(map(torch.ones_like, ids)), batch_first=True)
        mask = mask.to(self.network.device)
        config.pad_token_id = pad if len(texts) > 1 else own
        try:
            logits: Tensor = self.network(input_ids=tokens, attention_mask=mask).logits[:, 0]
        finally:
            config.pad_token_id = own
        return logits


class Models:
    """Implements `alignkit.Models`. Models are opened on first use.

    opened: by BASE or their folder. whole: the folders of whole models that the current stage uses.
    """

    def __init__(self, open: Callable[[str], LoadedModel]):
        self._open = open
        self.opened: dict[str, LoadedModel] = {}
        self.whole: tuple[str, ...] = ()

    def __getitem__(self, reference: str) -> RolePolicy:
        """The policy or reward model of a reference."""
        return self.of(reference)[reference]

    def base_of(self, reference: str) -> str:
        """The model whose weights a reference shares: its own folder, if it is a whole model, or
        else BASE.
        """
        return reference if reference in self.whole else BASE

    def of(self, reference: str) -> LoadedModel:
        """The opened model whose weights a reference shares."""
        name = self.base_of(reference)
        if name not in self.opened:
            self.opened[name] = self._open(name)
        return self.opened[name]

    def enter(self, whole: Sequence[str]) -> None:
        """Begin a stage. Whole models that it does not use are freed, and what lies in parts.

        The stage may work in one process only, which needs all weights.
        """
        self.whole = tuple(whole)
        unused = [
            name
            for name, loaded in self.opened.items()
            if name not in (BASE, *whole) or loaded.model.passes.holds_part
        ]
        for name in unused:
            device = self.opened.pop(name).model.device
            gc.collect()  # recomputable layers hold references to themselves
            release_cached(device)
            trim()

    def forget(self, reference: str) -> None:
        """Drop a role from all open models, so that it is read from disk again."""
        for loaded in self.opened.values():
            if reference in loaded.model.roles:
                loaded.model.drop_role(reference)
