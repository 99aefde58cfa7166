"""The interfaces of rewards, combinations of rewards, and judges."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import pydantic.dataclasses
from pydantic import Field, FiniteFloat

from alignkit.contract.options import WithOptions
from alignkit.contract.policy import Models
from alignkit.data.group import LARGEST, Group, Message

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


# A judge's probability this close to 0.5 is a tie. fp32 log-probabilities of the same text differ
# by up to 1e-5 nats between batches, and servers round theirs to four decimals, which moves a
# probability by up to 5e-5.
TIE = 1e-4
FINITE = f"a finite number from {-LARGEST:g} to {LARGEST:g}"
REWARD_KEY = "reward"  # the combined reward in Response.scores, next to its components


def is_score(value: Any) -> bool:
    """Whether it is a finite number, not too large, or None because there is none."""
    return value is None or (isinstance(value, Real) and abs(float(value)) <= LARGEST)


# `with progress(what, total) as done:` shows how many of `total` parts of some work are done:
# `done(3)`.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@contextmanager
def no_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A Progress that shows nothing."""
    yield lambda done: None


@dataclass(frozen=True)
class Context:
    """The models, folders and data that a reward, judge or step can use.

    Attributes:
        cache: A folder that is kept between runs of this recipe.
        folder: The recipe's; relative paths start there.
        seed: The stage's.
        load: Reads the groups of a DataRef option.
        stage: Its name.
        progress: Shows how far some work is: `with context.progress("asking", 100) as done:
            done(1)`. Work of `models` is shown already.
    """

    models: Models
    cache: Path
    folder: Path
    seed: int
    load: Callable[[Any], list[Group]]
    stage: str = field(default="", kw_only=True)
    progress: Progress = field(default=no_progress, kw_only=True)


class Reward(WithOptions):
    """Base class of a reward: scores responses. It must be pure, because a resumed run may score a
    response again.

    Attributes:
        may_not_apply: Whether None says that the reward does not apply to a response, as in TRL, so
            that a sum leaves it out; otherwise None says that scoring failed.
        of_episodes: Whether it needs a stage with an environment.
        bounds: The lowest and the highest score, where intervals of means end.
    """

    may_not_apply: ClassVar[bool] = False
    of_episodes: ClassVar[bool] = False
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @property
    def within_group(self) -> bool:
        """Whether a score only ranks a response among its group's, as a win rate does.

        Such scores are not compared across iterations: samples of earlier ones are not replayed.
        """
        return False

    def check(self, folder: Path) -> None:
        """Raise RunFailed for a mistake of the user that shows without models, such as a missing
        file or key.

        Called before the first stage of a run, which reports what all rewards and judges raise.

        Args:
            folder: The recipe's; relative paths start there.
        """

    def check_prompts(self, groups: Sequence[Group]) -> Sequence[str] | None:
        """Raise DataError if these prompts lack something that scoring needs; called after `check`,
        before training. Returns warnings, if any.

        Prompts that an earlier stage makes are checked once they exist. They have responses if
        those are what will be scored.
        """

    def prepare(self, context: Context) -> None:
        """Load and measure what scoring needs; called once, before the work of the stage begins."""
        self.context = context

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        """One score per response of all groups, in order: a list or an array. It is None, never 0
        or NaN, for a response that cannot be scored.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class CombinedReward:
    """What a combination makes of the scores.

    Attributes:
        reward: Float [responses]; NaN where there is none, and such a response is left out.
        metrics: Numbers to log, by name.
    """

    reward: Tensor
    metrics: Mapping[str, float] = field(default_factory=dict)


class RewardCombination(WithOptions):
    """Base class of a combination: several rewards become one number per response, over the whole
    iteration's batch.

    `combine` is called with the parts' scores of all samples of an iteration. If samples are added,
    it is called again, with the state from before the iteration.

    Attributes:
        leaves_out: Whether `combine` leaves out a part that does not apply to a response; otherwise
            the combination does not apply to it either, and `combine` does not see it.
        state: Small JSON values that checkpoints keep, such as a multiplier. `combine` may change
            them; the change lasts if the rewards are learned from, and is undone where they are
            only reported.
    """

    leaves_out: ClassVar[bool] = False

    def __init__(self, options: Any):
        super().__init__(options)
        self.state: dict[str, Any] = {}

    @property
    def within_group(self) -> bool:
        """Whether its reward only ranks a response among its group's; see `Reward.within_group`."""
        return False

    def parts(self) -> Mapping[str, Any]:
        """The rewards to combine: name -> value of a RewardRef option."""
        raise NotImplementedError

    def check(self, folder: Path) -> None:
        """Raise RunFailed for a mistake of the user that shows without models; see
        `Reward.check`.
        """

    def check_prompts(self, groups: Sequence[Group]) -> None:
        """Raise DataError if these prompts lack a column that `combine` needs; see
        `Reward.check_prompts`.
        """

    def combine(self, groups: Sequence[Group], components: Mapping[str, Tensor]) -> CombinedReward:
        """Combine the scores of responses of which none failed.

        Args:
            components: Name -> float64 [responses]. NaN if a part is a combination and returned it,
                or, with `leaves_out`, if it does not apply.
        """
        raise NotImplementedError


Item = tuple[Sequence[Message], str, str]  # prompt, first, second
Rated = tuple[Sequence[Message], str]  # prompt, response
Rubric = str | Sequence[str]


class Judge(WithOptions):
    """Base class of a judge: a model that is asked in words which response is better, or how good
    one is.

    Attributes:
        reads_rubric: Whether `rate` can be given a rubric.
        compares_by_rubric: Whether `compare` can, as a second argument, `compare(items, rubric)`;
            it is called with one argument if there is no rubric.
    """

    reads_rubric: ClassVar[bool] = True
    compares_by_rubric: ClassVar[bool] = False

    def check(self, folder: Path) -> None:
        """Raise RunFailed for a mistake of the user that shows without models; see
        `Reward.check`.
        """

    def parts(self) -> Sequence[Any]:
        """The judges that it asks, as values of JudgeRef options; it can do what all of them
        can.
        """
        return ()

    def prepare(self, context: Context) -> None:
        """Called once, before the first comparison."""
        self.context = context

    def compare(self, items: Sequence[Item]) -> list[Verdict]:
        """One verdict on each (prompt, first, second), in order. Ask in both orders and average.

        Args:
            items: (prompt, first, second).
        """
        raise NotImplementedError

    @property
    def scale(self) -> tuple[float, float] | None:
        """The lowest and the highest rating; None if ratings have no bounds."""
        return None

    def rate(
        self, items: Sequence[tuple[Sequence[Message], str]], rubric: str | Sequence[str] = ""
    ) -> list[Rating]:
        """One rating of each (prompt, response), in order; optional.

        A rating depends only on its own item and the rubric: a text, or a list of criteria, that
        says what is good. With an empty one the judge decides.

        Args:
            items: (prompt, response).
            rubric: What is good: a text or a list of criteria; empty: the judge's own measure.
        """
        raise NotImplementedError


Probability = Annotated[FiniteFloat, Field(ge=0, le=1)]


@pydantic.dataclasses.dataclass(frozen=True)
class Rating:
    """What a judge says of one response.

    Attributes:
        score: Higher is better, on the judge's own scale; None if there is no rating, never 0.
        reason: Why there is none; such ratings are counted by its text before a colon.
        calls: Questions that the model was asked; None if that is not known.
        tokens: Tokens that it read and wrote; None if that is not known.
    """

    score: FiniteFloat | None
    reason: str = ""
    calls: int | None = field(default=None, compare=False)
    tokens: int | None = field(default=None, compare=False)


@pydantic.dataclasses.dataclass(frozen=True)
class Verdict:
    """What a judge says of two responses.

    Attributes:
        p_first: P(first is better), averaged over both orders; None if there is no verdict.
        p_orders: P(first is better) if shown first, and if shown second.
        mass: Probability of the two answers together.
        reason: Why there is none; such verdicts are counted by its text before a colon.
        calls: Questions that the model was asked; None if that is not known.
        tokens: Tokens that it read and wrote; None if that is not known.
        missing: The judges of a panel without a verdict, each with the reason.
    """

    p_first: Probability | None
    p_orders: tuple[Probability, Probability] | None = None
    mass: float = 1.0
    reason: str = ""
    calls: int | None = field(default=None, compare=False)
    tokens: int | None = field(default=None, compare=False)
    missing: list[str] = field(default_factory=list, compare=False)

    @property
    def tied(self) -> bool:
        """Whether `p_first` is within TIE of 0.5, so that neither is preferred."""
        return self.p_first is not None and abs(self.p_first - 0.5) <= TIE


# What judges cost

_spent: ContextVar[list[Verdict | Rating] | None] = ContextVar("spent", default=None)


@contextmanager
def spending() -> Iterator[list[Verdict | Rating]]:
    """Gather everything that judges say, for what it costs. What a panel's judges say is part of
    the panel's.
    """
    found: list[Verdict | Rating] = []
    token = _spent.set(found)
    try:
        yield found
    finally:
        _spent.reset(token)


def add_answers(answers: Iterable[Verdict | Rating]) -> None:
    """Add what a judge, or a service that scores, says to what `spending` gathers."""
    if (everything := _spent.get()) is not None:
        everything += answers


def costs(verdicts: Iterable[Verdict | Rating]) -> dict[str, int | None]:
    """Questions and tokens of all verdicts; None if no verdict says them."""
    every, found = list(verdicts), {}
    for name in ("calls", "tokens"):
        known = [getattr(each, name) for each in every if getattr(each, name) is not None]
        found[name] = sum(known) if known else None
    return found
