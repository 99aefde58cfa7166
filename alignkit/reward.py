"""Rewards score responses, combinations join the scores, judges compare in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from alignkit.data.group import Group, Message
from alignkit.options import Options as _Options

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


REWARD_KEY = "reward"  # the combined raw reward in Response.scores, next to its components


class Models(Protocol):
    """What the engine offers to rewards, judges and steps. A role is `base`, or a stage's name (`sft`, `sft@2`).

    For one thread: all roles share a model, which can be only one of them at a time.
    """

    def scores(self, stage: str, groups: Sequence[Group]) -> list[float | None]:
        """Raw scalar-head scores of all responses, in order; None where prompt and response do not fit."""
        ...

    def logprobs(self, role: str, groups: Sequence[Group], *, temperature: float = 1.0) -> list[Tensor]:
        """Log-probabilities of all responses in order by the training path: float32 [tokens] each, in nats.

        Shorter than the response where it was cut to fit, [0] where its prompt leaves no room.
        """
        ...

    def next_token_logprobs(
        self, role: str, prompts: Sequence[Sequence[Message]], answers: Sequence[str], *, prefill: str = ""
    ) -> Tensor:
        """log P(first token of each answer | templated prompt + prefill), float32 [prompts, answers], in nats.

        Not renormalised: the sum of the exponentials is the mass the model puts on the answers. NaN where a prompt is
        longer than what the model was made for.
        """
        ...

    def sample(self, role: str, prompts: Sequence[Sequence[Message]], *, seed: int, **sampling: Any) -> list[Group]:
        """Responses to prompts; `sampling` takes the recipe's `rollout` keys, and `processors`: a list of transformers'
        logits processors. Raises ValueError for what means nothing, such as `top_p=0`.
        """
        ...


@dataclass(frozen=True)
class Context:
    """What a reward, judge or step is given before it works.

    models: the engine. cache: a folder that lasts across runs of this recipe. folder: the recipe's folder,
    relative paths start there. seed: of the stage. load: groups of a DataRef option.
    """

    models: Models
    cache: Path
    folder: Path
    seed: int
    load: Callable[[Any], list[Group]]


class Reward:
    """Maps groups to named scores; pure, so that scores can be cached."""

    class Options(_Options):
        """No options."""

    def __init__(self, options: Any):
        self.options = options

    def check(self, folder: Path) -> None:
        """Called before a run's first stage, without models: raise what can be known by then.

        folder: the recipe's, where relative paths start.
        """

    def prepare(self, context: Context) -> None:
        """Called once before the first `score`, and before its stage's work starts: load, measure, fail early."""
        self.context = context

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        """For each component, one number per response of all groups, in order; None: could not be scored.

        A single component is named after the reward itself: return `{"": [...]}`.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class CombinedReward:
    """reward: [R] for gradient methods. raw: [R] un-whitened, for curves, selection and evaluation."""

    reward: Tensor
    raw: Tensor
    metrics: Mapping[str, float]


class RewardCombination:
    """Joins several rewards into one number per response, once an iteration over the global batch."""

    class Options(_Options):
        """No options."""

    def __init__(self, options: Any):
        self.options = options

    def parts(self) -> Mapping[str, Any]:
        """Child name -> reward reference (a RewardRef field's value)."""
        raise NotImplementedError

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """components: child name -> [R] float64, NaN where a score is missing (those responses are dropped)."""
        raise NotImplementedError


class Judge:
    """A model asked in words which response is better."""

    class Options(_Options):
        """No options."""

    def __init__(self, options: Any):
        self.options = options

    def prepare(self, context: Context) -> None:
        self.context = context

    def compare(self, items: Sequence[tuple[Sequence[Message], str, str]]) -> list[Verdict]:
        """P(first is better) for (prompt, first, second) triples, both orders asked and averaged."""
        raise NotImplementedError


@dataclass(frozen=True)
class Verdict:
    """p_first: P(first is better) after averaging both orders, None when unusable (with the reason).

    p_orders: P(first is better) when shown first and when shown second. mass: probability on the two answers.
    """

    p_first: float | None
    p_orders: tuple[float, float] | None = None
    mass: float = 1.0
    reason: str = ""
