"""What an algorithm takes and returns: responses under one mask (`Batch`), outputs of the roles,
and a `Loss`.

A loss has named terms of unreduced values, each averaged over the whole global batch. Shapes: R
responses, T response tokens (padded), P pairs, G groups. Algorithms never see prompts, packing, or
devices.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Self

from alignkit.data.group import Group, Response
from alignkit.errors import PluginError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor


class Per(enum.Enum):
    """The unit of a term: it has one entry per unit, and is averaged over units."""

    TOKEN = "token"
    PAIR = "pair"
    RESPONSE = "response"
    GROUP = "group"


@dataclass(frozen=True)
class Term:
    """One part of a loss, not yet averaged. `per_token`, `per_pair`, `per_response` and `per_group`
    make one.

    Attributes:
        values: [R, T] per token, [P] per pair, [R] per response, or [G] per group.
        per: The unit that it is averaged over.
        coefficient: Factor in the sum of the loss, but not in the logged metric.
    """

    values: Tensor
    per: Per
    coefficient: float = 1.0


def per_token(values: Tensor, coefficient: float = 1.0) -> Term:
    """A term averaged over the tokens of the global batch that count.

    Args:
        values: [R, T]; others are ignored.
        coefficient: Factor in the sum of the loss, but not in the logged metric.
    """
    return Term(values, Per.TOKEN, coefficient)


def per_pair(values: Tensor, coefficient: float = 1.0) -> Term:
    """A term averaged over all pairs of the global batch.

    Args:
        values: [P].
        coefficient: Factor in the sum of the loss, but not in the logged metric.
    """
    return Term(values, Per.PAIR, coefficient)


def per_response(values: Tensor, coefficient: float = 1.0) -> Term:
    """A term averaged over the responses of the global batch with a token that counts.

    Args:
        values: [R].
        coefficient: Factor in the sum of the loss, but not in the logged metric.
    """
    return Term(values, Per.RESPONSE, coefficient)


def per_group(values: Tensor, coefficient: float = 1.0) -> Term:
    """A term averaged over all groups of the global batch.

    Args:
        values: [G].
        coefficient: Factor in the sum of the loss, but not in the logged metric.
    """
    return Term(values, Per.GROUP, coefficient)


class Loss(dict[str, Term]):
    """Named terms: the loss is the sum of their averages over the global batch, times their
    coefficients.

    Args:
        terms: Each is logged under its name, without its coefficient.
    """

    def __init__(self, **terms: Term):
        super().__init__(terms)


@dataclass(eq=False, repr=False)
class _OnRequest:
    """Base of dataclasses that have only those attributes that are not None: what was computed, by
    `vars`.
    """

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if value is None:
                delattr(self, name)

    def __getattr__(self, name: str) -> Any:
        """Raise PluginError that says how to request a field."""
        if name not in self.__dataclass_fields__:
            raise AttributeError(name)
        how = self.__dataclass_fields__[name].metadata["how"]
        raise PluginError(f"{type(self).__name__}.{name} was not computed: {how}")

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed. `dataclasses.replace` would read fields that were
        not requested.

        Args:
            changes: New values by field.
        """
        return type(self)(**{**vars(self), **changes})


def _on_request(how: str) -> Any:
    """A field whose class has no default, which would be found before `__getattr__`."""
    return field(default_factory=type(None), metadata={"how": how})


def _needs(name: str) -> Any:
    return _on_request(f"add {name}=True to `needs = Needs(...)`")


_ROLLOUTS = (
    "only rollouts with a reward have it; declare `source = Source.ROLLOUTS`, and not "
    "`Needs(reward=False)`"
)


def likelier_now(responses: Iterable[Response], logprobs: Tensor) -> Tensor:
    """How much likelier each token is than for the older weights that wrote it: [R, T]; 1 if the
    policy wrote it.

    Without these weights, the KL of a policy that samples ahead is too small by as much as it has
    moved since, and may be negative. `logprobs` [R, T] are the policy's.
    """
    import torch

    from alignkit.functional import ratio

    weights = torch.ones_like(logprobs)
    for index, response in enumerate(responses):
        written = response.logprobs if response.async_level else None
        if written is not None and (count := len(written)) <= len(weights[index]):
            weights[index, :count] = ratio(
                logprobs[index, :count], torch.tensor(written).to(logprobs)
            )
    return weights


@dataclass(frozen=True)
class Pairs:
    """Pairs of a batch as indices into its responses.

    Attributes:
        better: [P] int64, the index of the better response.
        worse: [P] int64, the index of the other one.
        p: [P], the probability that `better` is the better one.
        margin: [P], how much better; 0 if the data do not say.
        group_index: [P] int64, the group of both in `groups`.
        levels: The margin's level, for data that names one instead of a number; its `margin` is 0.
    """

    better: Tensor
    worse: Tensor
    p: Tensor
    margin: Tensor
    group_index: Tensor
    levels: tuple[str | None, ...] = ()

    def __len__(self) -> int:
        return int(self.better.shape[0])

    def take(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The entries of `x` [R, ...] for the better and for the worse responses, each [P, ...].

        Args:
            x: [R, ...].
        """
        return x[self.better], x[self.worse]

    def times_better(self, count: int) -> Tensor:
        """How often each of `count` responses is the better one of a pair, weighted by p. Returns
        [R].

        Args:
            count: R.
        """
        times = self.p.new_zeros(count).index_add(0, self.better, self.p)
        return times.index_add(0, self.worse, 1 - self.p)

    def right(self, x: Tensor) -> Tensor:
        """Whether `x` [R] is higher for the likelier better response: 1 or 0 [P]; NaN if p is 0.5.

        Args:
            x: [R].
        """
        from alignkit.functional import right_order

        better, worse = self.take(x)
        right = right_order(better, worse).where(self.p > 0.5, right_order(worse, better))
        return right.masked_fill(self.p == 0.5, float("nan"))

    def metrics(self, rewards: Tensor) -> dict[str, Term]:
        """The metrics of methods that learn from pairs, from the rewards [R] of their responses,
        under TRL's names.

        Args:
            rewards: [R].
        """
        chosen, rejected = self.take(rewards)
        return {
            "accuracy": per_pair(self.right(rewards)),
            "rewards/chosen": per_pair(chosen),
            "rewards/rejected": per_pair(rejected),
            "rewards/margins": per_pair(chosen - rejected),
        }


@dataclass(eq=False, repr=False)
class Batch(_OnRequest):
    """The responses of some groups. `x[r, t]` belongs to the prediction of `tokens[r, t]`: nothing
    is shifted.

    Reading a field that was not requested through `Needs` raises PluginError.

    Attributes:
        groups: Those of the responses, with their texts.
        tokens: [R, T] int64.
        mask: [R, T] bool, true for tokens that count.
        group_index: [R] int64, each response's index in `groups`.
        pairs: As indices into the responses.
        truncated: [R] bool, whether the response has no end of turn.
        old_logprobs: [R, T] fp32, measured before the first update, in nats.
        reference_logprobs: [R, T] fp32, measured before the first update, in nats.
        old_values: [R, T] fp32, measured before the first update, in the unit of the rewards.
        rewards: [R] fp32; with `Needs(whiten_rewards=True)` scaled to mean 0 and variance 1.
        signals: What `signal` returned, for these responses; `batch["name"]` reads one.
        turn_weights: [R, T] fp32, of tokens by their turns; None: all turns that count are equal.
    """

    groups: Sequence[Group]
    tokens: Tensor
    mask: Tensor
    group_index: Tensor
    pairs: Pairs
    truncated: Tensor
    old_logprobs: Tensor = _needs("old_logprobs")
    reference_logprobs: Tensor = _needs("reference_logprobs")
    old_values: Tensor = _needs("values")
    rewards: Tensor = _on_request(_ROLLOUTS)
    signals: dict[str, Tensor] = field(default_factory=dict)
    turn_weights: Tensor | None = None

    def weights(self, per: Per | Literal["token", "pair", "response", "group"]) -> Tensor:
        """The weight of each entry of a term: 0 if it does not count, else the weight of its
        group, and of its turn.

        Args:
            per: The term's unit; the result has its shape, [R, T], [R], [P] or [G].
        """
        import torch

        per = Per(per)
        groups = torch.tensor([group.weight for group in self.groups], device=self.mask.device)
        if per is Per.GROUP:
            return groups
        if per is Per.PAIR:
            return groups[self.pairs.group_index]
        if per is Per.RESPONSE:
            return self.mask.any(dim=1) * groups[self.group_index]
        tokens = self.mask * groups[self.group_index][:, None]
        if self.turn_weights is None:
            return tokens
        return tokens * self.turn_weights

    def __getitem__(self, name: str) -> Tensor:
        """A signal by name. Raises PluginError, listing the signals there are."""
        if name not in self.signals:
            known = ", ".join(f"'{known}'" for known in self.signals) or "none"
            guess = did_you_mean(name, self.signals)
            raise PluginError(
                f"no signal '{name}'; `signal` returned {known}" + (f"; {guess}" if guess else "")
            )
        return self.signals[name]


@dataclass(eq=False, repr=False)
class Outputs(_OnRequest):
    """The outputs of the trained roles for a batch, with gradients.

    With `Needs(entropy="reported")` the entropy has no gradient. Reading a field that was not
    requested raises PluginError.

    Attributes:
        logprobs: [R, T], of the tokens, in nats.
        entropy: [R, T], of the policy at each token, in nats.
        likeliest: [R, T], 1 where the token is the policy's likeliest one, else 0.
        values: [R, T], of the value function.
        scores: [R], of a reward model.
    """

    logprobs: Tensor = _on_request(
        "a reward model has `scores`; log-probabilities need `trains = Trains.POLICY`"
    )
    entropy: Tensor = _needs("entropy")
    likeliest: Tensor = _needs("likeliest")
    values: Tensor = _needs("values")
    scores: Tensor = _on_request("only reward models have scores; declare `trains = Trains.REWARD`")
