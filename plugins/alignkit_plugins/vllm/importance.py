"""Weights of samples whose probabilities differ from those of training: `engine: {vllm:
{importance: {cap: 2}}}`.

An engine's option `importance` may be anything with this method `weighted`; the stage asks it once
an iteration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from alignkit import Options, RunFailed, Skip
from alignkit.algorithm import ADVANTAGES
from alignkit.data.group import responses_of

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit import Batch


class Importance(Options):
    """Weights of the samples, learner / sampler, for a sampler whose probabilities differ from
    those of training.
    """

    cap: float | None = Field(
        default=None,
        ge=1,
        description="largest weight (truncated importance sampling); default: no cap",
    )
    mask: Annotated[list[float], Field(min_length=2, max_length=2)] | None = Field(
        default=None,
        description=(
            "bounds of the ratio, such as [0.5, 2]: outside of them the weight is 0; default: none"
        ),
    )
    level: Literal["token", "sequence"] | None = Field(
        default=None,
        description=(
            "level of the ratio: token or whole response; default: token if the algorithm learns "
            "by token"
        ),
    )

    @model_validator(mode="after")
    def _has_an_effect(self) -> Importance:
        if self.cap is None and self.mask is None:
            raise ValueError(
                "a weight without a limit can be arbitrarily large: set cap, mask or both"
            )
        if self.mask is not None:
            low, high = self.mask
            if not 0 <= low <= 1 <= high:
                raise ValueError(
                    f"mask {self.mask} must go from 0 or more up to 1, and on to 1 or more"
                )
            if self.cap is not None and self.cap > high:
                raise ValueError(
                    f"cap {self.cap:g} has no effect: mask leaves out what is above {high:g}"
                )
        return self

    def weighted(
        self, signals: Mapping[str, Tensor], rollouts: Batch, old: Sequence[Tensor], finest: str
    ) -> tuple[Mapping[str, Tensor] | Skip, dict[str, float]]:
        """The signals, with advantages times the weights of their samples; and the shares that were
        capped and masked.

        old: the learner's log-probabilities of each response, [tokens]. finest: `Needs.advantages`.
        """
        import torch  # not with the module: `alignkit check` reads these options
        from torch.nn.utils.rnn import pad_sequence

        sampler = []
        for response in responses_of(rollouts.groups):
            if response.logprobs is None:
                raise RunFailed(
                    "the engine tells no log-probabilities of its samples, but 'importance' needs "
                    "them\nhelp: leave 'importance' out, or top_k, top_p and min_new_tokens, with "
                    "which a server tells none"
                )
            sampler.append(torch.tensor(response.logprobs))
        learners = pad_sequence([*old], batch_first=True)
        samplers = pad_sequence(sampler, batch_first=True)
        advantages, shares = self.weights(
            signals[ADVANTAGES], learners, samplers, rollouts.mask, finest
        )
        if shares.get("importance_masked") == 1:
            return Skip("'importance' masked every sample"), shares
        return {**signals, ADVANTAGES: advantages}, shares

    def weights(
        self, advantages: Tensor, old: Tensor, sampler: Tensor, mask: Tensor, finest: str
    ) -> tuple[Tensor, dict[str, float]]:
        """Advantages, [R, T] or [R], times the weights of the samples, and the shares that were
        capped and masked.

        Shares are of counted tokens, or of responses. The result is [R, T] if tokens have weights.
        old, sampler: the log-probabilities, [R, T]. A loss that is linear in the advantages for
        weights of 0 and more is then weighted, and its KL, entropy and values are not.
        """
        from alignkit import functional as F

        by_response = "sequence" in (self.level, finest)
        bounds = None if self.mask is None else (self.mask[0], self.mask[1])
        weights, ratios = F.importance_weights(
            old, sampler, mask, self.cap, bounds, sequence=by_response
        )
        changed = {}
        if bounds is not None:
            changed["importance_masked"] = (ratios < bounds[0]) | (ratios > bounds[1])
        if self.cap is not None:  # what is masked has a weight of 0
            changed["importance_capped"] = (ratios > self.cap) & (weights > 0)
        counted = mask.any(dim=1) if by_response else mask
        shares = {name: float(which[counted].float().mean()) for name, which in changed.items()}
        if weights.dim() > advantages.dim():
            advantages = advantages[:, None]
        elif weights.dim() < advantages.dim():
            weights = weights[:, None]
        return advantages * weights, shares
