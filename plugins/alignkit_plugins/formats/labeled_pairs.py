"""Two answers and a label that says which one is better: LLMBar, Auto-J, PandaLM, SuperHF, Tulu,
AlpacaEval and others.

A layout names the columns and what the values of the label mean. LAYOUTS holds those of known data
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
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from alignkit import BadRow, Field, Format, Group, Message, Options, Pair
from alignkit.data.group import LEVELS
from alignkit.formats import columns_of
from alignkit_plugins.formats.columns import ColumnFormat, shared_turns

Side = Literal["first", "second", "tie"]
NUMBERS = {"1": "first", "2": "second", "0": "tie"}
FROM_ZERO = {"0": "first", "1": "second", "2": "tie"}
LETTERS = {"a": "first", "b": "second", "tie": "tie"}
LEVELED = {
    "a-is-better": "first",
    "a-is-slightly-better": "first",
    "tie": "tie",
    "b-is-slightly-better": "second",
    "b-is-better": "second",
}
SIGNED = {
    "-3": "first",
    "-2": "first",
    "-1": "first",
    "0": "tie",
    "1": "second",
    "2": "second",
    "3": "second",
}
STRENGTHS = {"-3": 3.0, "-2": 2.0, "-1": 1.0, "1": 1.0, "2": 2.0, "3": 3.0}
ARENA = {"model_a": "first", "model_b": "second", "tie": "tie", "tie (bothbad)": "tie"}


@dataclass(frozen=True)
class Layout:
    """Columns of a data set, and what its labels mean.

    prompt: columns, joined by a blank line; empty if the answers are whole conversations. labels:
    value -> side. margins: value -> margin. sources: columns with the answers' authors. soft:
    values between 1 and 2 are 1 + the probability that the second answer is better. scores: columns
    with the answers' votes, which must agree.
    """

    prompt: tuple[str, ...]
    first: str
    second: str
    label: tuple[str, ...]
    labels: Mapping[str, str] = field(default_factory=dict)
    margins: Mapping[str, float | str] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    soft: bool = False
    scores: tuple[str, ...] = ()

    def fits(self, row: Any) -> bool:
        """Whether the row has these columns; the second and later columns of the prompt may be
        missing.
        """
        # Other sets with AlpacaEval's columns count from 0, where it means a tie.
        needed = (
            *self.prompt[:1],
            self.first,
            self.second,
            *self.label,
            *(self.sources if self.soft else ()),
        )
        return isinstance(row, Mapping) and all(name in row for name in needed)


LAYOUTS = {
    "LLMBar": Layout(("input",), "output_1", "output_2", ("label",), {"1": "first", "2": "second"}),
    "Auto-J": Layout(("prompt",), "response 1", "response 2", ("label",), FROM_ZERO),
    "PandaLM": Layout(
        ("instruction", "input"), "response1", "response2", ("annotator1", "annotator2", "annotator3"), NUMBERS
    ),
    "SuperHF": Layout(
        ("prompt",), (
            "model_a_completion"
        ), (
            "model_b_completion"
        ), ("rating",), LETTERS, sources=("model_a", "model_b")
    ),
    "Tulu": Layout(
        ("prompt",), "completion_a", "completion_b", ("preference",), LEVELED,
        {"a-is-better": "better", "a-is-slightly-better": "slightly",
         "b-is-better": "better", "b-is-slightly-better": "slightly"},
        ("model_a", "model_b"),
    ),
    "AlpacaEval": Layout(
        ("instruction",), "output_1", "output_2", ("preference",),
        {"1": "first", "2": "second", "0": "tie", "1.5": "tie"}, sources=("generator_1", "generator_2"), soft=True,
    ),
    "Chatbot Arena": Layout((), "conversation_a", "conversation_b", ("winner",), ARENA, sources=("model_a", "model_b")),
    "SHP": Layout(
        ("history",), "human_ref_A", "human_ref_B", ("labels",), {"1": "first", "0": "second"},
        scores=("score_A", "score_B"),
    ),
    "PKU-SafeRLHF": Layout(("prompt",), "response_0", "response_1", ((
        "better_response_id"
    ),), FROM_ZERO),
    "HelpSteer2": Layout(("prompt",), "response_1", "response_2", ((
        "preference_strength"
    ),), SIGNED, STRENGTHS),
    "HelpSteer3": Layout(("context",), "response1", "response2", ((
        "overall_preference"
    ),), SIGNED, STRENGTHS),
}  # fmt: skip

PROMPTS = ("prompt", "instruction", "question", "query", "input", "context")
# 0 or 1 each, in the arena's rows on Kaggle
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")
LABELS = ("label", "labels", "preference", "winner", "verdict", "rating", "choice", "better")
_NUMBERED = re.compile(r"(?P<stem>.*?)(?P<mark>[ _-]?(?:1|a|A|0))(?P<rest>_\w+)?")
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
        return (
            cls.lacks(row, "chosen", "rejected")
            and (known_layout(row) or guessed_layout(row)) is not None
        )

    def read(self, row: Any) -> Group:
        row = with_winner(columns_of(row))
        layout = self._layout(row)
        prompt = self._prompt(row, layout)
        answers = [self._answer(row, name) for name in (layout.first, layout.second)]
        if not layout.prompt:
            shared = shared_turns(answers[0], answers[1])
            prompt, answers = answers[0][:shared], [turns[shared:] for turns in answers]
        authors = [self.text(row, name, "") or None for name in layout.sources] or [None, None]
        responses = tuple(
            self.answer(turns, source=who) for turns, who in zip(answers, authors, strict=True)
        )
        meta = self.rest(
            row, *layout.prompt, layout.first, layout.second, *layout.sources, "system", "tools"
        )
        return Group(
            self.opened(prompt, row),
            responses,
            self._pairs(row, layout),
            meta=meta,
            tools=self.tools(row),
        )

    def _layout(self, row: Mapping[str, Any]) -> Layout:
        """The row's layout, with the columns and labels that the options name. Raises BadRow if it
        stays unknown.
        """
        o = self.options
        layout = known_layout(row) or guessed_layout(row, o.label) or Layout((), "", "", ())
        prompt = (o.prompt,) if o.prompt else layout.prompt
        label = (o.label,) if o.label else layout.label
        layout = replace(
            layout,
            prompt=prompt,
            first=o.first or layout.first,
            second=o.second or layout.second,
            label=label,
        )
        if o.labels is not None:
            layout = replace(
                layout,
                labels={canonical(k): side for k, side in o.labels.items()},
                margins={},
                soft=False,
            )
        if o.margins is not None:
            layout = replace(
                layout, margins={canonical(value): margin for value, margin in o.margins.items()}
            )
        missing = [name for name in ("first", "second", "label") if not getattr(layout, name)]
        if missing:
            raise BadRow(
                f"no column for {', '.join(missing)} was recognized; name it, as in "
                f"`{missing[0]}: COLUMN`"
            )
        if not layout.labels:
            raise BadRow(
                f"what the values of '{layout.label[0]}' mean is unknown, such as "
                f"{row.get(layout.label[0])!r}; say it with `labels`, as in `labels: {{'1': "
                f"first, '2': second, '0': tie}}`"
            )
        return layout

    def _prompt(self, row: Mapping[str, Any], layout: Layout) -> tuple[Message, ...]:
        if len(layout.prompt) < 2:
            return (
                self.conversation(row.get(layout.prompt[0]), layout.prompt[0])
                if layout.prompt
                else ()
            )
        parts = [self.text(row, name, "").strip() for name in layout.prompt]
        return (Message(role="user", content="\n\n".join(part for part in parts if part)),)

    def _answer(self, row: Mapping[str, Any], name: str) -> tuple[Message, ...]:
        if row.get(name) is None:
            self.text(row, name)  # raises, and says whether it is absent or null
        return self.conversation(row[name], name, user=False)

    def _pairs(self, row: Mapping[str, Any], layout: Layout) -> tuple[Pair, ...]:
        """The pair that the label means; none for a tie."""
        votes = Counter(self._vote(row, name, layout) for name in layout.label)
        (pair, count), *others = votes.most_common(2)
        if pair is None or (others and others[0][1] == count):
            return ()
        scores = [score for name in layout.scores if (score := self.number(row, name)) is not None]
        if len(scores) == 2 and scores[pair.better] < scores[pair.worse]:
            told = ", ".join(f"{name} {row[name]}" for name in (*layout.label, *layout.scores))
            raise BadRow(f"the label and the scores contradict each other: {told}")
        return (pair,)

    def _vote(self, row: Mapping[str, Any], name: str, layout: Layout) -> Pair | None:
        value = canonical(row.get(name))
        if value not in layout.labels and layout.soft and (p := _probability(value)) is not None:
            return Pair(1, 0, p=p) if p > 0.5 else Pair(0, 1, p=1 - p)
        if value not in layout.labels:
            known = ", ".join(layout.labels)
            raise BadRow(
                f"column '{name}' holds {row.get(name)!r}, but the known labels are {known}"
            )
        side = layout.labels[value]
        margin = layout.margins.get(value)
        return {
            "first": Pair(0, 1, margin=margin),
            "second": Pair(1, 0, margin=margin),
            "tie": None,
        }[side]


def with_winner(row: Any) -> Any:
    """The row with WINNERS as one label, and with its lists of the user's and the models' turns as
    conversations.
    """
    if not Format.has(row, *WINNERS):
        return row
    told = [
        name.removeprefix("winner_") for name in WINNERS if canonical(row[name]) in ("1", "true")
    ]
    columns = {name: value for name, value in row.items() if name not in WINNERS} | {
        "winner": " and ".join(told)
    }
    asked, *answers = (_texts(row.get(name)) for name in ("prompt", "response_a", "response_b"))
    if not asked or any(len(answer) != len(asked) for answer in answers):
        return columns
    for side, answer in zip("ab", answers, strict=True):
        del columns[f"response_{side}"]
        columns[f"conversation_{side}"] = [
            {"role": role, "content": text or ""}
            for turn in zip(asked, answer, strict=True)
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
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
        if isinstance(value, list) and all(text is None or isinstance(text, str) for text in value)
        else []
    )


def known_layout(row: Any) -> Layout | None:
    """The layout of a known data set whose columns the row has."""
    return next((layout for layout in LAYOUTS.values() if layout.fits(row)), None)


def guessed_layout(row: Any, label: str | None = None) -> Layout | None:
    """A layout by the names of the row's columns; its labels are empty unless they explain
    themselves.
    """
    if not isinstance(row, Mapping):
        return None
    prompt = next((name for name in PROMPTS if row.get(name) is not None), None)
    label = label or next((name for name in LABELS if row.get(name) is not None), None)
    answers = next((pair for name in row if (pair := _two_answers(str(name), row))), None)
    if prompt is None or label is None or answers is None:
        return None
    first, second, mark = answers
    labels = {canonical(first): "first", canonical(second): "second", "tie": "tie"}
    if mark in "aA":
        labels |= LETTERS | ARENA | LEVELED
    return Layout(
        (prompt,), first, second, (label,), labels if canonical(row.get(label)) in labels else {}
    )


def _two_answers(name: str, row: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """The column, its counterpart with the next number or letter, and its own number or letter."""
    match = _NUMBERED.fullmatch(name)
    if match is None or not re.search("response|output|completion|answer", name, re.IGNORECASE):
        return None
    mark = match["mark"]
    other = match["stem"] + mark[:-1] + _SECOND[mark[-1]] + (match["rest"] or "")
    if not isinstance(row[name], str | list) or not isinstance(row.get(other), str | list):
        return None
    return name, other, mark[-1]


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


def _probability(value: str) -> float | None:
    """The probability in AlpacaEval's soft labels, which are between 1 and 2."""
    try:
        p = float(value) - 1
    except ValueError:
        return None
    return p if 0 < p < 1 and p != 0.5 else None
