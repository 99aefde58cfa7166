"""The parts of a report in their order, of which its page and report.md are made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.report import Block, Report, SideBySide, Table
from alignkit_plugins.ai_feedback.judge_card import sentence, trust_tables
from alignkit_plugins.compare.readable import duration, mapping, short, size
from alignkit_plugins.compare.rows import main_rows, rows_of
from alignkit_plugins.compare.tables import comparisons, details, over, table
from alignkit_plugins.report import curves, data_cards
from alignkit_plugins.report.curves import Figure, worded
from alignkit_plugins.report.people import people_blocks
from alignkit_plugins.report.samples import EACH
from alignkit_plugins.report.side_by_side import evaluated, not_compared
from alignkit_plugins.report.tables import (
    data_table,
    facts_table,
    filled,
    metrics_table,
    stage_table,
    stage_titles,
)

KINDS = {"gain": "Largest gains", "loss": "Largest losses", "random": "At random"}
SAMPLED = (
    "The largest gains and losses, and some prompts at random. Look for answers that only please "
    "the reward."
)
FILES = 300  # in a table


@dataclass(frozen=True)
class Figures:
    """Figures next to each other, which only the page has."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Sample:
    """A prompt with its answers. sample: of the facts."""

    sample: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Blocks under a title. anchor: its name in links. folded: closed at first, on the page."""

    title: str
    blocks: Sequence[Block | Figures | Sample | Part]
    anchor: str = ""
    folded: bool = False


Blocks = Iterator[Block | Figures | Sample | Part]


def parts(facts: Mapping[str, Any], samples: int = EACH) -> list[Part]:
    """All parts that the facts have something for, without the verdict. samples: of each kind."""
    titles = stage_titles(facts["stages"])
    every = [
        Part("Evaluation", list(_evaluation(facts, titles)), "evaluation"),
        Part("Samples", list(_samples(facts, titles, samples)), "samples"),
        Part("Training", list(_training(facts, titles)), "training"),
        *(
            Part(one["title"], Report.restored(one["blocks"]).blocks, one["anchor"])
            for one in facts["parts"]
        ),
        Part("Data", list(_data(facts)), "data"),
        Part("People", list(_people(facts["people"])), "people"),
        Part("Provenance", list(_provenance(facts)), "provenance"),
    ]
    return [part for part in every if part.blocks]


def one_line_each(items: Iterator[str] | Sequence[str]) -> str:
    """Items as a block, which is a list if there are several."""
    return "\n".join(" ".join(item.split()) for item in items)


def _evaluation(facts: Mapping[str, Any], titles: Mapping[str, str]) -> Blocks:
    stages = [item["stage"] for item in facts["evaluations"]]
    cards = {one["name"]: mapping(one["summary"].get("judge_cards")) for one in facts["stages"]}
    for item in facts["evaluations"]:
        found = list(_evaluated(facts, item["stage"], item["evaluation"]))
        yield from (
            [Part(titles.get(item["stage"], item["stage"]), found)] if len(stages) > 1 else found
        )
    for item in facts["reports"]:
        if item["stage"] not in stages:
            found = [
                *Report.restored(item["blocks"]).blocks,
                *_judges(cards.get(item["stage"], {})),
            ]
            yield Part(titles.get(item["stage"], item["stage"]), found, folded=bool(stages))


def _judges(cards: Mapping[str, Any]) -> Blocks:
    if cards:
        yield Part("The judges in numbers", trust_tables(cards), folded=True)


def _evaluated(facts: Mapping[str, Any], stage: str, summary: Mapping[str, Any]) -> Blocks:
    notes, folder = summary.get("notes"), facts["run"]["folder"]
    yield from (
        str(one)
        for one in (notes if isinstance(notes, list) else ())
        if not str(one).startswith("warning: ")
    )
    pairs = [pair for pair in facts["swaps"] if pair["stage"] == stage]
    rows = evaluated(facts)[stage]
    yield table(main_rows(rows), over(summary))
    yield from not_compared(pairs)
    for against in (rows, *(rows_of(pair["evaluation"]) for pair in pairs if pair["evaluation"])):
        if (found := comparisons(against)).rows:
            yield filled(found)
    for pair in pairs:
        yield (
            f"{pair['against']} is kept in {folder}/{pair['kept']}; {pair['result']} is in "
            f"{folder}/{pair['folder']}."
        )
    cards = mapping(summary.get("judge_cards"))
    yield from (sentence(*each) for each in cards.items())
    yield from _judges(cards)
    more = details(rows)
    drawn = _figures(facts, stage)
    if more or drawn:
        yield Part("Details: diversity and columns", [*more, Figures(drawn)], folded=True)


def _figures(facts: Mapping[str, Any], stage: str) -> list[Figure]:
    return [one for one in facts["figures"] if one["stage"] == stage]


def _samples(facts: Mapping[str, Any], titles: Mapping[str, str], most: int) -> Blocks:
    stages = list(dict.fromkeys(one["stage"] for one in facts["samples"]))
    if stages:
        yield SAMPLED
    for stage in stages:
        for kind, title in KINDS.items():
            found = [
                Sample(one)
                for one in facts["samples"]
                if (one["stage"], one["kind"]) == (stage, kind)
            ]
            where = f"{titles.get(stage, stage)}: {title.lower()}" if len(stages) > 1 else title
            if found:
                yield Part(where, found[:most])


def _training(facts: Mapping[str, Any], titles: Mapping[str, str]) -> Blocks:
    yield stage_table(facts["stages"])
    evaluated = {item["stage"] for item in facts["evaluations"]}
    if any(figure["marks"] for figure in facts["figures"]):
        yield "Dotted vertical lines mark where the run was resumed."
    for stage in facts["stages"]:
        main, rest = curves.main_first(
            [] if stage["name"] in evaluated else _figures(facts, stage["name"])
        )
        more = list(_numbers(stage, rest))
        found: list[Any] = [Figures(main)] if main else []
        if more:
            found.append(
                Part(
                    f"{len(rest)} more curves and all numbers" if rest else "All numbers",
                    more,
                    folded=True,
                )
            )
        if found:
            yield Part(titles[stage["name"]], found)


def _numbers(stage: Mapping[str, Any], rest: Sequence[Figure]) -> Blocks:
    if rest:
        yield Figures(rest)
    if stage["metrics"]:
        yield metrics_table(stage)
    if stage["phases"]:
        yield "Time: " + ", ".join(
            f"{part} {duration(seconds)}" for part, seconds in stage["phases"].items()
        )
    if stage["summary"]:
        yield facts_table("", stage["summary"], lambda key: worded(key).replace(".", ": "))


def _data(facts: Mapping[str, Any]) -> Blocks:
    if facts["data"]:
        yield data_table(facts["data"])
    if facts["dropped"]:
        yield "Dropped or truncated:"
        yield one_line_each(
            f"{item['stage']}: {data_cards.left_out(item)}" for item in facts["dropped"]
        )
    if more := data_cards.tables(facts["data"]):
        yield Part("Lengths, pairs and labels", more, folded=True)


def _people(people: Sequence[Mapping[str, Any]]) -> Blocks:
    told, tables = people_blocks(people)
    yield from told
    if tables:
        yield Part("Each annotator", tables, folded=True)


def _provenance(facts: Mapping[str, Any]) -> Blocks:
    starts = [f"{when(start['started'])} {start['outcome']}" for start in facts["starts"]]
    again = (
        [f"The run was started {len(starts)} times: {'; '.join(starts)}."]
        if len(starts) > 1
        else []
    )
    yield Part("How it was made", [*again, Table("", ["", ""], list(_made(facts)), keys=2)])
    if facts["recipe"]:
        text = SideBySide("", ["recipe.resolved.yaml"], [facts["recipe"]])
        yield Part("The recipe with all overrides applied", [text], folded=True)
    rows = [
        [file["name"], size(file["bytes"]) if file["bytes"] is not None else "gone", file["sha256"]]
        for file in facts["files"]
    ]
    rows += [[str(one["name"]), "", str(one["digest"])] for one in facts["data"] if one["digest"]]
    if rows:
        more = f"and {len(rows) - FILES} more, which report.json has" if len(rows) > FILES else ""
        table = Table("", ["file", "size", "SHA-256"], rows[:FILES], note=more)
        yield Part(f"{len(rows)} files with their SHA-256", [table], folded=True)


def _made(facts: Mapping[str, Any]) -> Iterator[list[str]]:
    known, run = facts["reproduce"], facts["run"]
    yield from (
        [name, text]
        for name, text in (("Command", known["command"]), ("To repeat it", known["again"]))
        if text
    )
    yield ["Seed", short(known["seed"])]
    yield ["Started", when(run["started"]) or "-"]
    yield ["Ended", when(run["ended"]) or "-"]
    yield [
        "Versions",
        ", ".join(f"{name} {version}" for name, version in known["versions"].items()),
    ]
    for name, value in known["machine"].items():
        if value:
            is_size = name == "memory" and isinstance(value, int)
            yield [
                "GPU" if name == "gpu" else name.capitalize(),
                size(value) if is_size else short(value),
            ]
    yield ["Folder", run["folder"]]
    if known["commit"]:
        yield ["Commit", str(known["commit"])]


def when(stamp: str) -> str:
    """`2026-11-23 03:56:08 UTC`"""
    return stamp.replace("T", " ").replace("Z", " UTC")
