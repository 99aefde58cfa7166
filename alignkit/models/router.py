"""The models of a run with one or several base models: each reference goes to the service of its base model."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from alignkit.data.group import Group, Message
from alignkit.errors import RunFailed
from alignkit.kernels.memory import release_cached, trim
from alignkit.models.service import ModelService
from alignkit.models.shared_model import BASE


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

    def logprobs(
        self, role: str, groups: Sequence[Group], *, temperature: float = 1.0, by_engine: bool = False
    ) -> list[Tensor]:
        """See `alignkit.Models`."""
        service, groups = self._routed(role, groups)
        return service.logprobs(role, groups, temperature=temperature, by_engine=by_engine)

    def next_token_logprobs(
        self, role: str, prompts: Sequence[Sequence[Message]], answers: Sequence[str], *, prefill: str = ""
    ) -> Tensor:
        """See `alignkit.Models`."""
        return self._service(role).next_token_logprobs(role, prompts, answers, prefill=prefill)

    def sample(self, role: str, prompts: Sequence[Sequence[Message]], *, seed: int, **sampling: Any) -> list[Group]:
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
