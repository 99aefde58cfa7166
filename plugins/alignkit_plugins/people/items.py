"""Items: what a person is asked about. Equal items have equal ids, so stores of several people can
be merged.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from alignkit.data.files import SkippedRow, bad_rows_error
from alignkit.data.group import Group, Message, Response, resolved_pairs, sha256_of, turns_of
from alignkit.errors import BadRow, did_you_mean
from alignkit.formats import check_group
from alignkit_plugins.people.labels import TASKS, Label, check_gold, places

LONGEST = 200_000  # characters of a text
AUTHOR = "author"  # as an origin: the item's author wrote this response
COMPARED = (
    "pair",
    "safety",
    "ranking",
    "review",
    None,
)  # tasks of which nobody can say anything about equal responses

Answer = str | tuple[Message, ...]


@dataclass(frozen=True)
class Item:
    """A prompt with responses, and what a person should say about them.

    task: `pair` (which is better, and how much), `safety` (the same with a safety bin), `ranking`,
    `scores` (1 to 7 on each criterion), `review` (an overall score, flags and ranks),
    `demonstration` (write an answer, or edit the only one), or `thumb` (one response, good or bad).
    prompt: turns. responses: each a text, or turns if it has several. The id depends on these and
    on `tools` only.

    origins: who wrote each response, such as a stage, or AUTHOR; never shown to labelers. author:
    the annotator who wrote the prompt or the response, if it is one; such an item is exported only
    with that person's consent. license: of the texts; items without one are not exported. batch:
    the stage or file that asks. gold: the right label, as `labels.canonical` returns it. priority:
    higher ones are labeled first.
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

    def __post_init__(self) -> None:
        """JSON has lists where an item has tuples."""
        for name in ("prompt", "tools", "origins"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        answers = [
            answer if isinstance(answer, str) else tuple(answer) for answer in self.responses
        ]
        object.__setattr__(self, "responses", tuple(answers))

    @cached_property
    def id(self) -> str:
        """32 hex digits that depend on what the item asks, and on nothing else."""
        answers = [
            answer if isinstance(answer, str) else turns_of(answer) for answer in self.responses
        ]
        asked = [self.task, turns_of(self.prompt), answers, list(self.criteria), list(self.tools)]
        return sha256_of(asked)[:32]

    @property
    def criteria(self) -> tuple[str, ...]:
        """What is scored."""
        return TASKS[self.task].criteria if self.task in TASKS else ()

    @property
    def group(self) -> Group:
        """The prompt and the responses, for whoever rates them."""
        answers = tuple(map(response_of, self.responses))
        return Group(self.prompt, answers, pairs=(), meta=dict(self.meta), tools=self.tools)

    def checked(self) -> Item:
        """The item itself. Raises `BadRow` if nobody could label it."""
        if self.task not in TASKS:
            hint = did_you_mean(self.task, TASKS) or f"expected {', '.join(TASKS)}"
            raise BadRow(f"unknown task {self.task!r}; {hint}")
        (_, least, most, _), count = TASKS[self.task], len(self.responses)
        if not least <= count <= most:
            raise BadRow(f"a {self.task} has {least} to {most} responses, not {count}")
        if self.origins and len(self.origins) != count:
            raise BadRow(f"there are {count} responses, but {len(self.origins)} origins")
        check_group(self.group)
        if len(set(map(json.dumps, self.responses))) < count and self.task in COMPARED:
            raise BadRow("two responses are the same, so nobody can prefer one")
        for part in (self.prompt, *self.responses):
            for text in [part] if isinstance(part, str) else [turn["content"] for turn in part]:
                if len(text) > LONGEST:
                    raise BadRow(
                        f"a text has {len(text):,} characters, but nobody can read more than "
                        f"{LONGEST:,}"
                    )
        if self.gold is not None:
            check_gold(self.task, self.gold, count)
        return self


def item_of(group: Group, task: str | None = None, **more: Any) -> Item:
    """The item of a group. task: default: by the number of its responses. Raises `BadRow` if it
    does not suit.

    The group's pairs, ranks and labels are not shown; more: further fields of the item.
    """
    if task is None:
        task = {0: "demonstration", 1: "demonstration", 2: "pair"}.get(
            len(group.responses), "ranking"
        )
    known: dict[str, Any] = {
        "tools": group.tools,
        "meta": dict(group.meta),
        "license": str(group.meta.get("license") or ""),
        "origins": [response.source for response in group.responses],
    }
    answers: Any = [r.text if r.messages is None else r.messages for r in group.responses]
    return Item(task, group.prompt, answers, **{**known, **more}).checked()


def filled(item: Item, other: Item) -> Item:
    """The item with what only another version of it says."""
    return replace(
        item,
        license=item.license or other.license,
        author=item.author or other.author,
        gold=other.gold if item.gold is None else item.gold,
        meta={**other.meta, **item.meta},
        origins=item.origins if any(item.origins) else other.origins,
    )


def turns_of_answer(answer: Answer) -> Sequence[Mapping[str, Any]]:
    """An answer as turns."""
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def response_of(answer: Answer) -> Response:
    """An answer as a response of a group."""
    return Response(text=answer) if isinstance(answer, str) else Response(messages=answer)


# Rows of data


def items_of(
    groups: Iterable[Group],
    task: str | None = None,
    *,
    license: str = "",
    gold: bool = False,
    left_out: list[str] | None = None,
) -> list[Item]:
    """An item for each group. task: None: by the number of its responses. license: of rows that
    state none.

    Raises `DataError` that lists the rows that nobody could label, or that have no label though
    they should be gold. left_out: gets the reasons instead, one for each such row.
    """
    items, bad = [], []
    for group in groups:
        try:
            item = item_of(group, task)
            if gold:
                item = replace(item, gold=gold_of(group, item.task)).checked()
            items.append(replace(item, license=item.license or license))
        except BadRow as error:
            where = (group.origin.file, group.origin.row) if group.origin else ("", 0)
            bad.append(SkippedRow(*where, str(error)))
    if left_out is not None:
        left_out += [row.reason for row in bad]
    elif bad:
        raise bad_rows_error(bad)
    return items


def gold_of(group: Group, task: str) -> Label:
    """The label that a row states, in the order of its responses. Raises `BadRow` if it states
    none.
    """
    if task in ("pair", "safety") and len(pairs := resolved_pairs(group)) == 1:
        margin = {"margin": pairs[0].margin} if isinstance(pairs[0].margin, str) else {}
        return {"better": pairs[0].better, **margin}
    ranks = [float(response.rank) for response in group.responses if response.rank is not None]
    if task in ("ranking", "review") and len(ranks) == len(group.responses):
        return {"ranks": places(ranks)}
    if task == "thumb" and group.responses[0].label is not None:
        return {"good": group.responses[0].label}
    raise BadRow(f"the row states no label, so it cannot be the gold label of a {task}")


def joined(groups: Iterable[Group]) -> list[Group]:
    """One group for each prompt, with the responses of all that have it, such as samples of several
    policies.
    """
    found: dict[str, Group] = {}
    for group in groups:
        key = str((turns_of(group.prompt), group.tools))
        if (first := found.get(key)) is not None:
            group = replace(
                first,
                responses=(*first.responses, *group.responses),
                meta={**group.meta, **first.meta},
            )
        found[key] = group
    return list(found.values())


def questions_of(group: Group, task: str | None) -> list[Group]:
    """The questions about a row, a group each; none if fewer than two of its responses differ.

    Of thumbs: one for each response. Of others: one with all responses. Equal responses are one. If
    all responses have a reward, it is a column, with which labels can be compared later.
    """
    rewards = [response.scores.get("reward") for response in group.responses]
    if rewards and None not in rewards:
        group = replace(group, meta={**group.meta, "reward": group.meta.get("reward", rewards)})
    different: dict[str, Response] = {}
    for response in group.responses:
        text = response.text if response.messages is None else turns_of(response.messages)
        different.setdefault(str(text), response)
    answers = tuple(different.values())
    if task == "thumb":
        return [replace(group, responses=(answer,), pairs=()) for answer in answers]
    if len(group.responses) > 1 and len(answers) < 2 and task in COMPARED:
        return []
    return [
        group
        if len(answers) == len(group.responses)
        else replace(group, responses=answers, pairs=())
    ]
