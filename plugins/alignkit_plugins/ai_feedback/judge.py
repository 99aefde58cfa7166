"""The judges `local_judge` and `openai_judge`: a model that is asked in words.

As in RLAIF (Lee et al. 2023, arXiv:2309.00267, sections 2.1 and 2.2), the log-probabilities of the
answers "1" and "2" are normalized over these two, and both orders are asked and averaged (Zheng et
al. 2023, arXiv:2306.05685, section 3.4). With `reasons`, a judge thinks first, and the last line of
its reply counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict

from alignkit import Context, Field, Group, Judge, Message, PolicyRef, Rating, RunFailed, Verdict
from alignkit.errors import SameFirstToken
from alignkit.judges import Item, Rated, Rubric, costs
from alignkit_plugins.ai_feedback.judge_card import side
from alignkit_plugins.ai_feedback.prompts import (
    OUT_OF_SCALE,
    REASONS,
    TOO_LONG,
    Asking,
    Question,
    pair,
    pair_in_words,
    rating,
    rating_token,
)
from alignkit_plugins.ai_feedback.remote import key_of
from alignkit_plugins.ai_feedback.writer import (
    NO_LOGPROBS,
    PolicyWriter,
    Server,
    ServerWriter,
    Written,
    fault_of,
)

if TYPE_CHECKING:
    from torch import Tensor

START, RATED = "Preferred Response=", "Rating="  # of the local judge's turn
OTHER_ANSWERS = (
    "set the judge's option 'answers' to two words that begin with different tokens, such as "
    "[first, second]; for ratings, set 'scale: [1, 9]' or 'reasons: true'"
)


@dataclass(frozen=True)
class Answer:
    """Log-probabilities of the two answers in nats, or the reason why they are missing.

    bound: the largest log-probability of an answer that is -inf, because a server did not return
    it. calls, tokens, cost: as those of a Verdict.
    """

    one: float = -math.inf
    two: float = -math.inf
    reason: str = ""
    bound: float = -math.inf
    calls: int = 1
    tokens: int | None = None
    cost: float | None = None

    @property
    def mass(self) -> float:
        """Known probability of both answers together; NaN if the numbers are not
        log-probabilities.
        """
        if not (self.one <= 1e-3 and self.two <= 1e-3):  # also true for NaN; rounding may exceed 0
            return math.nan
        return math.exp(self.one) + math.exp(self.two)

    @property
    def bounded(self) -> bool:
        """Whether one answer is known only by its bound."""
        return math.isfinite(self.bound) and -math.inf in (self.one, self.two)

    def unusable(self, min_mass: float) -> str:
        """Why this answer allows no verdict; empty if it does."""
        if self.reason:
            return self.reason
        if math.isnan(self.mass):
            return "the judge's numbers are not log-probabilities"
        if self.mass > 1.01:
            return "the judge's probabilities of both answers add up to more than 1"
        if self.mass < max(min_mass, 1e-30):
            little = f"too little probability: {self.mass:.2g}, min_mass {min_mass:g}"
            return f"the judge gives both answers together {little}"
        return ""


def verdicts(answers: Sequence[Answer], min_mass: float) -> list[Verdict]:
    """Verdicts on n items from 2n answers: all n, then all n with the responses swapped.

    `mass` is the mean over both orders. An answer that a server did not return has a probability
    between 0 and its bound. It counts with the bound, which makes p least confident. If some value
    in this range would turn the decision, there is no verdict.
    """
    import torch

    from alignkit import functional as F

    n = len(answers) // 2
    known = [(answer.one, answer.two) for answer in answers]
    most = [(max(a.one, a.bound), max(a.two, a.bound)) for a in answers]
    at_zero, at_bound = torch.tensor([known, most], dtype=torch.float64).reshape(2, 2, n, 2)
    p_first = F.judge_probability(*at_bound).tolist()
    # [2, n]: by order.
    by_order, extremes = (torch.stack(F.order_probabilities(*each)) for each in (at_bound, at_zero))
    low = torch.minimum(by_order, extremes).mean(0).tolist()
    high = torch.maximum(by_order, extremes).mean(0).tolist()
    found = []
    for i, (ab, ba) in enumerate(zip(answers[:n], answers[n:], strict=True)):
        reason = ab.unusable(min_mass) or ba.unusable(min_mass)
        if not reason and side(low[i]) != side(high[i]):
            reason = "an answer is not among the tokens that the server returned, and could decide"
        mass, both = (ab.mass + ba.mass) / 2, [ab, ba]
        spent: Any = costs(both)  # type: ignore[arg-type]
        if reason:
            mass = 0.0 if math.isnan(mass) else mass
            found.append(Verdict(None, mass=mass, reason=reason, **spent))
        else:
            orders, bounded = tuple(by_order[:, i].tolist()), ab.bounded or ba.bounded
            found.append(Verdict(p_first[i], orders, mass, bounded=bounded, **spent))
    return found


class ModelJudge(Judge):
    """A judge that asks a model: for one token, or with `reasons` in words."""

    compares_by_rubric: ClassVar[bool] = True

    options: Asking

    @property
    def scale(self) -> tuple[float, float]:
        return self.options.scale

    def question(self, item: Item) -> Sequence[Message]:
        if self.options.reasons:
            return pair_in_words(self.options, item, 0, "").messages
        return pair(self.options, item, 0, "")

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> list[Verdict]:
        options, seed = self.options, self.context.seed
        both = [*items, *((prompt, second, first) for prompt, first, second in items)]
        if not options.reasons:
            tokens = [pair(options, item, seed, rubric) for item in both]
            return verdicts(self.tokens(tokens) if tokens else [], options.min_mass)
        questions = [pair_in_words(options, item, seed, rubric) for item in both]
        answers = []
        for question, written in zip(questions, self.replies(questions), strict=True):
            p, reason = question.value(written)
            one, two = (math.log(x) if x > 0 else -math.inf for x in (p or 0.0, 1 - (p or 0.0)))
            answers.append(Answer(one, two, reason, tokens=written.tokens, cost=written.cost))
        return verdicts(answers, options.min_mass)

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        questions = [rating(self.options, item, self.context.seed, rubric) for item in items]
        found = []
        for question, written in zip(questions, self.replies(questions), strict=True):
            score, reason = question.value(written)
            found.append(Rating(score, reason, 1, written.tokens, written.cost))
        return found

    def tokens(self, questions: Sequence[Sequence[Message]]) -> list[Answer]:
        """The answers to questions of one token."""
        raise NotImplementedError

    def replies(self, questions: Sequence[Question]) -> list[Written]:
        """The replies in words, the likeliest ones."""
        raise NotImplementedError


class LocalJudge(ModelJudge):
    """Ask a model of this run, with one forward pass per question and no sampling, unless it gives
    reasons.
    """

    class Options(Asking):
        role: PolicyRef = Field("base", description="model that judges: `base` or a stage")

        def asks_engine(self) -> bool:
            return self.reasons  # one token is read from log-probabilities

    options: Options

    def question(self, item: Item) -> Sequence[Message]:
        turns = list(super().question(item))
        if not self.options.reasons:
            turns.append({"role": "assistant", "content": START})
        return turns

    def tokens(self, questions: Sequence[Sequence[Message]]) -> list[Answer]:
        logprobs = self._logprobs(questions, self.options.answers, START)
        return [
            Answer(reason=TOO_LONG) if math.isnan(one) and math.isnan(two) else Answer(one, two)
            for one, two in logprobs.tolist()
        ]

    def replies(self, questions: Sequence[Question]) -> list[Written]:
        if not questions:
            return []
        writer = PolicyWriter(self.context, self.options.role, {"temperature": 0.0})
        groups = [Group(tuple(question.messages)) for question in questions]
        return writer.write(groups, self.options.max_tokens, self.context.seed)

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        """Ratings; without reasons, the mean rating by its first token's probability (RLAIF,
        section 2.2.2).
        """
        if self.options.reasons or not items:
            return super().rate(items, rubric)
        low, high = self.options.scale
        numbers = list(range(low, high + 1))
        seed = self.context.seed
        questions = [rating_token(self.options, item, seed, rubric) for item in items]
        logprobs = self._logprobs(questions, list(map(str, numbers)), RATED)
        return [_mean_rating(row, numbers, self.options.min_mass) for row in logprobs.tolist()]

    def _logprobs(
        self, questions: Sequence[Sequence[Message]], answers: Sequence[str], prefill: str
    ) -> Tensor:
        """Of the answers' first tokens, in nats: float [questions, answers]; NaN without room."""
        model = self.context.models[self.options.role]
        try:
            return model.next_token_logprobs(questions, list(answers), prefill=prefill)
        except SameFirstToken as error:
            raise RunFailed(f"local_judge: {error}\nhelp: {OTHER_ANSWERS}") from None


def _mean_rating(logprobs: Sequence[float], numbers: Sequence[int], min_mass: float) -> Rating:
    if any(map(math.isnan, logprobs)):
        return Rating(None, TOO_LONG)
    chances = [math.exp(each) for each in logprobs]
    mass = math.fsum(chances)
    if mass < max(min_mass, 1e-30):
        return Rating(
            None, f"the judge gives all ratings together too little probability: {mass:.2g}"
        )
    mean = math.fsum(number * p for number, p in zip(numbers, chances, strict=True)) / mass
    return Rating(min(max(mean, numbers[0]), numbers[-1]))  # rounding may leave the scale


class OpenAIJudge(ModelJudge):
    """Ask a chat-completions endpoint. Answers are cached on disk, so that no question is paid for
    twice.
    """

    class Options(Asking):
        model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a password

        server: Server = Field(description="the model, `{base_url: ..., model: ...}`")

    options: Options

    def check(self, folder: Path) -> None:
        key_of("openai_judge", self.options.server)

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        # One for each kind of question: replies to one say nothing of the other.
        self._tokens, self._words = (
            ServerWriter(context, "openai_judge", self.options.server, {"temperature": 0})
            for _ in range(2)
        )

    def tokens(self, questions: Sequence[Sequence[Message]]) -> list[Answer]:
        def unusable(place: int, written: Written) -> str:
            return answer_in(written, self.options.answers).unusable(self.options.min_mass)

        groups = [Group(tuple(question)) for question in questions]
        written = self._tokens.write(groups, 1, 0, logprobs=True, check=unusable)
        return [answer_in(each, self.options.answers) for each in written]

    def replies(self, questions: Sequence[Question]) -> list[Written]:
        def unusable(place: int, written: Written) -> str:
            return questions[place].value(written)[1]

        groups = [Group(tuple(question.messages)) for question in questions]
        most = self.options.max_tokens
        return self._words.write(groups, most, 0, check=unusable, again=(OUT_OF_SCALE,))


def answer_in(written: Written, answers: Sequence[str]) -> Answer:
    """The answer by the likeliest tokens; "1" and " 1" are the same.

    Another token is no likelier than any of them.
    """
    spent: dict[str, Any] = {"tokens": written.tokens, "cost": written.cost}
    if not written.likeliest:
        reason = fault_of(0, written) or NO_LOGPROBS
        return Answer(reason=REASONS.get(reason, reason), **spent)
    mass = dict.fromkeys(answers, 0.0)
    for token, logprob in written.likeliest:
        if token.strip() in mass:
            mass[token.strip()] += math.exp(logprob)
    one, two = (math.log(p) if p > 0 else -math.inf for p in mass.values())
    return Answer(one, two, bound=min(logprob for _, logprob in written.likeliest), **spent)
