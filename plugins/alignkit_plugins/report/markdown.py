"""report.md: the report to paste into an issue. Texts of models and data are in fences, where
nothing is a link.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.report import Block, Report, SideBySide
from alignkit_plugins.compare.readable import duration, short
from alignkit_plugins.report.parts import Figures, Part, Sample, one_line_each, parts
from alignkit_plugins.report.tables import stage_titles

MOST = 60_000  # characters; an issue on GitHub has at most 65,536
TEXT = 600  # characters of a text
SAMPLES = 2  # of each kind


def markdown(facts: Mapping[str, Any]) -> str:
    """The report of a run's facts as Markdown, without figures, at most MOST characters long."""
    text = Report(list(_blocks(facts))).markdown()
    if len(text) <= MOST:
        return text
    text = Report(list(_blocks({**facts, "samples": [], "files": [], "recipe": ""}))).markdown()
    return (
        text
        if len(text) <= MOST
        else f"{text[:MOST].rpartition(chr(10))[0]}\n\nThe rest is in report.json.\n"
    )


def _blocks(facts: Mapping[str, Any]) -> Iterator[Block]:
    run, titles = facts["run"], stage_titles(facts["stages"])
    yield f"# {run['name']}: {run['outcome']}"
    memory = f", peak memory {run['peak_memory']}" if run["peak_memory"] else ""
    yield (
        f"{run['stages_done']} of {run['stages']} stages, {duration(run['seconds'])} of "
        f"work{memory}"
    )
    if run["message"]:
        yield SideBySide("", ["it ended with"], [run["message"]])
    yield "## Verdict"
    yield one_line_each(" ".join(one["sentences"]) for one in facts["verdicts"]) or "none"
    if facts["warnings"]:
        yield "## Warnings"
        warned = [
            f"{titles.get(one['stage'], one['stage'])}: {one['text']}" for one in facts["warnings"]
        ]
        yield one_line_each(text.removeprefix(": ") for text in warned)
    for part in parts(facts, SAMPLES):
        yield from _part(part, "##")


def _part(part: Part, mark: str) -> Iterator[Block]:
    found = [block for block in part.blocks if not isinstance(block, Figures)]
    if found:
        yield f"{mark} {part.title}"
    for block in found:
        if isinstance(block, Part):
            yield from _part(block, f"{mark}#")
        elif isinstance(block, Sample):
            yield _sample(block.sample)
        elif block:
            yield block


def _sample(sample: Mapping[str, Any]) -> SideBySide:
    prompt = sample["prompt"][-1]["content"] if sample["prompt"] else ""
    heads = [
        f"{one['policy']} ({sample['reward']} {short(one['score'])})" for one in sample["answers"]
    ]
    return SideBySide(
        f"prompt: {prompt[:TEXT]}", heads, [one["text"][:TEXT] for one in sample["answers"]]
    )
