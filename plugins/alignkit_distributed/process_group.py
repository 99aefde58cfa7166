"""The processes of a run as one team: process 0 leads, and the others do as it says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from alignkit.errors import RunFailed, message_of
from alignkit.io.changes import differences
from alignkit.runs.team import Team
from alignkit.runs.world import World
from alignkit.stopping import Stopped

if TYPE_CHECKING:
    from alignkit.models.passes import Passes
    from alignkit.models.service import ModelService
    from alignkit_distributed.kv_store import Board, Failure
    from alignkit_distributed.reducer import ProcessReducer
    from alignkit_distributed.watch import Watch

POLL = 0.1  # seconds between two looks at the board
ENDING = 3.0  # seconds in which all processes meet the same error
PARTING = 60.0  # seconds that process 0 has for its reports, once a run is over
ENDS, ORDER = "ends", "order"  # notes of process 0


class Processes(Team):
    """One of several processes."""

    reducer: ProcessReducer

    def __init__(self, world: World, reducer: ProcessReducer, board: Board, watch: Watch):
        self.world, self.reducer, self.board, self.watch = world, reducer, board, watch
        self._number = 0  # of the next order

    # What all do

    def should_stop(self, check: Callable[[], None]) -> None:
        ends: list[BaseException] = []
        try:
            check()
        except Stopped as stopped:
            ends.append(stopped)
        self.reducer.together(ends)

    @contextmanager
    def training(self, stage: str, parts: Mapping[str, Any]) -> Iterator[None]:
        if self.world.leads:
            self._order(stage, parts["upstream"])
        self.watch.sharing = True
        try:
            self.compare(f"stage '{stage}'", parts)
            yield
        finally:
            self.watch.sharing = False

    def passes(self, base: str, service: ModelService) -> Passes:
        return self.reducer.passes_of(base, service, lambda: self.watch.sharing)

    def compare(self, what: str, facts: Mapping[str, Any]) -> None:
        """Raise RunFailed in every process if facts are not alike in all of them."""
        own = json.loads(json.dumps(facts, default=str))
        first, *others = self.reducer.gather(own)
        for process, theirs in enumerate(others, 1):
            if found := differences(first, theirs):
                more = f" and {len(found) - 5} more" if len(found) > 5 else ""
                raise RunFailed(
                    f"{what} is not the same in process 0 and in process {process}: {', '.join(found[:5])}{more}\n"
                    "help: let every machine have the same files, the same packages and the same command"
                )

    # Process 0

    def _order(self, stage: str | None, upstream: Mapping[str, str]) -> None:
        """Let the others train a stage; None: there is nothing more to do. upstream: the hashes of earlier stages."""
        self.board.write(f"{ORDER}/{self._number}", [stage, upstream])
        self._number += 1

    def ends(self, error: BaseException | None) -> None:
        if not self.world.leads:
            return
        code = 0 if error is None else getattr(error, "exit_code", 1)
        self.board.write(ENDS, {"message": "" if error is None else message_of(error), "exit_code": code})
        self._order(None, {})

    def part(self) -> None:
        """Leave: process 0 first, because a launcher ends the others as soon as one has failed."""
        if self.world.leads:
            self.board.write("parted", True)
        else:
            self._await(lambda: self.board.read("parted"), PARTING)
        self.watch.stop()

    # The others

    def heard(self) -> tuple[str | None, dict[str, str]]:
        """Wait for the next stage to train, None if there is none, and the hashes of the stages before it."""
        while (order := self.board.read(f"{ORDER}/{self._number}")) is None:
            time.sleep(POLL)
        self._number += 1
        stage, upstream = order
        return stage, upstream

    def fails(self, failure: Failure) -> bool:
        """Tell the others why this process ends. Returns whether process 0 ends in the same way, and says so itself."""
        self.board.fail(failure)
        return self._await(lambda: self.board.read(ENDS), ENDING) is not None

    def _await(self, read: Callable[[], Any], seconds: float) -> Any:
        until = time.monotonic() + seconds
        while (found := read()) is None and time.monotonic() < until:
            time.sleep(POLL)
        return found
