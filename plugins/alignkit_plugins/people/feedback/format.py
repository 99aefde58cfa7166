"""Labels of people, from a store (`labels.feedback`) or from rows of an export.

A pair becomes a pair with a margin by Llama 2's levels, a ranking its ranks with ties, scores pairs
whose margin is the difference of the mean scores, a demonstration a response to learn, and a thumb
a label, good or bad. Of a review, the ranks count; its scores and flags are the columns `overall`
and `flags`.

Several annotators may have labeled an item. With `votes: soft`, the share of those who prefer a
response is its probability of being better, so a reward model learns how sure people are; responses
that as many prefer as not form no pair. With `votes: majority`, only the winner counts. With
`votes: each`, every vote is a pair of its own, as if it were another item. An item that was
adjudicated or has a gold label has one label.

`annotators` and `min_gold` say whose labels are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from statistics import fmean
from typing import Any, Literal

from alignkit import BadRow, Field, Group, Options, Pair, Response
from alignkit_plugins.formats.columns import ColumnFormat
from alignkit_plugins.people.effective_labels import majority, review_columns
from alignkit_plugins.people.reliability import chosen_rows, is_usable

Task = Literal["pair", "safety", "ranking", "scores", "review", "demonstration", "thumb"]
Labels = Sequence[dict[str, Any]]


class VoteOptions(Options):
    """How labels of several annotators become one, and whose count."""

    votes: Literal["soft", "majority", "each"] = Field(
        "soft",
        description=(
            "labels of several annotators: their share as probability, the majority's, or a pair "
            "for each"
        ),
    )
    min_gold: float | None = Field(
        None,
        gt=0,
        le=1,
        description="leave out people who are right in a smaller share of gold items",
    )


class FeedbackOptions(VoteOptions):
    """Which labels are read, and how those of several annotators become one."""

    tasks: list[Task] | None = Field(
        None, min_length=1, description="read only these tasks; default: all"
    )
    annotators: list[str] | None = Field(
        None, min_length=1, description="read only labels of these people; default: of all"
    )


class Feedback(ColumnFormat):
    """Items that people labeled."""

    Options = FeedbackOptions
    wants = "feedback, item and votes, as exports of feedback have them; or a store (FILE.feedback)"
    example = (
        '{"feedback": 1, "item": {"task": "pair", "prompt": [{"role": "user", "content": "Hi"}], '
        '"responses": ["Hello!", "What?"]}, "votes": [{"label": {"better": 0, "margin": '
        '"better"}}]}'
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "feedback", "item", "votes")

    def rows(self, rows: Iterator[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        options, chosen = self.options, list(rows)
        if options.annotators is not None or options.min_gold is not None:
            chosen, self.notes = chosen_rows(
                chosen, options.annotators, options.min_gold, lambda row: self._reads(row["item"])
            )
        if tied := sum(self._tied(row) for _, row in chosen):
            self.notes = [
                *self.notes,
                f"pairs with as many votes on both sides, to adjudicate on the page: {tied}",
            ]
        return iter(chosen)

    def _tied(self, row: Any) -> bool:
        """Whether as many people prefer one response as the other, so that there is nothing to
        learn.
        """
        if (
            self.options.votes != "soft"
            or not is_usable(row)
            or row.get("final")
            or not self._reads(row["item"])
        ):
            return False
        first = [vote["label"]["better"] == 0 for vote in row["votes"] if "better" in vote["label"]]
        return bool(first) and 2 * sum(first) == len(first)

    def read(self, row: Any) -> Group:
        for group in self.groups(row):
            return group
        raise BadRow("the row has no label that this recipe reads")

    def groups(self, row: Any) -> list[Group]:
        """One group per item; one per text if several people wrote demonstrations; none for what is
        not asked for.
        """
        if not self.has(row, "item", "votes") or row.get("feedback") != 1:
            raise BadRow("not feedback of version 1: expected feedback: 1, item and votes")
        try:
            return self._groups(row)
        except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
            raise BadRow(f"not a row of feedback: {type(error).__name__}: {error}") from error

    def _groups(self, row: Mapping[str, Any]) -> list[Group]:
        task = row["item"]["task"]
        if not self._reads(row["item"]):
            return []
        labels = [vote["label"] for vote in row["votes"]]
        if row.get("final"):
            labels = [row["final"]]
        if not labels:
            raise BadRow("the item has no label")
        if task == "demonstration":
            return [
                replace(self._group(row), responses=(Response(text=label["text"]),))
                for label in labels
            ]
        readers = {
            "pair": self._pair, "safety": self._pair, "ranking": self._ranking, "scores": self._scores,
            "review": self._review, "thumb": self._thumb,
        }  # fmt: skip
        if task not in readers:
            raise BadRow(f"unknown task {task!r}; expected demonstration, {', '.join(readers)}")
        if self.options.votes == "majority":
            one = majority(task, labels)
            labels = [] if one is None else [one]
        return readers[task](self._group(row), labels) if labels else []

    def _reads(self, item: Mapping[str, Any]) -> bool:
        """Whether the recipe asks for this item."""
        return self.options.tasks is None or item["task"] in self.options.tasks

    def _group(self, row: Mapping[str, Any]) -> Group:
        """The item without labels."""
        item = row["item"]
        origins = item.get("origins") or [None] * len(item["responses"])
        answers = tuple(
            self._response(*each) for each in zip(item["responses"], origins, strict=True)
        )
        columns = {name: item[name] for name in ("license", "batch") if name in item}
        meta = {
            **columns,
            **item.get("meta", {}),
            **self.rest(row, "feedback", "item", "votes", "final", "gold"),
        }
        tools = self.tools(item)
        return Group(self.conversation(item["prompt"], "prompt"), answers, meta=meta, tools=tools)

    def _response(self, answer: Any, origin: str | None) -> Response:
        if isinstance(answer, str):
            return Response(text=answer, source=origin)
        return self.answer(self.conversation(answer, "responses"), source=origin)

    def _pair(self, group: Group, labels: Labels) -> list[Group]:
        one = majority("pair", labels)
        if one is not None and "safety" in one:
            group = replace(group, meta={**group.meta, "safety_bin": one["safety"]})
        if self.options.votes != "soft" or len(labels) < 2:
            return [replace(group, pairs=tuple(_preferred(label) for label in labels))]
        share = sum(label["better"] == 0 for label in labels) / len(labels)
        pairs = (
            ()
            if one is None or share == 0.5
            else (replace(_preferred(one), p=max(share, 1 - share)),)
        )
        return [replace(group, pairs=pairs)]

    def _ranking(self, group: Group, labels: Labels) -> list[Group]:
        if len(labels) == 1:
            ranked = zip(group.responses, labels[0]["ranks"], strict=True)
            answers = tuple(replace(response, rank=float(rank)) for response, rank in ranked)
            return [replace(group, responses=answers)]
        if self.options.votes == "each":
            return [
                replace(
                    group,
                    pairs=tuple(pair for label in labels for pair in _ordered(label["ranks"])),
                )
            ]
        return [replace(group, pairs=tuple(_shared(labels, len(group.responses))))]

    def _review(self, group: Group, labels: Labels) -> list[Group]:
        columns = review_columns(majority("review", labels) or {})
        return self._ranking(replace(group, meta={**group.meta, **columns}), labels)

    def _scores(self, group: Group, labels: Labels) -> list[Group]:
        each = [[fmean(rated.values()) for rated in label["scores"]] for label in labels]
        means = [fmean(scores) for scores in zip(*each, strict=True)]
        tables = each if self.options.votes == "each" else [means]
        pairs = tuple(pair for scores in tables for pair in _apart(scores))
        rated = zip(group.responses, means, strict=True)
        answers = tuple(replace(response, scores={"reward": mean}) for response, mean in rated)
        return [replace(group, responses=answers, pairs=pairs)]

    def _thumb(self, group: Group, labels: Labels) -> list[Group]:
        one = majority("thumb", labels)
        if one is None:
            return []
        return [
            replace(
                group,
                responses=tuple(replace(answer, label=one["good"]) for answer in group.responses),
            )
        ]


def _preferred(label: Mapping[str, Any]) -> Pair:
    better = label["better"]
    return Pair(better, 1 - better, margin=label.get("margin"))


def _ordered(ranks: Sequence[int]) -> Iterator[Pair]:
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] != ranks[j]:
            yield Pair(i, j) if ranks[i] < ranks[j] else Pair(j, i)


def _shared(labels: Labels, count: int) -> Iterator[Pair]:
    """The pairs that more rankings order one way than the other; p is their share among those
    without a tie.
    """
    for i, j in combinations(range(count), 2):
        first = sum(label["ranks"][i] < label["ranks"][j] for label in labels)
        second = sum(label["ranks"][j] < label["ranks"][i] for label in labels)
        if first > second:
            yield Pair(i, j, p=first / (first + second))
        if second > first:
            yield Pair(j, i, p=second / (first + second))


def _apart(scores: Sequence[float]) -> Iterator[Pair]:
    for i, j in combinations(range(len(scores)), 2):
        if gap := scores[i] - scores[j]:
            yield Pair(i, j, margin=gap) if gap > 0 else Pair(j, i, margin=-gap)
