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

`min_gold` says whose labels are read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, Literal

from alignkit import BadRow, Field, Group, Options, Pair, Response
from alignkit_plugins.formats.columns import ColumnFormat
from alignkit_plugins.people.labels import Label, agrees, differences, gaps, majority, mean_scores

FEWEST = 5  # answers to gold items that decide about a person
NAMELESS = "(no name)"  # votes of rows that say nobody's
Task = Literal["pair", "safety", "ranking", "scores", "review", "demonstration", "thumb"]
Row = dict[str, Any]


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
        """The rows with the votes that count; `notes` says who was left out. Rows that cannot be
        read stay.

        Raises `BadRow` for `min_gold` without gold items, and if nobody is left.
        """
        if self.options.min_gold is None:
            return rows
        numbered = list(rows)
        readable = [row for _, row in numbered if is_usable(row) and self._reads(row["item"])]
        worse, self.notes = below(readable, self.options.min_gold)
        chosen = []
        for number, row in numbered:
            if any(row is one for one in readable):
                row = {**row, "votes": [vote for vote in row["votes"] if author(vote) not in worse]}
            if not is_usable(row) or row["votes"] or row.get("final"):
                chosen.append((number, row))
        return iter(chosen)

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

    def _groups(self, row: Row) -> list[Group]:
        task = row["item"]["task"]
        if not self._reads(row["item"]):
            return []
        labels = [row["final"]] if row.get("final") else [vote["label"] for vote in row["votes"]]
        if not labels:
            raise BadRow("the item has no label")
        group = self._group(row)
        if task == "demonstration":
            return [replace(group, responses=(Response(text=label["text"]),)) for label in labels]
        one = majority(labels)
        if one is None and (self.options.votes == "majority" or task == "thumb"):
            return []
        if one is not None and task == "thumb":
            return [
                replace(
                    group, responses=tuple(replace(r, label=one["good"]) for r in group.responses)
                )
            ]
        return [_learned(group, labels, one or {}, self.options.votes)]

    def _reads(self, item: Mapping[str, Any]) -> bool:
        """Whether the recipe asks for this item."""
        return self.options.tasks is None or item["task"] in self.options.tasks

    def _group(self, row: Row) -> Group:
        """The item without labels."""
        item = row["item"]
        origins = item.get("origins") or [None] * len(item["responses"])
        answers = []
        for answer, origin in zip(item["responses"], origins, strict=True):
            if isinstance(answer, str):
                answers.append(Response(text=answer, source=origin))
            else:
                answers.append(self.answer(self.conversation(answer, "responses"), source=origin))
        columns = {name: item[name] for name in ("license", "batch") if name in item}
        meta = item.get("meta", {})
        columns |= json.loads(meta) if isinstance(meta, str) else meta
        columns |= self.rest(row, "feedback", "item", "votes", "final", "gold")
        prompt, tools = self.conversation(item["prompt"], "prompt"), self.tools(item)
        return Group(prompt, tuple(answers), meta=columns, tools=tools)


def _learned(group: Group, labels: Sequence[Label], one: Label, votes: str) -> Group:
    """The group with what is learned from labels of a comparison. one: the majority's; empty if
    there is none.
    """
    labels = [one] if votes == "majority" else labels
    group = replace(group, meta={**group.meta, **_columns(one)})
    if "scores" in labels[0] and "ranks" not in labels[0]:
        each = list(map(mean_scores, labels))
        means = list(map(fmean, zip(*each, strict=True)))
        answers = [
            replace(answer, scores={"reward": mean})
            for answer, mean in zip(group.responses, means, strict=True)
        ]
        pairs = []
        for values in each if votes == "each" else [means]:
            pairs += [_pair(two, gap, abs(gap)) for two, gap in differences(values).items() if gap]
        return replace(group, responses=tuple(answers), pairs=tuple(pairs))
    if "ranks" in labels[0] and len(labels) == 1:
        ranked = zip(group.responses, labels[0]["ranks"], strict=True)
        return replace(
            group, responses=tuple(replace(answer, rank=float(rank)) for answer, rank in ranked)
        )
    if votes == "each" or len(labels) == 1:
        pairs = []
        for label in labels:
            pairs += [
                _pair(two, gap, label.get("margin")) for two, gap in gaps(label).items() if gap
            ]
        return replace(group, pairs=tuple(pairs))
    return replace(group, pairs=tuple(_shared(labels, one.get("margin"))))


def _columns(one: Label) -> dict[str, Any]:
    """What a label says besides the comparison: a safety bin, or scores and flags of each
    response.
    """
    columns = {"safety_bin": one["safety"]} if "safety" in one else {}
    if "flags" in one:
        names = one["scores"][0]
        columns = {name: [rated[name] for rated in one["scores"]] for name in names}
        columns["flags"] = one["flags"]
    return columns


def _pair(two: tuple[int, int], gap: float, margin: Any = None, p: float = 1.0) -> Pair:
    better, worse = two if gap > 0 else reversed(two)
    return Pair(better, worse, p, margin)


def _shared(labels: Sequence[Label], margin: str | None) -> Iterator[Pair]:
    """The pairs that more labels order one way than the other; p is their share among those without
    a tie.
    """
    each = list(map(gaps, labels))
    for two in each[0]:
        first, second = sum(found[two] > 0 for found in each), sum(found[two] < 0 for found in each)
        if first != second:
            yield _pair(two, first - second, margin, max(first, second) / (first + second))


# Whose labels count


def is_usable(row: Any) -> bool:
    """Whether the labels of a row can be compared; the format says what is wrong with others."""
    try:
        labels = [vote["label"] for vote in row["votes"]]
        for label in labels:
            agrees(label, row.get("final") or label)
        return bool(row["item"]["task"]) and all(labels)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError):
        return False


def author(vote: Mapping[str, Any]) -> str:
    """Whose vote it is."""
    return str(vote.get("annotator") or NAMELESS)


def below(rows: Sequence[Row], least: float) -> tuple[set[str], list[str]]:
    """Who answers gold items worse than asked, and notes on it, as `why: person; person`."""
    people = {author(vote) for row in rows for vote in row["votes"]}
    answers: dict[str, list[bool]] = {name: [] for name in sorted(people)}
    for row in rows:
        for vote in row["votes"] if row.get("gold") and row.get("final") else ():
            agreed = agrees(vote["label"], row["final"])
            if agreed is not None:
                answers[author(vote)].append(agreed)
    if not any(answers.values()):
        raise BadRow(
            "'min_gold' needs gold items that these people answered, and there are none; add "
            "some with `alignkit label STORE --gold FILE`, or remove 'min_gold'"
        )
    worse, unsure = list[str](), list[str]()
    for name, right in answers.items():
        if len(right) < FEWEST:
            unsure.append(name)
        elif sum(right) / len(right) < least:
            worse.append(name)
    if len(worse) == len(people):
        raise BadRow(
            f"'min_gold: {least:g}' leaves nobody; gold items right: {_shares(answers, worse)}"
        )
    notes = {f"left out, gold below {least:.0%}": worse, f"kept, under {FEWEST} gold items": unsure}
    return set(worse), [
        f"{why}: {_shares(answers, names)}" for why, names in notes.items() if names
    ]


def _shares(answers: Mapping[str, Sequence[bool]], names: Sequence[str]) -> str:
    return "; ".join(f"{name} {sum(answers[name])} of {len(answers[name])}" for name in names)
