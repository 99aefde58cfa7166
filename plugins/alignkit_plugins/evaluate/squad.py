"""Questions about a text that may not answer them: SQuAD 1 and 2, nested JSON or flat rows.

Rajpurkar et al. 2018, "Know What You Don't Know: Unanswerable Questions for SQuAD",
arXiv:1806.03822.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import field_validator

import alignkit
from alignkit import BadRow, Field, Format, Group, Message, Response

PROMPT = "{context}\n\n{question} If the text does not say, answer: I don't know."
_PLACES = re.compile(r"\{(context|question)\}")


class Squad(Format):
    """The first known answer is the demonstration, or `abstention` if there is none.

    Columns of the prompt: `answers`, a list of known answers without repetitions, which is empty if
    there is none, and `answerable`. Of SQuAD 2's `plausible_answers` the texts are kept.
    """

    wants = "context, question and answers {text: [...]}; or SQuAD's paragraphs [{context, qas}]"
    example = (
        '{"context": "Ann is 7.", "question": "How old is Ben?", "answers": {"text": [], '
        '"answer_start": []}}'
    )

    class Options(alignkit.Options):
        prompt: str = Field(
            PROMPT, description="the user's message, with {context} and {question} in it"
        )
        abstention: str = Field(
            "I don't know.", min_length=1, description="demonstration if there is no answer"
        )

        @field_validator("prompt")
        @classmethod
        def _has_places(cls, value: str) -> str:
            if {"context", "question"} - set(_PLACES.findall(value)):
                raise ValueError(
                    "prompt needs {context} and {question}, where those of the row are put"
                )
            return value

    @classmethod
    def matches(cls, row: Any) -> bool:
        flat = cls.has(row, "context", "question", "answers") and isinstance(
            row["answers"], Mapping | list
        )
        return flat or any(True for _ in _articles(row))

    def read(self, row: Any) -> Group:
        """The first question of a row."""
        group = next(iter(self.groups(row)), None)
        if group is None:
            raise BadRow("there is no question")
        return group

    def groups(self, row: Any) -> list[Group]:
        if articles := list(_articles(row)):
            return [self._group(flat) for article in articles for flat in _questions(article)]
        return [self._group(row)]

    def _group(self, row: Mapping[str, Any]) -> Group:
        words = {name: self.text(row, name).strip() for name in ("context", "question")}
        for name, text in words.items():
            if not text:
                raise BadRow(f"column '{name}' is blank")
        answers, impossible = _texts(row.get("answers"), "answers"), self.flag(row, "is_impossible")
        if impossible is not None and impossible == bool(answers):
            raise BadRow(
                f"is_impossible is {str(impossible).lower()}, but there are {len(answers)} answers"
            )
        meta = self.rest(
            row, "context", "question", "answers", "is_impossible", "plausible_answers"
        )
        if plausible := _texts(row.get("plausible_answers"), "plausible_answers", required=False):
            meta["plausible_answers"] = plausible
        meta |= {"answers": answers, "answerable": bool(answers)}
        text = _PLACES.sub(lambda place: words[place.group(1)], self.options.prompt)
        response = Response(text=answers[0] if answers else self.options.abstention)
        return Group((Message(role="user", content=text),), (response,), meta=meta)


def _articles(row: Any) -> Iterator[Mapping[str, Any]]:
    """The articles of SQuAD's JSON: a row is the whole file or one of its articles. None of a flat
    row.
    """
    data = row.get("data") if isinstance(row, Mapping) else None
    for article in data if isinstance(data, list) else [row]:
        if isinstance(article, Mapping) and isinstance(article.get("paragraphs"), list):
            yield article


def _questions(article: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The questions of an article as flat rows."""
    title = {"title": article["title"]} if "title" in article else {}
    for number, paragraph in enumerate(article["paragraphs"], 1):
        asked = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
        if not isinstance(asked, list) or not all(isinstance(each, Mapping) for each in asked):
            raise BadRow(f"paragraph {number} must have a list `qas` of questions")
        for question in asked:
            yield {**title, "context": paragraph.get("context"), **question}


def _texts(value: Any, name: str, required: bool = True) -> list[str]:
    """Different texts of {text: [...]}, [{text: ...}] or [...], in order."""
    if value is None and not required:
        return []
    items = value.get("text") if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple):
        raise BadRow(f"column '{name}' must be {{text: [...]}} or a list of answers")
    texts: list[Any] = [item.get("text") if isinstance(item, Mapping) else item for item in items]
    if not all(isinstance(text, str) for text in texts):
        raise BadRow(f"column '{name}' has an answer that is not text")
    return list(dict.fromkeys(text.strip() for text in texts if text.strip()))
