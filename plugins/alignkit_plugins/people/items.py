"""Items: what a person is asked about. Equal items have equal ids, so stores of several people can be merged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
CRITERIA = ("helpful", "truthful", "harmless")
OVERALL = ("overall",)  # the criterion of a review
LONGEST = 200_000  # characters of a text

Answer = str | tuple[Message, ...]


@dataclass(frozen=True)
class Item:
    """A prompt with responses, and what a person should say about them.

    task: `pair` (which is better, and how much), `safety` (the same with a safety bin), `ranking`, `scores` (1 to 7 on
    each criterion), `review` (an overall score, flags and ranks), `demonstration` (write an answer, or edit the only
    one), or `thumb` (one response, good or bad). prompt: turns. responses: each a text, or turns if it has several. The
    id depends on these and on `criteria` and `tools` only.

    origins: who wrote each response, such as a stage; never shown to labelers. criteria: of scores. author: the
    annotator who wrote the prompt, if it is one; such an item is exported only with that person's consent. license: of
    the texts; items without one are not exported. file, row: where it was read. batch: the round that it belongs to.
    gold: the right label, as `labels.canonical` returns it. overlap: how many annotators label it; None: as the store
    says. priority: higher ones are labeled first. opinions: what rewards and judges say of the responses, by name: a
    number for each, of which higher is better, or None. Neither labelers nor recipes see them. held_out: of an
    evaluation, so recipes do not learn from it unless they ask for it.
    """

    task: str
    prompt: tuple[Message, ...]
    responses: tuple[Answer, ...] = ()
    criteria: tuple[str, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    origins: tuple[str | None, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    license: str = ""
    author: str = ""
    file: str = ""
    row: int = 0
    batch: str = ""
    gold: Mapping[str, Any] | None = None
    overlap: int | None = None
    priority: float = 0.0
    opinions: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    held_out: bool = False

    @cached_property
    def id(self) -> str:
        """32 hex digits that depend on what the item asks, and on nothing else."""
        answers = [answer if isinstance(answer, str) else turns_of(answer) for answer in self.responses]
        asked = [self.task, turns_of(self.prompt), answers, list(self.criteria), list(self.tools)]
        return sha256_of(asked)[:32]

    def checked(self) -> Item:
        """The item itself. Raises `BadRow` if nobody could label it."""
        if self.task not in TASKS:
            raise BadRow(
                f"unknown task {self.task!r}; expected {', '.join(TASKS)} {did_you_mean(self.task, TASKS)}".rstrip()
            )
        sizes, count = TASKS[self.task], len(self.responses)
        if count not in sizes:
            expected = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
            raise BadRow(f"a {self.task} has {expected} response{'s' * (expected != '1')}, not {count}")
        if self.origins and len(self.origins) != count:
            raise BadRow(f"there are {count} responses, but {len(self.origins)} origins")
        self._check_texts()
        if bool(self.criteria) != (self.task in ("scores", "review")) or len(set(self.criteria)) < len(self.criteria):
            raise BadRow("scores and reviews need criteria, each with a different name; other tasks have none")
        if self.overlap is not None and self.overlap < 1:
            raise BadRow(f"overlap must be at least 1, not {self.overlap!r}")
        for name, said in self.opinions.items():
            if len(said) != count or not all(value is None or _is_finite(value) for value in said):
                raise BadRow(f"the opinion {name!r} must hold {count} numbers, one for each response, not {said!r:.80}")
        if self.gold is not None:
            check_canonical(self.task, self.gold, count, self.criteria)
        return self

    def _check_texts(self) -> None:
        check_group(Group(self.prompt, tuple(map(response_of, self.responses)), pairs=()))
        answers = [json.dumps(response) for response in self.responses]
        if len(set(answers)) < len(answers) and self.task != "scores":
            raise BadRow("two responses are the same, so nobody can prefer one")
        if longest := next((len(text) for text in self._texts() if len(text) > LONGEST), None):
            raise BadRow(f"a text has {longest:,} characters, but nobody can read more than {LONGEST:,}")

    def _texts(self) -> Iterable[str]:
        for part in (self.prompt, *self.responses):
            yield from [part] if isinstance(part, str) else (turn["content"] for turn in part)


def item_of(group: Group, task: str | None = None, criteria: Sequence[str] = CRITERIA, **more: Any) -> Item:
    """The item of a group. task: default: by the number of its responses. Raises `BadRow` if it does not suit.

    The group's pairs, ranks and labels are not shown; more: further fields of the item.
    """
    count = len(group.responses)
    task = task or {0: "demonstration", 1: "demonstration", 2: "pair"}.get(count, "ranking")
    known: dict[str, Any] = {
        "meta": dict(group.meta),
        "license": str(group.meta.get("license") or ""),
        "origins": tuple(response.source for response in group.responses),
    }
    if group.origin is not None:
        known |= {"file": group.origin.file, "row": group.origin.row}
    answers = tuple(r.text if r.messages is None else r.messages for r in group.responses)
    rated = {"scores": tuple(criteria), "review": OVERALL}.get(task, ())
    return Item(task, group.prompt, answers, rated, group.tools, **{**known, **more}).checked()


def filled(item: Item, other: Item) -> Item:
    """The item with what only another version of it says."""
    return replace(
        item,
        license=item.license or other.license,
        author=item.author or other.author,
        gold=other.gold if item.gold is None else item.gold,
        meta={**other.meta, **item.meta},
        opinions={**other.opinions, **item.opinions},
        held_out=item.held_out or other.held_out,
        origins=item.origins if any(item.origins) else other.origins,
    )


def listed(value: Any, change: Callable[[str], str] = str) -> Any:
    """Nested plain data with lists for tuples, as JSON has them. change: what becomes of each text; keys stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: listed(below, change) for name, below in value.items()}
    return [listed(below, change) for below in value] if isinstance(value, list | tuple) else value


def tupled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of an item as JSON has them, with tuples where an item has tuples."""
    tuples = {name: tuple(fields[name]) for name in ("prompt", "criteria", "tools", "origins") if name in fields}
    answers = tuple(answer if isinstance(answer, str) else tuple(answer) for answer in fields["responses"])
    return {**fields, **tuples, "responses": answers}


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def response_of(answer: Answer) -> Response:
    """An answer as a response of a group."""
    return Response(text=answer) if isinstance(answer, str) else Response(messages=answer)
