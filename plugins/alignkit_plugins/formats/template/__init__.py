"""Rows with any columns, read by a template: texts that name the columns of a prompt and of its
responses.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import field_validator, model_validator

import alignkit
from alignkit import Add, BadRow, Field, Group, Message, Pair, Response, hookimpl
from alignkit.data.files import kind_of
from alignkit.errors import LeftOut
from alignkit.formats import columns_of
from alignkit_plugins.formats.columns import ColumnFormat
from alignkit_plugins.formats.template.data_sets import DATA_SETS, DataSet
from alignkit_plugins.formats.template.fields import Missing, Text, texts_of

Texts = str | list[str]
KINDS = ("response", "chosen", "responses", "turns")  # of what follows the prompt: at most one
RATINGS = ("best", "ranks", "scores")  # of responses: at most one
# What a key makes sense with: one of these.
NEEDS = {
    "chosen": ["rejected"],
    "rejected": ["chosen"],
    "label": ["response"],
    "margin": ["chosen", "best"],
}
NEEDS |= {"best": ["responses"], "ranks": ["responses"], "scores": ["responses", "response"]}


class TemplateOptions(alignkit.Options):
    """What the columns of a row are."""

    prompt: str | None = Field(None, description="user's message, or a column with messages")
    system: str | None = Field(None, description="system message")
    response: str | None = Field(None, description="good response, to learn from")
    label: str | None = Field(None, description="whether the response is good: true or false")
    chosen: str | None = Field(None, description="better response of a pair")
    rejected: str | None = Field(None, description="worse response of a pair")
    responses: Texts | None = Field(
        None, description="several responses: a column with a list, or a list of texts"
    )
    best: str | None = Field(
        None,
        description=(
            "best one of the responses: its letter, or its number counted from 0; empty for a tie"
        ),
    )
    ranks: Texts | None = Field(None, description="ranks of the responses; 1 is best")
    scores: Texts | None = Field(
        None, description="scores of the response or responses; a higher one is better"
    )
    margin: str | None = Field(
        None, description="margin of the pair of chosen and rejected, or of the best one"
    )
    turns: list[str] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description=(
            "conversation in two columns: lists of what the user and the assistant say; the "
            "prompt precedes the first turn"
        ),
    )
    answer: str | None = Field(
        None, description="right answer, which rewards find in the column `answer`"
    )
    required: list[str] = Field(
        default_factory=list,
        description=(
            "what must not be empty, such as ['{answer}']: other rows are dropped and counted"
        ),
    )

    @field_validator("*")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                Text(text)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        for several in (KINDS, RATINGS):
            if len(both := [name for name in several if name in given]) > 1:
                raise ValueError(f"{' and '.join(both)} exclude each other")
        for name in given:
            if name in NEEDS and not {*NEEDS[name]} & {*given}:
                raise ValueError(f"{name} needs {' or '.join(NEEDS[name])}")
        if "prompt" not in given and "turns" not in given:
            raise ValueError("prompt is missing: the user's message, such as '{question}'")
        return self


class Template(ColumnFormat):
    """Rows with any columns. A recipe names this format, since it has the template."""

    Options: ClassVar[type[alignkit.Options]] = TemplateOptions
    wants = "any that the template names, here passage, question and answer; never detected"
    example = '{"passage": "Ann is 7.", "question": "How old is Ann?", "answer": "7"}'
    called: ClassVar[str] = "template"

    def __init__(self, options: Any = None):
        super().__init__(options)
        self.texts = {
            name: [
                Text(text, f"{self.called}.{name}: ")
                for text in (value if isinstance(value, list) else [value])
            ]
            for name in type(self.options).model_fields
            if (value := getattr(self.options, name)) is not None
        }
        shown = (text for name, texts in self.texts.items() if name != "required" for text in texts)
        self.columns = [*dict.fromkeys(column for text in shown for column in text.columns)]

    def read(self, row: Any) -> Group:
        row = columns_of(row)
        for name, needed in zip(self.options.required, self.texts["required"], strict=True):
            try:
                value = needed.value(row)
            except Missing as error:
                raise LeftOut(str(error)) from None
            if value in (None, [], {}) or (isinstance(value, str) and not value.strip()):
                raise LeftOut(f"'{name}' is empty")
        prompt = self.prompt(row)
        responses, pairs = self._responses(row, prompt)
        if "turns" in self.texts:
            prompt, response = self.demonstration(self._turns(row, prompt))
            responses = (response,)
        if "system" in self.texts:
            prompt = self.opened(prompt, {"system": self.texts["system"][0].text(row)})
        meta = self.rest(row, *self.columns)
        if "answer" in self.texts:
            meta["answer"] = self._value(row, "answer")
        return Group(prompt, responses, pairs, meta=meta)

    def prompt(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """The prompt without a system message. Raises BadRow."""
        value = self._value(row, "prompt")
        if isinstance(value, list):
            return self.conversation(value, "prompt")
        texts = self.texts.get("prompt", ())
        return tuple(Message(role="user", content=text.text(row)) for text in texts)

    def _turns(self, row: Mapping[str, Any], prompt: Sequence[Message]) -> list[Message]:
        """The conversation in two columns. The prompt is the beginning of its first turn."""
        columns = [
            texts_of(self._list(row, "turns", text), "turns") for text in self.texts["turns"]
        ]
        if len(columns[0]) != len(columns[1]):
            raise BadRow(
                f"{self.called}.turns: the user has {len(columns[0])} turns, the assistant "
                f"{len(columns[1])}"
            )
        said = [text.strip() for both in zip(*columns, strict=True) for text in both]
        said[:1] = ["\n\n".join([*(turn["content"] for turn in prompt), *said[:1]])]
        return [
            Message(role=("user", "assistant")[place % 2], content=text)
            for place, text in enumerate(said)
        ]

    def _responses(
        self, row: Mapping[str, Any], prompt: Sequence[Message]
    ) -> tuple[tuple[Response, ...], tuple[Pair, ...] | None]:
        """The responses, and their pairs; None derives these from ranks."""
        if "chosen" in self.texts:
            pair = Pair(0, 1, margin=self._rated("margin", self._value(row, "margin"), self.margin))
            return (self._answer(row, "chosen", prompt), self._answer(row, "rejected", prompt)), (
                pair,
            )
        if "response" in self.texts:
            label = self._rated("label", self._value(row, "label"), self.flag)
            score = self._rated("scores", self._value(row, "scores"), self.number)
            return (
                replace(
                    self._answer(row, "response", prompt), label=label, scores=self.scores(score)
                ),
            ), None
        if "responses" not in self.texts:
            return (), None
        texts = texts_of(self._list(row, "responses"), "responses")
        ranks, scores = (self._ratings(row, name, len(texts)) for name in ("ranks", "scores"))
        responses = tuple(
            Response(text=text.strip(), rank=rank, scores=self.scores(score))
            for text, rank, score in zip(texts, ranks, scores, strict=True)
        )
        if "scores" in self.texts:
            return responses, self.pairs_by_score(responses)
        return responses, None if "ranks" in self.texts else self._best(row, len(responses))

    def _best(self, row: Mapping[str, Any], count: int) -> tuple[Pair, ...]:
        """The best response before each of the others; none for a tie, or if nobody compared
        them.
        """
        if self._value(row, "best") in (None, ""):
            return ()
        best = self.texts["best"][0].choice(row, count)
        margin = self._rated("margin", self._value(row, "margin"), self.margin)
        return tuple(Pair(best, worse, margin=margin) for worse in range(count) if worse != best)

    def _answer(self, row: Mapping[str, Any], name: str, prompt: Sequence[Message]) -> Response:
        """A response: a text, or messages, which may begin with those of the prompt."""
        value = self._value(row, name)
        if not isinstance(value, list):
            return Response(text=self.texts[name][0].text(row))
        turns = self.conversation(value, name, user=False)
        same = [turn["content"].strip() for turn in turns[: len(prompt)]] == [
            turn["content"] for turn in prompt
        ]
        return self.answer(turns[len(prompt) :] if same else turns)

    def _list(self, row: Mapping[str, Any], name: str, column: Text | None = None) -> list[Any]:
        """The items of a list. column: that has it; None: what the template has under the name."""
        items = self._value(row, name) if column is None else column.value(row)
        if not isinstance(items, list):
            with self.texts[name][0].named():
                raise BadRow(f"a list is needed, not {kind_of(items)}")
        return items

    def _ratings(self, row: Mapping[str, Any], name: str, count: int) -> list[Any]:
        """A number for each response; nulls if the template does not have any."""
        if name not in self.texts:
            return [None] * count
        items = self._list(row, name)
        if len(items) != count:
            with self.texts[name][0].named():
                raise BadRow(f"{count} items are needed, but there are {len(items)}")
        return [self._rated(name, one, self.number) for one in items]

    def _rated(self, name: str, value: Any, read: Callable[[Mapping[str, Any], str], Any]) -> Any:
        """A value as a flag, a number or a margin, as a function reads it from a column."""
        try:
            return read({name: value}, name)
        except BadRow as error:
            with self.texts[name][0].named():
                raise BadRow(str(error).removeprefix(f"column '{name}' ")) from None

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        """What the template has under a key: a text, a list, or what a column holds; None if it has
        none.
        """
        if name not in self.texts:
            return None
        values = [text.value(row) for text in self.texts[name]]
        return values if isinstance(getattr(self.options, name), list) else values[0]


@hookimpl
def register(add: Add) -> None:
    add(
        "format",
        "template",
        Template,
        "any columns, which a template names: prompt: '{question}', response: '{answer}'",
    )
    for name, data_set in DATA_SETS.items():
        add("format", name, _reader(name, data_set), data_set.summary)


def _reader(name: str, data_set: DataSet) -> type[Template]:
    """A format that reads a public data set by its template."""
    options_of_set = TemplateOptions(**data_set.template)
    columns = [
        name for name in Template(options_of_set).columns if "." not in name and "[" not in name
    ]
    unseen = "" if data_set.recognized else "; never detected, so name the format"

    class Reader(Template):
        Options = alignkit.Options
        wants = ", ".join(json.loads(data_set.example)) + unseen
        example = data_set.example
        called = name

        def __init__(self, options: Any = None):
            super().__init__(options_of_set)

    class Recognized(Reader):
        @classmethod
        def matches(cls, row: Any) -> bool:
            if not cls.has(row, *columns):
                return False
            reader = cls()
            with suppress(BadRow):  # which says that these columns hold something else
                try:
                    return bool(reader.read(row))
                except LeftOut:
                    return bool(reader.prompt(row))
            return False

    return Recognized if data_set.recognized else Reader
