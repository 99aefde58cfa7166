"""The processes of a run as one team, as stages see it. Here it is one process; a launcher has several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alignkit.runs.world import World
from alignkit.training.collectives import ONE_PROCESS, Collectives

if TYPE_CHECKING:
    from alignkit.models.memory import Passes
    from alignkit.models.models import LoadedBase


class Team:
    """The only process of a run. collectives: what the processes exchange."""

    world = World()
    collectives: Collectives = ONE_PROCESS

    def should_stop(self, check: Callable[[], None]) -> None:
        """Raise Stopped in every process if `check` does in one."""
        check()

    @contextmanager
    def training(self, stage: str, parts: Mapping[str, Any]) -> Iterator[None]:
        """Let every process train a stage. parts: what its result depends on, which must be alike.

        Raises RunFailed if it is not.
        """
        yield

    def passes(self, base: str, service: LoadedBase) -> Passes:
        """How passes through a base model begin and end. service: of its roles."""
        return service.model.passes

    def ends(self, error: BaseException | None) -> None:
        """Let the others end, before reports are written."""


ALONE = Team()
