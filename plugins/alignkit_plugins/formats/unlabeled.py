"""Answers that nobody has compared yet, as `alignkit label` shows them: two columns, or a list, and
no label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import BadRow, Format, Group, Response
from alignkit_plugins.formats.columns import LABEL_COLUMNS, SYSTEM_COLUMNS, ColumnFormat

PROMPTS = ("prompt", "instruction", "question", "query", "input", "context")
LISTS = ("responses", "completions", "answers", "outputs", "candidates", "generations")
# A list with another name may be the right answers, which rewards read; whoever names the format
# means these, too.
CERTAIN = LISTS[:1]
NUMBERED = re.compile(
    r"(?:model[ _-]?)?(?:response|answer|completion|output|reply|generation)[ _-]?([0-9]|[a-i])",
    re.I,
)
TEXTS = ("text", "response", "answer", "completion", "output", "content")
# Columns that say which answer is better, in any layout that another format reads.
JUDGED = {
    *LABEL_COLUMNS,
    *(
        "labels",
        "preference",
        "winner",
        "verdict",
        "rating",
        "ratings",
        "choice",
        "better",
        "rank",
        "ranks",
        "ranking",
    ),
    *(
        "score",
        "scores",
        "rewards",
        "pairs",
        "chosen",
        "rejected",
        "better_response_id",
        "overall_preference",
    ),
    *("preference_strength", "winner_model_a", "winner_model_b", "winner_tie"),
}


class Unlabeled(ColumnFormat):
    """A prompt and answers to it, in columns with numbers or letters, or in a list of texts."""

    example = '{"prompt": "Hi", "response_a": "Hello!", "response_b": "Go away."}'
    wants = (
        "prompt, question or instruction, and response_a, response_b ... or responses [text], "
        "and no label"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        if not isinstance(row, Mapping) or "alignkit" in row or not cls.lacks(row, *JUDGED):
            return False
        answers = _answers(row, CERTAIN)
        texts = [_text(answer) for answer in answers.values()]
        return (
            bool(_prompt(row))
            and len(texts) > 1
            and all(isinstance(text, str | list) for text in texts)
        )

    def read(self, row: Any) -> Group:
        if not isinstance(row, Mapping) or not (prompt := _prompt(row)):
            raise BadRow("a prompt is required, in one of the columns " + ", ".join(PROMPTS))
        answers = _answers(row, CERTAIN) or _answers(row)
        if len(answers) < 2:
            raise BadRow(
                "two answers are required, such as response_a and response_b, or a list of "
                "texts: responses"
            )
        responses = tuple(self._response(name, answer) for name, answer in answers.items())
        used = (prompt, *{name.partition("[")[0] for name in answers}, *SYSTEM_COLUMNS, "tools")
        turns = self.opened(self.conversation(row[prompt], prompt), row)
        return Group(turns, responses, (), meta=self.rest(row, *used), tools=self.tools(row))

    def _response(self, name: str, answer: Any) -> Response:
        source = self.text(answer, "model", "") or None if isinstance(answer, Mapping) else None
        text = _text(answer)
        if not isinstance(text, str | list):
            raise BadRow(f"{name} must be text, or an object with text")
        return self.answer(self.conversation(text, name, user=False), source=source)


def _prompt(row: Mapping[str, Any]) -> str:
    return next((name for name in PROMPTS if Format.has(row, name)), "")


def _answers(row: Mapping[str, Any], lists: Sequence[str] = LISTS) -> dict[str, Any]:
    """The answers by the name of the column, or of the place in a list. lists: names of columns
    with a list.
    """
    for name in lists:
        if isinstance(row.get(name), list):
            return {f"{name}[{place}]": answer for place, answer in enumerate(row[name])}
    return {
        str(name): row[name]
        for name in row
        if NUMBERED.fullmatch(str(name)) and row[name] is not None
    }


def _text(answer: Any) -> Any:
    if not isinstance(answer, Mapping):
        return answer
    if "role" in answer or not Format.lacks(answer, "rank", "score", "rating"):
        return None
    return next((answer[name] for name in TEXTS if Format.has(answer, name)), None)
