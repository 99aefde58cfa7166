"""Items: what a person is asked about. Equal items have equal ids, so stores of several people can
be merged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from alignkit.contract.formats import check_group, text_of
from alignkit.data.files import SkippedRow, bad_rows_error
from alignkit.data.group import (
    Group,
    Message,
    Response,
    assistant_turn,
    resolved_pairs,
    sha256_of,
    turns_of,
)
from alignkit.errors import BadRow, did_you_mean
from alignkit.io.text import listed
from alignkit.tokens.counts import counted
from alignkit_plugins.people.labels import TASKS, Label, agrees, check_gold, places

AUTHOR = "author"  # as an origin: the item's author wrote this response

Answer = str | tuple[Message, ...]


@dataclass(frozen=True)
class Item:
    """A prompt with responses, and what a person should say about them.

    task: `pair` (which is better, and how much), `safety` (the same with a safety bin), `ranking`,
    `review` (an overall score, flags and ranks), `demonstration` (write an answer, or edit the only
    one), or `thumb` (one response, good or bad). prompt: turns. responses: each a text, or turns if
    it has several. The id depends on these and on `tools` only.

    origins: who wrote each response, such as a stage, or AUTHOR; never shown to labelers. author:
    the annotator who wrote the prompt or the response, if it is one; such an item is exported only
    with that person's consent. license: of the texts; items without one are not exported. batch:
    the stage or file that asks. gold: the right label, as `labels.canonical` returns it. priority:
    higher ones are labeled first. results: whether labelers see at the end what the others said.
    settled_by: whose label replaces the others': asked once it is disputed, and nobody else is then.
    """

    task: str
    prompt: tuple[Message, ...]
    responses: tuple[Answer, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    origins: tuple[str | None, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""
    author: str = ""
    batch: str = ""
    gold: Mapping[str, Any] | None = None
    priority: float = 0.0
    results: bool = False
    settled_by: str = ""
    disputed: bool = False

    def __post_init__(self) -> None:
        """JSON has lists where an item has tuples."""
        for name in ("prompt", "tools", "origins"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        answers = []
        for answer in self.responses:
            answers.append(answer if isinstance(answer, str) else tuple(answer))
        object.__setattr__(self, "responses", tuple(answers))

    @cached_property
    def id(self) -> str:
        """32 hex digits that depend on what the item asks, and on nothing else."""
        question = [self.task, turns_of(self.prompt), self.answers, list(self.tools)]
        return sha256_of(question)[:32]

    @property
    def answers(self) -> list[Any]:
        """The responses as plain JSON: texts, or lists of turns."""
        return [each if isinstance(each, str) else turns_of(each) for each in self.responses]

    @cached_property
    def asks(self) -> str:
        """What items have in common that show the same, whatever the order of the responses and the
        task.
        """
        answers = sorted(map(json.dumps, self.answers))
        return sha256_of([turns_of(self.prompt), answers, list(self.tools)])

    def like(self, other: Item) -> Item:
        """The item with its responses in the order of another one that shows the same, unless others
        wrote them there.
        """
        places = list(map(self.answers.index, other.answers))
        origins = tuple(self.origins[place] for place in places if self.origins)
        if any(origins) and any(other.origins) and origins != other.origins:
            return self
        gold = None if self.gold is None else dict(self.gold)
        if gold and "better" in gold:
            gold["better"] = places.index(gold["better"])
        if gold and "ranks" in gold:
            gold["ranks"] = [gold["ranks"][place] for place in places]
        responses = tuple(self.responses[place] for place in places)
        return replace(self, responses=responses, origins=origins, gold=gold)

    @property
    def group(self) -> Group:
        """The prompt and the responses, for whoever rates them."""
        answers = []
        for number, answer in enumerate(self.responses):
            source = self.origins[number] if self.origins else None
            if isinstance(answer, str):
                answers.append(Response(text=answer, source=source))
            else:
                answers.append(Response(messages=answer, source=source))
        meta = dict(self.meta)
        return Group(self.prompt, tuple(answers), pairs=(), meta=meta, tools=self.tools)

    def checked(self) -> Item:
        """The item itself. Raises `BadRow` if nobody could label it."""
        if self.task not in TASKS:
            raise BadRow(f"unknown task {self.task!r}; {did_you_mean(self.task, TASKS, 'tasks')}")
        task, count = TASKS[self.task], len(self.responses)
        if not task.least <= count <= task.most:
            counts = " to ".join(map(str, sorted({task.least, task.most})))
            raise BadRow(f"the task {self.task} takes {counts}, not {counted(count, 'response')}")
        if self.origins and len(self.origins) != count:
            raise BadRow(f"there are {count} responses, but {len(self.origins)} origins")
        check_group(self.group)
        if len(set(map(json.dumps, map(text_of, self.group.responses)))) < count:
            raise BadRow("two responses are the same, so nobody can prefer one")
        if self.gold is not None:
            check_gold(self.task, self.gold, count)
        return self

    def filled(self, other: Item) -> Item:
        """The item with what only another version of it says."""
        return replace(
            self,
            license=self.license or other.license,
            author=self.author or other.author,
            gold=self.gold or other.gold,
            meta={**other.meta, **self.meta},
            origins=self.origins if any(self.origins) else other.origins,
            settled_by=self.settled_by or other.settled_by * other.disputed,
            disputed=self.disputed or other.disputed,
        )


def turns_of_answer(answer: Answer) -> Sequence[Mapping[str, Any]]:
    """An answer as turns."""
    return [assistant_turn(answer)] if isinstance(answer, str) else answer


# Rows of data


def item_of(group: Group, task: str | None = None, *, gold: bool = False) -> Item:
    """The item of a group, whose pairs, ranks and labels are not shown.

    task: default: by the number of its responses. gold: whether they are the gold label. Raises
    `BadRow` if the task does not suit, or if the row should state a gold label and does not.
    """
    if task is None:
        by_count = {0: "demonstration", 1: "demonstration", 2: "pair"}
        task = by_count.get(len(group.responses), "ranking")
    answers: list[Any] = []
    for response in group.responses:
        answers.append(response.text if response.messages is None else response.messages)
    item = Item(
        task,
        group.prompt,
        tuple(answers),
        tools=group.tools,
        meta=dict(group.meta),
        license=str(group.meta.get("license") or ""),
        origins=tuple(response.source for response in group.responses),
    ).checked()
    return replace(item, gold=gold_of(group, task)) if gold else item


def gold_of(group: Group, task: str) -> Label:
    """The label that a row states, in the order of its responses. Raises `BadRow` if it states
    none.
    """
    pairs = resolved_pairs(group)
    if task in ("pair", "safety") and len(pairs) == 1 and pairs[0].p != 0.5:
        (pair,) = pairs
        margin = {"margin": pair.margin} if isinstance(pair.margin, str) else {}
        return {"better": pair.better if pair.p > 0.5 else pair.worse, **margin}
    ranks = [float(response.rank) for response in group.responses if response.rank is not None]
    if task in ("ranking", "review") and len(ranks) == len(group.responses):
        return {"ranks": places(ranks)}
    if task == "thumb" and group.responses[0].label is not None:
        return {"good": group.responses[0].label}
    raise BadRow(f"the row states no label, so it cannot be the gold label of a {task}")


def items_of(
    groups: Iterable[Group],
    task: str | None = None,
    *,
    gold: bool = False,
    left_out: list[str] | None = None,
    notes: list[str] | None = None,
) -> list[Item]:
    """An item for each group, and one of equal ones, also if their responses are in another order;
    gold labels are turned. task, gold: as `item_of` takes them.

    Raises `DataError` that lists the rows that nobody could label. left_out: gets the reasons
    instead, one for each such row. notes: gets what is said of equal ones, and of empty responses.
    """
    items, firsts = dict[str, Item](), dict[str, Item]()
    bad, repeated, empty = list[SkippedRow](), list[str](), list[str]()
    for group in groups:
        where = (group.origin.file, group.origin.row) if group.origin else ("", 0)
        try:
            item = item_of(group, task, gold=gold)
            same = item.like(firsts.setdefault(item.asks, item))
            is_repeated = same.id in items
            first = items.setdefault(same.id, same)
            if first.gold and same.gold and agrees(same.gold, first.gold) is False:
                raise BadRow("an earlier row about the same responses has another known label")
            place = str(group.origin).rpartition("/")[2]
            if is_repeated:
                repeated.append(place)
            elif any(isinstance(text, str) and not text.strip() for text in item.responses):
                empty.append(place)
        except BadRow as error:
            bad.append(SkippedRow(*where, str(error)))
    for what, rows in (
        ("the responses of an earlier one, in any order, asked about once", repeated),
        ("an empty response, which people see as such", empty),
    ):
        if rows and notes is not None:
            notes.append(f"rows with {what}: {len(rows)} ({listed(rows)})")
    if left_out is not None:
        left_out += [row.reason for row in bad]
    elif bad:
        raise bad_rows_error(bad)
    return list(items.values())


def joined(groups: Iterable[Group]) -> list[Group]:
    """One group for each prompt, with the responses of all that have it, such as samples of several
    policies.
    """
    merged: dict[str, Group] = {}
    for group in groups:
        key = str((turns_of(group.prompt), group.tools))
        if (first := merged.get(key)) is not None:
            responses = (*first.responses, *group.responses)
            group = replace(first, responses=responses, meta={**group.meta, **first.meta})
        merged[key] = group
    return list(merged.values())


def questions_of(group: Group, task: str | None) -> list[Group]:
    """The questions about a row, a group each; none if fewer than two of its responses differ.

    Thumbs ask about each response, other tasks about all together. Equal responses count as one.
    """
    different: dict[str, Response] = {}
    for response in group.responses:
        text = response.text if response.messages is None else turns_of(response.messages)
        different.setdefault(str(text), response)
    answers = tuple(different.values())
    if task == "thumb":
        return [replace(group, responses=(answer,), pairs=()) for answer in answers]
    if len(group.responses) > 1 and len(answers) == 1:
        return []
    return [replace(group, responses=answers, pairs=())]
