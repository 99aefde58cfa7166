"""The judges `local_judge` and `openai_judge`: a model that is asked in words.

As in RLAIF (Lee et al. 2023, arXiv:2309.00267, sections 2.1 and 2.2), the log-probabilities of the
answers "1" and "2" are normalized over these two, and both orders are asked and averaged (Zheng et
al. 2023, arXiv:2306.05685, section 3.4). With `reasons`, a judge thinks first, and the last line of
its reply counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
    pair_in_words,
    rating,
    rating_token,
)
from alignkit_plugins.ai_feedback.writer import (
    NO_LOGPROBS,
    PolicyWriter,
    Server,
    ServerWriter,
    Written,
    fault_of,
)
from alignkit_plugins.servers.remote import key_of

if TYPE_CHECKING:
    from torch import Tensor

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
    def scale(self) -> tuple[float, float]:
        return self.options.scale

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> list[Verdict]:
        options, seed = self.options, self.context.seed
        both, answers = list(items), list[Answer]()
        for prompt, first, second in items:
            both.append((prompt, second, first))
        if options.reasons:
            questions = [pair_in_words(options, item, seed, rubric) for item in both]
            for question, written in zip(questions, self.replies(questions), strict=True):
                p, reason = question.value(written)
                one, two = log(p or 0.0), log(1 - (p or 0.0))
                answers.append(Answer(one, two, reason, written.tokens))
        elif both:
            answers = self.tokens([pair(options, item, seed, rubric) for item in both])
        return verdicts_of(answers, options.min_mass)

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        questions, ratings = [], []
        for item in items:
            questions.append(rating(self.options, item, self.context.seed, rubric))
        for question, written in zip(questions, self.replies(questions), strict=True):
            score, reason = question.value(written)
            ratings.append(Rating(score, reason, 1, written.tokens))
        return ratings

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
        role: PolicyRef = Field("base", "model that judges: `base` or a stage")

        def asks_engine(self) -> bool:
            return self.reasons  # one token is read from log-probabilities

        @property
        def grader(self) -> str:
            """Another model is another judge."""
            return f"local_judge {self.role}"

    options: Options

    def tokens(self, questions: Sequence[Sequence[Message]]) -> list[Answer]:
        answers = []
        for one, two in self._logprobs(questions, ANSWERS, START).tolist():
            answers.append(Answer(reason=TOO_LONG) if math.isnan(one) else Answer(one, two))
        return answers

    def replies(self, questions: Sequence[Question]) -> list[Written]:
        if not questions:
            return []
        writer = PolicyWriter(self.context, self.options.role, {"temperature": 0.0})
        groups = question_groups(question.messages for question in questions)
        return writer.write(groups, self.options.max_tokens, self.context.seed)

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        """Ratings; without reasons, the mean rating by its first token's probability (RLAIF,
        section 2.2.2).
        """
        if self.options.reasons or not items:
            return super().rate(items, rubric)
        low, high = self.options.scale
        numbers, questions, ratings = list(range(low, high + 1)), [], []
        for item in items:
            questions.append(rating_token(self.options, item, self.context.seed, rubric))
        for row in self._logprobs(questions, list(map(str, numbers)), RATED).tolist():
            ratings.append(_mean_rating(row, numbers, self.options.min_mass))
        return ratings

    def _logprobs(
        self, questions: Sequence[Sequence[Message]], answers: Sequence[str], prefill: str
    ) -> Tensor:
        """Log-probabilities of the answers' first tokens, in nats: float [questions, answers]; NaN
        if a question does not fit.
        """
        model = self.context.models[self.options.role]
        try:
            return model.next_token_logprobs(questions, list(answers), prefill=prefill)
        except SameFirstToken as error:
            raise RunFailed(f"local_judge: {error}\nhelp: set 'reasons: true'") from None


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

    def check(self, folder: Path) -> None:
        key_of("openai_judge", self.options.server)

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        server = self.options.server
        self._writer = ServerWriter(context, "openai_judge", server, {"temperature": 0})

    def tokens(self, questions: Sequence[Sequence[Message]]) -> list[Answer]:
        def unusable(place: int, written: Written) -> str:
            return answer_in(written).unusable(self.options.min_mass)

        groups = question_groups(questions)
        return list(map(answer_in, self._writer.write(groups, 1, 0, logprobs=True, check=unusable)))

    def replies(self, questions: Sequence[Question]) -> list[Written]:
        def unusable(place: int, written: Written) -> str:
            return questions[place].value(written)[1]

        groups = question_groups(question.messages for question in questions)
        return self._writer.write(groups, self.options.max_tokens, 0, check=unusable)


def question_groups(questions: Iterable[Sequence[Message]]) -> list[Group]:
    """Questions as conversations."""
    return [Group(tuple(question)) for question in questions]


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
