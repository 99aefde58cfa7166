"""report.md: the report to paste into an issue. Texts of models and data are in fences, where nothing is a link."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.report import Block, Report, SideBySide, Table
from alignkit_apps.report import data_cards
from alignkit_apps.report.judging import card_table, heading, orders_note, trust_blocks
from alignkit_apps.report.numbers import duration, short, size
from alignkit_apps.report.people import people_tables
from alignkit_apps.report.side_by_side import blocks
from alignkit_apps.report.tables import data_table, evaluation_tables, facts_table, metrics_table, stage_table

MOST = 60_000  # characters; an issue on GitHub has at most 65,536
TEXT = 600  # characters of a text
SAMPLES = 2  # of each kind
ROWS = 60  # of a list or table


def markdown(facts: Mapping[str, Any]) -> str:
    """The report of a run's facts as Markdown, without figures, at most MOST characters long."""
    text = Report(list(_blocks(facts))).markdown()
    if len(text) <= MOST:
        return text
    short_blocks = [block for block in _blocks({**facts, "samples": [], "files": [], "recipe": ""})]
    text = Report(short_blocks).markdown()
    return text if len(text) <= MOST else f"{text[:MOST].rpartition(chr(10))[0]}\n\nThe rest is in report.json.\n"


def _blocks(facts: Mapping[str, Any]) -> Iterator[Block]:
    run = facts["run"]
    yield f"# {run['name']}: {run['outcome']}"
    memory = f", peak memory {run['peak_memory']}" if run["peak_memory"] else ""
    yield f"{run['stages_done']} of {run['stages']} stages, {duration(run['seconds'])} of work{memory}"
    if run["message"]:
        yield SideBySide("", ["it ended with"], [run["message"]])
    yield "## Verdict"
    yield _list(verdict["sentence"] for verdict in facts["verdicts"])
    if facts["warnings"]:
        yield "## Warnings"
        yield _list(f"{item['stage']}: {item['text']}".removeprefix(": ") for item in facts["warnings"])
    yield "## What, when, where"
    yield from _reproduce(facts)
    yield "## Stages"
    yield stage_table(facts["stages"])
    yield from _results(facts)
    yield from _samples(facts)
    yield from _rest(facts)


def _reproduce(facts: Mapping[str, Any]) -> Iterator[Block]:
    known = facts["reproduce"]
    machine = {**known["machine"]}
    if isinstance(machine.get("memory"), int):
        machine["memory"] = size(machine["memory"])
    rows = [
        ["command", known["command"] or "-"],
        ["to repeat it", known["again"]],
        ["recipe, SHA-256", known["recipe_sha256"]],
        ["commit", known["commit"] or "-"],
        ["seed", short(known["seed"])],
        ["started", facts["run"]["started"] or "-"],
        ["versions", ", ".join(f"{name} {version}" for name, version in known["versions"].items())],
        *([name, short(value)] for name, value in machine.items() if value),
    ]
    yield Table("", ["", ""], rows, keys=2)


def _results(facts: Mapping[str, Any]) -> Iterator[Block]:
    if facts["fits"]:
        yield "## Over-optimization"
        yield _list(f"{fit['stage']}: {fit['sentence']}" for fit in facts["fits"])
    if facts["evaluations"]:
        yield "## Evaluation"
    for item in facts["evaluations"]:
        yield from evaluation_tables(item["evaluation"])
        yield from blocks(facts["swaps"], facts["run"]["folder"], item["stage"])
    if any(stage["metrics"] for stage in facts["stages"]):
        yield "## Metrics"
        yield from (metrics_table(stage) for stage in facts["stages"] if stage["metrics"])


def _samples(facts: Mapping[str, Any]) -> Iterator[Block]:
    if facts["samples"]:
        yield "## Samples"
    counts: dict[tuple[str, str], int] = {}
    for sample in facts["samples"]:
        key = sample["stage"], sample["kind"]
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= SAMPLES:
            prompt = sample["prompt"][-1]["content"] if sample["prompt"] else ""
            heads = [f"{one['policy']} ({sample['reward']} {short(one['score'])})" for one in sample["answers"]]
            texts = [_cut(one["text"]) for one in sample["answers"]]
            yield SideBySide(f"{sample['stage']}, {sample['kind']}; prompt: {_cut(prompt)}", heads, texts)


def _rest(facts: Mapping[str, Any]) -> Iterator[Block]:
    if facts["data"] or facts["dropped"]:
        yield "## Data"
    if facts["data"]:
        yield data_table(facts["data"][:ROWS])
        yield from data_cards.tables(facts["data"][:ROWS])
    if facts["dropped"]:
        yield _list(f"{item['stage']}: {data_cards.left_out(item)}" for item in facts["dropped"])
    if facts["people"]:
        yield "## People"
        yield from people_tables(facts["people"])
    if facts["judges"]:
        yield f"## {heading(facts['judges'])}"
    for item in facts["judges"]:
        yield facts_table(item["stage"], {**item["judge"], **item["facts"]})
        if item["cards"]:
            yield card_table(item["cards"])
            yield orders_note(item["cards"])
        yield from trust_blocks(item["trust"])
    yield "## Incidents"
    yield _list(f"{item['when']} {item['stage']} {item['text']}" for item in facts["incidents"])
    if facts["recipe"]:
        yield "## Recipe"
        yield SideBySide("", ["recipe.resolved.yaml"], [facts["recipe"]])
    if facts["files"]:
        yield "## Files"
        rows = [[file["name"], short(file["bytes"]), file["sha256"]] for file in facts["files"][:ROWS]]
        yield Table("", ["file", "bytes", "SHA-256"], rows)


def _list(items: Any) -> str:
    """A list, which is a paragraph if it has one item."""
    lines = [" ".join(str(item).split()) for item in items]
    more = f"and {len(lines) - ROWS} more"
    return "\n".join([*lines[:ROWS], *([more] if len(lines) > ROWS else [])]) or "none"


def _cut(text: str) -> str:
    return text if len(text) <= TEXT else f"{text[:TEXT]}..."
