"""Log-probabilities and entropies of tokens from hidden states, a few rows of logits at a time.

A head with V tokens would need [N, V] logits, by far the largest tensor of a step. If the head is
frozen, both results are one number per row, so their gradients with respect to the row's hidden
state are computed together with the logits and replace them; the backward pass only scales them. If
the head learns, the backward pass computes the logits again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from alignkit.functional.logprobs import entropy_of
from alignkit.kernels.matmul import linear, matmul

# Whether to compute entropies. "reported" means without gradients, which saves a third of the
# products. "likeliest": in their place, 1 where the token is the likeliest one, else 0.
Entropy = bool | Literal["reported", "likeliest"]


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
    hidden: Tensor, tokens: Tensor, head: HeadSpec, *, entropy: Entropy = False, chunk: int = 256
) -> tuple[Tensor, Tensor | None]:
    """Log P(token) [N] and entropies [N], or None unless requested, in nats, without ever holding
    [N, V] logits.

    hidden [N, D], tokens [N]; `chunk` rows are computed at a time. The product has the dtype of the
    head, the rest is float32, or float64 if the head is. Gradients reach the hidden states and the
    parameters of the head that learn.
    """
    if head.learns:
        # A chunk draws no random numbers, so there is no generator state to preserve.
        compute = functools.partial(
            checkpoint, _learned, use_reentrant=False, preserve_rng_state=False
        )
        found = _by_chunk(compute, hidden, tokens, head, entropy, chunk=chunk)
    else:
        # Decided here, because gradients are always off inside of a Function's forward.
        learns = torch.is_grad_enabled() and hidden.requires_grad
        found = _FrozenHead.apply(hidden, tokens, head, entropy, chunk, learns)
    logprobs, *entropies = found
    return logprobs, entropies[0] if entropies else None


def _by_chunk(
    compute: Callable[..., Sequence[Tensor]], hidden: Tensor, tokens: Tensor, *args: Any, chunk: int
) -> list[Tensor]:
    """What `compute` returns for some rows at a time, joined."""
    # An empty batch is one chunk of no rows, which keeps it connected to the graph for its backward
    # pass.
    starts = range(0, max(len(hidden), 1), chunk)
    parts = [
        compute(hidden[start : start + chunk], tokens[start : start + chunk], *args)
        for start in starts
    ]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


def _learned(
    hidden: Tensor, tokens: Tensor, head: HeadSpec, entropy: Entropy
) -> tuple[Tensor, ...]:
    """(log-probabilities,) or (log-probabilities, entropies) of some rows, by torch's own
    operators.
    """
    logits, _ = _logits(hidden, head)
    log_probabilities = torch.log_softmax(logits, dim=-1)
    logprobs = log_probabilities.gather(-1, tokens[:, None])[:, 0]
    if not entropy:
        return (logprobs,)
    if entropy == "likeliest":
        return logprobs, (log_probabilities.argmax(dim=-1) == tokens).to(logprobs)
    return logprobs, entropy_of(
        log_probabilities.detach() if entropy == "reported" else log_probabilities
    )


# A frozen head, with gradients in place of the logits


class _FrozenHead(torch.autograd.Function):
    """Saves d logprob / d hidden, and d entropy / d hidden if that is wanted, [N, D] each."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        tokens: Tensor,
        head: HeadSpec,
        entropy: Entropy,
        chunk: int,
        learns: bool,
    ) -> tuple[Tensor, ...]:
        found = _by_chunk(_frozen, hidden, tokens, head, entropy, learns, chunk=chunk)
        results = 2 if entropy else 1
        # All that backward needs: the logits, [N, V], are gone by then
        ctx.save_for_backward(*found[results:])
        if entropy in ("reported", "likeliest"):
            ctx.mark_non_differentiable(found[1])
        return tuple(found[:results])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # [N, D] each; a row's results depend on its own state only. Not strict: entropies may have
        # no gradient.
        parts = [
            gradient[:, None] * grad
            for gradient, grad in zip(upstream, ctx.saved_tensors, strict=False)
        ]
        return sum(parts[1:], parts[0]).to(ctx.saved_tensors[0].dtype), None, None, None, None, None


def _frozen(
    hidden: Tensor, tokens: Tensor, head: HeadSpec, entropy: Entropy, learns: bool
) -> list[Tensor]:
    """The results of `_learned` for some rows, and then their gradients with respect to `hidden` if
    it learns.

    [rows, V] is large, and fresh memory costs more than the arithmetic in it. So each step
    overwrites the one before, under a new name.
    """
    logits, softcap_grad = _logits(hidden, head)
    chosen = tokens[:, None]
    # Only one of several equal logits, which bfloat16 makes frequent, is what greedy sampling
    # takes.
    likeliest = [(logits.argmax(dim=-1) == tokens).to(logits)] if entropy == "likeliest" else []
    # The largest logit becomes 0: exp cannot overflow, and log softmax does not change.
    shifted = logits.sub_(logits.amax(dim=-1, keepdim=True))
    # Read before exp_ overwrites the logits; log(total) is subtracted below.
    logprobs = shifted.gather(-1, chosen)[:, 0]
    if of_entropy := entropy and not likeliest:
        # A forbidden token, with a logit of -inf, adds nothing to the entropy, but 0 * -inf would
        # be nan.
        log_probabilities = shifted.masked_fill(shifted == float("-inf"), 0.0)
    exponentials = shifted.exp_()
    total = exponentials.sum(dim=-1, keepdim=True)
    results, grads = [logprobs.sub_(total.log()[:, 0]), *likeliest], []
    probabilities = exponentials.div_(total)
    if of_entropy:
        # This also changes the zeros of forbidden tokens, whose probability of 0 then removes them.
        log_probabilities -= total.log()
        results.append(-(probabilities * log_probabilities).sum(dim=-1))
        # First the entropy's gradient: the other one overwrites the probabilities.
        if learns and entropy != "reported":
            # d entropy / d logits = -p (log p + entropy)
            entropy_grad = log_probabilities.add_(results[1][:, None]).mul_(probabilities).neg_()
            grads.append(_to_hidden(entropy_grad, softcap_grad, head))
    if learns:
        # d logprob / d logits = one_hot(token) - p
        ones = torch.ones_like(chosen, dtype=probabilities.dtype)
        logprob_grad = probabilities.neg_().scatter_add_(-1, chosen, ones)
        grads.insert(0, _to_hidden(logprob_grad, softcap_grad, head))
    return results + [grad.to(hidden.dtype) for grad in grads]


def _logits(hidden: Tensor, head: HeadSpec) -> tuple[Tensor, Tensor | None]:
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


def _to_hidden(grad: Tensor, softcap_grad: Tensor | None, head: HeadSpec) -> Tensor:
    """A gradient with respect to the logits, [rows, V], as one with respect to the hidden states,
    [rows, D].
    """
    if softcap_grad is not None:
        grad *= softcap_grad
    # The chain rule from the outside in: temperature, soft cap, scale. The constants commute.
    if (factor := head.scale / head.temperature) != 1.0:
        grad *= factor
    return matmul(grad.to(head.weight.dtype), head.weight)
