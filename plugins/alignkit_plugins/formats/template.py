"""Rows with any columns, read by a template: texts in Jinja that say what the columns of a row are.

Texts run in Jinja's sandbox, which reaches nothing but the row. Besides Jinja's own filters there
are `letters` and `letter` for choices, and `dialogue` and `turns` for conversations.

| a text | is |
|---|---|
| `{{ column }}` | a text, a number, true or false; by itself also a list, such as messages |
| `{{ column | default("", true) }}` | the same, or nothing if the column is missing or null |
| `{{ {"1": "yes", "0": "no"}[column | string] }}` | a text for each value; others are bad rows |
| `{{ choices | letters }}` | all choices, one per line, as `A. ...` |
| `{{ answer | letter(choices) }}` | the letter of a choice, by its letter or its number from 0 |
| `{{ answer | letter(choices, labels) }}` | the same, by its label |
| `{{ questions | dialogue(answers, passage) }}` | messages, of which the first has the passage |
| `{{ chat | turns("speaker", "text", user=["customer"]) }}` | messages, of turns with other keys and speakers |
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from string import ascii_uppercase
from typing import Any, ClassVar

from pydantic import field_validator

import alignkit
from alignkit import Add, BadRow, Field, Group, Message, Pair, Response, hookimpl
from alignkit.contract.formats import columns_of
from alignkit.data.files import kind_of
from alignkit.data.group import assistant_turn, user_turn
from alignkit.errors import LeftOut, did_you_mean
from alignkit.evaluation.numbers import number_of
from alignkit_plugins.formats.columns import ColumnFormat
from alignkit_plugins.formats.layouts import TEMPLATES, DataSet
from alignkit_plugins.formats.trl import answer_after

# What follows the prompt, at most one of these, and what may be said of it.
KINDS: Mapping[str, Sequence[str]] = {
    "response": ("label", "scores"),
    "chosen": ("rejected", "margin"),
    "responses": ("best", "margin", "scores"),
    "messages": (),
}
_WHOLE = re.compile(r"\s*\{\{((?:(?!\}\}).)*)\}\}\s*", re.DOTALL)  # one expression and no words
_FINAL = re.compile(r"\n?####[ \t]*(\S.*?)\s*\Z")
_CALCULATION = re.compile(r"<<[^<>\n]*>>")  # for a calculator, not for people


# Texts


class Text:
    """A text in Jinja. columns: the names in it. Raises ValueError if it is not valid.

    where: the key of the template, for errors.
    """

    def __init__(self, text: str, where: str = ""):
        self.source, self.where = text, where
        self.columns, self.fill = _compiled(text)

    def value(self, row: Mapping[str, Any]) -> Any:
        """The text; of a single expression its value, such as a list. Raises BadRow."""
        try:
            value = self.fill(row)
            json.dumps(value, default=written)  # raises for what is undefined, or a method
        except Exception as error:  # an expression raises whatever Python does
            missing = min(self.columns - row.keys(), default="")
            help = did_you_mean(missing, row) or f"columns: {', '.join(row):.200}"
            raise BadRow(f"{self.where}{error}; {help}") from error
        return value.strip() if isinstance(value, str) else value


@cache  # formats are made for each row that nobody recognizes, always of the same texts
def _compiled(text: str) -> tuple[frozenset[str], Callable[[Mapping[str, Any]], Any]]:
    """The names in a text, and what it is in a row. Raises ValueError if it is not valid."""
    from jinja2 import TemplateSyntaxError, meta

    try:
        columns = frozenset(meta.find_undeclared_variables(_sandbox().parse(text)))
        if whole := _WHOLE.fullmatch(text):
            return columns, _sandbox().compile_expression(whole[1], undefined_to_none=False)
        return columns, _sandbox().from_string(text).render
    except TemplateSyntaxError as error:
        raise ValueError(f"not valid Jinja: {error.message}") from None


@cache
def _sandbox() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Sandbox(ImmutableSandboxedEnvironment):
        """Reads `{{ column.items }}` as a key of the row, if it has one, instead of a method."""

        def getattr(self, obj: Any, attribute: str) -> Any:
            if isinstance(obj, Mapping) and attribute in obj:
                return obj[attribute]
            return super().getattr(obj, attribute)

    environment = Sandbox(undefined=StrictUndefined, finalize=written)
    filters = {"letters": letters, "letter": letter, "dialogue": dialogue, "turns": turns}
    environment.filters |= filters | {"number": number, "solution": solution, "final": final_answer}
    return environment


def written(value: Any, where: str = "") -> str:
    """A value as text. Raises BadRow for one that is null, an object, a list or a method."""
    text = str(value)  # raises if it is undefined
    if value is None:
        raise BadRow(f'{where}null is no text; write default("", true) if it may be null')
    if not isinstance(value, str | int | float):
        raise BadRow(f"{where}{kind_of(value)} is no text; join it, or choose an item")
    return text.lower() if isinstance(value, bool) else text


def texts_of(values: Any, where: str) -> list[str]:
    """Texts and numbers as texts. Raises BadRow for anything else."""
    if not isinstance(values, list):
        raise BadRow(f"{where}: expected a list, not {kind_of(values)}")
    return [written(one, f"{where}: ").strip() for one in values]


# Filters


def letters(choices: Any) -> str:
    """Choices, one per line, each with a letter."""
    lines = []
    for index, text in enumerate(texts_of(choices, "letters")):
        lines.append(f"{ascii_uppercase[index]}. {text}")
    return "\n".join(lines)


def letter(answer: Any, choices: Any, labels: Sequence[Any] = ()) -> str:
    """The letter of the choice that an answer names. Raises BadRow if it names none."""
    count = len(texts_of(choices, "letter"))
    return ascii_uppercase[choice_of(answer, count, labels)]


def choice_of(answer: Any, count: int, labels: Sequence[Any] = ()) -> int:
    """The place, from 0, that a label, a letter or a number means. Raises BadRow."""
    name = str(answer).strip().upper()
    for names in [labels] if labels else [ascii_uppercase[:count], range(count)]:
        words = [str(one).upper() for one in names]
        if name in words:
            return words.index(name)
    raise BadRow(f"{answer!r:.40} is none of the {count} choices")


def dialogue(questions: Any, answers: Any, passage: str = "") -> list[Message]:
    """A conversation of questions and answers. passage: what its first turn begins with."""
    turns: list[Message] = []
    pairs = zip(texts_of(questions, "dialogue"), texts_of(answers, "dialogue"), strict=True)
    for question, answer in pairs:
        turns += [user_turn(f"{passage}\n\n{question}".strip()), assistant_turn(answer)]
        passage = ""
    return turns


def turns(conversation: Any, who: str = "role", says: str = "content", **roles: Any) -> list[Any]:
    """Messages from turns that call the speaker `who` and the text `says`. roles: the speakers of
    each role; others are read as usual.
    """
    role_of, messages = dict[str, str](), list[Any]()
    for role, speakers in roles.items():
        role_of |= {name.lower(): role for name in texts_of(speakers, f"turns: {role}")}
    for index, turn in enumerate(conversation):
        columns = dict(columns_of(turn))
        if missing := {who, says} - columns.keys():
            raise BadRow(f"turn {index} has no {' and no '.join(sorted(missing))}")
        speaker, text = str(columns.pop(who)).strip(), columns.pop(says)
        messages.append({**columns, "role": role_of.get(speaker.lower(), speaker), "content": text})
    return messages


def number(value: Any) -> str:
    """A number as rewards compare it, such as 5 for 5.0."""
    result = number_of(str(value))
    if result is None:
        raise BadRow(f"{value!r:.40} is no number")
    return str(result)


def solution(text: str) -> str:
    """A solution of GSM8K (Cobbe et al. 2021, arXiv:2110.14168) without the calculator's
    annotations, `<<2+3=5>>`. The last line stays: it shows a policy how to end.
    """
    return _CALCULATION.sub("", text)


def final_answer(text: str) -> str:
    """The answer in the last line of GSM8K's solutions, such as `#### 18`."""
    final = _FINAL.search(text)
    if final is None:
        raise BadRow("a solution must end with a line such as '#### 18'")
    return str(number_of(final[1]) or final[1])


# Rows


class TemplateOptions(alignkit.Options):
    """What the columns of a row are."""

    prompt: str | None = Field(None, "user's message, or a column with messages")
    required: str | None = Field(
        None,
        (
            "what must not be empty or false, such as '{{ answer }}': other rows are dropped and "
            "counted"
        ),
    )
    system: str | None = Field(None, "system message")
    response: str | None = Field(None, "good response, to learn from")
    label: str | None = Field(None, "whether the response is good: true or false")
    chosen: str | None = Field(None, "better response of a pair")
    rejected: str | None = Field(None, "worse response of a pair")
    responses: str | None = Field(None, "several responses: a list of texts")
    best: str | None = Field(
        None, "best one of the responses: its letter, or its number counted from 0; empty for a tie"
    )
    scores: str | None = Field(
        None, "score of the response, or scores of the responses; higher is better"
    )
    margin: str | None = Field(
        None, "margin of the pair of chosen and rejected, or of the best one"
    )
    messages: str | None = Field(
        None, "whole conversation, instead of prompt and response: a list of messages"
    )
    answer: str | None = Field(None, "right answer, which rewards find in the column `answer`")

    @field_validator("*")
    @classmethod
    def _readable(cls, value: Any) -> Any:
        if value is not None:
            Text(value)
        return value

    def check_values(self) -> None:
        names = {name for name in type(self).model_fields if getattr(self, name) is not None}
        kinds = [name for name in KINDS if name in names]
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(kinds)} exclude each other")
        if names >= {"best", "scores"}:
            raise ValueError("best and scores exclude each other")
        if "margin" in names and not names & {"chosen", "best"}:
            raise ValueError("margin needs chosen or best")
        if "chosen" in names and "rejected" not in names:
            raise ValueError("chosen needs rejected")
        for name in names:
            needs = [kind for kind, others in KINDS.items() if name in others]
            if needs and not names.intersection(needs):
                raise ValueError(f"{name} needs {' or '.join(needs)}")
        if not Text(self.prompt or self.messages or "").columns:
            raise ValueError("prompt must name a column, such as '{{ question }}'")


class Template(ColumnFormat):
    """Rows with any columns. A recipe names this format, since it has the template."""

    Options: ClassVar[type[alignkit.Options]] = TemplateOptions
    wants = "any that the template names, here passage, question and answer; never detected"
    example = '{"passage": "Ann is 7.", "question": "How old is Ann?", "answer": "7"}'
    called = "template"

    def __init__(self, options: Any = None):
        super().__init__(options)
        self.texts: dict[str, Text] = {}
        self.columns: set[str] = set()
        for name in type(self.options).model_fields:
            source = getattr(self.options, name)
            if source is not None:
                text = self.texts[name] = Text(source, f"{self.called}.{name}: ")
                self.columns |= text.columns if name != "required" else set()

    def read(self, row: Any) -> Group:
        row = columns_of(row)
        values = dict[str, Any]()
        for name, text in self.texts.items():
            values[name] = text.value(row)
            if name == "required" and _is_empty(values[name]):
                raise LeftOut(f"'{text.source}' is empty or false")
        prompt: tuple[Message, ...] = ()
        responses: list[Response] = []
        pairs: tuple[Pair, ...] | None = None
        if "prompt" in values:
            prompt = self._turns(values, "prompt")
        if "chosen" in values:
            for name in ("chosen", "rejected"):
                turns = answer_after(prompt, self._turns(values, name, user=False))
                responses.append(self.answer(turns))
            pairs = (Pair(0, 1, margin=self.margin(values)),)
        elif "response" in values:
            turns = answer_after(prompt, self._turns(values, "response", user=False))
            label, score = self.flag(values, "label"), self.number(values, "scores")
            responses = [self.answer(turns, label=label, scores=self.scores(score))]
        elif "responses" in values:
            responses, pairs = self._compared(values)
        elif "messages" in values:
            prompt, response = self.demonstration(self._turns(values, "messages"))
            responses = [response]
        prompt = self.opened(prompt, values)
        meta = self.rest(row, *self.columns)
        if "answer" in values:
            meta["answer"] = values["answer"]
        return Group(prompt, tuple(responses), pairs, meta=meta)

    def asks(self, row: Any) -> str:
        """The columns of the prompt, without the template's words."""
        text, columns = self.texts.get("prompt"), columns_of(row)
        names = sorted(text.columns, key=text.source.find) if text else ()
        asked = map(columns.get, names)
        return "\n".join(str(value) for value in asked if isinstance(value, str | int | float))

    def _turns(
        self, values: Mapping[str, Any], name: str, user: bool = True
    ) -> tuple[Message, ...]:
        """The turns under a key: a text, or messages."""
        value = values[name]
        if isinstance(value, list):
            return self.conversation(value, name, user)
        role = "user" if user else "assistant"
        return (Message(role=role, content=written(value, self.texts[name].where)),)

    def _compared(self, values: Mapping[str, Any]) -> tuple[list[Response], tuple[Pair, ...]]:
        """Several responses, and their pairs: by the best one, or else by scores."""
        texts = texts_of(values["responses"], f"{self.called}.responses")
        scores = values.get("scores", [None] * len(texts))
        if not isinstance(scores, list) or len(scores) != len(texts):
            raise BadRow(f"{self.called}.scores: a list of {len(texts)} items is needed")
        responses = []
        for text, score in zip(texts, scores, strict=True):
            value = self.number({"scores": score}, "scores")
            responses.append(Response(text=text, scores=self.scores(value)))
        if "scores" in values:
            return responses, self.pairs_by_score(responses)
        if values.get("best") in (None, ""):
            return responses, ()  # a tie, or nobody compared them
        best = choice_of(values["best"], len(texts))
        pairs = []
        for other in range(len(texts)):
            if other != best:
                pairs.append(Pair(best, other, margin=self.margin(values)))
        return responses, tuple(pairs)


def _is_empty(value: Any) -> bool:
    return value is None or value is False or value in ([], {}) or not str(value).strip()


# Public data sets


@hookimpl
def register(add: Add) -> None:
    add(
        "format",
        "template",
        Template,
        "any columns, which a template names: prompt: '{{ question }}', response: '{{ answer }}'",
    )
    for name, data_set in TEMPLATES.items():
        add("format", name, _reader(name, data_set), data_set.summary)


class PublicSet(Template):
    """Base class of formats that read a public data set by its template."""

    Options = alignkit.Options
    data_set: ClassVar[DataSet]

    def __init__(self, options: Any = None):
        super().__init__(TemplateOptions(**self.data_set.template))


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
        except Exception:  # these columns hold something else
            return False


def _reader(name: str, data_set: DataSet) -> type[Template]:
    """A format that reads a public data set by its template."""
    wants = ", ".join(json.loads(data_set.example))
    if not data_set.recognized:
        wants += "; a recipe must name it"
    facts = {"called": name, "wants": wants, "example": data_set.example, "data_set": data_set}
    return type(name, (RecognizedSet if data_set.recognized else PublicSet,), facts)
