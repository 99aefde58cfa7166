"""Questions that are answered in words: a judge thinks first, and the last line of its reply is
read.

Two responses are compared in both orders (Zheng et al. 2023, arXiv:2306.05685, section 3.4). A
response alone is rated on a scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import model_validator

from alignkit import Field, Message, Rating, Verdict
from alignkit.judges import Item, Rated, Rubric
from alignkit_plugins.ai_feedback.fence import NOTICE, code_of, fenced, transcript
from alignkit_plugins.ai_feedback.form import (
    Form,
    rating_form,
    read_line,
    request,
    verdict_form,
)
from alignkit_plugins.ai_feedback.question import ASKED, Asking, both_orders, filled, measure
from alignkit_plugins.ai_feedback.verdict import Answer, verdicts


class Speaking(Asking):
    """Options of judges that may answer in words."""

    reasons: bool = Field(
        False,
        description=(
            "the judge thinks before it answers, and its last line counts; false: one token decides"
        ),
    )
    max_tokens: int = Field(
        2000, ge=8, description="limit of a reply in words, in tokens, with the judge's reasons"
    )
    scale: tuple[int, int] = Field(
        (1, 9), description="the lowest and the highest rating; [0, 1]: met or not"
    )

    @model_validator(mode="after")
    def _scale_rises(self) -> Speaking:
        if not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale [{self.scale[0]}, {self.scale[1]}] must rise")
        return self


@dataclass(frozen=True)
class Question:
    """A question in words."""

    text: str
    form: Form
    code: str
    reasons: bool

    @property
    def messages(self) -> list[Message]:
        """The turns that the model reads."""
        end = request(self.form, self.code, reasons=self.reasons)
        return [{"role": "user", "content": f"{self.text}\n\n{end}"}]


@dataclass(frozen=True)
class Said:
    """A reply in words; without a usable one, `text` is empty and `reason` says why. tokens, cost:
    of a Verdict.
    """

    text: str = ""
    reason: str = ""
    tokens: int | None = None
    cost: float | None = None

    def value(self, question: Question) -> Any:
        """What the reply says. Raises ValueError, with a reason, if it does not."""
        if self.reason:
            raise ValueError(self.reason)
        return read_line(self.text, question.form, question.code)

    def unusable(self, question: Question) -> str:
        """Why it says nothing; empty if it does."""
        try:
            self.value(question)
        except ValueError as error:
            return str(error)
        return ""


Ask = Callable[[Sequence[Question]], list[Said]]


@dataclass(frozen=True)
class Words:
    """Asks in words. ask: sends questions, and returns the replies in their order."""

    options: Speaking
    seed: int
    ask: Ask

    def compare(self, items: Sequence[Item], rubric: Rubric) -> list[Verdict]:
        """Verdicts on (prompt, first, second), asked in both orders."""
        questions = [self.pair(item, rubric) for item in both_orders(items)]
        answers = [_answer(question, said) for question, said in self._asked(questions)]
        return verdicts(answers, self.options.min_mass)

    def rate(self, items: Sequence[Rated], rubric: Rubric) -> list[Rating]:
        """Ratings of (prompt, response)."""
        return [
            _rating(question, said)
            for question, said in self._asked([self.one(item, rubric) for item in items])
        ]

    def _asked(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Said]]:
        return zip(questions, self.ask(questions) if questions else [], strict=True)

    # The questions

    def pair(self, item: Item, rubric: Rubric) -> Question:
        """Which of two responses is better? The option `template` without its last sentence, which
        asks for a token.
        """
        template = self.options.template.removesuffix(ASKED).rstrip()
        text = (
            filled(template, self.options, item, self.seed, rubric)
            + "\n\nWhich response is better?"
        )
        return self._question(text, verdict_form(self.options.answers), [item[1], item[2]], item[0])

    def one(self, item: Rated, rubric: Rubric) -> Question:
        """How good is a response?"""
        prompt, response = item
        said = transcript(prompt)
        nonce = code_of(self.seed, [said, response])
        task = "You rate a response to a conversation."
        own = f"{task} {measure(self.options, rubric)}"
        parts = [
            f"{task} A rating follows this measure:\n\n{rubric}"
            if isinstance(rubric, str) and rubric
            else own,
            f"The conversation and the response {NOTICE.format(nonce=nonce)}",
            *(
                f"{name}:\n{fenced(text, nonce)}"
                for name, text in [("Conversation", said), ("Response", response)]
            ),
            "How good is the response?",
        ]
        return self._question(
            "\n\n".join(parts), rating_form(self.options.scale), [response], prompt
        )

    def token(self, item: Rated, rubric: Rubric) -> list[Message]:
        """How good is a response? The answer is one token."""
        low, high = self.options.scale
        end = (
            f"Answer with a number from {low}, for the worst response, to {high}, for the best, "
            "and nothing else."
        )
        return [{"role": "user", "content": f"{self.one(item, rubric).text} {end}"}]

    def _question(
        self, text: str, form: Form, texts: Sequence[str], prompt: Sequence[Message]
    ) -> Question:
        code = code_of(self.seed, [form.word, transcript(prompt), *texts])[:8]
        return Question(text, form, code, self.options.reasons)


def _answer(question: Question, said: Said) -> Answer:
    """The verdict as log-probabilities of both answers."""
    try:
        p = said.value(question)
    except ValueError as error:
        return Answer(reason=str(error), tokens=said.tokens, cost=said.cost)
    one, two = (math.log(x) if x > 0 else -math.inf for x in (p, 1 - p))
    return Answer(one, two, tokens=said.tokens, cost=said.cost)


def _rating(question: Question, said: Said) -> Rating:
    try:
        score, reason = said.value(question), ""
    except ValueError as error:
        score, reason = None, str(error)
    return Rating(score, reason, calls=1, tokens=said.tokens, cost=said.cost)
