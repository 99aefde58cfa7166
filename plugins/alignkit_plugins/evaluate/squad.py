"""Questions about a text that may not answer them: SQuAD 1 and 2, as rows of the Hugging Face Hub.

Rajpurkar et al. 2018, "Know What You Don't Know: Unanswerable Questions for SQuAD",
arXiv:1806.03822.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import field_validator

import alignkit
from alignkit import BadRow, Field, Format, Group, Message, Response

PROMPT = "{context}\n\n{question} If the text does not say, answer: I don't know."
ABSTENTION = "I don't know."  # the demonstration if there is no answer
_PLACES = re.compile(r"\{(context|question)\}")


class Squad(Format):
    """The first known answer is the demonstration, or "I don't know." if there is none.

    Columns of the prompt: `answers`, a list of known answers without repetitions, which is empty if
    there is none, and `answerable`. Of SQuAD 2's `plausible_answers` the texts are kept.
    """

    wants = "context, question and answers {text: [...]}"
    example = (
        '{"context": "Ann is 7.", "question": "How old is Ben?", "answers": {"text": [], '
        '"answer_start": []}}'
    )

    class Options(alignkit.Options):
        prompt: str = Field(
            PROMPT, description="the user's message, with {context} and {question} in it"
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
        has_columns = cls.has(row, "context", "question", "answers")
        return has_columns and isinstance(row["answers"], Mapping | list)

    def read(self, row: Any) -> Group:
        words = {name: self.text(row, name).strip() for name in ("context", "question")}
        for name, text in words.items():
            if not text:
                raise BadRow(f"column '{name}' is blank")
        answers, impossible = _texts(row, "answers"), self.flag(row, "is_impossible")
        if impossible is not None and impossible == bool(answers):
            raise BadRow(
                f"is_impossible is {str(impossible).lower()}, but there are {len(answers)} answers"
            )
        read = ("context", "question", "answers", "is_impossible", "plausible_answers")
        meta = {**self.rest(row, *read), "answers": answers, "answerable": bool(answers)}
        if row.get("plausible_answers"):
            meta["plausible_answers"] = _texts(row, "plausible_answers")
        text = _PLACES.sub(lambda place: words[place.group(1)], self.options.prompt)
        response = Response(text=answers[0] if answers else ABSTENTION)
        return Group((Message(role="user", content=text),), (response,), meta=meta)


def _texts(row: Mapping[str, Any], name: str) -> list[str]:
    """Different texts of {text: [...]}, [{text: ...}] or [...], in order."""
    value = row.get(name)
    items = value.get("text") if isinstance(value, Mapping) else value
    if not isinstance(items, list | tuple):
        raise BadRow(f"column '{name}' must be {{text: [...]}} or a list of answers")
    texts: list[str] = []
    for item in items:
        text = item.get("text") if isinstance(item, Mapping) else item
        if not isinstance(text, str):
            raise BadRow(f"column '{name}' has an answer that is not text")
        if text.strip() and text.strip() not in texts:
            texts.append(text.strip())
    return texts
