"""Rows of any format in the layouts that other tools read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from alignkit.data.group import Group, Response, resolved_pairs, with_labels
from alignkit.errors import BadRow, DataError
from alignkit_apps.data.clean import check_target, written
from alignkit_apps.data.corpus import Corpus, as_json
from alignkit_apps.feedback import layouts
from alignkit_apps.feedback.items import Answer
from alignkit_apps.feedback.layouts import Row


@dataclass(frozen=True)
class Converted:
    """What was written. without: rows that gave none, by reason."""

    rows: int
    written: int
    without: Mapping[str, int]

    def lines(self, out: Path) -> str:
        reasons = [f"not written: {count:,} rows, {reason}" for reason, count in self.without.items()]
        return "\n".join([f"{out}: {self.written:,} rows from {self.rows:,}", *reasons])


def convert(corpus: Corpus, layout: str, out: Path) -> Converted:
    """Write the rows in a layout of LAYOUTS. Columns that a format does not use are left out.

    Raises DataError if no row fits.
    """
    check_target(out, corpus)
    without: Counter[str] = Counter()
    count = 0
    with written(out) as file:
        for _, groups in corpus.groups():
            rows = [] if isinstance(groups, BadRow) else [row for group in groups for row in _rows(layout, group)]
            if not rows:
                without["they cannot be read" if isinstance(groups, BadRow) else LACKS[layout]] += 1
            file.writelines((as_json(row) + "\n").encode() for row in rows)
            count += len(rows)
        if not count:
            reasons = ", ".join(without)
            raise DataError(f"{corpus.name}: no row can be written as {layout}: {reasons}")
    return Converted(len(corpus.rows), count, dict(without))


def _rows(layout: str, group: Group) -> Iterator[Row]:
    """The rows of a group, with its tools."""
    tools = {"tools": list(group.tools)} if group.tools else {}
    yield from ({**row, **tools} for row in LAYOUTS[layout](group))


def _said(response: Response) -> Answer:
    return response.text if response.messages is None else response.messages


def _messages(group: Group) -> Iterable[Row]:
    if len(group.responses) == 1 and group.prompt and group.responses[0].label is not False:
        yield {"messages": [*group.prompt, *layouts.turns(_said(group.responses[0]))]}


def _sft(group: Group) -> Iterable[Row]:
    if len(group.responses) == 1 and group.prompt and group.responses[0].label is not False:
        yield layouts.demonstration(group.prompt, _said(group.responses[0]))


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


LAYOUTS: dict[str, Callable[[Group], Iterable[Row]]] = {
    "messages": _messages,
    "sft": _sft,
    "preference": _preference,
    "ranked": _ranked,
    "kto": _kto,
    "prompts": _prompts,
}
LACKS = {
    "messages": "they are no demonstrations",
    "sft": "they are no demonstrations",
    "preference": "nobody said which response is better",
    "ranked": "they have no ranks",
    "kto": "nothing says that a response is good or bad",
    "prompts": "they have no prompt",
}
