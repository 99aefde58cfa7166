"""Policies that answer in another way than by one sample: the best of several by a reward, or with
examples in the prompt.

They stand next to other policies of `evaluate`, and nothing is trained for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import alignkit
from alignkit import DataError, DataRef, Field, Group, Message, PolicyRef, RewardRef, StepContext
from alignkit.data.group import Response, with_responses
from alignkit.evaluation.split import loose_key
from alignkit_plugins.ai_feedback.sample import best
from alignkit_plugins.compare.comparison import short_name


class Decoded(alignkit.Options):
    """A policy whose answers are chosen, or that reads examples first."""

    policy: PolicyRef = Field(description="policy that answers")
    best_of: int = Field(
        1, "samples for an answer, of which the one with the highest reward counts", ge=1, le=1024
    )
    reward: RewardRef | None = Field(None, "reward that chooses")
    examples: DataRef | None = Field(
        None, "demonstrations that each prompt follows, as turns before it (few-shot)"
    )
    name: str = Field("", "name in tables; default: `POLICY, best of N`, `POLICY with examples`")

    def check_values(self) -> None:
        if (self.best_of > 1) != (self.reward is not None):
            raise ValueError("'best_of' above 1 and 'reward' need each other")
        if self.reward is None and self.examples is None:
            raise ValueError("set 'best_of' and 'reward', or 'examples', or write only its name")

    def __str__(self) -> str:
        """The name in tables."""
        how = " with examples" if self.examples is not None else ""
        if self.best_of > 1:
            how += f", best of {self.best_of}"
        return self.name or short_name(self.policy) + how

    def check_prompts(self, demonstrations: Sequence[Group], prompts: Sequence[Group]) -> None:
        """Raise DataError for examples that are no demonstrations, or that show an answer."""
        asked = set(map(loose_key, prompts))
        for group in demonstrations:
            if not group.prompt or not group.responses:
                raise DataError(f"{self}: an example has no prompt with a response")
            if loose_key(group) in asked:
                text = f"{self}: an example is one of the prompts, whose answer it shows"
                raise DataError(f"{text}: {group.prompt[-1]['content']!r:.80}")


class Decoder:
    """Samples for a `Decoded`, as a `Policy` does."""

    def __init__(self, options: Decoded, context: StepContext):
        self._options, self._models = options, context.models
        # A missing key shows here
        self._scorer: Any = options.reward and context.scorer(options.reward)
        self._turns = list[Message]()
        for group in context.load(options.examples) if options.examples is not None else ():
            self._turns += [one for one in group.prompt if one["role"] != "system"]
            self._turns.append({"role": "assistant", "content": group.responses[0].text})

    def sample(
        self, prompts: Sequence[Group], *, seed: int, samples_per_prompt: int = 1, **sampling: Any
    ) -> list[Group]:
        """See `Policy.sample`. An answer is missing if no sample for it has a score."""
        count = self._options.best_of
        model = self._models[self._options.policy]
        sampled = model.sample(
            list(map(self._after_examples, prompts)),
            seed=seed,
            samples_per_prompt=samples_per_prompt * count,
            **sampling,
        )
        answered = list[Group]()
        for group, own in zip(prompts, sampled, strict=True):
            # Rewards may depend on the columns of the prompt
            answered.append(with_responses(group, own.responses, pairs=None))
        if self._scorer is None:
            return answered
        chosen = list[Group]()
        for group in self._scorer.score(answered):
            kept = list[Response]()
            for start in range(0, len(group.responses), count):
                part = with_responses(group, group.responses[start : start + count])
                kept += best(part).responses
            chosen.append(with_responses(group, kept))
        return chosen

    def _after_examples(self, group: Group) -> Group:
        rules = [one for one in group.prompt if one["role"] == "system"]
        asked = [one for one in group.prompt if one["role"] != "system"]
        return replace(group, prompt=(*rules, *self._turns, *asked))
