"""The judge `local_judge`: a model of this run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from alignkit import Field, Judge, Message, PolicyRef, RunFailed, Verdict
from alignkit.errors import SameFirstToken
from alignkit.judges import Item, Rubric
from alignkit_plugins.judges.question import Answers, Asking, both_orders, question
from alignkit_plugins.judges.verdict import Answer, verdicts

if TYPE_CHECKING:
    from torch import Tensor

OTHER_ANSWERS: tuple[Answers, ...] = (("A", "B"), ("first", "second"), ("left", "right"))


class LocalJudge(Judge):
    """Ask a model of this run, with one forward pass per question and no sampling."""

    compares_by_rubric: ClassVar[bool] = True

    class Options(Asking):
        role: PolicyRef = Field("base", description="model that judges: `base` or a stage")
        prefill: str = Field("Preferred Response=", description="start of the judge's turn, without a space at the end")

    options: Options

    def question(self, item: Item) -> list[Message]:
        start: Message = {"role": "assistant", "content": self.options.prefill}
        return [*question(self.options, item), *([start] if self.options.prefill else [])]

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> list[Verdict]:
        if not items:
            return []
        prompts = both_orders(self.options, items, self.context.seed, rubric)
        try:
            logprobs = self._logprobs(prompts, self.options.answers)  # [2n, 2] nats
        except SameFirstToken as error:
            raise RunFailed(f"local_judge: {error}\nhelp: {self._advice(prompts[:1])}") from None
        return verdicts([_local_answer(one, two) for one, two in logprobs.tolist()], self.options.min_mass)

    def _logprobs(self, prompts: Sequence[Sequence[Message]], answers: Answers) -> Tensor:
        return self.context.models.next_token_logprobs(
            self.options.role, prompts, list(answers), prefill=self.options.prefill
        )

    def _advice(self, prompts: Sequence[Sequence[Message]]) -> str:
        """Answers that this judge's tokenizer tells apart by their first token."""
        for answers in OTHER_ANSWERS:
            try:
                self._logprobs(prompts, answers)
            except SameFirstToken:
                continue
            return f"set the judge's option 'answers: [{', '.join(answers)}]', which begin with different tokens"
        return "set the judge's option 'answers' to two words that begin with different tokens"


def _local_answer(one: float, two: float) -> Answer:
    if math.isnan(one) and math.isnan(two):
        return Answer(reason="the question is longer than the judge's context")
    return Answer(one, two)
