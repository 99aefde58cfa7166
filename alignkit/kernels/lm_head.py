"""Log-probabilities and entropies of tokens from hidden states, a few rows of logits at a time.

A head with V tokens would need [N, V] logits, by far the largest tensor of a step. If the head is frozen, both results
are one number per row, so their gradients with respect to the row's hidden state are computed together with the logits
and replace them; the backward pass only scales them. If the head learns, the backward pass computes the logits again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from alignkit.functional import check_shapes
from alignkit.functional.logprobs import entropy_of, log_softmax
from alignkit.kernels.matmul import linear, matmul

# Whether to compute entropies. "reported" means without gradients, which saves a third of the products.
Entropy = bool | Literal["reported"]


@dataclass(frozen=True)
class HeadSpec:
    """A language head: softcap * tanh(scale * (hidden weight^T + bias) / softcap) / temperature.

    weight [V, D], bias [V]. softcap None: no cap. Raises `ValueError` unless the temperature is positive.
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
        return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in parameters)


def logprobs_and_entropy(
    hidden: Tensor, tokens: Tensor, head: HeadSpec, *, entropy: Entropy = False, chunk: int = 256
) -> tuple[Tensor, Tensor | None]:
    """Log P(token) [N] and entropies [N], or None unless requested, in nats, without ever holding [N, V] logits.

    hidden [N, D], tokens [N]; `chunk` rows are computed at a time. The product has the dtype of the head, the rest is
    float32, or float64 if the head is. Gradients reach the hidden states and the parameters of the head that learn.
    Raises `ValueError` if tokens is not [N].
    """
    check_shapes(tokens=tokens, hidden_rows=hidden[:, 0])
    if head.learns:
        return _learned_head(hidden, tokens, head, entropy, chunk)
    # Decided here, because gradients are always off inside of a Function's forward.
    learns = torch.is_grad_enabled() and hidden.requires_grad
    logprobs, entropies = _FrozenHead.apply(hidden, tokens, head, entropy, chunk, learns)
    return logprobs, entropies


# A head that learns, by torch's own operators


def _learned_head(
    hidden: Tensor, tokens: Tensor, head: HeadSpec, entropy: Entropy, chunk: int
) -> tuple[Tensor, Tensor | None]:
    parts = []
    # An empty batch is one chunk of no rows, which keeps it connected to the graph for its backward pass.
    for start in range(0, max(len(hidden), 1), chunk):
        arguments = (hidden[start : start + chunk], tokens[start : start + chunk], head, entropy)
        # The chunk draws no random numbers, so there is no generator state to preserve.
        parts.append(checkpoint(_chunk, *arguments, use_reentrant=False, preserve_rng_state=False))
    logprobs, *entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    return logprobs, entropies[0] if entropies else None


def _chunk(hidden: Tensor, tokens: Tensor, head: HeadSpec, entropy: Entropy) -> tuple[Tensor, ...]:
    """(log-probabilities,) or (log-probabilities, entropies) of some rows."""
    logits = _widened(linear(hidden.to(head.weight.dtype), head.weight))
    if head.bias is not None:
        logits = logits + _widened(head.bias)
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    log_probabilities = log_softmax(logits, head.temperature)
    logprobs = log_probabilities.gather(-1, tokens[:, None])[:, 0]
    if not entropy:
        return (logprobs,)
    return logprobs, entropy_of(log_probabilities.detach() if entropy == "reported" else log_probabilities)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


# A frozen head, with gradients in place of the logits


class _FrozenHead(torch.autograd.Function):
    """Saves d logprob / d hidden, and d entropy / d hidden if that is wanted, [N, D] each."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, tokens: Tensor, head: HeadSpec, entropy: Entropy, chunk: int, learns: bool
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.promote_types(head.weight.dtype, torch.float32)
        logprobs = hidden.new_empty(len(hidden), dtype=dtype)
        entropies = torch.empty_like(logprobs) if entropy else None
        entropy_learns = bool(entropy) and entropy != "reported"
        # [N, D] each, all that backward needs: the logits, [N, V], are gone by then.
        grads = [torch.empty_like(hidden) for _ in range(1 + entropy_learns)] if learns else []
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            # Slices are views, so `_fill` writes into the whole tensors.
            part_entropies = None if entropies is None else entropies[part]
            _fill(hidden[part], tokens[part], head, logprobs[part], part_entropies, [grad[part] for grad in grads])
        ctx.save_for_backward(*grads)
        if entropies is not None and not entropy_learns:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        total: Tensor | None = None
        # Not strict: without a learned entropy its upstream gradient has no partner.
        for gradient, grad in zip(upstream, ctx.saved_tensors, strict=False):
            part = gradient[:, None] * grad  # [N, D]; a row's results depend on its own state only
            total = part if total is None else total + part
        return None if total is None else total.to(ctx.saved_tensors[0].dtype), None, None, None, None, None


def _fill(
    hidden: Tensor, tokens: Tensor, head: HeadSpec, logprobs: Tensor, entropies: Tensor | None, grads: list[Tensor]
) -> None:
    """Fill in logprobs, entropies and grads of some rows.

    [rows, V] is large, and fresh memory costs more than the arithmetic in it. So each step overwrites the one before,
    under a new name.
    """
    logits, softcap_grad = _logits(hidden, head, logprobs.dtype)
    chosen = tokens[:, None]
    # The largest logit becomes 0: exp cannot overflow, and log softmax does not change.
    shifted = logits.sub_(logits.amax(dim=-1, keepdim=True))
    # Read before exp_ overwrites the logits; log(total) is subtracted below.
    logprobs.copy_(shifted.gather(-1, chosen)[:, 0])
    # A forbidden token, with a logit of -inf, adds nothing to the entropy, but 0 * -inf would be nan.
    log_probabilities = shifted.masked_fill(shifted == float("-inf"), 0.0) if entropies is not None else None
    exponentials = shifted.exp_()
    total = exponentials.sum(dim=-1, keepdim=True)
    logprobs -= total.log()[:, 0]
    probabilities = exponentials.div_(total)
    if entropies is not None and log_probabilities is not None:
        # This also changes the zeros of forbidden tokens, whose probability of 0 then removes them.
        log_probabilities -= total.log()
        entropies.copy_(-(probabilities * log_probabilities).sum(dim=-1))
        # First the entropy's gradient: the other one overwrites the probabilities.
        if len(grads) > 1:
            # d entropy / d logits = -p (log p + entropy)
            entropy_grad = log_probabilities.add_(entropies[:, None]).mul_(probabilities).neg_()
            grads[1].copy_(_to_hidden(entropy_grad, softcap_grad, head))
    if grads:
        # d logprob / d logits = one_hot(token) - p
        ones = torch.ones_like(chosen, dtype=probabilities.dtype)
        logprob_grad = probabilities.neg_().scatter_add_(-1, chosen, ones)
        grads[0].copy_(_to_hidden(logprob_grad, softcap_grad, head))


def _logits(hidden: Tensor, head: HeadSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The logits, and the derivative of the soft cap if there is one, [rows, V] each."""
    logits = linear(hidden.to(head.weight.dtype), head.weight).to(dtype)
    if head.bias is not None:
        logits += head.bias
    if head.scale != 1.0:
        logits *= head.scale
    softcap_grad = None
    if head.softcap is not None:
        # d (c tanh(x / c)) / dx = 1 - tanh(x / c)^2, while the logits still hold tanh.
        softcap_grad = 1 - torch.tanh_(logits.div_(head.softcap)).square()
        logits *= head.softcap
    if head.temperature != 1.0:
        logits /= head.temperature
    return logits, softcap_grad


def _to_hidden(grad: Tensor, softcap_grad: Tensor | None, head: HeadSpec) -> Tensor:
    """A gradient with respect to the logits, [rows, V], as one with respect to the hidden states, [rows, D]."""
    if softcap_grad is not None:
        grad *= softcap_grad
    # The chain rule from the outside in: temperature, soft cap, scale. The constants commute.
    if (factor := head.scale / head.temperature) != 1.0:
        grad *= factor
    return matmul(grad.to(head.weight.dtype), head.weight)
