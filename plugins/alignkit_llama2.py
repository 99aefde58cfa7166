"""Llama 2's combination of a helpfulness and a safety reward (Touvron et al. 2023, arXiv:2307.09288, section 3.2.3).

Per response the safety model decides where the prompt is a safety prompt or its verdict is bad (probability below
`threshold`), else the helpfulness model; the chosen score is whitened over the batch of responses. Differs from the
paper: raw scores are kept within the logits of 1e-6 and 1 - 1e-6; `mode: linear` (a weighted mean of both raw scores)
is the common simplification and is not in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

import alignkit
from alignkit import CombinedReward, Field, Group, RewardCombination, RewardRef, RunFailed, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import Register


class Llama2(RewardCombination):
    """Reward [R]: the whitened score of the model that decides. Plain [R]: that score as it is, a logit."""

    class Options(alignkit.Options):
        helpful: RewardRef = Field(description="the helpfulness reward: a reward-model stage or a reward")
        safety: RewardRef = Field(description="the safety reward: a reward-model stage or a reward")
        mode: Literal["piecewise", "linear"] = Field(
            "piecewise", description="piecewise: one model decides, as in the paper; linear: a weighted mean"
        )
        threshold: float = Field(
            0.15, gt=0, lt=1, description="piecewise: below this probability the safety model decides"
        )
        weight: float = Field(0.5, ge=0, le=1, description="linear: weight of safety; helpfulness has the rest")
        whiten: bool = Field(True, description="mean 0 and variance 1 over the batch, for gradient methods")

        @model_validator(mode="after")
        def _of_this_mode(self) -> Llama2.Options:
            other = "weight" if self.mode == "piecewise" else "threshold"
            if other in self.model_fields_set:
                raise ValueError(f"'{other}' changes nothing with 'mode: {self.mode}'")
            return self

    options: Options

    def parts(self) -> Mapping[str, RewardRef]:
        return {"helpful": self.options.helpful, "safety": self.options.safety}

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """components: `helpful` and `safety`, [R] raw scores. A response that lacks either stays NaN.

        Even a safety prompt needs both: which model decides must not depend on which one failed.
        """
        present = ~(components["helpful"].isnan() | components["safety"].isnan())  # [R]
        helpful, safety = components["helpful"][present], components["safety"][present]
        metrics = {"helpful_mean": _mean(helpful), "safety_mean": _mean(safety)}
        if self.options.mode == "piecewise":
            is_safety = present.new_tensor(safety_prompts(groups))[present]
            chosen, by_safety = alignkit.functional.llama2_combine(helpful, safety, is_safety, self.options.threshold)
            metrics["safety_share"] = _mean(by_safety.double())
        else:
            chosen = self.options.weight * safety + (1 - self.options.weight) * helpful
        metrics["raw_mean"] = _mean(chosen)
        raw = components["helpful"].new_full(present.shape, float("nan"))
        reward = raw.clone()
        raw[present] = chosen.to(raw.dtype)
        reward[present] = (alignkit.functional.whiten(chosen) if self.options.whiten and len(chosen) else chosen).to(
            reward.dtype
        )
        return CombinedReward(reward=reward, raw=raw, metrics=metrics)


def safety_prompts(groups: Sequence[Group]) -> list[bool]:
    """[R] whether each response answers a safety prompt: its group's `safety` column, false where there is none."""
    flags = []
    for number, group in enumerate(groups, 1):
        flag = group.meta.get("safety")
        if flag not in (None, True, False):  # 0 and 1 are equal to these, and meant
            raise RunFailed(
                f"llama2: column 'safety' of prompt {group.id or number} is {flag!r}; "
                "it marks safety prompts and must be true or false"
            )
        flags += [bool(flag)] * len(group.responses)
    return flags


def _mean(x: Tensor) -> float:
    """Mean of [N], NaN when empty."""
    return float(x.mean())


@hookimpl
def register_combinations(register: Register) -> None:
    register("llama2", Llama2, summary="safety below a threshold or on safety prompts, else helpfulness; whitened")
