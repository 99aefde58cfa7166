"""The rules of trackers: they take any numbers of several stages, and begin again after an interruption."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignkit.calls import call, create
from alignkit.registry import Component
from alignkit.testing.surroundings import Surroundings, conform
from alignkit.tracker import TrackedRun, Tracker, tracked

LINES: tuple[tuple[str, int, dict[str, float]], ...] = (
    ("first", 1, {"loss": 2.5, "grad_norm": 0.1}),
    ("first", 2, {"loss": float("nan"), "validation/loss": 1.0}),
    ("second", 1, {"reward": -3.0, "kl": float("inf"), "filtered/spread": 0.0}),  # a later stage counts from 1 again
    ("second", 2, {}),
)


def check_tracker(cls: type[Tracker], options: Mapping[str, Any] | None = None, *, folder: Path | None = None) -> None:
    """Raise ConformanceError listing every rule that a tracker breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe. The tracker really logs two short stages of a run that is interrupted once.
        folder: The recipe's; default: the current one.
    """
    conform("tracker", cls, options, _problems, folder=folder)


def _problems(around: Surroundings, component: Component) -> Iterator[str]:
    run = TrackedRun("checked", around.cache / "run", {"name": "checked", "stages": {"first": {}, "second": {}}})
    run.folder.mkdir()
    for lines in (LINES[:2], LINES[2:]):
        tracker = create(component)
        call(tracker, "check")
        call(tracker, "start", run)
        for stage, step, metrics in lines:
            given = copy.deepcopy(metrics)
            call(tracker, "log", stage, step, given)
            if repr(given) != repr(metrics):
                yield "`log` changes the metrics that it is given"
        call(tracker, "finish")


def replay(folder: Path, tracker: Tracker, recipe: Mapping[str, Any] | None = None) -> int:
    """Give a tracker all that a run's `metrics.jsonl` holds, from its start to its finish; returns how many lines.

    Args:
        folder: The run.
        tracker: Takes the numbers.
        recipe: The resolved recipe.
    """
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()  # a process that was killed leaves a part of a line
    tracker.start(TrackedRun(folder.resolve().name, folder, recipe or {}))
    numbers: dict[str, int] = {}
    for line in map(json.loads, filter(str.strip, lines)):
        stage = str(line.get("stage", ""))
        numbers[stage] = numbers.get(stage, 0) + 1
        tracker.log(*tracked(line, numbers[stage]))
    tracker.finish()
    return sum(numbers.values())
