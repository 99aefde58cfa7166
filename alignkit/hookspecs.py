"""What can be extended: every hook a plugin may implement, in the order in which a run meets them.

A plugin registers with `@alignkit.hookimpl` functions in a module named in the entry-point group `alignkit`.
`register(name, implementation, summary="one line")` may be called several times. Implementations may take fewer arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alignkit.data.group import Group

hookspec = pluggy.HookspecMarker("alignkit")
hookimpl = pluggy.HookimplMarker("alignkit")


class Register(Protocol):
    """Claims a name for a thing; two claims on one name are an error when somebody asks for it."""

    def __call__(self, name: str, implementation: Any, *, summary: str = "") -> None: ...


# What a recipe can name.


@hookspec
def register_models(register: Register) -> None:
    """Sources of base models: `source(cache: Path) -> Path` gives a local transformers folder for `model.base`."""


@hookspec
def register_formats(register: Register) -> None:
    """Data formats: subclasses of `alignkit.Format`."""


@hookspec
def register_algorithms(register: Register) -> None:
    """Algorithms: subclasses of `alignkit.Algorithm`."""


@hookspec
def register_rewards(register: Register) -> None:
    """Rewards: subclasses of `alignkit.Reward`."""


@hookspec
def register_combinations(register: Register) -> None:
    """Combinations of rewards: subclasses of `alignkit.RewardCombination`. They share one name space with rewards."""


@hookspec
def register_judges(register: Register) -> None:
    """Judges: subclasses of `alignkit.Judge`."""


@hookspec
def register_steps(register: Register) -> None:
    """Steps: subclasses of `alignkit.Step`."""


# The time-line of a run. Observers only: what they return is ignored, and they change no mathematics.


@hookspec
def run_started(run: Any) -> None:
    """A run begins. :param run: has `folder`, `recipe` and `request_stop(reason)`."""


@hookspec
def stage_started(run: Any, stage: str) -> None:
    """A stage begins or continues. :param stage: its name."""


@hookspec
def rollouts_scored(run: Any, stage: str, iteration: int, groups: list[Group]) -> None:
    """The rollouts of an iteration have their scores."""


@hookspec
def metrics_logged(run: Any, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """Metrics of an optimiser step or iteration were written."""


@hookspec
def checkpoint_saved(run: Any, stage: str, path: str) -> None:
    """A checkpoint is complete on disk."""


@hookspec
def stage_finished(run: Any, stage: str, reused: bool) -> None:
    """A stage's artifact is complete. :param reused: it was taken from an earlier run."""


@hookspec
def run_finished(run: Any, error: BaseException | None) -> None:
    """The run ended. :param error: None when it succeeded."""
