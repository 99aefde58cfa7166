"""The models of a run, for rewards, judges and steps: scores, log-probabilities and samples of a role.

Roles are named by reference: the base model (`base`), a stage (`sft`), a kept version (`sft@2`), or an adapter folder.
A role is loaded onto the shared base on first use.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.data.group import Group, Message, preview, previews
from alignkit.errors import DataError, OtherTokenizer, RunFailed, SameFirstToken
from alignkit.kernels.memory import release_cached, trim
from alignkit.models.budget import within_memory
from alignkit.models.export import export
from alignkit.models.foreign_reward import ForeignRewardModel
from alignkit.models.forward import measure
from alignkit.models.loading import has_score
from alignkit.models.packing import micro_batches, pack
from alignkit.models.padding import with_padding
from alignkit.models.sampling import Sampling, sample
from alignkit.models.shared_model import BASE, HeadKind, SharedModel
from alignkit.reward import Progress, no_progress
from alignkit.tokens.encoder import Encoded, Encoder, Ids

SCORED_GROUPS = 10_000  # whose scores are kept, per reward model

Key = tuple[Ids, ...]


class ModelService:
    """The models of a run; implements `alignkit.Models`."""

    def __init__(
        self,
        model: SharedModel,
        artifact: Callable[[str], Path],
        max_length: int = 1024,
        say: Callable[[str], None] = lambda text: None,
        progress: Progress = no_progress,
        name: str = BASE,
    ):
        """artifact: the adapter or model folder of a reference. max_length: of a prompt with response, in tokens.

        name: the reference that means the unmodified model.
        """
        self.name = name
        self.model, self.artifact, self.say = model, artifact, say
        self.progress = progress
        self.max_length = min(max_length, model.context)
        self.encoder = model.encoder()
        self._foreign: dict[Path, ForeignRewardModel] = {}
        self._scores: dict[str, dict[Key, list[float]]] = {}

    # Roles

    def role(self, reference: str) -> str:
        """Load the role of a reference, with its scalar head if it has one, and return the role's name."""
        name = self._role_name(reference)
        self._open(name, reference)
        return name

    def open(self, name: str) -> None:
        """Load a role by its name, which `role` has returned in another process."""
        self._open(name, name.replace("|", "/"))

    def _open(self, name: str, reference: str) -> None:
        if name not in self.model.roles:
            folder = self.artifact(reference)
            head: HeadKind = "scalar" if has_score(folder) else "language"
            self.model.add_role(name, start=folder, head=head)

    def forget(self, reference: str) -> None:
        """Drop a role, so that it is read from disk again."""
        self._scores.pop(reference, None)
        name = self._role_name(reference)
        if name != BASE and name in self.model.roles:
            self.model.drop_role(name)

    def _role_name(self, reference: str) -> str:
        return BASE if reference == self.name else reference.replace("/", "|")  # of a folder

    # Scores

    def forget_scores(self) -> None:
        """Score everything again. Cached scores change which responses are packed together, so the last bits differ."""
        self._scores.clear()

    def scores(self, stage: str, groups: Sequence[Group]) -> list[float | None]:
        """Return a reward model's scores of all responses in order; None if the prompt does not fit."""
        folder = self.artifact(stage)
        if Path(stage).is_absolute() and not self.model.base.has_adapter(folder):
            if folder not in self._foreign:
                self._foreign[folder] = ForeignRewardModel(folder, self.model)
            foreign = self._foreign[folder]
            scores = foreign.scores(groups)
            self._report_unread(stage, foreign.encoder)
            return scores
        role = self.role(stage)
        self.encoder.forget_counts()
        encoded = [self.encoder.encode(group, self.max_length, scoring=True) for group in groups]
        self._report_unread(stage, self.encoder)
        known = self._score_new(stage, role, [e for e in encoded if e is not None and e.rows])
        scores = []
        for group, e in zip(groups, encoded, strict=True):
            if e is None:
                scores += [None] * len(group.responses)
            elif e.rows:
                scores += known[_key(e)]
        if len(known) > SCORED_GROUPS:
            known.clear()
        return scores

    def _score_new(self, stage: str, role: str, encoded: Sequence[Encoded]) -> dict[Key, list[float]]:
        """Score the groups that have no score yet: several rewards of an evaluation may use the same reward model."""
        known = self._scores.setdefault(stage, {})
        new = {key: e for e in encoded if (key := _key(e)) not in known}
        with self.progress(f"scoring with {stage}", len(new)) as done:
            values = iter(measure(self.model, role, list(new.values()), "scores", done=done))
        for key, e in new.items():
            known[key] = [float(next(values)) for _ in e.rows]
        return known

    def _report_unread(self, stage: str, encoder: Encoder) -> None:
        """Report responses that the reward model could not read in full."""
        for case, problem in (
            ("cut", "responses truncated at max_length before scoring"),
            ("no_room", "groups without a score, because their prompts fill max_length"),
        ):
            if count := encoder.counts[case]:
                self.say(f"{stage}: {problem}: {count} ({previews(encoder.groups[case])})")
        encoder.forget_counts()

    # Log-probabilities

    def logprobs(self, role: str, groups: Sequence[Group], *, temperature: float = 1.0) -> list[Tensor]:
        """See `alignkit.Models`."""
        self._check_tokens(role, groups)
        encoded = [self.encoder.encode(group, self.max_length) for group in groups]
        fitting = [e for e in encoded if e is not None]
        name = self.role(role)
        with self.progress(f"log-probabilities of {role}", len(fitting)) as done:
            values = iter(measure(self.model, name, fitting, "logprobs", temperature=temperature, done=done))
        return [
            torch.zeros(0) if e is None else next(values)
            for e, group in zip(encoded, groups, strict=True)
            for _ in group.responses
        ]

    def _check_tokens(self, role: str, groups: Sequence[Group]) -> None:
        """Raise OtherTokenizer for sampled tokens that mean something else to this model."""
        for group in groups:
            if any(response.tokens is not None and not self.encoder.reads(response) for response in group.responses):
                raise OtherTokenizer(
                    f"'{role}' has another tokenizer, or ends its turns with another token, than the model that "
                    f"answered {preview(group)}: log-probabilities of these tokens mean nothing\n"
                    "help: compare models with the same tokenizer and chat template, or compare texts with a reward"
                )

    def reference_logprobs(self, reference: str, encoded: Sequence[Encoded]) -> list[Tensor]:
        """Measure the log-probabilities of a role that is not trained; fp32 [tokens] per response."""
        role = self.role(reference)
        with self.progress(f"log-probabilities of {reference}", len(encoded)) as done:
            return measure(self.model, role, encoded, "logprobs", done=done)

    @torch.no_grad()
    def next_token_logprobs(
        self, role: str, prompts: Sequence[Sequence[Message]], answers: Sequence[str], *, prefill: str = ""
    ) -> Tensor:
        """See `alignkit.Models`. Raises SameFirstToken if two answers begin with the same token."""
        name = self.role(role)
        asked = [self.encoder.answers(prompt, prefill, answers) for prompt in prompts]
        rows = [row for row, _ in asked]
        if not all(rows):
            raise DataError("cannot answer an empty prompt: this tokenizer does not begin texts with a special token")
        first = torch.tensor([[tokens[0] for tokens in each] for _, each in asked], dtype=torch.long)
        if any(len(set(row)) < len(row) for row in first.tolist()):
            raise SameFirstToken(f"the answers {list(answers)} begin with the same token; choose others")
        logprobs = torch.full((len(rows), len(answers)), float("nan"))
        fitting = [index for index, row in enumerate(rows) if len(row) <= self.model.context]
        questions = [Encoded(Group(()), rows[index], ()) for index in fitting]

        def measure_all(done: Callable[[int], None]) -> None:
            measured = 0
            for batch in micro_batches(questions, self.model.inference_budget):
                packed = pack([questions[index] for index in batch])
                hidden = self.model.hidden(name, packed.layout, packed.tokens)
                ends = [span.start + span.prompt - 1 for span in packed.layout.spans]
                next_logprobs = torch.log_softmax(self.model.next_logits(name, hidden[ends]), dim=-1)
                chosen = [fitting[index] for index in batch]
                logprobs[chosen] = next_logprobs.cpu().gather(1, first[chosen])
                done(measured := measured + len(batch))

        with self.progress(f"asking {role}", len(questions)) as done:
            within_memory(self.model.memory, lambda: measure_all(done))
        return logprobs

    # Samples

    def prompt_lengths(self, role: str, prompts: Sequence[Group]) -> list[int]:
        """See `alignkit.Models`."""
        return [len(self.encoder.prompt(group.prompt, group.tools)) for group in prompts]

    def sample(self, role: str, prompts: Sequence[Group], *, seed: int, **sampling: Any) -> list[Group]:
        """See `alignkit.Models`. Prompts that leave no room for `max_new_tokens` are returned without responses."""
        options = Sampling(**sampling)
        name = self.role(role)
        if self.model.roles[name].head is not None:
            raise RunFailed(f"'{role}' is a reward model: it cannot answer prompts")
        groups = [Group(group.prompt, tools=group.tools) for group in prompts]
        fitting = [i for i, group in enumerate(groups) if self.fits(group, self.max_length, options.max_new_tokens)]
        # Streams are named by the index among all prompts, so that leaving one out changes no other sample.
        asked, count = [groups[i] for i in fitting], len(fitting) * options.samples_per_prompt
        with self.progress(f"sampling from {role}", count) as done:
            sampled = sample(self.model, name, self.encoder, asked, options, seed=seed, numbers=fitting, done=done)
        answered = dict(zip(fitting, sampled, strict=True))
        return [answered.get(i, group) for i, group in enumerate(groups)]

    def export(self, role: str, folder: Path, *, bases: bool = False) -> list[str]:
        """See `alignkit.Models`."""
        model, tokenizer = self.model, self.model.tokenizer
        saved = None if self._role_name(role) == BASE else self.artifact(role)
        if saved is None and not bases:
            raise RunFailed(f"'{role}' is a base model, which is whole already")
        if saved is not None and has_score(saved):
            tokenizer = with_padding(tokenizer, model.model.config)
        return export(saved, folder, model.base, model.spec, model.dtype, tokenizer, self.encoder.end_ids)

    def fits(self, group: Group, max_length: int, new_tokens: int) -> bool:
        """Whether a prompt leaves room for `new_tokens`."""
        return len(self.encoder.prompt(group.prompt, group.tools)) + new_tokens <= max_length


def _key(encoded: Encoded) -> Key:
    return (encoded.prompt, *(row.tokens for row in encoded.rows))


# Several base models


class ModelRouter:
    """Implements `alignkit.Models` with one ModelService per base model, each opened on first use.

    services: those that are open. stage, needed: the current stage, and the base models of all references that it
    names, its own first.
    """

    def __init__(self, base_of: Callable[[str], str | None], open: Callable[[str], ModelService]):
        """base_of: the base model of a reference; None: whichever the current stage is on."""
        self._base_of, self._open = base_of, open
        self.services: dict[str, ModelService] = {}
        self.stage = ""
        self.needed: tuple[str, ...] = ()

    def of(self, base: str) -> ModelService:
        """The service of a base model. Raises RunFailed if the stage's result would depend on it unnoticed."""
        if self.needed and base not in self.needed:
            raise RunFailed(
                f"stage '{self.stage}' uses the base model '{base}', which it does not name\n"
                "help: a plugin must name the models that it uses in its options (PolicyRef, StageRef, RewardRef)"
            )
        if base not in self.services:
            self.services[base] = self._open(base)
        return self.services[base]

    def enter(self, stage: str, needed: Sequence[str], later: Iterable[str]) -> None:
        """Begin a stage. Base models that neither it nor a later stage needs are freed, as are those in parts.

        The next stage may work in one process only, which needs all weights.
        """
        self.stage, self.needed = stage, tuple(needed)
        kept = {*needed, *later}
        for base in [b for b, service in self.services.items() if b not in kept or service.model.passes.spread]:
            self.close(base)

    def close(self, base: str) -> None:
        """Free a base model with all its roles; it is loaded again if anything needs it."""
        device = self.services.pop(base).model.device
        gc.collect()  # recomputable layers hold references to themselves
        release_cached(device)
        trim()

    def forget(self, reference: str) -> None:
        """See `ModelService.forget`."""
        for service in self.services.values():
            service.forget(reference)

    def forget_scores(self) -> None:
        """See `ModelService.forget_scores`."""
        for service in self.services.values():
            service.forget_scores()

    # alignkit.Models

    def scores(self, stage: str, groups: Sequence[Group]) -> list[float | None]:
        """See `alignkit.Models`."""
        service, groups = self._routed(stage, groups)
        return service.scores(stage, groups)

    def logprobs(self, role: str, groups: Sequence[Group], *, temperature: float = 1.0) -> list[Tensor]:
        """See `alignkit.Models`."""
        service, groups = self._routed(role, groups)
        return service.logprobs(role, groups, temperature=temperature)

    def next_token_logprobs(
        self, role: str, prompts: Sequence[Sequence[Message]], answers: Sequence[str], *, prefill: str = ""
    ) -> Tensor:
        """See `alignkit.Models`."""
        return self._service(role).next_token_logprobs(role, prompts, answers, prefill=prefill)

    def prompt_lengths(self, role: str, prompts: Sequence[Group]) -> list[int]:
        """See `alignkit.Models`."""
        return self._service(role).prompt_lengths(role, prompts)

    def sample(self, role: str, prompts: Sequence[Group], *, seed: int, **sampling: Any) -> list[Group]:
        """See `alignkit.Models`."""
        return self._service(role).sample(role, prompts, seed=seed, **sampling)

    def export(self, role: str, folder: Path, *, bases: bool = False) -> list[str]:
        """See `alignkit.Models`."""
        return self._service(role).export(role, folder, bases=bases)

    @property
    def _home(self) -> str:
        """The base model of the current stage."""
        return self.needed[0] if self.needed else BASE

    def _service(self, reference: str) -> ModelService:
        return self.of(self._base_of(reference) or self._home)

    def _routed(self, reference: str, groups: Sequence[Group]) -> tuple[ModelService, Sequence[Group]]:
        """The service of a reference, and the groups as it may read them: tokens without a mark are the stage's own."""
        service = self._service(reference)
        if service.name == self._home or not any(_is_unmarked(r) for group in groups for r in group.responses):
            return service, groups
        digest = self.of(self._home).encoder.digest
        return service, [
            replace(g, responses=tuple(replace(r, tokenizer=digest) if _is_unmarked(r) else r for r in g.responses))
            for g in groups
        ]


def _is_unmarked(response: Any) -> bool:
    return response.tokens is not None and response.tokenizer is None
