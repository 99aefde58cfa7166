"""The interface of an algorithm: choose groups (`select`), compute the learning signal (`signal`), give the `loss`.

Shapes in this file: R responses, T response tokens (padded), P pairs, G groups.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic import Field as Field

from alignkit.data import Group, beginnings

if TYPE_CHECKING:
    from torch import Tensor

    from alignkit.head import Entropy
    from alignkit.recipe import ModelSpec
    from alignkit.training import StageRun


class Options(BaseModel):
    """Base of every plugin's options: unknown keys are refused, fields carry a description and a range."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)


_Options = Options


class Source(enum.Enum):
    """Where an algorithm's groups come from."""

    DATASET = "dataset"
    ROLLOUTS = "rollouts"


class Trains(enum.Enum):
    """What an algorithm trains: the policy's language head, or a scalar reward head."""

    POLICY = "policy"
    REWARD = "reward"


DATASET, ROLLOUTS = Source.DATASET, Source.ROLLOUTS
POLICY, REWARD = Trains.POLICY, Trains.REWARD


@dataclass(frozen=True)
class Needs:
    """What `signal` and `loss` need.

    old_logprobs: of the policy that wrote the rollouts, by the training path. values: a value role is trained;
    shared_values: it is a head that reads the policy's own hidden states and leaves them as they are.
    centred_values: returns are around zero, so a reward model's head is no start for the values.
    entropy: of the policy at each response token; "reported": without gradients, for less work.
    min_samples: least responses in a group.
    pairs: groups without a pair are left out and counted; a data set without any pair is an error.
    max_new_tokens: what the rollout's must be, where an option stands for it.
    earlier: `select` asks for the samples of earlier iterations.
    """

    old_logprobs: bool = False
    reference_logprobs: bool = False
    values: bool = False
    shared_values: bool = False
    centred_values: bool = False
    entropy: Entropy = False
    min_samples: int = 1
    pairs: bool = False
    max_new_tokens: int | None = None
    earlier: bool = False

    def __post_init__(self) -> None:
        if self.entropy not in (True, False, "reported"):
            raise ValueError(f"Needs.entropy is True, False or 'reported', not {self.entropy!r}")


@dataclass(frozen=True)
class StageDefaults:
    """Stage-level settings that suit an algorithm, used where the recipe is silent. None: the general default."""

    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    weight_decay: float | None = None
    warmup_ratio: float | None = None
    lr_scheduler_type: str | None = None
    max_grad_norm: float | None = None
    adam_epsilon: float | None = None
    iterations: int | None = None
    prompts_per_iteration: int | None = None
    samples_per_prompt: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None


@dataclass(frozen=True)
class Phase:
    """Part of an iteration: learn from `groups` for `epochs` passes at `lr_scale` times the stage's learning rate."""

    groups: Sequence[Group]
    epochs: int | None = None
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Pairs:
    """Pairs of a batch as indices into its responses: `better`, `worse`, `p`, `margin`, `group`, each [P].

    levels: the margin's level where the data names one instead of giving a number (`margin` is 0 there).
    """

    better: Tensor
    worse: Tensor
    p: Tensor
    margin: Tensor
    group: Tensor
    levels: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return int(self.better.shape[0])

    def take(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The better and the worse responses' entries of `x` [R, ...]: two tensors [P, ...]."""
        return x[self.better], x[self.worse]

    def times_better(self, count: int) -> Tensor:
        """How often each of `count` responses is the better one of a pair, by p where that is not certain: [R]."""
        times = self.p.new_zeros(count).index_add(0, self.better, self.p)
        return times.index_add(0, self.worse, 1 - self.p)

    def right(self, x: Tensor) -> Tensor:
        """1 where the likelier better response has the higher `x` [R], else 0: [P]. NaN where neither is likelier."""
        from alignkit.functional import right_order

        better, worse = self.take(x)
        right = right_order(better, worse).where(self.p > 0.5, right_order(worse, better))
        return right.masked_fill(self.p == 0.5, float("nan"))


@dataclass
class Batch:
    """Response tokens only; prompts, padding of the model's input, packing and devices are the engine's business.

    tokens: [R, T] int64. mask: [R, T] bool, true where a token is the response's and counts.
    `x[r, t]` always belongs to the prediction of `tokens[r, t]`: there are no shifted copies.
    group: [R] index of each response's group in `groups`. pairs: see `Pairs`.
    old_logprobs, reference_logprobs, old_values: [R, T] measured before the first update, or None.
    rewards: [R] what gradient methods see (whitened where the combination says so). scores: [R] the un-whitened
    combination. truncated: [R] bool. signals: what `signal` returned, sliced to these responses.
    """

    groups: Sequence[Group]
    tokens: Tensor
    mask: Tensor
    group: Tensor
    pairs: Pairs
    truncated: Tensor
    old_logprobs: Tensor | None = None
    reference_logprobs: Tensor | None = None
    old_values: Tensor | None = None
    rewards: Tensor | None = None
    scores: Tensor | None = None
    signals: dict[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Tensor:
        """A signal by name."""
        return self.signals[name]


@dataclass
class Outputs:
    """What the trained roles gave for a batch, with gradients: logprobs, entropy, values [R, T]; scores [R]. An entropy
    that is only "reported" (`Needs.entropy`) has none.
    """

    logprobs: Tensor | None = None
    entropy: Tensor | None = None
    values: Tensor | None = None
    scores: Tensor | None = None


class Per(enum.Enum):
    """What one entry of a term counts as when it is averaged over the global batch."""

    TOKEN = "token"
    PAIR = "pair"
    RESPONSE = "response"
    GROUP = "group"


@dataclass(frozen=True)
class Term:
    """One named part of a loss: values [R, T] per token, [P] per pair, [R] per response or [G] per group."""

    values: Tensor
    per: Per
    coefficient: float = 1.0


def per_token(values: Tensor, coefficient: float = 1.0) -> Term:
    """Average over all counted tokens of the global batch. values: [R, T]; entries where the mask is false are cut."""
    return Term(values, Per.TOKEN, coefficient)


def per_pair(values: Tensor, coefficient: float = 1.0) -> Term:
    """Average over all pairs of the global batch. values: [P]."""
    return Term(values, Per.PAIR, coefficient)


def per_response(values: Tensor, coefficient: float = 1.0) -> Term:
    """Average over all responses with a counted token in the global batch. values: [R]."""
    return Term(values, Per.RESPONSE, coefficient)


def per_group(values: Tensor, coefficient: float = 1.0) -> Term:
    """Average over all groups of the global batch. values: [G]."""
    return Term(values, Per.GROUP, coefficient)


class Loss(dict[str, Term]):
    """Named terms; each is averaged over the whole global batch, then multiplied by its coefficient and summed."""

    def __init__(self, **terms: Term):
        super().__init__(terms)


class SelectContext:
    """What `select` may look at beside its groups.

    iteration: counts from 1 (0 for a dataset). seed: of the stage. earlier(): the scored rollouts of the stage's
    earlier iterations, oldest first, as lists of groups; with `carry_from` also those of earlier stages.
    log(name=value): metrics of this iteration. validation: the groups are held out, nothing is learned from them.
    left_out(name, count, groups): say and log that rows are not learned from.
    """

    def __init__(
        self,
        iteration: int,
        seed: int,
        earlier: Callable[[], list[list[Group]]],
        log: Callable[..., None],
        rng: Any,
        validation: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.say = say
        self.iteration = iteration
        self.seed = seed
        self.earlier = earlier
        self.log = log
        self.validation = validation
        self.rng = rng  # numpy Generator of this stage and iteration

    def left_out(self, name: str, count: int, groups: Sequence[Group]) -> None:
        """`count` responses (or rows) of these groups are not learned from; `name` says why, as a metric."""
        self.log(**{name: count})
        if count and not self.validation:
            self.say(f"{name} {count}, left out: {beginnings(groups)}")


class Algorithm:
    """Base class of an alignment algorithm: subclass, give `Options` and `loss`, override what differs.

    An instance belongs to one stage. `state` is small, JSON, and checkpointed.
    """

    class Options(_Options):
        """No options."""

    defaults: ClassVar[StageDefaults] = StageDefaults()
    source: ClassVar[Source] = DATASET
    trains: ClassVar[Trains] = POLICY
    needs: ClassVar[Needs] = Needs()
    refuses: ClassVar[Mapping[str, str]] = {}  # stage keys that would change nothing (`rollout.stop`), with the reason

    def __init__(self, options: Any):
        self.options = options
        self.state: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}  # what `signal` wants logged for this iteration

    @classmethod
    def variant(cls, options: Any) -> type[Algorithm]:
        """The class that a recipe's raw options ask for, where what is trained or learned from depends on them."""
        return cls

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group] | list[Phase]:
        """Choose, pair or relabel groups before anything is tokenised. Default: as they are."""
        return groups

    def turns(self) -> str:
        """Which assistant turns of a demonstration count: `all` or `last`."""
        return "all"

    def keep(self, group: Group) -> bool:
        """Whether a scored group has something to teach; rejected ones are counted and left out.

        A group may hold fewer than `needs.min_samples` responses where some could not be scored.
        """
        return len(group.responses) >= self.needs.min_samples

    def check(self, groups: Sequence[Group]) -> None:
        """Raise DataError where these rows of a data set, all that will be learned from, cannot teach it."""

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor]:
        """Tensors [R, T] or [R] computed once per iteration over all rollouts: advantages, returns, targets."""
        return {}

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        """Statistics over the whole global batch, without a gradient, kept in `self.state` for `loss`."""
        return {}

    def weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Weights of terms whose denominator is not one per token, pair, response or group.

        Keys are names of loss terms; shapes as the term's values. The term's average is
        sum(values * weights) / sum(weights over the global batch).
        """
        return {}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        """The loss of a micro-batch, unreduced."""
        raise NotImplementedError(f"{type(self).__name__} gives no loss")

    def report(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Metrics of a micro-batch as unreduced terms, averaged as a loss term is; no gradient."""
        return {}


class Runner(Algorithm):
    """A foreign trainer as a stage: it does the training itself, and alignkit everything around it.

    It is exempt from exact resume: a stage that was killed begins again.
    """

    def check_model(self, model: ModelSpec) -> None:
        """Called before a run's first stage: raise RunFailed where it cannot train such a model."""

    def train(self, run: StageRun) -> Mapping[str, Any]:
        """Train, leave the adapter in `run.adapter`, and give the summary for stage.json."""
        raise NotImplementedError(f"{type(self).__name__} trains nothing")
