"""What data hold, in numbers and as a run understood them: formats, counts, lengths in characters,
pairs, labels, and one row as read.
"""

from __future__ import annotations

import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from alignkit.contract.report import Table
from alignkit.data.group import Group, resolved_pairs
from alignkit.evaluation.answers import normalized
from alignkit.evaluation.numbers import number_of
from alignkit.io.text import listed
from alignkit.recipe.sources import Loaded
from alignkit_plugins.text.readable import percentage, short
from alignkit_plugins.text.rows import turns_of_response, turns_text
from alignkit_plugins.text.shown import counts, readable_turns, shortened
from alignkit_plugins.text.spoken import all_turns

SENTENCE = 30  # characters that rows do not share by chance
TURNS = 3  # a sample row shows this many of a prompt, and of what follows it
OPPOSITE = "the same prompt and the opposite preference"
OTHER = "the same question and another known answer, where each row keeps its own"
EMPTY = "an empty response, which is compared as any other"
COMMA = "a decimal comma in a known answer, which no 2.5 is equal to: write a point"
# Known answers that no response can be, or that mean something else
ODD = {
    re.compile(
        r"[|;]|\s/\s|^\[.*\]$"
    ): "several known answers in one text, right as a whole only: write a list",
    re.compile(
        r"^\s*[^\W\d]+(,\s*[^\W\d]+)+\s*$"
    ): "a comma in a known answer, right as a whole only: write several as a list",
    re.compile(
        r"#(N/A|REF!|VALUE!|DIV/0!|NAME\?|NUM!|NULL!)"
    ): "an error of a spreadsheet as known answer",
    re.compile(r"(?<![\d.,])(0,\d+|\d+,(?!\d{3}(?!\d))\d+)(?![.,]?\d)"): COMMA,
    re.compile(
        r"(?<![\d.,])\d{1,3}\.(000(?![\d.,])|\d{3}\.\d{3})"
    ): "points that may group thousands in a known answer, where 25.000 is 25: write 25000",
}
# In a file with decimal commas
GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}[.,]\d{3}(?![\d.,])")
OTHER_WAY = "a known answer that decimal commas leave unclear: 1,250 is 1250 here"
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
        if held_out or source.held_out:
            text += f"; held out: {counts(held_out) if held_out else source.held_out}"
        lines.append(f"{name}: {source.format}{how}, {text}")
        lines += [f"{name}: {note}" for note in (*source.notes, *row_warnings(mine))]
        if source.sample is not None and not source.name.startswith("stage "):
            lines += _sample(source.sample)
            unused = [key for key, value in source.sample.meta.items() if " " in str(value)]
            if unused:  # texts that no stage learns
                names = ", ".join(unused)
                lines.append(f"{name}: not in the conversation, kept for rewards: {names}")
    return lines


def row_warnings(groups: Sequence[Group]) -> list[str]:
    """How a column weights rows; and warnings of rows that contradict each other or that hold what
    nobody can have meant: the same prompt with chosen and rejected exchanged, or with other known
    answers; empty responses in pairs; known answers that no response can be.
    """
    first, found = dict[Any, tuple[str, int]](), defaultdict[str, list[str]](list)
    for group in groups:
        texts = [normalized(turns_text(turns_of_response(one))) for one in group.responses]
        prompt, row = normalized(turns_text(group.prompt)), group.origin.row if group.origin else 0
        claims = list[tuple[str, Any, str]]()
        pairs = resolved_pairs(group)
        if pairs and not all(turns_text(turns_of_response(one)).strip() for one in group.responses):
            found[EMPTY].append(str(row))
        for pair in pairs:
            better, worse = texts[pair.better], texts[pair.worse]
            if better != worse:
                claims.append((OPPOSITE, (prompt, frozenset([better, worse])), better))
        if isinstance(text := group.meta.get("answer"), str):
            for pattern, what in ODD.items():
                if pattern.search(text):
                    found[what].append(str(row))
            if GROUPED.search(text):
                found[OTHER_WAY].append(str(row))
        if known := str(group.meta.get("answer", "")):
            claims.append((OTHER, prompt, str(number_of(known) or normalized(known))))
        for text, question, claim in claims:
            before, place = first.setdefault(question, (claim, row))
            if before != claim:
                found[text].append(f"{place} and {row}")
    if COMMA not in found:
        found.pop(OTHER_WAY, None)
    lines = list[str]()
    weights = [group.weight for group in groups]
    if any(group.weight != 1 and "weight" in group.meta for group in groups):
        lines.append(
            f"weights of rows in the loss: column weight, {min(weights):g} to {max(weights):g}; "
            "without them: columns: {other_weight: weight}"
        )
    for text, rows in found.items():
        lines.append(f"warning: {len(rows):,} with {text}: row {listed(rows)}")
    return lines


def repeats(groups: Sequence[Group]) -> list[str]:
    """How many rows say the same as others, in words; nothing if none does."""
    different = set[Any]()
    for group in groups:
        texts = [turns_text(group.prompt), *map(all_turns, group.responses)]
        labels = [group.meta.get("answer"), *(one.label for one in group.responses)]
        different.add((*map(normalized, texts), str(labels), str(resolved_pairs(group))))
    repeated = len(groups) - len(different)
    return [f"{repeated:,} of {len(groups):,} rows repeat others"] * bool(repeated)


def sentences(group: Group) -> set[str]:
    """What its responses say, but for words that rows share by chance."""
    return {text for text in map(all_turns, group.responses) if len(text) >= SENTENCE}


def _by_source(loaded: Loaded, groups: Iterable[Group]) -> list[list[Group]]:
    parts: list[list[Group]] = [[] for _ in loaded.sources]
    for group in groups:
        parts[group.origin.source if group.origin is not None else 0].append(group)
    return parts


def _sample(group: Group) -> Iterator[str]:
    """Who says what in a group."""
    every = readable_turns(group)
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
    """The `card` of each source of a data entry. Rows held out for validation count."""
    every = _by_source(loaded, [*loaded.groups, *loaded.validation])
    return [{"card": card(groups)} for groups in every]


def card(groups: Sequence[Group]) -> dict[str, Any]:
    """What groups hold. Parts that they lack are None: a prompt has no responses, and raw text has
    no prompt.
    """
    pairs, longer = 0, 0
    prompts, responses = list[int](), list[int]()
    labels, licenses = Counter[Any](), Counter[str]()
    for group in groups:
        licenses[group.meta.get("license") or ""] += 1
        if group.prompt:
            prompts.append(_length(group.prompt))
        lengths = list[int]()
        for one in group.responses:
            lengths.append(_length(turns_of_response(one)))
            labels[one.label] += 1
        responses += lengths
        for pair in resolved_pairs(group):
            difference = lengths[pair.better] - lengths[pair.worse]
            pairs += 1
            longer += difference * (pair.p - 0.5) > 0  # below 0.5, the other one is better
    labeled = labels[True] + labels[False]
    return {
        "rows": len(groups),
        "licenses": licenses,
        "responses": len(responses),
        "prompt_characters": _quantiles(prompts),
        "response_characters": _quantiles(responses),
        "pairs": {"count": pairs, "better_longer": longer} if pairs else None,
        "labels": {"good": labels[True], "bad": labels[False]} if labeled else None,
    }


def _length(turns: Iterable[Any]) -> int:
    return sum(len(turns_text([turn])) for turn in turns)


def _quantiles(values: Sequence[int]) -> dict[str, Any] | None:
    """The least, the median and the largest value."""
    if not values:
        return None
    middle = statistics.median_low(values)
    return {"least": min(values), "median": middle, "most": max(values)}


# Tables


def brief_name(name: Any) -> str:
    """The file of a path; anything else as it is."""
    text = str(name)
    if text.startswith(("/", ".")):
        return text.rpartition("/")[2]
    return text


def tables(data: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Lengths, and pairs and labels, of cards with `stage` and `name`."""
    lengths, pairs, labels = list[list[str]](), list[list[str]](), list[list[str]]()
    for source in data:
        keys = [source["stage"], brief_name(source["name"])]
        for key, what in LENGTHS.items():
            if spread := source[key]:
                lengths.append([*keys, what, *map(short, spread.values())])
        if counted := source["pairs"]:
            longer = percentage(counted["better_longer"], counted["count"])
            pairs.append([*keys, short(counted["count"]), longer])
        if counted := source["labels"]:
            labels.append([*keys, short(counted["good"]), short(counted["bad"])])
    note = "a reward model learns that longer is better if the better response often is"
    heads = ["stage", "source"]
    columns = [*heads, "of", "shortest", "median", "longest"]
    every = [
        Table("lengths in characters", columns, lengths, keys=3),
        Table("pairs", [*heads, "pairs", "better is longer"], pairs, keys=2, note=note),
        Table("labels", [*heads, "good", "bad"], labels, keys=2),
    ]
    return [table for table in every if table.rows]


def left_out(item: Mapping[str, Any]) -> str:
    """`3 responses truncated at max_length (6% of 48)`"""
    text = f"{short(item['rows'])} {item['reason']}"
    if not item["of"]:
        return text
    return f"{text} ({percentage(item['rows'], item['of'])} of {short(item['of'])})"
