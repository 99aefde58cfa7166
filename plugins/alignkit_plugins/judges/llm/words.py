"""Questions that are answered in words: a judge thinks first, and the last line of its reply is read.

Two responses are compared in both orders (Zheng et al. 2023, arXiv:2306.05685, section 3.4). A response alone is rated
on a scale, and several responses to a prompt are rated in one question, in an order that the seed draws and its
reverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import model_validator

from alignkit import Field, Message, Rating, Verdict, seeds
from alignkit.judges import Item, Rated, RatedTogether, Rubric
from alignkit_plugins.judges.llm.fence import NOTICE, code_of, fenced, transcript
from alignkit_plugins.judges.llm.form import (
    Form,
    rating_form,
    ratings_form,
    read_line,
    request,
    verdict_form,
)
from alignkit_plugins.judges.llm.question import ASKED, Asking, both_orders, filled, measure
from alignkit_plugins.judges.llm.verdict import Answer, verdicts


class Speaking(Asking):
    """Options of judges that may answer in words."""

    reasons: bool = Field(
        False, description="the judge thinks before it answers, and its last line counts; false: one token decides"
    )
    max_tokens: int = Field(2000, ge=8, description="limit of a reply in words, in tokens, with the judge's reasons")
    scale: tuple[int, int] = Field((1, 9), description="the lowest and the highest rating; [0, 1]: met or not")

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
    """A reply in words; without a usable one, `text` is empty and `reason` says why. tokens, cost: of a Verdict."""

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
        return [_rating(question, said) for question, said in self._asked([self.one(item, rubric) for item in items])]

    def rate_together(self, items: Sequence[RatedTogether], rubric: Rubric) -> list[list[Rating]]:
        """Ratings of all responses to each prompt. An unusable reply to one order leaves none of them."""
        shown = [(prompt, texts, self._orders(prompt, texts)) for prompt, texts in items]
        questions = [
            self.several((prompt, [texts[place] for place in order]), rubric)
            for prompt, texts, orders in shown
            for order in orders
        ]
        asked = iter(self._asked(questions))
        return [_together([(order, *next(asked)) for order in orders], len(texts)) for _, texts, orders in shown]

    def _asked(self, questions: Sequence[Question]) -> Iterator[tuple[Question, Said]]:
        return zip(questions, self.ask(questions) if questions else [], strict=True)

    def _orders(self, prompt: Sequence[Message], texts: Sequence[str]) -> list[list[int]]:
        """Orders in which responses are shown: one that the seed draws, and its reverse."""
        if len(texts) < 2:
            return [list(range(len(texts)))] if texts else []
        draws = seeds.stream(self.seed, "shown together", code_of(self.seed, [transcript(prompt), *texts]))
        drawn = [int(place) for place in draws.permutation(len(texts))]
        return [drawn, drawn[::-1]]

    # The questions

    def pair(self, item: Item, rubric: Rubric) -> Question:
        """Which of two responses is better? The option `template` without its last sentence, which asks for a token."""
        template = self.options.template.removesuffix(ASKED).rstrip()
        text = filled(template, self.options, item, self.seed, rubric) + "\n\nWhich response is better?"
        return self._question(text, verdict_form(self.options.answers), [item[1], item[2]], item[0])

    def one(self, item: Rated, rubric: Rubric) -> Question:
        """How good is a response?"""
        prompt, response = item
        text = self._shown("You rate a response to a conversation.", [("Response", response)], prompt, rubric)
        return self._question(text, rating_form(self.options.scale), [response], prompt)

    def token(self, item: Rated, rubric: Rubric) -> list[Message]:
        """How good is a response? The answer is one token."""
        low, high = self.options.scale
        end = f"Answer with a number from {low}, for the worst response, to {high}, for the best, and nothing else."
        return [{"role": "user", "content": f"{self.one(item, rubric).text} {end}"}]

    def several(self, item: RatedTogether, rubric: Rubric) -> Question:
        """How good is each of several responses?"""
        prompt, texts = item
        named = [(f"Response {number}", text) for number, text in enumerate(texts, 1)]
        text = self._shown("You rate several responses to a conversation.", named, prompt, rubric)
        return self._question(text, ratings_form(self.options.scale, len(texts)), texts, prompt)

    def _shown(self, task: str, named: Sequence[tuple[str, str]], prompt: Sequence[Message], rubric: Rubric) -> str:
        said = transcript(prompt)
        nonce = code_of(self.seed, [said, *(text for _, text in named)])
        what = "response" if len(named) == 1 else "responses"
        own = f"{task} {measure(self.options, rubric)}"
        parts = [
            f"{task} A rating follows this measure:\n\n{rubric}" if isinstance(rubric, str) and rubric else own,
            f"The conversation and the {what} {NOTICE.format(nonce=nonce)}",
            *(f"{name}:\n{fenced(text, nonce)}" for name, text in [("Conversation", said), *named]),
            "How good is the response?" if len(named) == 1 else "How good is each response?",
        ]
        return "\n\n".join(parts)

    def _question(self, text: str, form: Form, texts: Sequence[str], prompt: Sequence[Message]) -> Question:
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


def _together(asked: Sequence[tuple[Sequence[int], Question, Said]], count: int) -> list[Rating]:
    """The mean rating of each response over all orders."""
    sums, reason = [0.0] * count, ""
    for order, question, said in asked:
        try:
            values = said.value(question)
        except ValueError as error:
            reason = reason or str(error)
            continue
        for place, value in zip(order, values, strict=True):
            sums[place] += value / len(asked)
    ratings = [Rating(None if reason else sums[place], reason, 0, 0, 0.0) for place in range(count)]
    tokens, costs = ([getattr(said, name) for _, _, said in asked] for name in ("tokens", "cost"))
    spent = (None if None in tokens else sum(tokens), None if None in costs else math.fsum(costs))
    return [replace(ratings[0], calls=len(asked), tokens=spent[0], cost=spent[1]), *ratings[1:]] if ratings else []
