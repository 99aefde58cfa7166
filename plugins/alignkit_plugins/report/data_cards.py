"""The card of each source that a stage read: how long its texts are, its pairs and their margins,
its labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.report import Table
from alignkit_plugins.compare.readable import percentage, short

LENGTHS = {"prompt_characters": "prompts", "response_characters": "responses"}


def brief_name(name: Any) -> str:
    """The file of a path; anything else as it is."""
    text = str(name)
    return text.rpartition("/")[2] or text if text.startswith(("/", ".")) else text


def tables(data: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Lengths, and pairs and labels; empty for runs that did not record them."""
    lengths, pairs, labels = list[list[str]](), list[list[str]](), list[list[str]]()
    for source in data:
        keys = [str(source["stage"]), brief_name(source["name"])]
        for key, what in LENGTHS.items():
            if found := source[key]:
                lengths.append(
                    [*keys, what, *_cells(found, "count", "least", "median", "p95", "most")]
                )
        if found := source["pairs"]:
            shares = [
                percentage(found[key], found["count"]) for key in ("better_longer", "equally_long")
            ]
            pairs.append([*keys, short(found["count"]), *shares, _described(found)])
        if found := source["labels"]:
            labels.append([*keys, *_cells(found, "good", "bad")])
    heads, note = (
        ["stage", "source"],
        "a reward model learns that longer is better if the better response often is",
    )
    columns = [*heads, "of", "count", "shortest", "median", "95% up to", "longest"]
    every = [
        Table("lengths in characters", columns, lengths, keys=3),
        Table(
            "pairs",
            [*heads, "pairs", "better is longer", "equally long", "margins"],
            pairs,
            keys=2,
            note=note,
        ),
        Table("labels", [*heads, "good", "bad"], labels, keys=2),
    ]
    return [table for table in every if table.rows]


def _cells(facts: Mapping[str, Any], *names: str) -> list[str]:
    return [short(facts[name]) for name in names]


def _described(pairs: Mapping[str, Any]) -> str:
    """`median 0.5, from 0 to 3`, or `better 12, unsure 3`; `none` if no pair has a margin."""
    parts = []
    if pairs["margins"]:
        median, least, most = _cells(pairs["margins"], "median", "least", "most")
        parts.append(f"median {median}, from {least} to {most}")
    parts += [f"{level} {short(count)}" for level, count in pairs["levels"].items()]
    if parts and pairs["without_margin"]:
        parts.append(f"without {short(pairs['without_margin'])}")
    return ", ".join(parts) or "none"


def left_out(item: Mapping[str, Any]) -> str:
    """`3 responses truncated at max_length (6% of 48)`"""
    of = item["of"]
    share = f" ({percentage(item['rows'], of)} of {short(of)})" if of else ""
    return f"{short(item['rows'])} {item['reason']}{share}"
