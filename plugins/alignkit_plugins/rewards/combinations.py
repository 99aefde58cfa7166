"""Combinations of rewards: weighted sums, the smallest, and a reward at equal length.

`weighted` lets truth count more if the question is about medicine. As in TRL, a part that does not
apply to a response is left out of its sum, and the weights of the others stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

import alignkit
from alignkit import CombinedReward, DataError, Field, Group, RewardCombination, RewardRef
from alignkit import functional as F
from alignkit.errors import did_you_mean
from alignkit_plugins.formats.rows import column_of, row_of
from alignkit_plugins.formats.text_metrics import sampled_length

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT = "default"


class _OfSeveral(RewardCombination):
    """A combination of the rewards that apply to a response; NaN if none does."""

    class Options(alignkit.Options):
        rewards: dict[str, RewardRef] = Field(
            min_length=1, description="rewards to combine, under names of your choice"
        )

    options: Any
    leaves_out = True

    def parts(self) -> Mapping[str, RewardRef]:
        return self.options.rewards


def _combined(raw: Tensor, parts: Mapping[str, Tensor], **more: float) -> CombinedReward:
    """The result [R], with the mean of each part."""
    means = {f"{name}_mean": float(scores.nanmean()) for name, scores in parts.items()}
    return CombinedReward(raw, raw, {**means, **more, "raw_mean": float(raw.nanmean())})


def _check_names(weights: Mapping[str, float], rewards: Mapping[str, RewardRef]) -> None:
    """Raise ValueError for weights of other rewards."""
    if unknown := sorted(weights.keys() - rewards.keys()):
        raise ValueError(f"weights for {', '.join(unknown)}, which are not among the rewards")


class WeightedSum(_OfSeveral):
    """The weighted sum of rewards plus a constant, of the parts that apply; NaN if none does.

    It does not whiten; a part that is whitened, such as `llama2`, stays so.
    """

    class Options(_OfSeveral.Options):
        weights: dict[str, float] = Field(description="weight of each reward, by its name")
        bias: float = Field(0.0, description="constant that is added to the sum")

        @model_validator(mode="after")
        def _same_names(self) -> WeightedSum.Options:
            if lacking := sorted(self.rewards.keys() - self.weights.keys()):
                raise ValueError(f"no weight for {', '.join(lacking)}; add it to 'weights'")
            _check_names(self.weights, self.rewards)
            return self

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Sum the components, [R] each."""
        return _combined(self.total(groups, components), components)

    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        weights = self.options.weights
        return F.sum_present(
            [weights[name] * components[name] for name in weights], self.options.bias
        )


class Weighted(_OfSeveral):
    """The sum of the rewards that apply, each times the weight for the prompt's value of a
    column.
    """

    class Options(_OfSeveral.Options):
        by: str = Field(description="column of the prompts that decides which weights apply")
        weights: dict[str, dict[str, float]] = Field(
            min_length=1,
            description="for each value of the column, the weight of each reward by its name; "
            "`default` is for other values, and for rewards that a value leaves out; there, a "
            "missing weight is 1",
        )

        @model_validator(mode="after")
        def _known(self) -> Weighted.Options:
            for weights in self.weights.values():
                _check_names(weights, self.rewards)
            return self

    def check_prompts(self, groups: Sequence[Group]) -> None:
        """Raise DataError if a prompt has no weights, or if weights are for no prompt.

        A misspelled value would let its prompts take the default.
        """
        by, weights = self.options.by, self.options.weights
        if groups and DEFAULT in weights and not any(by in group.meta for group in groups):
            column_of("weighted", groups[0], by)
        for group in groups:
            self._key(group)
        values = Counter(_written(group.meta[by]) for group in groups if by in group.meta)
        others = {value: count for value, count in values.items() if value not in weights}
        unused = [name for name in weights if name not in (DEFAULT, *values)]
        if unused and others:
            rows = ", ".join(f"{value!r:.40} ({count})" for value, count in others.items())
            raise DataError(
                f"weighted: there are weights for '{unused[0]}', but no prompt has '{by}' "
                f"{unused[0]}; without weights of their own are {rows}\n"
                f"help: {did_you_mean(unused[0], others) or 'correct the name'}; "
                "`VALUE: {}` gives a value the default"
            )

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Sum the components, [R] each. Raises DataError for a prompt whose value has no
        weights.
        """
        counts = Counter(self._keys(groups))
        shares = {f"share/{key}": count / counts.total() for key, count in counts.items()}
        return _combined(self.total(groups, components), components, **shares)

    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        keys = self._keys(groups)
        weights, default = self.options.weights, self.options.weights.get(DEFAULT, {})
        terms = []
        for name, scores in components.items():
            other = default.get(name, 1.0)
            terms.append(
                scores * scores.new_tensor([weights[key].get(name, other) for key in keys])
            )
        return F.sum_present(terms)

    def _keys(self, groups: Sequence[Group]) -> list[str]:
        """Under which name the weights of each response's prompt are."""
        keys = list[str]()
        for group in groups:
            keys += [self._key(group)] * len(group.responses)
        return keys

    def _key(self, group: Group) -> str:
        """Under which name the weights of a prompt are. Raises DataError."""
        by, weights = self.options.by, self.options.weights
        key = _written(group.meta.get(by))
        if key in weights:
            return key
        if DEFAULT in weights:
            return DEFAULT
        what = f"has '{by}' {group.meta[by]!r:.60}" if by in group.meta else f"has no column '{by}'"
        raise DataError(
            f"weighted: {row_of(group)} {what}, which has no weights; those known are "
            f"{', '.join(weights)}\nhelp: add weights for it, or `{DEFAULT}: {{}}`"
        )


def _written(value: Any) -> str:
    """A value as YAML writes it, and the table of weights names it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


class Minimum(_OfSeveral):
    """The smallest of the rewards that apply to a response; NaN if none does."""

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """The smallest of the scores, [R] each."""
        smallest, *others = components.values()
        for scores in others:
            smallest = smallest.fmin(scores)  # NaN if both are
        return _combined(smallest, components)


class EqualLength(RewardCombination):
    """The reward minus its slope in length, measured within the prompts of the batch.

    Reward models like long answers, or short ones, and a policy learns that first (Singhal et al.
    2023, arXiv:2310.03716). As in post-hoc calibration (Huang et al. 2024, arXiv:2409.17407), a
    regression on length is subtracted from the scores. Differs from the paper: one line instead of
    a local regression, fitted to the differences between responses to the same prompt, because
    prompts that ask for longer answers may also be harder.
    """

    class Options(alignkit.Options):
        reward: RewardRef = Field(description="the reward: a reward-model stage or a reward")
        unit_variance: bool = Field(
            False,
            description="also scale scores, so that those of a prompt have variance 1 on average",
        )

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return {"raw": self.options.reward}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Correct the scores, [R]. The mean over scored responses stays.

        Without two samples of a prompt, all stays. Raises DataError for a response without tokens,
        such as one from a file.
        """
        scores, rows = components["raw"], []
        for number, group in enumerate(groups):
            for response in group.responses:
                rows.append((number, sampled_length(response, "equal_length")))
        index, lengths = scores.new_tensor(rows).view(-1, 2).unbind(dim=1)  # [R] each
        present = ~scores.isnan()
        slope = F.slope_within_groups(scores[present], lengths[present], index[present])
        corrected = scores - slope * (lengths - lengths[present].mean())
        metrics = {"slope": float(slope)}
        if self.options.unit_variance:
            deviation = F.std_within_groups(corrected[present], index[present])
            corrected = corrected / deviation if deviation > 0 else corrected
            metrics["std"] = float(deviation)
        return CombinedReward(reward=corrected, raw=corrected, metrics=metrics)
