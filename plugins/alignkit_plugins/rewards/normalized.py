"""The reward `normalized`: a reward model whose scores of demonstrations have mean 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import field_validator

import alignkit
from alignkit import Context, DataRef, Field, Group, Reward, RewardRef, RunFailed
from alignkit import functional as F


class Normalized(Reward):
    """A reward model's score, shifted so that demonstrations have mean 0 (InstructGPT 2022, section
    3.5).

    With `gain` it is also scaled so that they have variance 1; Ziegler et al. 2019 (section 2.1)
    did so with samples of the reference policy. Bias and gain are measured once, from the raw
    scores of all responses that have one.
    """

    class Options(alignkit.Options):
        reward_model: RewardRef = Field(
            description="stage that trains a reward model, or {folder: PATH}"
        )
        data: DataRef = Field(description="demonstrations that define the mean")
        gain: bool = Field(False, "also scale scores, so that demonstrations have variance 1")

        @field_validator("reward_model")
        @classmethod
        def _one_model(cls, value: Any) -> Any:
            if getattr(value, "kind", "stage") not in ("stage", "folder"):
                raise ValueError("expected a stage that trains a reward model, or {folder: PATH}")
            return value

    options: Options

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        name, known = self.options.reward_model.name, list[float]()
        for score in self._raw(context.load(self.options.data)):
            if score is not None:
                known.append(score)
        if not all(map(math.isfinite, known)):
            raise RunFailed(f"reward 'normalized': '{name}' returns scores that are not finite")
        if not known:
            raise RunFailed(f"reward 'normalized': '{name}' could not score any demonstration")
        import torch

        bias, gain = F.reward_normalizer(torch.tensor(known, dtype=torch.float64))
        self.bias, self.gain = bias, gain if self.options.gain else 1.0

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        scores = list[float | None]()
        for score in self._raw(groups):
            scores.append(None if score is None else (score + self.bias) * self.gain)
        return scores

    def _raw(self, groups: Sequence[Group]) -> list[float | None]:
        return self.context.models[self.options.reward_model.name].scores(groups)
