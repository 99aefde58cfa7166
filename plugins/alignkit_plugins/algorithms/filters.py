"""Filters of scored groups: rewards that differ, responses that ended, prompts of some
difficulty.
"""

from __future__ import annotations

from collections.abc import Sequence

from alignkit import Field, Filter, Group, Options
from alignkit import functional as F
from alignkit.contract.reward import REWARD_KEY


def rewards(group: Group) -> list[float]:
    """The rewards of a group's responses."""
    scores = [response.scores.get(REWARD_KEY) for response in group.responses]
    return [score for score in scores if score is not None]


class Spread(Filter):
    """Leave out groups whose rewards are all equal, or nearly so: they have no group-relative
    advantage (DAPO, arXiv:2503.14476), or one of a reward model's noise.

    As DAPO does, `rollout.max_num_gen_batches` samples more prompts until the batch is full again.
    """

    class Options(Filter.Options):
        least: float = Field(
            0,
            ge=0,
            description="smallest difference between the best and the worst reward that is kept",
        )

    options: Options

    def keep(self, groups: Sequence[Group]) -> list[bool]:
        return list(map(self._differ, groups))

    def _differ(self, group: Group) -> bool:
        values = rewards(group)
        if not values or F.nearly_equal(max(values), min(values)):
            return False
        return max(values) - min(values) >= self.options.least


class NotTruncated(Filter):
    """Leave out groups with too many truncated responses.

    A group stays or goes whole, so that the baselines of its responses remain those of all samples.
    """

    reads_rewards = False

    class Options(Filter.Options):
        most: float = Field(
            0.5,
            "largest share of a group's responses that may be truncated at max_new_tokens",
            ge=0,
            lt=1,
        )

    options: Options

    def keep(self, groups: Sequence[Group]) -> list[bool]:
        return list(map(self._keeps, groups))

    def _keeps(self, group: Group) -> bool:
        truncated = [response for response in group.responses if response.truncated]
        return len(truncated) <= self.options.most * len(group.responses)


class RewardRange(Filter):
    """Keep prompts that are neither too easy nor too hard: the mean reward of their group is in a
    range.
    """

    class Options(Filter.Options):
        low: float | None = Field(None, "lowest mean reward, included; default: no limit")
        high: float | None = Field(None, "highest mean reward, included; default: no limit")

        def check_values(self) -> None:
            low, high = self.low, self.high
            if low is None and high is None:
                raise ValueError("set low, high, or both")
            if low is not None and high is not None and low > high:
                raise ValueError(f"low {low} is above high {high}")

    options: Options

    def keep(self, groups: Sequence[Group]) -> list[bool]:
        return [self._in_range(rewards(group)) for group in groups]

    def _in_range(self, values: Sequence[float]) -> bool:
        if not values:
            return False
        mean = sum(values) / len(values)
        low, high = self.options.low, self.options.high
        return (low is None or mean >= low) and (high is None or mean <= high)
