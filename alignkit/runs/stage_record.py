"""What a stage leaves behind: its report, and its record, which also holds the data that it read in numbers.

These are lengths in characters, pairs and their margins, and labels.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.algorithm import REWARD
from alignkit.data.group import LEVELS, Group, Response, resolved_pairs
from alignkit.data.sources import DataSpec, Loaded, SourceFacts
from alignkit.io.atomic import write_text
from alignkit.readers import reader_of
from alignkit.recipe.schema import Stage
from alignkit.report import Report
from alignkit.step import Artifact

FACTS = ("name", "format", "rows", "held_out", "skipped", "ties")  # of a source
STEPS = [digit * 10**power for power in range(1, 9) for digit in (1, 2, 5)]  # upper ends of lengths in a histogram
PARTS = 10  # of a histogram of margins
TALLY = ("sizes", "prompts", "responses", "labels", "margins")


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
    return stage.kind == "algorithm" and trains is not REWARD


def facts(summary: Mapping[str, Any]) -> str:
    """`: groups 3, steps 2`: the summary's numbers and words, without zeros and empty ones."""
    told = {name: value for name, value in summary.items() if value and isinstance(value, str | int | float)}
    shown = [f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in told.items()]
    return f": {', '.join(shown)}" if shown else ""


def source_records(spec: DataSpec, loaded: Loaded) -> list[dict[str, Any]]:
    """For each source of a data entry, how it was read, and its card. Rows held out for validation count.

    Of a file with a reader of its own also what that says of it.
    """
    parts: list[list[Group]] = [[] for _ in loaded.sources]
    for groups in (loaded.groups, loaded.validation):
        for group in groups:
            parts[group.origin.source if group.origin is not None else 0].append(group)
    return [
        {**{name: getattr(facts, name) for name in FACTS}, **_notes(facts), "card": card(groups), **_more(source.path)}
        for source, facts, groups in zip(spec.sources, loaded.sources, parts, strict=True)
    ]


def _notes(facts: SourceFacts) -> dict[str, list[str]]:
    return {"notes": list(facts.notes)} if facts.notes else {}


def _more(path: Path | None) -> Mapping[str, Any]:
    """What a file's reader says of it; empty for other data."""
    reader = None if path is None else reader_of(path)
    return {} if reader is None or path is None else reader.facts(path)


def card(groups: Iterable[Group]) -> dict[str, Any]:
    """What groups hold. Parts that they lack are None: a prompt has no responses, and raw text has no prompt."""
    return card_of(tally(groups))


def tally(groups: Iterable[Group]) -> dict[str, Counter[Any]]:
    """What `card_of` needs of groups. The counts of several parts can be added."""
    counts: dict[str, Counter[Any]] = {name: Counter() for name in TALLY}
    for group in groups:
        counts["sizes"]["rows"] += 1
        if group.prompt:
            counts["prompts"][sum([len(turn["content"]) for turn in group.prompt])] += 1
        lengths = [_length(response) for response in group.responses]
        counts["responses"].update(lengths)
        counts["labels"].update(response.label for response in group.responses)
        for pair in resolved_pairs(group) if len(lengths) > 1 else ():
            difference = lengths[pair.better] - lengths[pair.worse]
            counts["sizes"]["better_longer"] += difference * (pair.p - 0.5) > 0  # below 0.5, the other one is better
            counts["sizes"]["equally_long"] += difference == 0
            counts["margins"][pair.margin] += 1
    return counts


def card_of(counts: Mapping[str, Counter[Any]]) -> dict[str, Any]:
    """The card of what `tally` counted."""
    sizes, margins, good, bad = counts["sizes"], counts["margins"], counts["labels"][True], counts["labels"][False]
    longer = {name: sizes[name] for name in ("better_longer", "equally_long")}
    return {
        "rows": sizes["rows"],
        "responses": counts["responses"].total(),
        "prompt_characters": histogram(counts["prompts"]),
        "response_characters": histogram(counts["responses"]),
        "pairs": {"count": margins.total(), **longer, **_margins(margins)} if margins else None,
        "labels": {"good": good, "bad": bad} if good + bad else None,
    }


def _length(response: Response) -> int:
    turns = response.messages
    return len(response.text) if turns is None else sum([len(turn["content"]) for turn in turns])


def histogram(counts: Mapping[int, int]) -> dict[str, Any] | None:
    """A histogram whose bins end at 10, 20, 50, 100 and so on; each bin is its end and its count."""
    if not counts:
        return None
    ends = Counter[int]()
    for value, count in counts.items():
        ends[min(bisect_left(STEPS, value), len(STEPS) - 1)] += count
    bins = [[STEPS[at], ends[at]] for at in range(min(ends), max(ends) + 1)]
    return {**_middle(counts), "bins": bins}


def _middle(counts: Mapping[Any, int]) -> dict[str, Any]:
    """The number of values, the least, the median, the 95th percentile, and the largest."""
    order, count = sorted(counts), sum(counts.values())
    wanted = {"median": 0.5 * count, "p95": 0.95 * count}
    found: dict[str, Any] = {"count": count, "least": order[0]}
    passed = 0
    for value in order:
        passed += counts[value]
        found |= {name: value for name, rank in wanted.items() if name not in found and passed >= rank}
    return {**found, "most": order[-1]}


def _margins(counts: Mapping[Any, int]) -> dict[str, Any]:
    """Margins by level, and a histogram of those that are numbers."""
    numbers = {m: count for m, count in counts.items() if isinstance(m, int | float) and math.isfinite(m)}
    names = sorted((m for m in counts if isinstance(m, str)), key=lambda m: (*LEVELS, m).index(m))
    levels = {name: counts[name] for name in names}
    return {"without_margin": counts.get(None, 0), "levels": levels, "margins": _numbers(numbers)}


def _numbers(counts: Mapping[float, int]) -> dict[str, Any] | None:
    if not counts:
        return None
    least, most = min(counts), max(counts)
    width = (most - least) / PARTS
    if math.isinf(width):
        return {**_middle(counts), "bins": [[most, sum(counts.values())]]}
    bins = [[least + width * (part + 1), 0] for part in range(PARTS if width > 0 else 1)]
    for value, count in counts.items():
        bins[min(int((value - least) / width), PARTS - 1) if width > 0 else 0][1] += count
    return {**_middle(counts), "bins": bins}
