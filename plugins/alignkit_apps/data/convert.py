"""Rows of any format in the layouts that other tools read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from alignkit.data.group import Group, Response, resolved_pairs, with_labels
from alignkit.errors import BadRow, DataError
from alignkit_apps.data.clean import check_target, written
from alignkit_apps.data.corpus import Corpus, as_json
from alignkit_plugins.people import layouts
from alignkit_plugins.people.items import Answer
from alignkit_plugins.people.layouts import Row


def convert(corpus: Corpus, layout: str, out: Path) -> list[str]:
    """Write the rows in a layout of LAYOUTS, with their tools. Columns that a format does not use are left out.

    Returns in lines how many were written, and how many not, by reason. Raises DataError if no row fits.
    """
    check_target(out, corpus)
    rows_of, lack = LAYOUTS[layout]
    without: Counter[str] = Counter()
    count = 0
    with written(out) as file:
        for groups in corpus.groups():
            bad = isinstance(groups, BadRow)
            before = count
            for group in () if isinstance(groups, BadRow) else groups:
                for row in rows_of(group):
                    file.write(as_json({**row, "tools": list(group.tools)} if group.tools else row))
                    count += 1
            if count == before:
                without["they cannot be read" if bad else lack] += 1
        if not count:
            raise DataError(f"{corpus.name}: no row can be written as {layout}: {', '.join(without)}")
    reasons = [f"rows not written: {rows:,} ({reason})" for reason, rows in without.items()]
    return [f"{out}: {count:,} row{'s' * (count != 1)} from {len(corpus.rows):,}", *reasons]


def _said(response: Response) -> Answer:
    return response.text if response.messages is None else response.messages


def _sft(group: Group) -> Iterable[Row]:
    if len(group.responses) == 1 and group.prompt and group.responses[0].label is not False:
        yield layouts.demonstration(group.prompt, _said(group.responses[0]))


def _messages(group: Group) -> Iterable[Row]:
    return ({"messages": [*row["prompt"], *row["completion"]]} for row in _sft(group))


def _preference(group: Group) -> Iterable[Row]:
    """The likelier order of each pair; none of an undecided one."""
    for pair in resolved_pairs(group):
        better, worse = (pair.better, pair.worse) if pair.p > 0.5 else (pair.worse, pair.better)
        if pair.p != 0.5:
            chosen, rejected = (_said(group.responses[place]) for place in (better, worse))
            yield layouts.preference(group.prompt, chosen, rejected, layouts.margin_of(pair.margin))


def _ranked(group: Group) -> Iterable[Row]:
    ranks = [response.rank for response in group.responses if response.rank is not None]
    if len(ranks) == len(group.responses) > 1:
        yield layouts.ranked(group.prompt, [*map(_said, group.responses)], ranks)


def _kto(group: Group) -> Iterable[Row]:
    for response in with_labels(group).responses:
        yield layouts.demonstration(group.prompt, _said(response)) | {"label": response.label}


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
