"""Log-probabilities and entropies of tokens from hidden states, a few rows of logits at a time.

A head with V tokens would need [N, V] logits, by far the largest tensor of a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from alignkit.functional.kl import entropy_of

CHUNK = 256  # rows of logits that are held at a time
Linear = Callable[[Tensor, Tensor], Tensor]  # x, weight -> x W^T


@dataclass(frozen=True)
class TokenWants:
    """What to compute of tokens besides log-probabilities at a temperature.

    entropy: "reported" gives it no gradient, which saves a third of the products. likeliest:
    whether the token is the likeliest.
    """

    temperature: float = 1.0
    entropy: bool | Literal["reported"] = False
    likeliest: bool = False


class NextToken(NamedTuple):
    """Numbers of tokens by their distributions, [N] each; None: not requested.

    logprobs, entropy: in nats. likeliest: 1 where the token is the likeliest one, else 0.
    """

    logprobs: Tensor
    entropy: Tensor | None
    likeliest: Tensor | None


@dataclass(frozen=True)
class HeadSpec:
    """A language head: softcap * tanh(scale * (hidden weight^T + bias) / softcap) / temperature.

    weight [V, D], bias [V]. softcap None: no cap. Raises `ValueError` unless the temperature is
    positive.
    """

    weight: Tensor
    bias: Tensor | None = None
    temperature: float = 1.0
    softcap: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be positive, not {self.temperature}")

    @property
    def learns(self) -> bool:
        """Whether autograd will want gradients for the weight or the bias."""
        parameters = (self.weight, self.bias)
        return torch.is_grad_enabled() and any(
            x is not None and x.requires_grad for x in parameters
        )


def logprobs_and_entropy(
    hidden: Tensor, tokens: Tensor, head: HeadSpec, linear: Linear, wants: TokenWants
) -> NextToken:
    """See `Backend.next_token`; the backward pass computes the logits again."""
    # A chunk draws no random numbers, so there is no generator state to preserve.
    compute = functools.partial(
        checkpoint, _logprobs, use_reentrant=False, preserve_rng_state=False
    )
    return NextToken(*by_chunk(compute, hidden, tokens, head, linear, wants))


def by_chunk(
    compute: Callable[..., Sequence[Tensor | None]], hidden: Tensor, tokens: Tensor, *args: Any
) -> list[Any]:
    """What `compute` returns for CHUNK rows at a time, joined."""
    # An empty batch is one chunk of no rows, which keeps it connected to the graph for its backward
    # pass.
    starts = range(0, max(len(hidden), 1), CHUNK)
    parts = [
        compute(hidden[start : start + CHUNK], tokens[start : start + CHUNK], *args)
        for start in starts
    ]
    columns = zip(*parts, strict=True)
    return [None if column[0] is None else torch.cat(column) for column in columns]


def _logprobs(
    hidden: Tensor, tokens: Tensor, head: HeadSpec, linear: Linear, wants: TokenWants
) -> NextToken:
    """The numbers of some rows, by torch's own operators."""
    logits, _ = logits_of(hidden, head, linear)
    log_probabilities = torch.log_softmax(logits, dim=-1)
    learned = log_probabilities.detach() if wants.entropy == "reported" else log_probabilities
    best = log_probabilities.argmax(dim=-1) == tokens if wants.likeliest else None
    return NextToken(
        log_probabilities.gather(-1, tokens[:, None])[:, 0],
        entropy_of(learned) if wants.entropy else None,
        None if best is None else best.to(learned),
    )


def logits_of(hidden: Tensor, head: HeadSpec, linear: Linear) -> tuple[Tensor, Tensor | None]:
    """The logits in float32 or wider, and the derivative of the soft cap if there is one, [rows, V]
    each.
    """
    logits = linear(hidden.to(head.weight.dtype), head.weight)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if head.bias is not None:
        logits += head.bias
    if head.scale != 1.0:
        logits *= head.scale
    softcap_grad = None
    if head.softcap is not None:
        capped = torch.tanh_(logits.div_(head.softcap))
        softcap_grad = 1 - capped.square()  # d (c tanh(x / c)) / dx = 1 - tanh(x / c)^2
        logits = capped * head.softcap  # not in place: autograd needs the tanh
    if head.temperature != 1.0:
        logits /= head.temperature
    return logits, softcap_grad
