"""A frozen language head: log-probabilities and entropies of tokens from hidden states, without scores of all tokens.

Both are one number a row, so how they depend on the row's hidden state is known as soon as its logits are. It is kept
in place of the logits, and backward has only to scale it: no scores are computed a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from alignkit.functional._tensors import check_shapes
from alignkit.functional._tensors import widen as _wide
from alignkit.functional.logprobs import entropy_of as _entropy
from alignkit.functional.logprobs import log_softmax as _log_softmax
from alignkit.kernels.matmul import linear, times

# Whether entropies are asked for; "reported": without gradients, which saves a third of the products.
Entropy = bool | Literal["reported"]


@dataclass(frozen=True)
class HeadSpec:
    """logits = softcap * tanh(scale * (hidden weight^T + bias) / softcap) / temperature; weight [V, D], bias [V]."""

    weight: Tensor
    bias: Tensor | None
    temperature: float
    softcap: float | None
    scale: float


def logprobs_and_entropy(
    hidden: Tensor, tokens: Tensor, head: HeadSpec, entropy: Entropy, chunk: int
) -> tuple[Tensor, Tensor | None]:
    """Log P(token) [N] and, if asked, entropies [N], float32 at least, in nats; `chunk` rows' logits at a time.

    hidden [N, D], tokens [N]. Gradients reach the hidden states alone.
    """
    learns = torch.is_grad_enabled() and hidden.requires_grad
    logprobs, entropies = _Score.apply(hidden, tokens, head, entropy, chunk, learns)
    return logprobs, entropies


class _Score(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, tokens: Tensor, head: HeadSpec, entropy: Entropy, chunk: int, learns: bool
    ) -> tuple[Tensor, Tensor | None]:
        dtype = torch.promote_types(head.weight.dtype, torch.float32)
        logprobs = hidden.new_empty(len(hidden), dtype=dtype)
        entropies = torch.empty_like(logprobs) if entropy else None
        bonus = bool(entropy) and entropy != "reported"
        slopes = [torch.empty_like(hidden) for _ in range(1 + bonus)] if learns else []
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            own = None if entropies is None else entropies[part]
            _score(hidden[part], tokens[part], head, logprobs[part], own, [slope[part] for slope in slopes])
        ctx.save_for_backward(*slopes)
        if entropies is not None and not bonus:
            ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        found: Tensor | None = None
        for gradient, slope in zip(upstream, ctx.saved_tensors, strict=False):
            part = gradient[:, None] * slope
            found = part if found is None else found + part
        return None if found is None else found.to(ctx.saved_tensors[0].dtype), None, None, None, None, None


def _score(
    hidden: Tensor, tokens: Tensor, head: HeadSpec, logprobs: Tensor, entropies: Tensor | None, slopes: list[Tensor]
) -> None:
    """Fill in some rows; slopes: d logprob / d hidden, and d entropy / d hidden where entropies are asked for.

    In place wherever that is possible: [rows, V] is large, and fresh memory costs more than the sums done in it.
    """
    logits, bend = _logits(hidden, head, logprobs.dtype)
    chosen = tokens[:, None]
    logits -= logits.amax(dim=-1, keepdim=True)
    logprobs.copy_(logits.gather(-1, chosen)[:, 0])
    # A forbidden token, of logit -inf, adds nothing to the entropy, but 0 * -inf would be nan.
    shifted = logits.masked_fill(logits == float("-inf"), 0.0) if entropies is not None else None
    total = logits.exp_().sum(dim=-1, keepdim=True)
    logprobs -= total.log()[:, 0]
    probabilities = logits.div_(total)
    if entropies is not None and shifted is not None:
        shifted -= total.log()
        entropies.copy_(-(probabilities * shifted).sum(dim=-1))
        if len(slopes) > 1:
            shifted += entropies[:, None]
            slopes[1].copy_(_pull(shifted.mul_(probabilities).neg_(), bend, head))
    if slopes:
        ones = torch.ones_like(chosen, dtype=logits.dtype)
        slopes[0].copy_(_pull(probabilities.neg_().scatter_add_(-1, chosen, ones), bend, head))


def _logits(hidden: Tensor, head: HeadSpec, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The logits, and the derivative of the soft cap where there is one, [rows, V] each."""
    logits = linear(hidden.to(head.weight.dtype), head.weight).to(dtype)
    if head.bias is not None:
        logits += head.bias
    if head.scale != 1.0:
        logits *= head.scale
    bend = None
    if head.softcap is not None:
        bend = 1 - torch.tanh_(logits.div_(head.softcap)).square()
        logits *= head.softcap
    if head.temperature != 1.0:
        logits /= head.temperature
    return logits, bend


def _pull(gradient: Tensor, bend: Tensor | None, head: HeadSpec) -> Tensor:
    """The gradient with respect to the logits [rows, V] as one with respect to the hidden states, [rows, D]."""
    if bend is not None:
        gradient *= bend
    if (factor := head.scale / head.temperature) != 1.0:
        gradient *= factor
    return times(gradient.to(head.weight.dtype), head.weight)


def logprobs_from_hidden(
    hidden: Tensor,
    head_weight: Tensor | None,
    tokens: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    scale: float = 1.0,
    entropy: Entropy = False,
    chunk: int = 256,
) -> tuple[Tensor, Tensor | None]:
    """``token_logprobs`` of head(hidden) without ever holding [N, V]: (logprobs [N], entropy [N] or None), nats.

    hidden [N, D], head_weight [V, D] (None: the hidden states are the logits), bias [V], tokens [N].
    logits = softcap * tanh(scale * (hidden head^T + bias) / softcap), the product in the dtype of the head, the rest
    in float32 or float64. ``chunk`` rows at a time, so memory is chunk * V. Gradients reach hidden, head_weight and
    bias, but from an entropy that is only "reported"; where one of the last two learns, the logits are recomputed in
    backward, else see ``alignkit.kernels.lm_head``. Raises ValueError if tokens is not [N], or chunk or temperature not positive.
    """
    check_shapes(tokens=tokens, hidden_rows=hidden[:, 0])
    if chunk < 1:
        raise ValueError(f"chunk must be positive, not {chunk}")
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, not {temperature}")
    frozen = not torch.is_grad_enabled() or not any(x is not None and x.requires_grad for x in (head_weight, bias))
    if head_weight is not None and frozen:
        return logprobs_and_entropy(
            hidden, tokens, HeadSpec(head_weight, bias, temperature, softcap, scale), entropy, chunk
        )

    def score(rows: Tensor, targets: Tensor, weight: Tensor | None, offset: Tensor | None) -> tuple[Tensor, ...]:
        if weight is not None:
            rows = linear(rows.to(weight.dtype), weight)
        logits = _wide(rows) if offset is None else _wide(rows) + _wide(offset)
        if scale != 1.0:
            logits = logits * scale
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        log_softmax = _log_softmax(logits, temperature)
        logprobs = log_softmax.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        if not entropy:
            return (logprobs,)
        return logprobs, _entropy(log_softmax.detach() if entropy == "reported" else log_softmax)

    inputs = [x for x in (hidden, head_weight, bias) if x is not None]
    recompute = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    parts = []
    # One chunk of no rows keeps an empty batch connected to the graph, so its backward still works.
    for start in range(0, max(len(hidden), 1), chunk):
        arguments = (hidden[start : start + chunk], tokens[start : start + chunk], head_weight, bias)
        if recompute:
            # Nothing in `score` is random: saving the generator's state would only cost time.
            parts.append(checkpoint(score, *arguments, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(score(*arguments))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return columns[0], columns[1] if entropy else None
