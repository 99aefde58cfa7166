"""Log-probabilities and entropies by a frozen head, with gradients in place of the logits.

Both results are one number per row, so their gradients with respect to the row's hidden state are
computed together with the logits and replace them; the backward pass only scales them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.lm_head import HeadSpec, Linear, NextToken, TokenWants, by_chunk, logits_of


def logprobs_and_entropy(
    hidden: Tensor, tokens: Tensor, head: HeadSpec, product: Linear, wants: TokenWants
) -> NextToken:
    """See `Backend.next_token`."""
    # Decided here, because gradients are always off inside of a Function's forward.
    learns = torch.is_grad_enabled() and hidden.requires_grad
    return NextToken(*_FrozenHead.apply(hidden, tokens, head, product, wants, learns))


class _FrozenHead(torch.autograd.Function):
    """Saves d logprob / d hidden, and d entropy / d hidden if that is wanted, [N, D] each."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        tokens: Tensor,
        head: HeadSpec,
        product: Linear,
        wants: TokenWants,
        learns: bool,
    ) -> tuple[Tensor | None, ...]:
        logprobs, entropies, best, *grads = by_chunk(
            _frozen, hidden, tokens, head, product, wants, learns
        )
        # All that backward needs: the logits, [N, V], are gone by then
        ctx.save_for_backward(*grads)
        constant = [best, entropies if wants.entropy == "reported" else None]
        ctx.mark_non_differentiable(*(x for x in constant if x is not None))
        return logprobs, entropies, best

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # [N, D] each; a row's results depend on its own state only. Not strict: entropies may have
        # no gradient.
        parts = [
            gradient[:, None] * grad
            for gradient, grad in zip(upstream, ctx.saved_tensors, strict=False)
        ]
        return sum(parts[1:], parts[0]).to(ctx.saved_tensors[0].dtype), *[None] * 5


def _frozen(
    hidden: Tensor, tokens: Tensor, head: HeadSpec, product: Linear, wants: TokenWants, learns: bool
) -> list[Tensor | None]:
    """The numbers of some rows, and then the gradients of those that have one with respect to
    `hidden` if it learns.

    [rows, V] is large, and fresh memory costs more than the arithmetic in it. So each step
    overwrites the one before, under a new name.
    """
    logits, softcap_grad = logits_of(hidden, head, product)
    chosen = tokens[:, None]
    # Only one of several equal logits, which bfloat16 makes frequent, is what greedy sampling
    # takes.
    best = (logits.argmax(dim=-1) == tokens).to(logits) if wants.likeliest else None
    # The largest logit becomes 0: exp cannot overflow, and log softmax does not change.
    shifted = logits.sub_(logits.amax(dim=-1, keepdim=True))
    # Read before exp_ overwrites the logits; log(total) is subtracted below.
    logprobs = shifted.gather(-1, chosen)[:, 0]
    if wants.entropy:
        # A forbidden token, with a logit of -inf, adds nothing to the entropy, but 0 * -inf would
        # be nan.
        log_probabilities = shifted.masked_fill(shifted == float("-inf"), 0.0)
    exponentials = shifted.exp_()
    total = exponentials.sum(dim=-1, keepdim=True)
    logprobs.sub_(total.log()[:, 0])
    entropies, grads = None, list[Tensor]()
    probabilities = exponentials.div_(total)
    if wants.entropy:
        # This also changes the zeros of forbidden tokens, whose probability of 0 then removes them.
        log_probabilities -= total.log()
        entropies = -(probabilities * log_probabilities).sum(dim=-1)
        # First the entropy's gradient: the other one overwrites the probabilities.
        if learns and wants.entropy != "reported":
            # d entropy / d logits = -p (log p + entropy)
            entropy_grad = log_probabilities.add_(entropies[:, None]).mul_(probabilities).neg_()
            grads.append(_to_hidden(entropy_grad, softcap_grad, head, product))
    if learns:
        # d logprob / d logits = one_hot(token) - p
        ones = torch.ones_like(chosen, dtype=probabilities.dtype)
        logprob_grad = probabilities.neg_().scatter_add_(-1, chosen, ones)
        grads.insert(0, _to_hidden(logprob_grad, softcap_grad, head, product))
    return [logprobs, entropies, best, *(grad.to(hidden.dtype) for grad in grads)]


def _to_hidden(
    grad: Tensor, softcap_grad: Tensor | None, head: HeadSpec, product: Linear
) -> Tensor:
    """A gradient with respect to the logits, [rows, V], as one with respect to the hidden states,
    [rows, D].
    """
    if softcap_grad is not None:
        grad *= softcap_grad
    # The chain rule from the outside in: temperature, soft cap, scale. The constants commute.
    if (factor := head.scale / head.temperature) != 1.0:
        grad *= factor
    return product(grad.to(head.weight.dtype), head.weight.t())
