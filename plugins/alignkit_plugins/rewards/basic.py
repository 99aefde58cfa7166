"""Rewards without a model (`length`, `episode`), and a normalized reward model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import field_validator

import alignkit
from alignkit import Context, DataRef, Field, Group, Response, Reward, RewardRef, RunFailed
from alignkit import functional as F
from alignkit.data.group import responses_of
from alignkit.environment import EPISODE_KEY
from alignkit.evaluation.answers import spaced
from alignkit.reward import Scores
from alignkit_plugins.formats.spoken import all_turns
from alignkit_plugins.formats.text_metrics import sampled_length


class Length(Reward):
    """Reward long responses, or those near a target length: for smoke tests, and as a baseline for
    length bias.
    """

    class Options(alignkit.Options):
        unit: Literal["tokens", "characters", "words"] = Field(
            "tokens", "unit of length; tokens include thoughts, the others do not"
        )
        target: int | None = Field(
            None,
            "target length: the reward is minus the distance to it; null: the length itself",
            ge=0,
        )
        scale: float = Field(1.0, "factor of the reward")

    options: Options

    def check_prompts(self, groups: Sequence[Group]) -> None:
        self.score(groups)  # raises for the responses of a data set, which have no tokens

    def score(self, groups: Sequence[Group]) -> Scores:
        scores, target = list[float | None](), self.options.target
        for response in responses_of(groups):
            count = self._length(response)
            if target is not None:
                count = -abs(count - target)
            scores.append(self.options.scale * count)
        return {"": scores}

    def _length(self, response: Response) -> int:
        """Tokens are those that the policy wrote, including thoughts and its end of turn."""
        unit = self.options.unit
        if unit == "tokens":
            return sampled_length(
                response, "length", help="set `unit: words` or `unit: characters`"
            )
        text = all_turns(response)
        return len(text) if unit == "characters" else len(spaced(text).split())


class EpisodeReward(Reward):
    """`get_reward` of the stage's environment; None for an episode without a reward."""

    class Options(alignkit.Options):
        part: str = Field("", "which part of a reward that has several by name; default: their sum")

    options: Options
    of_episodes = True

    def score(self, groups: Sequence[Group]) -> Scores:
        episodes = [response.scores for response in responses_of(groups)]
        key = f"{EPISODE_KEY}/{self.options.part}".rstrip("/")
        if episodes and not any(key in scores for scores in episodes):
            known = ", ".join(sorted(set().union(*episodes)))
            text = f"under '{key}'; the scores are {known}"
            raise RunFailed(f"no response has the reward of an episode {text}")
        return {"": [scores.get(key) for scores in episodes]}


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

    def score(self, groups: Sequence[Group]) -> Scores:
        scores = list[float | None]()
        for score in self._raw(groups):
            scores.append(None if score is None else (score + self.bias) * self.gain)
        return {"": scores}

    def _raw(self, groups: Sequence[Group]) -> list[float | None]:
        return self.context.models[self.options.reward_model.name].scores(groups)
