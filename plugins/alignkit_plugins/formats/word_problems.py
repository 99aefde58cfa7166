"""Word problems with a known answer: GSM8K (Cobbe et al. 2021, arXiv:2110.14168) and SVAMP (Patel
et al. 2021, arXiv:2103.07191).

The answer is in the column `answer`, where the reward `math_verify` looks for it.
"""

from __future__ import annotations

import re
from typing import Any

from alignkit import BadRow, Format, Group, Message, Response
from alignkit.evaluation.numbers import number_of

_FINAL = re.compile(r"\n?####[ \t]*(\S.*?)\s*\Z")
_CALCULATION = re.compile(r"<<[^<>\n]*>>")  # for a calculator, not for people


class GSM8K(Format):
    """A question, and a solution that ends with `#### ANSWER`. The solution is a demonstration.

    The calculator's annotations, `<<2+3=5>>`, are left out. The last line stays: it shows a policy
    how to end. Recipes name this format, because many data sets have a question and an answer.
    """

    example = r'{"question": "Ann has 2 pens and buys 3. How many has she?", "answer": "2+3=<<2+3=5>>5\n#### 5"}'
    wants = "question, and an answer that ends with '#### 18'; never detected, so name the format"

    def read(self, row: Any) -> Group:
        solution = self.text(row, "answer")
        final = _FINAL.search(solution)
        if final is None:
            raise BadRow("column 'answer' must end with a line such as '#### 18'")
        meta = {**self.rest(row, "question", "answer"), "answer": _answer(final.group(1))}
        prompt = (Message(role="user", content=self.text(row, "question").strip()),)
        return Group(prompt, (Response(text=_CALCULATION.sub("", solution).strip()),), meta=meta)


class SVAMP(Format):
    """A story, a question about it, and a number. There is no solution to learn from."""

    example = (
        '{"Body": "Ann has 2 pens and buys 3", "Question": "How many has she?", "Answer": 5.0}'
    )
    wants = "Body, Question and Answer, a number"

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "Body", "Question", "Answer")

    def read(self, row: Any) -> Group:
        story, answer = self.text(row, "Body").strip(), number_of(str(row.get("Answer")))
        if answer is None:
            raise BadRow("column 'Answer' must be a number")
        if story and story[-1] not in ".!?,;:":
            story += "."
        text = f"{story} {self.text(row, 'Question').strip()}".strip()
        meta = {**self.rest(row, "Body", "Question", "Answer"), "answer": str(answer)}
        return Group((Message(role="user", content=text),), meta=meta)


def _answer(text: str) -> str:
    """The answer as rewards compare it: digits, if it is a number."""
    return str(number_of(text) or text)
