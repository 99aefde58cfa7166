"""Rows with any columns, read by a template: texts that name the columns of a prompt and of its
responses.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from pydantic import field_validator, model_validator

import alignkit
from alignkit import Add, BadRow, Field, Format, Group, Message, Pair, Response, hookimpl
from alignkit.errors import LeftOut
from alignkit.evaluation.numbers import number_of
from alignkit.formats import columns_of
from alignkit_plugins.formats.columns import ColumnFormat
from alignkit_plugins.formats.fields import Missing, Text, choice_of, texts_of
from alignkit_plugins.formats.layouts import TEMPLATES, DataSet
from alignkit_plugins.formats.trl import answer_after

Texts = str | list[str]
KINDS = ("response", "chosen", "responses", "turns")  # of what follows the prompt: at most one
RATINGS = ("best", "ranks", "scores")  # of responses: at most one
NEEDS = {  # what a key makes sense with: one of these
    "chosen": ["rejected"],
    "rejected": ["chosen"],
    "label": ["response"],
    "margin": ["chosen", "best"],
    "best": ["responses"],
    "ranks": ["responses"],
    "scores": ["responses", "response"],
}
_FINAL = re.compile(r"\n?####[ \t]*(\S.*?)\s*\Z")
_CALCULATION = re.compile(r"<<[^<>\n]*>>")  # for a calculator, not for people


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
        for text in as_list(value):
            Text(text)
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Any:
        names = [name for name in type(self).model_fields if getattr(self, name) is not None]
        for several in (KINDS, RATINGS):
            both = [name for name in several if name in names]
            if len(both) > 1:
                raise ValueError(f"{' and '.join(both)} exclude each other")
        for name in names:
            if name in NEEDS and not {*NEEDS[name]} & {*names}:
                raise ValueError(f"{name} needs {' or '.join(NEEDS[name])}")
        if "prompt" not in names and "turns" not in names:
            raise ValueError("prompt is missing: the user's message, such as '{question}'")
        return self


def as_list(value: Texts | None) -> list[str]:
    """The texts of a key of a template."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


class Template(ColumnFormat):
    """Rows with any columns. A recipe names this format, since it has the template."""

    Options: ClassVar[type[alignkit.Options]] = TemplateOptions
    wants = "any that the template names, here passage, question and answer; never detected"
    example = '{"passage": "Ann is 7.", "question": "How old is Ann?", "answer": "7"}'
    called: ClassVar[str] = "template"

    def __init__(self, options: Any = None):
        super().__init__(options)
        self.texts: dict[str, list[Text]] = {}
        self.columns: list[str] = []
        for name in type(self.options).model_fields:
            texts = [
                Text(text, f"{self.called}.{name}: ")
                for text in as_list(getattr(self.options, name))
            ]
            if texts:
                self.texts[name] = texts
            for text in texts if name != "required" else ():
                self.columns += text.columns

    def read(self, row: Any) -> Group:
        row = columns_of(row)
        prompt = self._turns(row, "prompt") if "prompt" in self.texts else ()
        for needed in self.texts.get("required", ()):
            try:
                value = needed.value(row)
            except Missing as error:
                raise LeftOut(str(error).removeprefix(needed.where)) from None
            if value in (None, [], {}) or not str(value).strip():
                raise LeftOut(f"'{needed.source}' is empty")
        values = {name: self._value(row, name) for name in self.texts if name != "required"}
        responses: list[Response] = []
        pairs: Sequence[Pair] | None = None
        if "chosen" in values:
            for name in ("chosen", "rejected"):
                turns = self._turns(row, name, user=False)
                responses.append(self.answer(answer_after(prompt, turns)))
            pairs = [Pair(0, 1, margin=self.margin(values))]
        elif "response" in values:
            answer = answer_after(prompt, self._turns(row, "response", user=False))
            label, score = self.flag(values, "label"), self.number(values, "scores")
            responses = [self.answer(answer, label=label, scores=self.scores(score))]
        elif "responses" in values:
            responses, pairs = self._compared(values)
        elif "turns" in values:
            prompt, response = self.demonstration(self._dialogue(values, prompt))
            responses = [response]
        if "system" in values:
            prompt = self.opened(prompt, {"system": self.texts["system"][0].text(row)})
        meta = self.rest(row, *self.columns)
        if "answer" in values:
            meta["answer"] = values["answer"]
        compared = None if pairs is None else tuple(pairs)
        return Group(prompt, tuple(responses), compared, meta=meta)

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        """What the template has under a key: a text, a list, or what a column holds."""
        values = [text.value(row) for text in self.texts[name]]
        return values if isinstance(getattr(self.options, name), list) else values[0]

    def _turns(self, row: Mapping[str, Any], name: str, user: bool = True) -> tuple[Message, ...]:
        """The turns under a key: a text, or a column with messages."""
        value = self._value(row, name)
        if isinstance(value, list):
            return self.conversation(value, name, user)
        role = "user" if user else "assistant"
        return (Message(role=role, content=self.texts[name][0].text(row)),)

    def _dialogue(self, values: Mapping[str, Any], prompt: Sequence[Message]) -> list[Message]:
        """The conversation in two columns. The prompt is the beginning of its first turn."""
        where = f"{self.called}.turns"
        asked, answers = (texts_of(column, where) for column in values["turns"])
        if len(asked) != len(answers):
            raise BadRow(f"{where}: the user has {len(asked)} turns, the assistant {len(answers)}")
        turns = []
        for words, answer in zip(asked, answers, strict=True):
            turns.append(Message(role="user", content=words.strip()))
            turns.append(Message(role="assistant", content=answer.strip()))
        for turn in prompt if turns else ():
            turns[0]["content"] = f"{turn['content']}\n\n{turns[0]['content']}"
        return turns

    def _compared(self, values: Mapping[str, Any]) -> tuple[list[Response], Sequence[Pair] | None]:
        """Several responses, and their pairs; None derives these from ranks."""
        texts = texts_of(values["responses"], f"{self.called}.responses")
        ratings = []
        for name in ("ranks", "scores"):
            items = values.get(name, [None] * len(texts))
            if not isinstance(items, list) or len(items) != len(texts):
                raise BadRow(f"{self.called}.{name}: a list of {len(texts)} items is needed")
            ratings.append([self.number({name: item}, name) for item in items])
        responses = []
        for text, rank, score in zip(texts, *ratings, strict=True):
            responses.append(Response(text=text.strip(), rank=rank, scores=self.scores(score)))
        if "scores" in values:
            return responses, self.pairs_by_score(responses)
        if "ranks" in values:
            return responses, None
        if values.get("best") in (None, ""):
            return responses, []  # a tie, or nobody compared them
        best = choice_of(values["best"], f"{self.called}.best", len(texts))
        others = [place for place in range(len(texts)) if place != best]
        return responses, [Pair(best, worse, margin=self.margin(values)) for worse in others]


# Public data sets


def _solution(row: Mapping[str, Any]) -> dict[str, Any]:
    """GSM8K's row (Cobbe et al. 2021, arXiv:2110.14168): a solution that ends with `#### ANSWER`.

    The calculator's annotations, `<<2+3=5>>`, are left out. The last line stays: it shows a policy
    how to end.
    """
    solution = Format.text(row, "answer")
    final = _FINAL.search(solution)
    if final is None:
        raise BadRow("column 'answer' must end with a line such as '#### 18'")
    others = {name: value for name, value in row.items() if name != "answer"}
    number = number_of(final.group(1)) or final.group(1)
    return {**others, "solution": _CALCULATION.sub("", solution), "number": str(number)}


def _story(row: Mapping[str, Any]) -> dict[str, Any]:
    """SVAMP's row (Patel et al. 2021, arXiv:2103.07191): a story, a question and a number."""
    story, number = Format.text(row, "Body").strip(), number_of(str(row.get("Answer")))
    if number is None:
        raise BadRow("column 'Answer' must be a number")
    if story and story[-1] not in ".!?,;:":
        story += "."
    others = {name: value for name, value in row.items() if name not in ("Body", "Answer")}
    return {**others, "story": story, "number": str(number)}


BEFORE: dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {
    "gsm8k": _solution,
    "svamp": _story,
}


@hookimpl
def register(add: Add) -> None:
    add(
        "format",
        "template",
        Template,
        "any columns, which a template names: prompt: '{question}', response: '{answer}'",
    )
    for name, data_set in TEMPLATES.items():
        add("format", name, _reader(name, data_set), data_set.summary)


class PublicSet(Template):
    """Base class of formats that read a public data set by its template."""

    Options = alignkit.Options
    data_set: ClassVar[DataSet]

    def __init__(self, options: Any = None):
        super().__init__(TemplateOptions(**self.data_set.template))

    def read(self, row: Any) -> Group:
        before = BEFORE.get(self.called, columns_of)
        return super().read(before(columns_of(row)))


class RecognizedSet(PublicSet):
    """Base class of those that a recipe need not name."""

    @classmethod
    def matches(cls, row: Any) -> bool:
        if not cls.has(row, *json.loads(cls.example)):
            return False
        try:
            return bool(cls().read(row))
        except LeftOut:
            return True
        except BadRow:  # these columns hold something else
            return False


def _reader(name: str, data_set: DataSet) -> type[Template]:
    """A format that reads a public data set by its template."""
    wants = ", ".join(json.loads(data_set.example))
    if not data_set.recognized:
        wants += "; a recipe must name it"
    facts = {"called": name, "wants": wants, "example": data_set.example, "data_set": data_set}
    return type(name, (RecognizedSet if data_set.recognized else PublicSet,), facts)
