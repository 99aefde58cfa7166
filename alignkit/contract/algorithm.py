"""The interface of an algorithm: select groups, compute a learning signal, and compute a loss.

Shapes: R responses, T response tokens (padded), P pairs, G groups.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pydantic.dataclasses

from alignkit.contract.batch import Batch, Loss, Outputs, Term
from alignkit.contract.options import WithOptions
from alignkit.data.group import Group, Message, previews
from alignkit.io.text import Say

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Entropy = bool | Literal["reported"]  # "reported": without a gradient
ADVANTAGES = "advantages"  # the signal that an engine's `importance` weights


class Source(enum.Enum):
    """Where an algorithm's groups come from."""

    DATASET = "dataset"
    ROLLOUTS = "rollouts"


class Trains(enum.Enum):
    """What an algorithm trains: a policy, or a reward model with a scalar head."""

    POLICY = "policy"
    REWARD = "reward"


@pydantic.dataclasses.dataclass(frozen=True)
class Needs:
    """The inputs of an algorithm. Fields of `Batch` and `Outputs` that are not declared here raise
    an error when read.

    Attributes:
        old_logprobs: Log-probabilities of the policy before the first update of the iteration.
        reference_logprobs: Log-probabilities of the reference.
        advantages: The loss is linear in the signal of this name, up to terms without it, for
            weights of 0 and more: then an engine's `importance` can weight it. "token": also token
            by token, so that it is [R, T]; "sequence": whole responses.
        values: Train a value function.
        shared_values: The value function is a head on the policy's hidden states, without a
            gradient into them.
        centered_values: Returns are centered on zero, so the values do not start from a reward
            model's head.
        entropy: The policy's entropy at each response token; "reported": without a gradient, which
            is cheaper.
        likeliest: Whether each response token is the policy's likeliest one.
        min_samples: Fewest responses in a group.
        pairs: Groups without a pair are left out and counted; a data set without any pair is an
            error.
        max_new_tokens: What the recipe's `rollout.max_new_tokens` must be, if an option repeats it.
        replay: `select` calls `context.replay()`.
        teacher: There is nothing to learn from a reference that equals the policy's start. A name:
            unless this option is set, which lets the reference read another prompt.
        reward: Rollouts have a reward to learn from. Without, a recipe need not name one; if it
            does, it is only reported.
        whiten_rewards: Scale `batch.rewards` to mean 0 and variance 1 over all scored responses of
            the iteration, before filters and the penalty for a missing end.
    """

    old_logprobs: bool = False
    reference_logprobs: bool = False
    advantages: Literal["token", "sequence"] | None = None
    values: bool = False
    shared_values: bool = False
    centered_values: bool = False
    entropy: Entropy = False
    likeliest: bool = False
    min_samples: int = 1
    pairs: bool = False
    max_new_tokens: int | None = None
    replay: bool = False
    teacher: bool | str = False
    reward: bool = True
    whiten_rewards: bool = False


@dataclass(frozen=True)
class StageDefaults:
    """Stage-level settings that suit an algorithm, for keys that the recipe does not set. None: the
    general default.

    Attributes:
        learning_rate: For LoRA on a hidden size of 576; a stage scales it to its model.
        epochs: Passes over the data, or over the samples of an iteration.
        batch_size: Groups in an optimizer step.
        warmup_ratio: Share of the steps in which the rate rises.
        lr_scheduler_type: Name of the schedule after the warmup.
        optimizer: Options of an optimizer of Adam's family, such as `{"eps": 1e-5}`.
        iterations: Rounds of sampling and learning.
        prompts_per_iteration: Prompts that are sampled in each.
        samples_per_prompt: Responses to each prompt.
        max_new_tokens: Most tokens of a response.
        temperature: Of sampling.
        max_num_gen_batches: Times that an iteration may sample again for groups that filters dropped.
    """

    learning_rate: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    warmup_ratio: float | None = None
    lr_scheduler_type: str | None = None
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    iterations: int | None = None
    prompts_per_iteration: int | None = None
    samples_per_prompt: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    max_num_gen_batches: int | None = None


@dataclass(frozen=True)
class Phase:
    """Part of an iteration: learn from `groups` in `epochs` passes at `lr_scale` times the stage's
    learning rate.

    epochs: None: the stage's.
    """

    groups: Sequence[Group]
    epochs: int | None = None
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Skip:
    """Returned by `signal` instead of tensors: there is nothing to learn in this iteration, and
    why.
    """

    reason: str


@dataclass(eq=False)
class SelectContext:
    """Everything that `select` can use in addition to its groups.

    Attributes:
        iteration: Counts from 1; 0 for a data set.
        seed: The stage's.
        replay: Called as `replay()`: scored rollouts of earlier iterations, oldest first, one list
            of groups each; with the recipe's `replay_from` those of earlier stages come first.
        log: Called as `log(name=value)`: add metrics to this iteration.
        rng: Numpy's generator for this stage and iteration.
        validation: The groups are held out; nothing is learned from them.
        say: Called as `say(text)`: print a line to the user.
    """

    iteration: int
    seed: int
    replay: Callable[[], list[list[Group]]]
    log: Callable[..., None]
    rng: Any
    validation: bool = False
    say: Say = lambda text: None

    def left_out(self, name: str, count: int, groups: Sequence[Group]) -> None:
        """Log and report that `count` responses (or rows) of these groups are not learned from;
        `name` says why.

        Args:
            name: The metric.
            count: Responses or rows.
        """
        self.log(**{name: count})
        if count and not self.validation:
            self.say(f"{count} left out ({name}): {previews(groups)}")


class Algorithm(WithOptions):
    """Base class of an alignment algorithm: define `Options` and `loss`, and override what differs.

    An instance belongs to one stage.

    Attributes:
        defaults: Settings of a stage that suit it.
        source: Where its groups come from.
        trains: A policy or a reward model.
        unsupported_keys: Stage keys that would have no effect (`rollout.stop`), and why.
        state: Small JSON values that checkpoints keep.
        metrics: Numbers that `signal` logs for an iteration.
    """

    defaults: ClassVar[StageDefaults] = StageDefaults()
    source: ClassVar[Source] = Source.DATASET
    trains: ClassVar[Trains] = Trains.POLICY
    unsupported_keys: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: Any):
        super().__init__(options)
        self.state: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}

    @property
    def log_odds(self) -> bool:
        """Whether the difference of two scores of the trained reward model is meant as the log-odds
        of a preference.

        True of Bradley-Terry models, sigmoid of whose difference is P(first is better):
        `evaluate_reward` then says how well such probabilities are calibrated.
        """
        return False

    @property
    def needs(self) -> Needs:
        """The algorithm's inputs. Set `needs = Needs(...)`, or override this property if it depends
        on options.
        """
        return Needs()

    def select(
        self, groups: Sequence[Group], context: SelectContext
    ) -> Sequence[Group] | list[Phase]:
        """Choose, pair or relabel groups. Return groups or phases; by default all groups.

        Rollouts that are returned as they are keep what was measured and what `signal` returned. A
        phase with any other group is measured again, and has no signals.

        Args:
            groups: Rows of the data set, or scored rollouts.
        """
        return groups

    def trained_turns(self) -> str:
        """The assistant turns of a demonstration that are learned: `all` or `last`."""
        return "all"

    def reference_prompt(self, group: Group) -> Sequence[Message]:
        """The prompt behind which the reference reads a group's responses: by default the group's
        own.

        With another one, such as the prompt after a few examples, the policy learns what the
        reference says there (context distillation). The response tokens are the same. It may depend
        on the group and the options only.
        """
        return group.prompt

    def keep_group(self, group: Group) -> bool:
        """Whether to learn from a group, scored if there is a reward; others are counted and left
        out.

        A group has fewer than `needs.min_samples` responses if some could not be scored.
        """
        return len(group.responses) >= self.needs.min_samples

    def check(self, folder: Path) -> None:
        """Raise RunFailed for a mistake of the user that shows without models and data, such as in
        a file's content.

        Called by `alignkit check` and before the first stage of a run.

        Args:
            folder: The recipe's. Options of type `Path` are absolute, and their files exist.
        """

    def check_data(self, groups: Sequence[Group]) -> None:
        """Raise DataError if nothing can be learned from these groups of a data set. They are all
        that remain.
        """

    def check_prompts(self, groups: Sequence[Group]) -> None:
        """Raise DataError if these prompts lack a column that the algorithm needs; see
        `Reward.check_prompts`.
        """

    def signal(self, rollouts: Batch) -> Mapping[str, Tensor] | Skip:
        """Tensors [R, T] or [R], such as advantages, computed once per iteration over all rollouts;
        or a `Skip`.

        Args:
            rollouts: All rollouts of the iteration as one batch.
        """
        return {}

    def before_step(self, batch: Batch, out: Outputs) -> Mapping[str, Any]:
        """Statistics over the global batch, without a gradient, which `loss` finds in
        `self.state`.
        """
        return {}

    def term_weights(self, batch: Batch) -> Mapping[str, Tensor]:
        """Weights of the entries of a loss term, by its name and in its shape. By default
        `batch.weights` of its unit.

        The term's average is sum(values * weights) / sum(weights over the global batch). Weights of
        your own start from `batch.weights("token")`, which knows what does not count, and the
        weights of rows and turns in the data.
        """
        return {}

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        """The loss of a micro-batch, as named unreduced terms."""
        raise NotImplementedError

    def report_metrics(self, batch: Batch, out: Outputs) -> Mapping[str, Term]:
        """Metrics of a micro-batch as unreduced terms, averaged like loss terms. NaN entries do not
        count.
        """
        return {}


class ExternalTrainer(Algorithm):
    """Base class of an algorithm that another library trains; alignkit provides everything around
    the training.

    It learns from data, and cannot resume inside a stage: a stage that was killed starts over.

    Attributes:
        packages: Whose versions decide the result.
    """

    packages: ClassVar[tuple[str, ...]] = ()

    def check_model(self, model: Any) -> None:
        """Called before a run's first stage. Raise RunFailed if the trainer does not support this
        model.

        Args:
            model: The recipe's keys of it.
        """

    def train(self, stage: Any) -> Mapping[str, Any]:
        """Train, save the adapter in `stage.adapter`, and return a JSON summary for stage.json.

        Args:
            stage: With its `settings`, `seed`, `models`, data (`load`), rewards (`scorer`), and
                progress.
        """
        raise NotImplementedError
