"""What data hold, in numbers and as a run understood them: formats, counts, lengths in characters,
pairs and their margins, labels, and one row as read.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from alignkit.data.group import LEVELS, Group, resolved_pairs
from alignkit.data.sources import Loaded
from alignkit.report import Table
from alignkit_plugins.compare.readable import percentage, short
from alignkit_plugins.formats.columns import LABEL_COLUMNS
from alignkit_plugins.formats.shown import counts, shortened, shown

TURNS = 3  # of a prompt, and of what follows it, that a sample row shows
LENGTHS = {"prompt_characters": "prompts", "response_characters": "responses"}


def describe(loaded: Loaded) -> list[str]:
    """A line for each source and for each of its notes; and in at most 7 lines a row of each that
    is not another stage's data.
    """
    lines = list[str]()
    kept, others = _by_source(loaded, loaded.groups), _by_source(loaded, loaded.validation)
    for source, mine, held_out in zip(loaded.sources, kept, others, strict=True):
        name, how = f"read {source.name}", " (recognized)" * source.recognized
        text = counts(mine, source.skipped)
        if held_out:
            text += f"; held out: {counts(held_out)}"
        elif source.held_out:
            text += f"; held out: {source.held_out}"
        lines.append(f"{name}: {source.format}{how}, {text}")
        lines += [f"{name}: {note}" for note in source.notes]
        if source.sample is not None and not source.name.startswith("stage "):
            lines += _sample(source.sample)
            if unused := _unused(source.sample):
                lines.append(f"{name}: not in the conversation, kept for rewards: {unused}")
    return lines


def _by_source(loaded: Loaded, groups: Iterable[Group]) -> list[list[Group]]:
    parts: list[list[Group]] = [[] for _ in loaded.sources]
    for group in groups:
        parts[group.origin.source if group.origin is not None else 0].append(group)
    return parts


def _unused(group: Group) -> str:
    """The columns that the format has only kept, for rewards, without those of single words, such
    as names and digests.
    """
    used = set[str]()
    if group.responses:
        used = {"weight", *LABEL_COLUMNS}
    found = list[str]()
    for name, value in group.meta.items():
        is_word = isinstance(value, str) and len(value.split()) < 2
        if is_word and not value.replace(".", "").isdecimal():
            continue
        if name not in used and value not in (None, [], {}):
            found.append(name)
    return ", ".join(found)


def _sample(group: Group) -> Iterator[str]:
    """Who says what in a group."""
    every = shown(group)
    prompt, responses = every[: len(group.prompt)], every[len(group.prompt) :]
    responses.sort(key=lambda one: one.who == "worse")
    left = len(prompt) - TURNS
    if left > 0:
        yield f"  ... {left} more turns"
    lines = [*prompt[-TURNS:], *responses[:TURNS]]
    width = max(len(one.who) for one in lines)
    for one in lines:
        facts = f"  ({', '.join(one.facts)})" * bool(one.facts)
        yield f"  {one.who:<{width}}  {shortened(one.text)}{facts}"
    if len(responses) > TURNS:
        yield f"  ... {len(responses) - TURNS} more"


def cards(loaded: Loaded) -> list[dict[str, Any]]:
    """The card of each source of a data entry. Rows held out for validation count."""
    return list(map(card, _by_source(loaded, [*loaded.groups, *loaded.validation])))


def card(groups: Iterable[Group]) -> dict[str, Any]:
    """What groups hold. Parts that they lack are None: a prompt has no responses, and raw text has
    no prompt.
    """
    rows, longer, equally = 0, 0, 0
    prompts, responses, margins = list[int](), list[int](), list[Any]()
    labels, licenses = Counter[Any](), Counter[str]()
    for group in groups:
        rows += 1
        licenses[group.meta.get("license") or ""] += 1
        if group.prompt:
            prompts.append(_length(group.prompt))
        lengths = [_length(one.messages or [{"content": one.text}]) for one in group.responses]
        responses += lengths
        labels.update(response.label for response in group.responses)
        for pair in resolved_pairs(group):
            difference = lengths[pair.better] - lengths[pair.worse]
            longer += difference * (pair.p - 0.5) > 0  # below 0.5, the other one is better
            equally += difference == 0
            margins.append(pair.margin)
    count = {"count": len(margins), "better_longer": longer, "equally_long": equally}
    found: dict[str, Any] = {"pairs": None, "labels": None}
    if margins:
        found["pairs"] = {**count, **_margins(margins)}
    if labels[True] or labels[False]:
        found["labels"] = {"good": labels[True], "bad": labels[False]}
    return {
        "rows": rows,
        "licenses": licenses,
        "responses": len(responses),
        "prompt_characters": _spread(prompts),
        "response_characters": _spread(responses),
        **found,
    }


def _length(turns: Iterable[Any]) -> int:
    return sum(len(turn["content"]) for turn in turns)


def _spread(values: Sequence[float]) -> dict[str, Any] | None:
    """The number of values, the least, the median, the 95th percentile, and the largest."""
    if not values:
        return None
    order, count = sorted(values), len(values)
    middle, most = order[math.ceil(count / 2) - 1], order[math.ceil(0.95 * count) - 1]
    return {"count": count, "least": order[0], "median": middle, "p95": most, "most": order[-1]}


def _margins(margins: Sequence[Any]) -> dict[str, Any]:
    """Margins by level, and the spread of those that are numbers."""
    numbers = [one for one in margins if isinstance(one, int | float) and math.isfinite(one)]
    words = Counter(one for one in margins if isinstance(one, str))
    levels = {name: words[name] for name in [*LEVELS, *words] if words[name]}
    without = margins.count(None)
    return {"without_margin": without, "levels": levels, "margins": _spread(numbers)}


# Tables


def brief_name(name: Any) -> str:
    """The file of a path; anything else as it is."""
    text = str(name)
    if text.startswith(("/", ".")):
        return text.rpartition("/")[2]
    return text


def data_table(data: Sequence[Mapping[str, Any]]) -> Table:
    """A row per source that a stage read."""
    rows = list[list[str]]()
    for one in data:
        counted = [short(one[key] or 0) for key in ("rows", "held_out", "skipped")]
        name = brief_name(one["name"])
        rows.append([str(one["stage"]), name, str(one["format"]).replace("_", " "), *counted])
    heads = ["stage", "source", "format", "rows", "held out", "bad rows"]
    return Table("", heads, rows, keys=3)


def tables(data: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Lengths, and pairs and labels, of cards with `stage` and `name`."""
    lengths, pairs, labels = list[list[str]](), list[list[str]](), list[list[str]]()
    for source in data:
        keys = [str(source["stage"]), brief_name(source["name"])]
        for key, what in LENGTHS.items():
            if found := source[key]:
                lengths.append([*keys, what, *map(short, found.values())])
        if found := source["pairs"]:
            longer, equal = found["better_longer"], found["equally_long"]
            shares = [percentage(part, found["count"]) for part in (longer, equal)]
            pairs.append([*keys, short(found["count"]), *shares, _described(found)])
        if found := source["labels"]:
            labels.append([*keys, short(found["good"]), short(found["bad"])])
    note = "a reward model learns that longer is better if the better response often is"
    heads = ["stage", "source"]
    columns = [*heads, "of", "count", "shortest", "median", "95% up to", "longest"]
    of_pairs = [*heads, "pairs", "better is longer", "equally long", "margins"]
    every = [
        Table("lengths in characters", columns, lengths, keys=3),
        Table("pairs", of_pairs, pairs, keys=2, note=note),
        Table("labels", [*heads, "good", "bad"], labels, keys=2),
    ]
    return [table for table in every if table.rows]


def _described(pairs: Mapping[str, Any]) -> str:
    """`median 0.5, from 0 to 3`, or `better 12, unsure 3`; `none` if no pair has a margin."""
    parts = [f"{level} {short(count)}" for level, count in pairs["levels"].items()]
    if found := pairs["margins"]:
        ends = f"from {short(found['least'])} to {short(found['most'])}"
        parts.insert(0, f"median {short(found['median'])}, {ends}")
    if parts and pairs["without_margin"]:
        parts.append(f"without {short(pairs['without_margin'])}")
    return ", ".join(parts) or "none"


def left_out(item: Mapping[str, Any]) -> str:
    """`3 responses truncated at max_length (6% of 48)`"""
    text = f"{short(item['rows'])} {item['reason']}"
    if not item["of"]:
        return text
    return f"{text} ({percentage(item['rows'], item['of'])} of {short(item['of'])})"
