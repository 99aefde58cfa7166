"""Two answers and a label that says which one is better: LLMBar, Auto-J, PandaLM, SuperHF, Tulu,
AlpacaEval and others.

A layout names the columns and what the values of the label mean. PAIRS holds those of known data
sets, each with other values: 1 means the first answer in LLMBar, the second one in Auto-J. So an
unknown data set is read only if its labels explain themselves (`a` for response_a, or the name of a
column), or if `labels` says what they mean. A tie makes a group without a pair. If several columns
have a label, the most frequent one counts; without one, it is a tie.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from alignkit import BadRow, Field, Format, Group, Options, Pair
from alignkit.data.group import LEVELS
from alignkit.formats import columns_of
from alignkit_plugins.formats.columns import ColumnFormat, first_of, shared_turns
from alignkit_plugins.formats.layouts import PAIRS, TwoAnswers
from alignkit_plugins.formats.rankings import PROMPTS

Side = Literal["first", "second", "tie"]
# 0 or 1 each, in the arena's rows on Kaggle
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
LETTERED = ("SuperHF", "Tulu", "Chatbot Arena")  # whose labels say which letter is better
LABELS = ("label", "labels", "preference", "winner", "verdict", "rating", "choice", "better")
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<mark>[ _-]?(?:1|a|A|0))(?P<rest>_\w+)?")
_ANSWER = re.compile("response|output|completion|answer", re.IGNORECASE)
_SOFT = re.compile(r"1\.\d+")
_SECOND = {"1": "2", "a": "b", "A": "B", "0": "1"}


class LabeledPairsOptions(Options):
    """Columns and the meaning of labels. Those of known data sets are recognized."""

    prompt: str | None = Field(None, description="column of the prompt: text, or messages")
    first: str | None = Field(None, description="column of the first answer")
    second: str | None = Field(None, description="column of the second answer")
    label: str | None = Field(None, description="column that says which answer is better")
    labels: dict[str, Side] | None = Field(
        None, description="what the values of the label mean: {VALUE: first, second or tie}"
    )
    margins: dict[str, float | str] | None = Field(
        None, description=f"margin by value of the label: a number, or one of {', '.join(LEVELS)}"
    )


class LabeledPairs(ColumnFormat):
    """A prompt, two answers, and a label."""

    Options = LabeledPairsOptions
    example = '{"input": "Hi", "output_1": "Go away.", "output_2": "Hello!", "label": 2}'
    wants = (
        "prompt, instruction or input, two answers such as output_1 and output_2, and a label, "
        "preference or winner"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        row = with_winner(row)
        return cls.lacks(row, "chosen", "rejected") and layout_of(row) is not None

    def read(self, row: Any) -> Group:
        row = with_winner(columns_of(row))
        layout = self._layout(row)
        turns = [self.column(row, name, user=False) for name in (layout.first, layout.second)]
        shared = 0
        if not layout.prompt:
            shared = shared_turns(*turns)
            prompt = turns[0][:shared]
        elif len(layout.prompt) == 1:
            prompt = self.column(row, layout.prompt[0])
        else:
            prompt = self.joined(row, layout.prompt)
        responses = []
        for answer, name in zip(turns, layout.sources or ("", ""), strict=True):
            author = self.text(row, name, "")
            responses.append(self.answer(answer[shared:], source=author or None))
        used = (*layout.prompt, layout.first, layout.second, *layout.sources)
        return self.group(row, used, prompt, responses, self._pairs(row, layout))

    def _layout(self, row: Mapping[str, Any]) -> TwoAnswers:
        """The row's layout, with what the options name. Raises BadRow if it stays unknown."""
        o = self.options
        layout = layout_of(row, o.label) or TwoAnswers()
        columns: dict[str, Any] = {
            "first": o.first or layout.first,
            "second": o.second or layout.second,
        }
        columns["prompt"] = (o.prompt,) if o.prompt else layout.prompt
        columns["label"] = (o.label,) if o.label else layout.label
        if o.labels is not None:
            columns |= {"labels": _by_value(o.labels), "margins": {}, "soft": False}
        if o.margins is not None:
            columns["margins"] = _by_value(o.margins)
        for name in ("first", "second", "label"):
            if not columns[name]:
                raise BadRow(
                    f"no column for {name} was recognized; name it, as in `{name}: COLUMN`"
                )
        layout = replace(layout, **columns)
        if not layout.labels:
            raise BadRow(
                f"what the values of '{layout.label[0]}' mean is unknown, such as "
                f"{row.get(layout.label[0])!r}; say it with `labels`, as in `labels: {{'1': "
                f"first, '2': second, '0': tie}}`"
            )
        return layout

    def _pairs(self, row: Mapping[str, Any], layout: TwoAnswers) -> tuple[Pair, ...]:
        """The pair that the label means; none for a tie."""
        votes = Counter(self._vote(row, name, layout) for name in layout.label)
        (pair, count), *others = votes.most_common(2)
        if pair is None or (others and others[0][1] == count):
            return ()
        scores = [score for name in layout.scores if (score := self.number(row, name)) is not None]
        if len(scores) == 2 and scores[pair.better] < scores[pair.worse]:
            names = ", ".join(f"{name} {row[name]}" for name in (*layout.label, *layout.scores))
            raise BadRow(f"the label and the scores contradict each other: {names}")
        return (pair,)

    def _vote(self, row: Mapping[str, Any], name: str, layout: TwoAnswers) -> Pair | None:
        value = canonical(row.get(name))
        if value in layout.labels:
            margin = layout.margins.get(value)
            pairs = {
                "first": Pair(0, 1, margin=margin),
                "second": Pair(1, 0, margin=margin),
                "tie": None,
            }
            return pairs[layout.labels[value]]
        if layout.soft and _SOFT.fullmatch(value) and 0 < (p := float(value) - 1) < 1:
            return Pair(1, 0, p=p) if p > 0.5 else Pair(0, 1, p=1 - p)
        raise BadRow(
            f"column '{name}' holds {row.get(name)!r}, but the known labels are "
            f"{', '.join(layout.labels)}"
        )


def _by_value(values: Mapping[str, Any]) -> dict[str, Any]:
    return {canonical(value): meaning for value, meaning in values.items()}


def with_winner(row: Any) -> Any:
    """The row with WINNERS as one label, and with its lists of the user's and the models' turns as
    conversations.
    """
    if not Format.has(row, *WINNERS):
        return row
    winners = [
        name.removeprefix("winner_") for name in WINNERS if canonical(row[name]) in ("1", "true")
    ]
    columns = {name: value for name, value in row.items() if name not in WINNERS}
    columns["winner"] = " and ".join(winners)
    asked, *answers = (_texts(row.get(name)) for name in ("prompt", "response_a", "response_b"))
    if not asked or any(len(answer) != len(asked) for answer in answers):
        return columns
    for side, answer in zip("ab", answers, strict=True):
        turns: list[Any] = []
        for words, reply in zip(asked, answer, strict=True):
            turns += [
                {"role": "user", "content": words or ""},
                {"role": "assistant", "content": reply or ""},
            ]
        columns[f"conversation_{side}"] = turns
        del columns[f"response_{side}"]
    del columns["prompt"]
    return columns


def _texts(cell: Any) -> list[Any]:
    """The texts in a list, or in JSON of one; empty for another value."""
    try:
        value = json.loads(cell) if isinstance(cell, str) else cell
    except ValueError:
        return []
    return (
        value
        if isinstance(value, list) and all(isinstance(text, str | None) for text in value)
        else []
    )


def layout_of(row: Any, label: str | None = None) -> TwoAnswers | None:
    """The layout of a known data set, or one by the names of the row's columns.

    The labels of the latter are empty unless they explain themselves.
    """
    for layout in PAIRS.values():
        if layout.fits(row):
            return layout
    prompt, label = first_of(row, PROMPTS), label or first_of(row, LABELS)
    for name in row if prompt and label else ():
        match = _NUMBERED.fullmatch(str(name))
        if match is None or not _ANSWER.search(name):
            continue
        mark = match["mark"]
        other = match["stem"] + mark[:-1] + _SECOND[mark[-1]] + (match["rest"] or "")
        if not isinstance(row[name], str | list) or not isinstance(row.get(other), str | list):
            continue
        labels = {canonical(name): "first", canonical(other): "second", "tie": "tie"}
        for data_set in LETTERED if mark[-1] in "aA" else ():
            labels |= PAIRS[data_set].labels
        explained = labels if canonical(row.get(label)) in labels else {}
        return TwoAnswers((prompt,), name, other, (label,), explained)
    return None


def canonical(value: Any) -> str:
    """A label as text, in which 1, 1.0, true's text and " 1 " are comparable."""
    if isinstance(value, str):
        value = value.strip().lower()
        try:
            value = float(value)
        except ValueError:
            return str(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).lower()
