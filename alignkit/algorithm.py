"""The interface of an algorithm: choose groups (`select`), compute the learning signal (`signal`), give the `loss`.

Shapes in this file: R responses, T response tokens (padded), P pairs, G groups.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from alignkit.batch import Batch, Outputs
from alignkit.data.group import Group, previews
from alignkit.loss import Loss, Term
from alignkit.options import Options as _Options

if TYPE_CHECKING:
    from torch import Tensor

Entropy = bool | Literal["reported"]  # "reported": without a gradient


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
    centered_values: returns are around zero, so a reward model's head is no start for the values.
    entropy: of the policy at each response token; "reported": without gradients, for less work.
    min_samples: least responses in a group.
    pairs: groups without a pair are left out and counted; a data set without any pair is an error.
    max_new_tokens: what the rollout's must be, where an option stands for it.
    replay: `select` asks for the samples of earlier iterations.
    """

    old_logprobs: bool = False
    reference_logprobs: bool = False
    values: bool = False
    shared_values: bool = False
    centered_values: bool = False
    entropy: Entropy = False
    min_samples: int = 1
    pairs: bool = False
    max_new_tokens: int | None = None
    replay: bool = False

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
class Skip:
    """Returned by `signal` instead of tensors: this iteration teaches nothing, for this reason."""

    reason: str


class SelectContext:
    """What `select` may look at beside its groups.

    iteration: counts from 1 (0 for a dataset). seed: of the stage. replay(): the scored rollouts of the stage's
    earlier iterations, oldest first, as lists of groups; with `replay_from` also those of earlier stages.
    log(name=value): metrics of this iteration. validation: the groups are held out, nothing is learned from them.
    left_out(name, count, groups): say and log that rows are not learned from.
    """

    def __init__(
        self,
        iteration: int,
        seed: int,
        replay: Callable[[], list[list[Group]]],
        log: Callable[..., None],
        rng: Any,
        validation: bool = False,
        say: Callable[[str], None] = lambda text: None,
    ):
        self.say = say
        self.iteration = iteration
        self.seed = seed
        self.replay = replay
        self.log = log
        self.validation = validation
        self.rng = rng  # numpy Generator of this stage and iteration

    def left_out(self, name: str, count: int, groups: Sequence[Group]) -> None:
        """`count` responses (or rows) of these groups are not learned from; `name` says why, as a metric."""
        self.log(**{name: count})
        if count and not self.validation:
            self.say(f"{name} {count}, left out: {previews(groups)}")


class Algorithm:
    """Base class of an alignment algorithm: subclass, give `Options` and `loss`, override what differs.

    An instance belongs to one stage. `state` is small, JSON, and checkpointed.
    """

    class Options(_Options):
        """No options."""

    defaults: ClassVar[StageDefaults] = StageDefaults()
    source: ClassVar[Source] = DATASET
    trains: ClassVar[Trains] = POLICY
    unsupported_keys: ClassVar[
        Mapping[str, str]
    ] = {}  # stage keys that would change nothing (`rollout.stop`), with the reason

    def __init__(self, options: Any):
        self.options = options
        self.state: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}  # what `signal` wants logged for this iteration

    @property
    def needs(self) -> Needs:
        """What `signal` and `loss` read. A subclass sets a `Needs`, or overrides this property if it depends on options."""
        return Needs()

    @classmethod
    def specialize(cls, options: Any) -> type[Algorithm]:
        """The class that a recipe's raw options ask for, where what is trained or learned from depends on them."""
        return cls

    def select(self, groups: Sequence[Group], context: SelectContext) -> Sequence[Group] | list[Phase]:
        """Choose, pair or relabel groups before anything is tokenised. Default: as they are."""
        return groups

    def trained_turns(self) -> str:
        """Which assistant turns of a demonstration count: `all` or `last`."""
        return "all"

    def keep_group(self, group: Group) -> bool:
        """Whether a scored group has something to teach; rejected ones are counted and left out.

        A group may hold fewer than `needs.min_samples` responses where some could not be scored.
        """
        return len(group.responses) >= self.needs.min_samples

    def check_data(self, groups: Sequence[Group]) -> None:
        """Raise DataError where these rows of a data set, all that will be learned from, cannot teach it."""

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor] | Skip:
        """Tensors [R, T] or [R] computed once per iteration over all rollouts, such as advantages; or `Skip`."""
        return {}

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        """Statistics over the whole global batch, without a gradient, kept in `self.state` for `loss`."""
        return {}

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Weights of terms whose denominator is not one per token, pair, response or group.

        Keys are names of loss terms; shapes as the term's values. The term's average is
        sum(values * weights) / sum(weights over the global batch).
        """
        return {}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        """The loss of a micro-batch, unreduced."""
        raise NotImplementedError(f"{type(self).__name__} gives no loss")

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Metrics of a micro-batch as unreduced terms, averaged as a loss term is; no gradient."""
        return {}
