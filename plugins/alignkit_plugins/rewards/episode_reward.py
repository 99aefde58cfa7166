"""The reward that a stage's environment gives an episode, as a reward that can be combined with
others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import alignkit
from alignkit import Field, Group, Reward, RunFailed
from alignkit.environment import EPISODE_KEY


class EpisodeReward(Reward):
    """`get_reward` of the stage's environment; None for an episode without a reward."""

    class Options(alignkit.Options):
        part: str | None = Field(
            None,
            description="which part of a reward that has several by name; default: their sum",
            min_length=1,
        )

    of_episodes = True

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        key = f"{EPISODE_KEY}/{self.options.part}" if self.options.part else EPISODE_KEY
        found = [response.scores for group in groups for response in group.responses]
        if found and not any(key in scores for scores in found):
            parts = sorted(
                {name for scores in found for name in scores if name.startswith(f"{EPISODE_KEY}/")}
            )
            known = (
                f"the parts are {', '.join(name.partition('/')[2] for name in parts)}"
                if parts
                else ""
            )
            raise RunFailed(
                "no response has the reward of an episode under "
                f"'{key}'{'; ' if known else ''}{known}"
            )
        return {"": [scores.get(key) for scores in found]}
