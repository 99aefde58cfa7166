"""Rows with any columns, read by a template: texts that name the columns of a prompt and of its responses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import ValidationInfo, field_validator, model_validator

import alignkit
from alignkit import BadRow, Field, Format, Group, Message, Pair, Register, Response, hookimpl
from alignkit.data.files import kind_of
from alignkit.errors import LeftOut
from alignkit.options import Placed, PlacedText
from alignkit_plugins.formats.template.data_sets import DATA_SETS, DataSet
from alignkit_plugins.formats.template.fields import Missing, Text, texts_of

Texts = PlacedText | list[PlacedText]
KINDS = ("response", "chosen", "responses", "turns")  # of what follows the prompt: at most one
RATINGS = ("best", "ranks", "scores")  # of responses: at most one
NEEDS = {"chosen": "rejected", "rejected": "chosen", "label": "response", "score": "response"}
NEEDS |= dict.fromkeys(RATINGS, "responses")


class Turns(alignkit.Options):
    """A conversation in two columns."""

    user: PlacedText = Field(description="column with a list of what the user says")
    assistant: PlacedText = Field(description="column with a list of what the assistant says")


class TemplateOptions(alignkit.Options):
    """What the columns of a row are."""

    prompt: PlacedText | None = Field(None, description="user's message, or a column with messages")
    system: PlacedText | None = Field(None, description="system message")
    response: PlacedText | None = Field(None, description="demonstration")
    label: PlacedText | None = Field(None, description="whether the response is good: true or false")
    score: PlacedText | None = Field(None, description="score of the response")
    chosen: PlacedText | None = Field(None, description="better response of a pair")
    rejected: PlacedText | None = Field(None, description="worse response of a pair")
    responses: Texts | None = Field(None, description="several responses: a column with a list, or a list of texts")
    best: PlacedText | None = Field(
        None, description="best one of the responses: its letter, or its number counted from 0; empty for a tie"
    )
    ranks: Texts | None = Field(None, description="ranks of the responses; 1 is best")
    scores: Texts | None = Field(None, description="scores of the responses; a higher one is better")
    margin: PlacedText | None = Field(None, description="margin of the pair of chosen and rejected, or of the best one")
    turns: Turns | None = Field(None, description="conversation in two columns; the prompt precedes its first turn")
    answer: PlacedText | None = Field(None, description="right answer, which rewards find in the column `answer`")
    required: list[PlacedText] = Field(
        default_factory=list,
        description="columns that must not be empty, such as [answer]: other rows are left out and counted",
    )

    @field_validator("*")
    @classmethod
    def _readable(cls, value: Any, info: ValidationInfo) -> Any:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                Text(text if info.field_name != "required" else f"{{{text}}}")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        for several in (KINDS, RATINGS):
            if len(both := [name for name in several if name in given]) > 1:
                raise ValueError(f"{' and '.join(both)} exclude each other")
        for name in given:
            if name in NEEDS and NEEDS[name] not in given:
                raise ValueError(f"{name} needs {NEEDS[name]}")
        if "prompt" not in given and "turns" not in given:
            raise ValueError("prompt is missing: the user's message, such as '{question}'")
        if "margin" in given and not {"chosen", "best"} & {*given}:
            raise ValueError("margin needs chosen or best")
        return self


class Template(Format):
    """Rows with any columns. A recipe names this format, since it has the template."""

    Options: ClassVar[type[alignkit.Options]] = TemplateOptions
    summary = "any columns, which a template names: prompt: '{question}', response: '{answer}'"
    wants = "any that the template names, here passage, question and answer; never detected"
    example = '{"passage": "Ann is 7.", "question": "How old is Ann?", "answer": "7"}'
    called: ClassVar[str] = "template"

    def __init__(self, options: Any = None):
        super().__init__(options)
        o = self.options
        given = {name: getattr(o, name) for name in type(o).model_fields}
        if o.turns is not None:
            given |= {"user": o.turns.user, "assistant": o.turns.assistant}
        self.texts = {
            name: [self._text_of(name, text) for text in (value if isinstance(value, list) else [value])]
            for name, value in given.items()
            if isinstance(value, str | list)
        }
        shown = (text for name, texts in self.texts.items() if name != "required" for text in texts)
        self.columns = {column for text in shown for column in text.columns}

    def _text_of(self, name: str, value: str) -> Text:
        place = f" ({value.place})" if isinstance(value, Placed) else ""
        return Text(value if name != "required" else f"{{{value}}}", f"{self.called}.{name}: ", place)

    def read(self, row: Any) -> Group:
        if not isinstance(row, Mapping):
            raise BadRow("a row must be an object with columns")
        self._check_required(row)
        prompt = self.prompt(row)
        responses, pairs = self._responses(row, prompt)
        if self.options.turns is not None:
            prompt, response = self.demonstration(self._turns(row, prompt))
            responses = (response,)
        if "system" in self.texts:
            prompt = self.opened(prompt, {"system": self.texts["system"][0].text(row)})
        meta = self.rest(row, *self.columns)
        if "answer" in self.texts:
            meta["answer"] = self._value(row, "answer")
        return Group(prompt, responses, pairs, meta=meta)

    def _check_required(self, row: Mapping[str, Any]) -> None:
        """Raise LeftOut if a required column is empty."""
        for name, text in zip(self.options.required, self.texts["required"], strict=True):
            try:
                value = text.value(row)
            except Missing as error:
                raise LeftOut(str(error)) from None
            if value in (None, [], {}) or (isinstance(value, str) and not value.strip()):
                raise LeftOut(f"'{name}' is empty")

    def prompt(self, row: Mapping[str, Any]) -> tuple[Message, ...]:
        """The prompt without a system message. Raises BadRow."""
        value = self._value(row, "prompt")
        if isinstance(value, list):
            return self.conversation(value, "prompt")
        texts = self.texts.get("prompt", ())
        return tuple(Message(role="user", content=text.text(row)) for text in texts)

    def _turns(self, row: Mapping[str, Any], prompt: Sequence[Message]) -> list[Message]:
        """The conversation in two columns. The prompt is the beginning of its first turn."""
        asked = self._list(row, "user")
        answered = self._list(row, "assistant", len(asked))
        said = [text.strip() for both in zip(asked, answered, strict=True) for text in texts_of(both, "turns")]
        said[:1] = ["\n\n".join([*(turn["content"] for turn in prompt), *said[:1]])]
        return [Message(role=("user", "assistant")[place % 2], content=text) for place, text in enumerate(said)]

    def _responses(
        self, row: Mapping[str, Any], prompt: Sequence[Message]
    ) -> tuple[tuple[Response, ...], tuple[Pair, ...] | None]:
        """The responses, and their pairs; None derives these from ranks."""
        if "chosen" in self.texts:
            pair = Pair(0, 1, margin=self._margin(row))
            return (self._answer(row, "chosen", prompt), self._answer(row, "rejected", prompt)), (pair,)
        if "response" in self.texts:
            label = self._rated("label", self._value(row, "label"), self.flag)
            score = self._rated("score", self._value(row, "score"), self.number)
            return (replace(self._answer(row, "response", prompt), label=label, scores=_scores(score)),), None
        if "responses" not in self.texts:
            return (), None
        texts = texts_of(self._list(row, "responses"), "responses")
        ranks, scores = (
            [self._rated(name, one, self.number) for one in self._list(row, name, len(texts))]
            for name in ("ranks", "scores")
        )
        responses = tuple(
            Response(text=text.strip(), rank=rank, scores=_scores(score))
            for text, rank, score in zip(texts, ranks, scores, strict=True)
        )
        if "scores" in self.texts:
            return responses, self.pairs_by_score(responses)
        return responses, None if "ranks" in self.texts else self._best(row, len(responses))

    def _best(self, row: Mapping[str, Any], count: int) -> tuple[Pair, ...]:
        """The best response before each of the others; none for a tie, or if nobody compared them."""
        if self._value(row, "best") in (None, ""):
            return ()
        best, margin = self.texts["best"][0].choice(row, count), self._margin(row)
        return tuple(Pair(best, worse, margin=margin) for worse in range(count) if worse != best)

    def _answer(self, row: Mapping[str, Any], name: str, prompt: Sequence[Message]) -> Response:
        """A response: a text, or messages, which may begin with those of the prompt."""
        value = self._value(row, name)
        if not isinstance(value, list):
            return Response(text=self.texts[name][0].text(row))
        turns = self.conversation(value, name, user=False)
        same = [turn["content"].strip() for turn in turns[: len(prompt)]] == [turn["content"] for turn in prompt]
        return self.answer(turns[len(prompt) :] if same else turns)

    def _list(self, row: Mapping[str, Any], name: str, count: int | None = None) -> list[Any]:
        """The items of a list; nulls if the template does not have it. count: how many there must be."""
        if name not in self.texts:
            return [None] * (count or 0)
        items = self._value(row, name)
        with self.texts[name][0].named():
            if not isinstance(items, list):
                raise BadRow(f"a list is needed, not {kind_of(items)}")
            if count is not None and len(items) != count:
                raise BadRow(f"{count} items are needed, but there are {len(items)}")
        return items

    def _rated(self, name: str, value: Any, read: Callable[[Mapping[str, Any], str], Any]) -> Any:
        """A value as a flag, a number or a margin, as a function reads it from a column."""
        try:
            return read({name: value}, name)
        except BadRow as error:
            with self.texts[name][0].named():
                raise BadRow(str(error).removeprefix(f"column '{name}' ")) from None

    def _margin(self, row: Mapping[str, Any]) -> float | str | None:
        margin: float | str | None = self._rated("margin", self._value(row, "margin"), self.margin)
        return margin

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        """What the template has under a key: a text, a list, or what a column holds; None if it has none."""
        if name not in self.texts:
            return None
        several = name in KINDS + RATINGS and isinstance(getattr(self.options, name), list)
        values = [text.value(row) for text in self.texts[name]]
        return values if several else values[0]


def _scores(score: float | None) -> dict[str, float | None]:
    return {} if score is None else {"reward": score}


@hookimpl
def register_formats(register: Register) -> None:
    register("template", Template, summary=Template.summary)
    for name, data_set in DATA_SETS.items():
        register(name, _reader(name, data_set), summary=data_set.summary)


def _reader(name: str, data_set: DataSet) -> type[Template]:
    """A format that reads a public data set by its template."""

    unseen = "" if data_set.recognized else "; never detected, so name the format"

    class Reader(Template):
        Options = alignkit.Options
        summary = data_set.summary
        wants = ", ".join(json.loads(data_set.example)) + unseen
        example = data_set.example
        called = name

        def __init__(self, options: Any = None):
            super().__init__(TemplateOptions(**data_set.template))

    class Recognized(Reader):
        @classmethod
        def matches(cls, row: Any) -> bool:
            if not cls.has(row, *data_set.columns):
                return False
            reader = cls()
            with suppress(BadRow):  # which says that these columns hold something else
                try:
                    return bool(reader.read(row))
                except LeftOut:
                    return bool(reader.prompt(row))
            return False

    return Recognized if data_set.recognized else Reader
