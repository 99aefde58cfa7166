"""The reward `environment`: what the stage's environment gives an episode."""

from __future__ import annotations

from collections.abc import Sequence

import alignkit
from alignkit import Field, Group, Reward, RunFailed
from alignkit.contract.environment import EPISODE_KEY
from alignkit.data.group import responses_of


class EpisodeReward(Reward):
    """`get_reward` of the stage's environment; None for an episode without a reward."""

    class Options(alignkit.Options):
        part: str = Field("", "which part of a reward that has several by name; default: their sum")

    options: Options
    of_episodes = True

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        episodes = [response.scores for response in responses_of(groups)]
        key = f"{EPISODE_KEY}/{self.options.part}".rstrip("/")
        if episodes and not any(key in scores for scores in episodes):
            known = ", ".join(sorted(set().union(*episodes)))
            text = f"under '{key}'; the scores are {known}"
            raise RunFailed(f"no response has the reward of an episode {text}")
        return [scores.get(key) for scores in episodes]
