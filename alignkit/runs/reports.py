"""What a stage leaves behind: its record and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.algorithm import REWARD
from alignkit.io.atomic import write_text
from alignkit.recipe.schema import Stage
from alignkit.report import Report
from alignkit.step import Artifact


def write_report(folder: Path, report: Report) -> None:
    """Write a step's report.txt and report.md."""
    write_text(folder / "report.txt", report.text() + "\n")
    write_text(folder / "report.md", report.markdown())


def stage_record(
    stage: Stage,
    seconds: float,
    summary: Mapping[str, Any],
    artifact: Artifact,
    parts: Mapping[str, Any],
    sources: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The contents of stage.json, without the hash. parts: what the hash is made of. sources: that it read."""
    return {
        **({"log_odds": stage.log_odds} if trains_reward(stage) else {}),
        "complete": True,
        "name": stage.name,
        "plugin": stage.component.name,
        "seconds": round(seconds, 1),
        "summary": summary,
        "policy": artifact.policy,
        "text": artifact.text,
        "report": artifact.report.plain() if artifact.report is not None else None,
        "data": list(sources),
        "versions": parts["versions"],
        "depends_on": parts,
    }


def trains_reward(stage: Stage) -> bool:
    """Whether the stage trains a reward model."""
    implementation = stage.component.registration.implementation
    return stage.kind == "algorithm" and getattr(implementation, "trains", None) is REWARD


def facts(summary: Mapping[str, Any]) -> str:
    """`: groups 3, steps 2`: the summary's numbers and words, without zeros and empty ones."""
    told = {name: value for name, value in summary.items() if value and isinstance(value, str | int | float)}
    shown = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in told.items()]
    return f": {', '.join(shown)}" if shown else ""
