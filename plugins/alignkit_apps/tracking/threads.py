"""The trackers of a run, each in a thread of its own: one that fails, hangs or falls behind is dropped and reported.

The thread takes lines from a bounded queue, so training never waits. A small file per tracker says how many lines of
each result it was given, so a run that resumes, reuses or restores a stage repeats none; what an earlier run did not
get to is caught up from `metrics.jsonl`.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.io.atomic import UNFINISHED, make_folder
from alignkit.io.leaving import end_within
from alignkit.io.progress import Metrics
from alignkit.plugin_errors import made
from alignkit.recipe.schema import Recipe
from alignkit.registry import Component
from alignkit.tracker import TrackedRun, Tracker, tracked

MOST_WAITING = 10_000  # lines in the queue of a tracker
FINISH_SECONDS = 60.0  # that a run waits at its end for all of its trackers together: MLflow's first start takes 20
QUIET_SECONDS = 2.0  # of them, before it says so
EXIT_SECONDS = 5.0  # that the process then waits for what a hanging tracker has started
DROPPED = "it is dropped for the rest of this run; metrics.jsonl has everything"

Line = tuple[str, str, int, dict[str, Any]]  # stage, its hash, the line's number from 1, the line


class Given:
    """How many lines of each result a tracker was given, in a file that is replaced after each line.

    So no line is lost. If the process is killed between the two, that one line is given again; after a power failure,
    all lines whose counts were not on the disk yet.
    """

    def __init__(self, path: Path):
        self.path = path
        self._counts: dict[str, int] = {}  # of lines, by stage and its hash
        with suppress(OSError, ValueError, TypeError):
            self._counts = dict(json.loads(path.read_text(encoding="utf-8")))

    def has(self, stage: str, stage_hash: str, number: int) -> bool:
        """Whether the tracker was given this line of this result."""
        return number <= self._counts.get(f"{stage} {stage_hash}", 0)

    def add(self, stage: str, stage_hash: str, number: int) -> None:
        """Note a line."""
        self._counts[f"{stage} {stage_hash}"] = number
        new = self.path.with_name(f".{self.path.name}{UNFINISHED}")
        new.write_text(json.dumps(self._counts), encoding="utf-8")
        new.replace(self.path)


class TrackerThread:
    """One tracker. author: its plugin, and the stage of the line that it was given last. problem: why it was dropped;
    empty while it works.
    """

    def __init__(self, component: Component, run: TrackedRun):
        self.name, self.run = component.name, run
        self.tracker: Tracker
        self.tracker, self.author = made(component)
        self.problem = ""
        self.given = Given(run.folder / "trackers" / f"{component.name}.json")
        self._queue: queue.Queue[Sequence[Line] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker-{component.name}", daemon=True)

    def start(self) -> None:
        """Let the tracker begin."""
        self._thread.start()

    def put(self, *lines: Line) -> None:
        """Hand lines over without waiting. Together they take one place in the queue."""
        if lines:
            self._put(lines)

    def end(self) -> None:
        """Let the tracker end after the lines that wait."""
        self._put(None)

    def join(self, seconds: float) -> bool:
        """Wait for its end, for at most that long. Returns whether it ended."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _put(self, lines: Sequence[Line] | None) -> None:
        if self.problem:
            return
        try:
            self._queue.put_nowait(lines)
        except queue.Full:
            self.problem = f"has {self._queue.maxsize} lines waiting"

    def _work(self) -> None:
        method = ""
        try:
            while not self.problem and (lines := self._queue.get()) is not None:
                for line in lines:
                    if self.given.has(*line[:3]):
                        continue
                    self.author = replace(self.author, stage=line[0])
                    if not method:  # here, so that a run with nothing new shows nothing
                        method = "start"
                        make_folder(self.given.path.parent)
                        self.tracker.start(self.run)
                    method = "log"
                    self.tracker.log(*tracked(line[3], line[2]))
                    self.given.add(*line[:3])
            if method and not self.problem:
                method = "finish"
                self.tracker.finish()
        except BaseException as error:  # of a stranger's code, and sys.exit() too: training continues
            self.problem = f"failed in `{method}`: {type(error).__name__}: {error}"


class Trackers:
    """All trackers of a run. say: prints one line."""

    def __init__(self, recipe: Recipe, folder: Path, say: Callable[[str], None]):
        run = TrackedRun(recipe.name, folder, recipe.resolved)
        self.threads = [TrackerThread(component, run) for component in recipe.trackers]
        for thread in self.threads:  # once all are made: a constructor that fails leaves no thread
            thread.start()
        self.say = say
        self._reported: set[str] = set()
        self._hash = ""
        self._lines = 0  # of the current stage

    def follow_metrics(self, metrics: Metrics, stage_hash: str) -> None:
        """Take the lines of a stage that begins or continues, those before and those to come."""
        assert metrics.path is not None  # this process writes them
        self.follow(stage_hash, metrics.path)
        metrics.follower = self.write

    def follow(self, stage_hash: str, file: Path) -> None:
        """Catch up with what the metrics.jsonl of a stage holds."""
        self._hash, self._lines = stage_hash, 0
        if not self.threads or not file.exists():
            return
        # At once: a long stage has more lines than the queue, and they come faster than a tracker can show them.
        self.write(*map(json.loads, file.read_text(encoding="utf-8").splitlines()))

    def write(self, *lines: Mapping[str, Any]) -> None:
        """New lines of the current stage's metrics.jsonl."""
        numbered = [
            (str(line.get("stage", "")), self._hash, number, dict(line))
            for number, line in enumerate(lines, self._lines + 1)
        ]
        self._lines += len(lines)
        for thread in self.threads:
            thread.put(*numbered)
        self._report()

    def finish(self) -> None:
        """End all trackers, and report those that do not end within FINISH_SECONDS, all together."""
        quiet = time.monotonic() + min(QUIET_SECONDS, FINISH_SECONDS)
        until = time.monotonic() + FINISH_SECONDS
        for thread in self.threads:
            thread.end()
        slow = [thread.name for thread in self.threads if not thread.problem and not thread.join(_left(quiet))]
        if slow:
            self.say(f"waiting up to {FINISH_SECONDS:g} seconds for trackers to finish: {', '.join(slow)}")
        for thread in self.threads:
            if not thread.problem and not thread.join(_left(until)):
                thread.problem = f"did not finish within {FINISH_SECONDS:g} seconds"
        if not all(thread.join(0) for thread in self.threads):
            end_within(EXIT_SECONDS)
        self._report()

    def _report(self) -> None:
        for thread in self.threads:
            if thread.problem and thread.name not in self._reported:
                self._reported.add(thread.name)
                self.say(f"warning: tracker '{thread.name}' ({thread.author}) {thread.problem}; {DROPPED}")


def _left(until: float) -> float:
    return max(0.0, until - time.monotonic())
