"""Rows of any format in the layouts that other tools read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from alignkit.data.group import Group, Response, resolved_pairs
from alignkit.data.sources import DataSpec
from alignkit.errors import DataError
from alignkit_plugins.data.found_rows import as_json, check_target, read_rows, written
from alignkit_plugins.formats.rows import with_labels
from alignkit_plugins.people.labels import DEGREES

Row = dict[str, Any]


def convert(spec: DataSpec, layout: str, out: Path) -> list[str]:
    """Write the rows in a layout of LAYOUTS, with their tools. Columns that a format does not use
    are left out.

    Returns in lines how many were written, and how many not, by reason. Raises DataError if no row
    fits.
    """
    check_target(out, spec)
    rows_of, lack = LAYOUTS[layout]
    read = read_rows(spec)
    without: Counter[str] = Counter()
    count = 0
    with written(out) as file:
        for source in read.rows:
            before = count
            for group in source.groups:
                for row in rows_of(group):
                    file.write(as_json({**row, "tools": list(group.tools)} if group.tools else row))
                    count += 1
            if count == before:
                without["they cannot be read" if source.bad else lack] += 1
        if not count:
            raise DataError(f"{read.name}: no row can be written as {layout}: {', '.join(without)}")
    reasons = [f"rows not written: {rows:,} ({reason})" for reason, rows in without.items()]
    return [f"{out}: {count:,} row{'s' * (count != 1)} from {len(read.rows):,}", *reasons]


def _turns(response: Response) -> list[Any]:
    return list(response.messages or [{"role": "assistant", "content": response.text}])


def _demonstration(group: Group, response: Response) -> Row:
    return {"prompt": list(group.prompt), "completion": _turns(response)}


def _sft(group: Group) -> Iterable[Row]:
    if len(group.responses) == 1 and group.prompt and group.responses[0].label is not False:
        yield _demonstration(group, group.responses[0])


def _messages(group: Group) -> Iterable[Row]:
    return ({"messages": [*row["prompt"], *row["completion"]]} for row in _sft(group))


def _preference(group: Group) -> Iterable[Row]:
    """The likelier order of each pair; none of an undecided one."""
    for pair in resolved_pairs(group):
        better, worse = (pair.better, pair.worse) if pair.p > 0.5 else (pair.worse, pair.better)
        if pair.p != 0.5:
            chosen, rejected = _turns(group.responses[better]), _turns(group.responses[worse])
            margin = round(_margin(pair.margin), 6)
            yield {
                "prompt": list(group.prompt),
                "chosen": chosen,
                "rejected": rejected,
                "margin": margin,
            }


def _margin(level: float | str | None) -> float:
    """A margin as a number: 0, 1/3, 2/3 or 1 for Llama 2's four levels (Touvron et al. 2023, table
    27, small).
    """
    return (DEGREES[level] - 1) / 3 if isinstance(level, str) else level or 0.0


def _ranked(group: Group) -> Iterable[Row]:
    ranks = [response.rank for response in group.responses if response.rank is not None]
    if len(ranks) == len(group.responses) > 1:
        completions = [_turns(response) for response in group.responses]
        yield {"prompt": list(group.prompt), "completions": completions, "ranks": ranks}


def _kto(group: Group) -> Iterable[Row]:
    for response in with_labels(group).responses:
        yield {**_demonstration(group, response), "label": response.label}


def _prompts(group: Group) -> Iterable[Row]:
    if group.prompt:
        yield {"prompt": list(group.prompt)}


# The rows of a group in each layout, and what is said of those that give none.
LAYOUTS: dict[str, tuple[Callable[[Group], Iterable[Row]], str]] = {
    "messages": (_messages, "they are no demonstrations"),
    "sft": (_sft, "they are no demonstrations"),
    "preference": (_preference, "nobody said which response is better"),
    "ranked": (_ranked, "they have no ranks"),
    "kto": (_kto, "nothing says that a response is good or bad"),
    "prompts": (_prompts, "they have no prompt"),
}
