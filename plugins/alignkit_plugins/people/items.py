"""Items: what a person is asked about. Equal items have equal ids, so stores of several people can
be merged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from alignkit.data.group import Group, Message, Response, sha256_of, turns_of
from alignkit.errors import BadRow, did_you_mean
from alignkit.formats import check_group
from alignkit_plugins.people.labels import check_canonical

# The number of responses of each task.
TASKS = {
    "pair": range(2, 3),
    "safety": range(2, 3),
    "ranking": range(2, 10),
    "scores": range(1, 10),
    "review": range(2, 10),
    "demonstration": range(0, 2),
    "thumb": range(1, 2),
}
# What a task scores
CRITERIA = {"scores": ("helpful", "truthful", "harmless"), "review": ("overall",)}
LONGEST = 200_000  # characters of a text

Answer = str | tuple[Message, ...]


@dataclass(frozen=True)
class Item:
    """A prompt with responses, and what a person should say about them.

    task: `pair` (which is better, and how much), `safety` (the same with a safety bin), `ranking`,
    `scores` (1 to 7 on each criterion), `review` (an overall score, flags and ranks),
    `demonstration` (write an answer, or edit the only one), or `thumb` (one response, good or bad).
    prompt: turns. responses: each a text, or turns if it has several. The id depends on these and
    on `tools` only.

    origins: who wrote each response, such as a stage; never shown to labelers. author: the
    annotator who wrote the prompt, if it is one; such an item is exported only with that person's
    consent. license: of the texts; items without one are not exported. batch: the stage or file
    that asks. gold: the right label, as `labels.canonical` returns it. priority: higher ones are
    labeled first.
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
        return CRITERIA.get(self.task, ())

    def checked(self) -> Item:
        """The item itself. Raises `BadRow` if nobody could label it."""
        if self.task not in TASKS:
            raise BadRow(
                f"unknown task {self.task!r}; expected {', '.join(TASKS)} "
                f"{did_you_mean(self.task, TASKS)}".rstrip()
            )
        sizes, count = TASKS[self.task], len(self.responses)
        if count not in sizes:
            expected = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
            raise BadRow(
                f"a {self.task} has {expected} response{'s' * (expected != '1')}, not {count}"
            )
        if self.origins and len(self.origins) != count:
            raise BadRow(f"there are {count} responses, but {len(self.origins)} origins")
        check_group(Group(self.prompt, tuple(map(response_of, self.responses)), pairs=()))
        answers = {json.dumps(response) for response in self.responses}
        if len(answers) < count and self.task != "scores":
            raise BadRow("two responses are the same, so nobody can prefer one")
        for text in self._texts():
            if len(text) > LONGEST:
                raise BadRow(
                    f"a text has {len(text):,} characters, but nobody can read more than "
                    f"{LONGEST:,}"
                )
        if self.gold is not None:
            check_canonical(self.task, self.gold, count, self.criteria)
        return self

    def _texts(self) -> Iterable[str]:
        for part in (self.prompt, *self.responses):
            yield from [part] if isinstance(part, str) else (turn["content"] for turn in part)


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
        "origins": tuple(response.source for response in group.responses),
    }
    answers = tuple(r.text if r.messages is None else r.messages for r in group.responses)
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


def listed(value: Any, change: Callable[[str], str] = str) -> Any:
    """Nested plain data with lists for tuples, as JSON has them. change: what becomes of each text;
    keys stay.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: listed(below, change) for name, below in value.items()}
    return [listed(below, change) for below in value] if isinstance(value, list | tuple) else value


def tupled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an item as JSON has them, with tuples where an item has tuples."""
    tuples = {
        name: tuple(fields[name]) for name in ("prompt", "tools", "origins") if name in fields
    }
    answers = tuple(
        answer if isinstance(answer, str) else tuple(answer) for answer in fields["responses"]
    )
    return {**fields, **tuples, "responses": answers}


def response_of(answer: Answer) -> Response:
    """An answer as a response of a group."""
    return Response(text=answer) if isinstance(answer, str) else Response(messages=answer)
