"""The context for reading one stage: state shared by the whole recipe, and the meaning of names in this stage."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alignkit.algorithm import Trains
from alignkit.data.sources import DataSpec
from alignkit.errors import did_you_mean
from alignkit.recipe.document import Keys
from alignkit.recipe.paths import Paths
from alignkit.recipe.problems import Problems, path_text, shown
from alignkit.recipe.rounds import OUTSIDE, Rounds
from alignkit.recipe.schema import BASE
from alignkit.registry import Registration, Registry

StageKind = Literal["algorithm", "step"]


@dataclass(frozen=True)
class Declared:
    """The kind and plugin of a stage that is declared but not read yet."""

    kind: StageKind
    registration: Registration

    @property
    def trains_reward(self) -> bool:
        """Whether the stage trains a reward model."""
        return self.kind == "algorithm" and self.registration.implementation.trains is Trains.REWARD


@dataclass(frozen=True)
class Scope:
    """A recipe being read, and the stage that is being read.

    resolvers: functions that read a reference, by its kind. declared: every stage, or None if its plugin is unknown.
    bases: names of base models. versions: all `stage@k` references. upstream: stages that this stage needs. folders: of
    other runs' weights that it needs. roles: all models that it names. failed: invalid values of this stage, whose
    references are not checked. sources: the data that the whole recipe names.
    """

    problems: Problems
    paths: Paths
    registry: Registry
    rounds: Rounds
    resolvers: Mapping[str, Resolver]
    declared: dict[str, Declared | None] = field(default_factory=dict)
    bases: Collection[str] = (BASE,)
    versions: list[tuple[Keys, str]] = field(default_factory=list)
    stage: str = OUTSIDE
    upstream: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    failed: set[Keys] = field(default_factory=set)
    sources: list[DataSpec] = field(default_factory=list)

    def resolve_name(self, reference: Any) -> Any:
        """Return a reference with the actual name of its stage. Anything but text is unchanged."""
        return self.rounds.resolve_name(self.stage, reference) if isinstance(reference, str) else reference

    def is_missing(self, reference: str) -> bool:
        """Whether the name means nothing yet in round 1 of a block."""
        return self.rounds.is_missing(self.stage, reference)

    def all_rounds(self, reference: Any) -> list[str] | None:
        """Return the stages that `NAME@all` means here, or None if the reference is something else."""
        return self.rounds.all_rounds(self.stage, reference)

    def is_stage(self, reference: str) -> bool:
        """Whether a reference names a declared stage, perhaps one of its versions."""
        return reference.partition("@")[0] in self.declared

    def trains_reward(self, reference: str) -> bool | None:
        """Whether a stage trains a reward model; None if that is unknown."""
        declared = self.declared.get(reference.partition("@")[0])
        return declared.trains_reward if declared else None

    def suggest_stage(self, name: str) -> str:
        """Return the help for a name that is not a stage."""
        known = [*self.declared, *self.bases]
        return did_you_mean(name, known) or f"stages: {', '.join(known)}"


Resolver = Callable[[Any, Keys, Scope], Any]  # value, place, scope -> the object that the reference means, or None


def report_two_meanings(name: str, keys: Keys, scope: Scope) -> None:
    """Report a name that a stage and a base model have."""
    message = f"'{name}' is the name of a stage and of a base model, so that a reference to it is ambiguous"
    help = f"rename the base model, for instance to '{name}-base', in 'bases' and wherever it is meant"
    scope.problems.error(keys, message, at_key=True, help=help)


def check_stage(reference: Any, keys: Keys, scope: Scope) -> bool:
    """Check a base model, `stage` or `stage@k`, and record it as upstream of the stage being read."""
    if not isinstance(reference, str):
        scope.problems.error(keys, f"{path_text(keys)}: expected a stage name, got {shown(reference)}")
        return False
    name, at, version = reference.partition("@")
    if name in scope.bases and not at:
        return True
    if fault := _stage_fault(name, at, version, scope):
        message, help = fault
        scope.problems.error(keys, message, help=help)
        return False
    if at:
        scope.versions.append((keys, reference))
    if name not in scope.upstream:
        scope.upstream.append(name)
    return True


def _stage_fault(name: str, at: str, version: str, scope: Scope) -> tuple[str, str] | None:
    """Return the message and help if a reference does not name a usable stage."""
    if name in scope.bases:
        return f"'{name}' is the unmodified model and has no versions", ""
    if name not in scope.declared:
        if scope.is_missing(name):
            help = f"add 'start: {{{name}: STAGE}}' next to 'repeat' to say what '{name}' means in round 1"
            return f"'{name}' does not exist yet in round 1", help
        return f"no stage '{name}'", scope.suggest_stage(name)
    if name == scope.stage:
        return f"stage '{name}' refers to itself", ""
    if at and not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        message = f"'{name}@{version}': '@' must be followed by an epoch or iteration number, starting at 1"
        return message, ""
    return None
