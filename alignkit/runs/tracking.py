"""The trackers of a run, each in a thread of its own: one that fails, hangs or falls behind is dropped and reported.

The thread takes lines from a bounded queue, so training never waits. A small file per tracker says how many lines of
each stage it was given, so a resumed run repeats none; what an earlier run did not get to is caught up from
`metrics.jsonl`.
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.author import made
from alignkit.io.progress import Metrics
from alignkit.recipe.schema import Recipe
from alignkit.registry import Component
from alignkit.tracker import TrackedRun, Tracker, tracked

MOST_WAITING = 10_000  # lines in the queue of a tracker
FINISH_SECONDS = 10.0  # that a run waits for a tracker at its end
DROPPED = "it is dropped for the rest of this run; metrics.jsonl has everything"

Line = tuple[str, str, int, dict[str, Any]]  # stage, its hash, the line's number from 1, the line


class TrackerThread:
    """One tracker. problem: why it was dropped; empty while it works."""

    def __init__(self, component: Component, run: TrackedRun):
        self.name, self.run = component.name, run
        self.tracker: Tracker
        self.tracker, self.author = made(component)
        self.problem = ""
        self.place = run.folder / "trackers" / f"{component.name}.json"
        self.given = _read(self.place)  # stage -> [its hash, lines]
        self._queue: queue.Queue[Sequence[Line] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker-{component.name}", daemon=True)
        self._thread.start()

    def put(self, *lines: Line) -> None:
        """Hand lines over without waiting. Together they take one place in the queue."""
        if self.problem or not lines:
            return
        try:
            self._queue.put_nowait(lines)
        except queue.Full:
            self.problem = f"has {self._queue.maxsize} lines waiting"

    def finish(self, seconds: float) -> None:
        """Let the tracker end; wait for at most that long."""
        if self.problem:
            return
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self.problem = f"has {self._queue.maxsize} lines waiting"
            return
        self._thread.join(seconds)
        if self._thread.is_alive():
            self.problem = f"did not finish within {seconds:g} seconds"

    def _work(self) -> None:
        method = "start"
        try:
            self.tracker.start(self.run)
            while not self.problem and (lines := self._queue.get()) is not None:
                method = "log"
                for line in lines:
                    self._log(line)
            method = "finish"
            if not self.problem:
                self.tracker.finish()
        except BaseException as error:  # of a stranger's code, and sys.exit() too: training continues
            self.problem = f"failed in `{method}`: {type(error).__name__}: {error}"

    def _log(self, line: Line) -> None:
        stage, stage_hash, number, values = line
        known, count = self.given.get(stage, ["", 0])
        if known == stage_hash and number <= count:
            return
        self.tracker.log(*tracked(values, number))
        self.given[stage] = [stage_hash, number]
        self.place.parent.mkdir(parents=True, exist_ok=True)
        new = self.place.with_suffix(".new")
        new.write_text(json.dumps(self.given), encoding="utf-8")
        os.replace(new, self.place)


class Trackers:
    """All trackers of a run. say: prints one line."""

    def __init__(self, recipe: Recipe, folder: Path, say: Callable[[str], None]):
        run = TrackedRun(recipe.name, folder, recipe.resolved)
        self.threads = [TrackerThread(component, run) for component in recipe.trackers]
        self.say = say
        self._reported: set[str] = set()
        self._hash = ""
        self._lines = 0  # of the current stage

    def followed(self, metrics: Metrics, stage_hash: str) -> Metrics:
        """The metrics of a stage that begins or continues, whose lines go to the trackers from now on."""
        self.follow(stage_hash, metrics.path)
        metrics.follower = self.write
        return metrics

    def follow(self, stage_hash: str, file: Path) -> None:
        """Catch up with what the metrics.jsonl of a stage holds."""
        self._hash, self._lines = stage_hash, 0
        if not self.threads or not file.exists():
            return
        # At once: a long stage has more lines than the queue, and they come faster than a tracker can show them.
        self._put(*map(json.loads, file.read_text(encoding="utf-8").splitlines()))

    def write(self, line: Mapping[str, Any]) -> None:
        """A new line of the current stage's metrics.jsonl."""
        self._put(line)

    def _put(self, *lines: Mapping[str, Any]) -> None:
        numbered = [
            (str(line.get("stage", "")), self._hash, number, dict(line))
            for number, line in enumerate(lines, self._lines + 1)
        ]
        self._lines += len(lines)
        for thread in self.threads:
            thread.put(*numbered)
        self._report()

    def finish(self) -> None:
        """End all trackers, and report those that do not end."""
        for thread in self.threads:
            thread.finish(FINISH_SECONDS)
        self._report()

    def _report(self) -> None:
        for thread in self.threads:
            if thread.problem and thread.name not in self._reported:
                self._reported.add(thread.name)
                self.say(f"warning: tracker '{thread.name}' ({thread.author}) {thread.problem}; {DROPPED}")


def _read(place: Path) -> dict[str, list[Any]]:
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        return {str(stage): [str(known), int(count)] for stage, (known, count) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
