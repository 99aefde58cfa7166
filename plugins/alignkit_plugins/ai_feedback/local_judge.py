"""The judge `local_judge`: a model of this run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from alignkit import Field, Group, Judge, Message, PolicyRef, Rating, RunFailed, Verdict
from alignkit.errors import SameFirstToken
from alignkit.judges import Item, Rated, Rubric
from alignkit_plugins.ai_feedback.form import CUT
from alignkit_plugins.ai_feedback.question import both_orders, question
from alignkit_plugins.ai_feedback.verdict import Answer, verdicts
from alignkit_plugins.ai_feedback.words import Question, Said, Speaking, Words

if TYPE_CHECKING:
    from torch import Tensor

OTHER_ANSWERS = (
    "set the judge's option 'answers' to two words that begin with different tokens, such as "
    "[first, second]"
)
START, RATED = "Preferred Response=", "Rating="  # of the judge's turn
TOO_LONG = "the question is longer than the judge's context"


class LocalJudge(Judge):
    """Ask a model of this run, with one forward pass per question and no sampling, unless it gives
    reasons.
    """

    compares_by_rubric: ClassVar[bool] = True

    class Options(Speaking):
        role: PolicyRef = Field("base", description="model that judges: `base` or a stage")

        def asks_engine(self) -> bool:
            return self.reasons  # one token is read from log-probabilities

    options: Options

    @property
    def scale(self) -> tuple[float, float]:
        return self.options.scale

    def question(self, item: Item) -> Sequence[Message]:
        if self.options.reasons:
            return self._words(0).pair(item, "").messages
        return [*question(self.options, item), {"role": "assistant", "content": START}]

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> list[Verdict]:
        if not items:
            return []
        if self.options.reasons:
            return self._words(self.context.seed).compare(items, rubric)
        prompts = [
            question(self.options, item, self.context.seed, rubric) for item in both_orders(items)
        ]
        try:
            logprobs = self._logprobs(prompts, self.options.answers, START)  # [2n, 2] nats
        except SameFirstToken as error:
            raise RunFailed(f"local_judge: {error}\nhelp: {OTHER_ANSWERS}") from None
        return verdicts(
            [_local_answer(one, two) for one, two in logprobs.tolist()], self.options.min_mass
        )

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        """Ratings; without reasons, the mean rating by its first token's probability (RLAIF,
        section 2.2.2).
        """
        if not items:
            return []
        words = self._words(self.context.seed)
        if self.options.reasons:
            return words.rate(items, rubric)
        low, high = self.options.scale
        numbers = list(range(low, high + 1))
        prompts = [words.token(item, rubric) for item in items]
        try:
            logprobs = self._logprobs(prompts, list(map(str, numbers)), RATED)  # [n, numbers] nats
        except SameFirstToken as error:
            help = "set the judge's option 'scale: [1, 9]', or 'reasons: true'"
            raise RunFailed(f"local_judge: {error}\nhelp: {help}") from None
        return [_mean_rating(row, numbers, self.options.min_mass) for row in logprobs.tolist()]

    def _words(self, seed: int) -> Words:
        return Words(self.options, seed, self._said)

    def _said(self, questions: Sequence[Question]) -> list[Said]:
        """Replies in words, the likeliest ones."""
        groups = self.context.models[self.options.role].sample(
            [Group(tuple(one.messages)) for one in questions],
            seed=self.context.seed,
            samples_per_prompt=1,
            temperature=0.0,
            max_new_tokens=self.options.max_tokens,
        )
        found = []
        for group in groups:
            response = group.responses[0] if group.responses else None
            if response is None:
                found.append(Said(reason=TOO_LONG))
            else:
                found.append(Said(reason=CUT) if response.truncated else Said(response.text))
        return found

    def _logprobs(
        self, prompts: Sequence[Sequence[Message]], answers: Sequence[str], prefill: str
    ) -> Tensor:
        return self.context.models[self.options.role].next_token_logprobs(
            prompts, list(answers), prefill=prefill
        )


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


def _local_answer(one: float, two: float) -> Answer:
    if math.isnan(one) and math.isnan(two):
        return Answer(reason=TOO_LONG)
    return Answer(one, two)
