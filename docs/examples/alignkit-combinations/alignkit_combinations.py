"""Rare combinations of rewards: weighted by a column, the smallest, conditioned, multiplied,
clipped, constrained by a cost, and normalized in two ways.

`when` and `gdpo` are of Liu et al. 2026, arXiv:2601.05242, section 3; `lagrangian` is Safe RLHF's
(Dai et al. 2023, arXiv:2310.12773, eq. 10); `running_normalization` has the mean and variance of
the run so far (Chan et al. 1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import alignkit
from alignkit import (
    Add,
    CombinedReward,
    DataError,
    Field,
    Group,
    RewardCombination,
    RewardRef,
    hookimpl,
)
from alignkit import functional as F

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT = "default"


def combined(reward: Tensor, parts: Mapping[str, Tensor], **metrics: float) -> CombinedReward:
    """A reward [R] with the means of all parts as metrics."""
    means = {f"{name}_mean": float(scores.nanmean()) for name, scores in parts.items()}
    return CombinedReward(reward, {**means, **metrics})


class Weighted(RewardCombination):
    """The sum of the rewards that apply, each times its weight for the prompt's value of a
    column.
    """

    class Options(alignkit.Options):
        rewards: dict[str, RewardRef] = Field(
            min_length=1, description="rewards, under names of your choice"
        )
        by: str = Field(description="column of the prompts that decides which weights apply")
        weights: dict[str, dict[str, float]] = Field(
            description="for each value of the column, the weight of each reward by its name; "
            "`default` is for other values, and for rewards that a value leaves out; there, a "
            "missing weight is 1"
        )

    options: Options
    leaves_out = True

    def parts(self) -> Mapping[str, RewardRef]:
        return self.options.rewards

    def check_prompts(self, groups: Sequence[Group]) -> None:
        """Raise DataError for a prompt without weights, and for weights that no prompt has: the
        prompts of a misspelled value would take the default.
        """
        values = {self._value(group) for group in groups}
        unused = sorted(self.options.weights.keys() - values - {DEFAULT})
        if unused and not values <= self.options.weights.keys():
            names = ", ".join(sorted(values))
            raise DataError(
                f"weighted: no prompt has '{self.options.by}' {unused[0]}; there are {names}"
            )

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        weights, terms = self.options.weights, []
        for name, scores in components.items():
            factors = []
            for group in groups:
                default = weights.get(DEFAULT, {}).get(name, 1.0)
                factor = weights.get(self._value(group), {}).get(name, default)
                factors += [factor] * len(group.responses)
            terms.append(scores * scores.new_tensor(factors))
        return combined(F.sum_present(terms), components)

    def _value(self, group: Group) -> str:
        """A prompt's value as YAML writes it."""
        value, weights = group.meta.get(self.options.by), self.options.weights
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text not in weights and DEFAULT not in weights:
            raise DataError(f"weighted: there are no weights for '{self.options.by}' {value!r:.60}")
        return text


class OfSeveral(RewardCombination):
    """Base class of combinations of any number of rewards."""

    class Options(alignkit.Options):
        rewards: dict[str, RewardRef] = Field(
            min_length=1, description="rewards, under names of your choice"
        )

    options: Options
    leaves_out = True

    def parts(self) -> Mapping[str, RewardRef]:
        return self.options.rewards


class Minimum(OfSeveral):
    """The smallest of the rewards that apply to a response; NaN if none does."""

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        smallest, *others = components.values()
        for scores in others:
            smallest = smallest.fmin(scores)  # NaN if both are
        return combined(smallest, components)


class When(RewardCombination):
    """A reward where another one is high enough, and a constant elsewhere."""

    class Options(alignkit.Options):
        reward: RewardRef = Field(description="the reward that counts under the condition")
        condition: RewardRef = Field(description="the reward that decides")
        at_least: float = Field(
            description="lowest score of `condition` with which `reward` counts"
        )
        otherwise: float = Field(0.0, description="the reward of other responses")

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return {"raw": self.options.reward, "condition": self.options.condition}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        scores, condition = components["raw"], components["condition"]
        chosen = scores.where(condition >= self.options.at_least, self.options.otherwise)
        chosen = chosen.masked_fill(scores.isnan() | condition.isnan(), math.nan)
        return combined(chosen, components)


class Product(OfSeveral):
    """The product of several rewards, such as right (0 or 1) times short; parts that do not apply
    count as 1.
    """

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        product, *others = components.values()
        for scores in others:
            both = product * scores.where(~scores.isnan(), 1.0)
            product = both.where(~product.isnan(), scores)
        return combined(product, components)


class Clip(RewardCombination):
    """A reward within limits."""

    class Options(alignkit.Options):
        reward: RewardRef = Field(description="the reward to clip")
        low: float = Field(-math.inf, allow_inf_nan=True, description="the lowest reward")
        high: float = Field(math.inf, allow_inf_nan=True, description="the highest reward")

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return {"raw": self.options.reward}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        clipped = components["raw"].clamp(self.options.low, self.options.high)
        return combined(clipped, components)


class Lagrangian(RewardCombination):
    """A reward minus lambda times a cost. Lambda rises while the mean cost is above the limit, and
    falls below it.
    """

    class Options(alignkit.Options):
        reward: RewardRef = Field(description="the reward to maximize")
        cost: RewardRef = Field(
            description="the reward to keep low on average, such as how harmful a response is"
        )
        limit: float = Field(description="highest mean cost")
        multiplier: float = Field(
            1.0, ge=0, description="lambda in the first iteration: reward per unit of cost"
        )
        multiplier_rate: float = Field(
            0.1, gt=0, description="change of lambda per iteration and unit of excess cost"
        )
        rescale: bool = Field(
            False, description="divide by 1 + lambda, so that rewards do not grow with it"
        )

    options: Options
    leaves_out = True

    def parts(self) -> Mapping[str, RewardRef]:
        return {"raw": self.options.reward, "cost": self.options.cost}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        o = self.options
        multiplier = float(self.state.get("multiplier", o.multiplier))
        total = F.sum_present([components["raw"], -multiplier * components["cost"]])
        if o.rescale:
            total = total / (1 + multiplier)
        excess = float(components["cost"].nanmean()) - o.limit
        if not math.isnan(excess):
            self.state["multiplier"] = max(0.0, multiplier + o.multiplier_rate * excess)
        return combined(total, components, multiplier=multiplier)


class RunningNormalization(RewardCombination):
    """A reward with mean 0 and variance 1 over the run so far, this iteration included, as in
    OpenAI baselines.
    """

    class Options(alignkit.Options):
        reward: RewardRef = Field(description="the reward to normalize")

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return {"raw": self.options.reward}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        scores = components["raw"]
        self._take_in(scores[~scores.isnan()])
        mean, deviation = self.state.get("mean", 0.0), math.sqrt(self.state.get("variance", 0.0))
        if F.nearly_equal(mean + deviation, mean):
            deviation = 1.0  # all scores so far are equal
        return combined((scores - mean) / deviation, components, mean=mean, std=deviation)

    def _take_in(self, scores: Tensor) -> None:
        """Add scores [N] to the count, the mean and the population variance."""
        old, new = self.state.get("count", 0), len(scores)
        if not new:
            return
        count, mean = old + new, self.state.get("mean", 0.0)
        gap = float(scores.mean()) - mean
        squares = old * self.state.get("variance", 0.0) + new * float(scores.var(unbiased=False))
        variance = (squares + gap**2 * old * new / count) / count
        self.state = {"count": count, "mean": mean + gap * new / count, "variance": variance}


class GDPO(RewardCombination):
    """Each reward is normalized within its group, then summed.

    With `whiten_rewards: true` and `scale_by_std: false`, `grpo` normalizes the sums over the batch
    and learns from them unchanged: they are advantages.
    """

    class Options(alignkit.Options):
        rewards: dict[str, RewardRef] = Field(
            min_length=1, description="rewards, under names of your choice"
        )
        weights: dict[str, float] = Field(
            {}, description="weight of each reward, by its name; default: 1"
        )

    options: Options
    leaves_out = True
    within_group = True

    def parts(self) -> Mapping[str, RewardRef]:
        return self.options.rewards

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Where a reward does not apply, it has no part in its group's statistics."""
        weights = {name: self.options.weights.get(name, 1.0) for name in components}
        numbers: list[int] = []
        for number, group in enumerate(groups):
            numbers += [number] * len(group.responses)
        index = next(iter(components.values())).new_tensor(numbers)
        advantages = {name: scores.clone() for name, scores in components.items()}
        for scores in advantages.values():
            applies = ~scores.isnan()
            scores[applies] = F.grpo_advantages(scores[applies], index[applies])
        reward = F.sum_present([weights[name] * scores for name, scores in advantages.items()])
        return combined(reward, components)


@hookimpl
def register(add: Add) -> None:
    add("reward", "weighted", Weighted, "weighted sum of rewards, with weights by a column")
    add("reward", "min", Minimum, "the smallest of several rewards")
    add(
        "reward",
        "when",
        When,
        "a reward that counts only where another one is at least a threshold",
    )
    add("reward", "product", Product, "the product of several rewards")
    add("reward", "clip", Clip, "a reward within limits")
    add(
        "reward",
        "lagrangian",
        Lagrangian,
        "a reward minus a cost whose weight adapts until its mean is low enough",
    )
    add(
        "reward",
        "running_normalization",
        RunningNormalization,
        "a reward scaled to variance 1 over the run so far",
    )
    add(
        "reward",
        "gdpo",
        GDPO,
        "rewards normalized one by one within their group, then summed",
    )
