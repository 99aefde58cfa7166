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

from pydantic import ConfigDict

from alignkit import Context, Field, Group, Judge, Message, PolicyRef, Rating, RunFailed, Verdict
from alignkit.contract.reward import Item, Rated, Rubric
from alignkit.errors import SameFirstToken
from alignkit_plugins.ai_feedback.prompts import (
    ANSWERS,
    REASONS,
    TOO_LONG,
    Asking,
    Question,
    pair,
    rating,
)
from alignkit_plugins.ai_feedback.writer import (
    NO_LOGPROBS,
    Check,
    Server,
    Written,
    fault_of,
    writer_of,
)
from alignkit_plugins.servers.remote import key_of

START, RATED = "Preferred Response=", "Rating="  # the local judge's turn begins so


@dataclass(frozen=True)
class Answer:
    """Log-probabilities of the two answers in nats, or the reason why they are missing.

    tokens: that a server counted; None: nobody says.
    """

    one: float = -math.inf
    two: float = -math.inf
    reason: str = ""
    tokens: int | None = None

    @property
    def mass(self) -> float:
        """Probability of both answers together."""
        return math.exp(self.one) + math.exp(self.two)

    def unusable(self, min_mass: float) -> str:
        """Why this answer allows no verdict; empty if it does."""
        if self.reason:
            return self.reason
        if self.mass < max(min_mass, 1e-30):
            little = f"too little probability: {self.mass:.2g}, min_mass {min_mass:g}"
            return f"the judge gives both answers together {little}"
        return ""


def verdicts_of(answers: Sequence[Answer], min_mass: float) -> list[Verdict]:
    """Verdicts on n items from 2n answers: all n, then all n with the responses swapped. `mass` is
    the mean over both orders.
    """
    import torch

    from alignkit import functional as F

    n, pairs = len(answers) // 2, []
    for answer in answers:
        pairs.append((answer.one, answer.two))
    logprobs = torch.tensor(pairs, dtype=torch.float64).reshape(2, n, 2)
    p_first = F.judge_probability(*logprobs).tolist()
    orders = torch.stack(F.order_probabilities(*logprobs), dim=1).tolist()  # [n, 2]
    verdicts = []
    for place, (ab, ba) in enumerate(zip(answers[:n], answers[n:], strict=True)):
        reason = ab.unusable(min_mass) or ba.unusable(min_mass)
        tokens = (ab.tokens or 0) + (ba.tokens or 0) or None
        if reason:
            verdict = Verdict(None, mass=0.0, reason=reason, calls=2, tokens=tokens)
        else:
            both, mass = tuple(orders[place]), (ab.mass + ba.mass) / 2
            verdict = Verdict(p_first[place], both, mass, calls=2, tokens=tokens)
        verdicts.append(verdict)
    return verdicts


class ModelJudge(Judge):
    """A judge that asks a model: for one token, or with `reasons` in words."""

    compares_by_rubric = True

    options: Asking

    @property
    def who(self) -> str | Server:
        """A policy of the run, or a model on a server."""
        raise NotImplementedError

    @property
    def scale(self) -> tuple[float, float]:
        return self.options.scale

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self._writer = writer_of(context, "openai_judge", self.who, {"temperature": 0})

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> list[Verdict]:
        both, answers = list(items), list[Answer]()
        for prompt, first, second in items:
            both.append((prompt, second, first))
        questions = [pair(self.options, item, self.context.seed, rubric) for item in both]
        if not self.options.reasons:
            return verdicts_of(self.tokens(questions), self.options.min_mass)
        for question, written in zip(questions, self._replies(questions), strict=True):
            p, reason = question.value(written)
            one, two = log(p or 0.0), log(1 - (p or 0.0))
            answers.append(Answer(one, two, reason, written.tokens))
        return verdicts_of(answers, self.options.min_mass)

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        ratings, questions = [], self._ratings(items, rubric)
        for question, written in zip(questions, self._replies(questions), strict=True):
            score, reason = question.value(written)
            ratings.append(Rating(score, reason, 1, written.tokens))
        return ratings

    def _ratings(self, items: Sequence[Rated], rubric: Rubric) -> list[Question]:
        return [rating(self.options, item, self.context.seed, rubric) for item in items]

    def tokens(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers to questions of one token."""
        raise NotImplementedError

    def _replies(self, questions: Sequence[Question]) -> list[Written]:
        """The replies in words, the likeliest ones."""
        return self._written(
            [question.for_words for question in questions],
            self.options.max_tokens,
            lambda place, written: questions[place].value(written)[1],
        )

    def _written(
        self, questions: Sequence[Sequence[Message]], most: int, check: Check, **more: bool
    ) -> list[Written]:
        groups = [Group(tuple(question)) for question in questions]
        return self._writer.write(groups, most, self.context.seed, check=check, **more)


class LocalJudge(ModelJudge):
    """Ask a model of this run, with one forward pass per question and no sampling, unless it gives
    reasons.
    """

    class Options(Asking):
        role: PolicyRef = Field("base", "model that judges: `base` or a stage")

        def asks_engine(self) -> bool:
            return self.reasons  # one token is read from log-probabilities

        @property
        def grader(self) -> str:
            """Another model is another judge."""
            return f"local_judge {self.role}"

    options: Options

    @property
    def who(self) -> str:
        return self.options.role

    def tokens(self, questions: Sequence[Question]) -> list[Answer]:
        answers = []
        for one, two in self._logprobs(questions, ANSWERS, START):
            answers.append(Answer(reason=TOO_LONG) if math.isnan(one) else Answer(one, two))
        return answers

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        """Ratings; without reasons, the mean rating by its first token's probability (RLAIF,
        section 2.2.2).
        """
        if self.options.reasons:
            return super().rate(items, rubric)
        low, high = self.options.scale
        numbers, ratings = list(range(low, high + 1)), []
        for row in self._logprobs(self._ratings(items, rubric), list(map(str, numbers)), RATED):
            ratings.append(_mean_rating(row, numbers, self.options.min_mass))
        return ratings

    def _logprobs(
        self, questions: Sequence[Question], answers: Sequence[str], prefill: str
    ) -> list[list[float]]:
        """Log-probabilities of the answers' first tokens, in nats: [questions, answers]; NaN if a
        question does not fit.
        """
        model, asked = self.context.models[self.who], [each.for_token for each in questions]
        try:
            found = model.next_token_logprobs(asked, list(answers), prefill=prefill)
        except SameFirstToken as error:
            raise RunFailed(f"local_judge: {error}\nhelp: set 'reasons: true'") from None
        return list(found.tolist())


def _mean_rating(logprobs: Sequence[float], numbers: Sequence[int], min_mass: float) -> Rating:
    if any(map(math.isnan, logprobs)):
        return Rating(None, TOO_LONG)
    chances = list(map(math.exp, logprobs))
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

        @property
        def grader(self) -> str:
            """Another model is another judge."""
            return f"openai_judge {self.server.model} {self.server.base_url}"

    options: Options

    @property
    def who(self) -> Server:
        return self.options.server

    def check(self, folder: Path) -> None:
        key_of("openai_judge", self.who)

    def tokens(self, questions: Sequence[Question]) -> list[Answer]:
        def unusable(place: int, written: Written) -> str:
            return answer_in(written).unusable(self.options.min_mass)

        asked = [question.for_token for question in questions]
        return list(map(answer_in, self._written(asked, 1, unusable, logprobs=True)))


def answer_in(written: Written) -> Answer:
    """The answer by the likeliest tokens; "1" and " 1" are the same.

    An answer that is not among them counts as its upper bound: the probability of the last one that
    is, or of all that are not, whichever is less.
    """
    if not written.likeliest:
        reason = fault_of(0, written) or NO_LOGPROBS
        return Answer(reason=REASONS.get(reason, reason), tokens=written.tokens)
    mass, least, rest = dict.fromkeys(ANSWERS, 0.0), 0.0, 1.0
    for token, logprob in written.likeliest:
        least, rest = min(least, logprob), rest - math.exp(logprob)
        if token.strip() in mass:
            mass[token.strip()] += math.exp(logprob)
    if not any(mass.values()):
        return Answer(reason="the judge's likeliest tokens are no answer", tokens=written.tokens)
    one, two = (log(p) if p > 0 else min(least, log(rest)) for p in mass.values())
    return Answer(one, two, tokens=written.tokens)


def log(p: float) -> float:
    """The logarithm, -inf of 0."""
    return math.log(p) if p > 0 else -math.inf
