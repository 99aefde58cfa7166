"""What a stage leaves behind: its report, and its record, which also says what data it read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.algorithm import Trains
from alignkit.data.sources import DataSpec, Loaded, SourceFacts
from alignkit.io.atomic import write_text
from alignkit.readers import reader_of
from alignkit.recipe.schema import Stage
from alignkit.report import Report
from alignkit.step import Artifact

NO_LICENSE = "not stated"
FACTS = ("name", "format", "rows", "held_out", "skipped", "ties")  # of a source


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
    return stage.kind == "algorithm" and not trains_policy(stage)


def trains_policy(stage: Stage) -> bool:
    """Whether the stage trains a policy."""
    trains = getattr(stage.component.registration.implementation, "trains", None)
    return stage.kind == "algorithm" and trains is not Trains.REWARD


def facts(summary: Mapping[str, Any]) -> str:
    """`: groups 3, steps 2`: the summary's numbers and words, without zeros and empty ones."""
    told = {name: value for name, value in summary.items() if value and isinstance(value, str | int | float)}
    shown = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in told.items()]
    return f": {', '.join(shown)}" if shown else ""


def source_records(
    spec: DataSpec, loaded: Loaded, told: Sequence[Sequence[Mapping[str, Any]]] = ()
) -> list[dict[str, Any]]:
    """For each source of a data entry, how it was read, and what its file's reader and observers say of it.

    told: what each observer says, by source.
    """
    records = [
        {
            **{name: getattr(facts, name) for name in FACTS},
            **_notes(facts),
            **_licenses(loaded, place),
            **_more(source.path),
        }
        for place, (source, facts) in enumerate(zip(spec.sources, loaded.sources, strict=True))
    ]
    for each in told:
        records = [{**record, **more} for record, more in zip(records, each, strict=True)]
    return records


def _notes(facts: SourceFacts) -> dict[str, list[str]]:
    return {"notes": list(facts.notes)} if facts.notes else {}


def _licenses(loaded: Loaded, place: int) -> dict[str, dict[str, int]]:
    """How many rows of a source to learn from state which license; empty if none does."""
    own = (group for group in loaded.groups if group.origin is not None and group.origin.source == place)
    counts = Counter(str(group.meta.get("license") or NO_LICENSE) for group in own)
    return {"licenses": dict(counts)} if counts.keys() - {NO_LICENSE} else {}


def _more(path: Path | None) -> Mapping[str, Any]:
    """What a file's reader says of it; empty for other data."""
    reader = None if path is None else reader_of(path)
    return {} if reader is None or path is None else reader.facts(path)
