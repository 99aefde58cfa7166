"""The card of each source that a stage read: how long its texts are, its pairs and their margins, its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.report import Table
from alignkit_plugins.evaluate.readable import mapping, number, percentage, short

LENGTHS = {"prompt_characters": "prompts", "response_characters": "responses"}


def brief_name(name: Any) -> str:
    """The file of a path; anything else as it is."""
    text = str(name)
    return text.rpartition("/")[2] or text if text.startswith(("/", ".")) else text


def tables(data: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Lengths, and pairs and labels; empty for runs that did not record them."""
    return [table for table in (_length_table(data), _pair_table(data), _label_table(data)) if table.rows]


def _length_table(data: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            str(source["stage"]),
            brief_name(source["name"]),
            what,
            *(short(number(source[key].get(fact))) for fact in ("count", "least", "median", "p95", "most")),
        ]
        for source in data
        for key, what in LENGTHS.items()
        if isinstance(source.get(key), Mapping)
    ]
    columns = ["stage", "source", "of", "count", "shortest", "median", "95% up to", "longest"]
    return Table("lengths in characters", columns, rows, keys=3)


def _pair_table(data: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for source in data:
        pairs = mapping(source.get("pairs"))
        if count := number(pairs.get("count")):
            shares = [percentage(pairs.get(key), count) for key in ("better_longer", "equally_long")]
            rows.append([str(source["stage"]), brief_name(source["name"]), short(count), *shares, _described(pairs)])
    columns = ["stage", "source", "pairs", "better is longer", "equally long", "margins"]
    note = "a reward model learns that longer is better if the better response often is"
    return Table("pairs", columns, rows, keys=2, note=note)


def _described(pairs: Mapping[str, Any]) -> str:
    """`median 0.5, from 0 to 3`, or `better 12, unsure 3`; `none` if no pair has a margin."""
    margins, levels, parts = pairs.get("margins"), pairs.get("levels"), []
    if isinstance(margins, Mapping):
        median, least, most = (short(number(margins.get(key))) for key in ("median", "least", "most"))
        parts.append(f"median {median}, from {least} to {most}")
    if isinstance(levels, Mapping):
        parts += [f"{level} {short(number(count))}" for level, count in levels.items()]
    if parts and (without := number(pairs.get("without_margin"))):
        parts.append(f"without {short(without)}")
    return ", ".join(parts) or "none"


def _label_table(data: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [str(s["stage"]), brief_name(s["name"]), *(short(number(s["labels"].get(key))) for key in ("good", "bad"))]
        for s in data
        if isinstance(s.get("labels"), Mapping)
    ]
    return Table("labels", ["stage", "source", "good", "bad"], rows, keys=2)


def left_out(item: Mapping[str, Any]) -> str:
    """`3 responses truncated at max_length (6% of 48)`"""
    of = number(item.get("of"))
    share = f" ({percentage(item['rows'], of)} of {short(of)})" if of else ""
    return f"{short(item['rows'])} {item['reason']}{share}"
