"""Weighted sums of rewards: with the same weights for all prompts, or with weights by a column of
the prompt.

The second kind lets truth count more if the question is about medicine. As in TRL, a part that does
not apply to a response is left out of its sum, and the weights of the others stay as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import model_validator

import alignkit
from alignkit import CombinedReward, DataError, Field, Group, RewardCombination, RewardRef
from alignkit import functional as F
from alignkit.errors import did_you_mean
from alignkit_plugins.formats.rows import column_of, row_of

if TYPE_CHECKING:
    from torch import Tensor

DEFAULT = "default"


class _Sum(RewardCombination):
    """A sum of the rewards that apply to a response; NaN if none does."""

    class Options(alignkit.Options):
        rewards: dict[str, RewardRef] = Field(
            min_length=1, description="rewards to sum, under names of your choice"
        )

        def _check_names(self, weighed: Iterable[str]) -> None:
            """Raise ValueError for weights of other rewards."""
            if unknown := sorted(set(weighed) - self.rewards.keys()):
                raise ValueError(
                    f"weights for {', '.join(unknown)}, which are not among the rewards"
                )

    options: Options
    leaves_out = True

    def parts(self) -> Mapping[str, RewardRef]:
        return self.options.rewards


class WeightedSum(_Sum):
    """The weighted sum of rewards plus a constant, of the parts that apply; NaN if none does.

    It does not whiten; a part that is whitened, such as `llama2`, stays so.
    """

    class Options(_Sum.Options):
        weights: dict[str, float] = Field(description="weight of each reward, by its name")
        bias: float = Field(0.0, description="constant that is added to the sum")

        @model_validator(mode="after")
        def _same_names(self) -> WeightedSum.Options:
            if lacking := sorted(self.rewards.keys() - self.weights.keys()):
                raise ValueError(f"no weight for {', '.join(lacking)}; add it to 'weights'")
            self._check_names(self.weights)
            return self

    options: Options

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Sum the components, [R] each."""
        total = self.total(groups, components)
        return CombinedReward(
            total, total, {**_means(components), "raw_mean": float(total.nanmean())}
        )

    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        terms = [weight * components[name] for name, weight in self.options.weights.items()]
        return F.sum_present(terms, self.options.bias)


class Weighted(_Sum):
    """The sum of the rewards that apply, each times the weight for the prompt's value of a column;
    NaN if none does.
    """

    class Options(_Sum.Options):
        by: str = Field(description="column of the prompts that decides which weights apply")
        weights: dict[str, dict[str, float]] = Field(
            min_length=1,
            description=(
                "for each value of the column, the weight of each reward by its name; `default` "
                "is for other values, and for rewards that a value leaves out; there, a missing "
                "weight is 1"
            ),
        )

        @model_validator(mode="after")
        def _known(self) -> Weighted.Options:
            self._check_names(name for weights in self.weights.values() for name in weights)
            return self

    options: Options

    def check_prompts(self, groups: Sequence[Group]) -> None:
        by = self.options.by
        if (
            groups
            and DEFAULT in self.options.weights
            and not any(by in group.meta for group in groups)
        ):
            column_of("weighted", groups[0], by)  # otherwise `default` would weigh all of them
        for group in groups:
            self._key(group)
        self._check_names([_written(group.meta.get(by)) for group in groups if by in group.meta])

    def _check_names(self, values: Sequence[str]) -> None:
        """Raise DataError if weights are for a value that no prompt has, while others take the
        default.
        """
        others = Counter(value for value in values if value not in self.options.weights)
        for name in self.options.weights:
            if name in (DEFAULT, *values) or not others:
                continue
            rows = ", ".join(f"{value!r:.40} ({count})" for value, count in others.most_common(5))
            nearest = did_you_mean(name, others) or did_you_mean(name.casefold(), others)
            raise DataError(
                f"weighted: there are weights for '{name}', but no prompt has '{self.options.by}' "
                f"{name}; without weights of their own are {rows}\n"
                f"help: {nearest or 'correct the name, or leave it out'}; `VALUE: {{}}` gives a "
                "value the default"
            )

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Sum the components, [R] each. Raises DataError for a prompt whose value has no
        weights.
        """
        keys, total = self._keys(groups), self.total(groups, components)
        used = {
            f"weight/{key}/{name}": self._weight(key, name)
            for key in dict.fromkeys(keys)
            for name in components
        }
        shares = {f"share/{key}": count / len(keys) for key, count in Counter(keys).items()}
        return CombinedReward(
            total,
            total,
            {**_means(components), **used, **shares, "combined_mean": float(total.nanmean())},
        )

    def total(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> Tensor:
        keys = self._keys(groups)
        return F.sum_present(
            [
                x * x.new_tensor([self._weight(key, name) for key in keys])
                for name, x in components.items()
            ]
        )

    def _keys(self, groups: Sequence[Group]) -> list[str]:
        """Under which name the weights of each response's prompt are."""
        return [self._key(group) for group in groups for _ in group.responses]

    def _key(self, group: Group) -> str:
        """Under which name the weights of a prompt are. Raises DataError."""
        by, weights = self.options.by, self.options.weights
        value = group.meta.get(by)
        key = _written(value)
        if key in weights:
            return key
        if DEFAULT in weights:
            return DEFAULT
        what = f"has '{by}' {value!r:.60}" if by in group.meta else f"has no column '{by}'"
        raise DataError(
            f"weighted: {row_of(group)} {what}, which has no weights; those known are "
            f"{', '.join(weights)}\n"
            f"help: add weights for it, or `{DEFAULT}: {{}}`"
        )

    def _weight(self, key: str, name: str) -> float:
        weights = self.options.weights
        return weights[key].get(name, weights.get(DEFAULT, {}).get(name, 1.0))


def _means(components: Mapping[str, Tensor]) -> dict[str, float]:
    return {f"{name}_mean": float(scores.nanmean()) for name, scores in components.items()}


def _written(value: Any) -> str:
    """A value as YAML writes it, and the table of weights names it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
