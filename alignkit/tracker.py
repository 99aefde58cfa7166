"""The interface of trackers: where the metrics of a run are shown, such as TensorBoard or Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.options import WithOptions

_NOT_METRICS = ("stage", "step", "time")


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker knows of a run.

    Attributes:
        folder: The run's.
        recipe: As plain data with absolute paths.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)


class Tracker(WithOptions):
    """Base class of a tracker. It observes: what it does, and whether it fails, changes no result."""

    def check(self) -> None:
        """Raise RunFailed for a mistake of the user, such as a missing package; called before the run's first stage."""

    def start(self, run: TrackedRun) -> None:
        """Begin, or continue after an interruption; called before the first line, in a run that has a new one.

        Args:
            run: Its name, folder and recipe.
        """

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        """Numbers of a step or iteration of a stage.

        A run that is resumed repeats the steps after its last checkpoint.

        Args:
            stage: Its name.
            step: Counts from 1.
            metrics: Numbers by name.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define `log(stage, step, metrics)`")

    def finish(self) -> None:
        """Write what is pending; the last call."""


def tracked(line: Mapping[str, Any], number: int) -> tuple[str, int, dict[str, float]]:
    """Stage, step and numbers of a line of `metrics.jsonl`. number: the step of a line without one.

    "nan" and "inf" become floats again; other texts are left out.
    """
    metrics = {name: value for name, text in line.items() if (value := _number(text)) is not None}
    metrics = {name: value for name, value in metrics.items() if name not in _NOT_METRICS}
    step = line.get("step")
    return str(line.get("stage", "")), step if isinstance(step, int) else number, metrics


def _number(value: Any) -> float | None:
    if isinstance(value, bool | int | float):
        return float(value)
    return float(value) if value in ("nan", "inf", "-inf") else None
