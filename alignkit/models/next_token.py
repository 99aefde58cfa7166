"""The choice of the next token: temperature, filters, and a draw by inverse CDF."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.contract.settings import Sampling

BLOCK = 256  # tokens of the vocabulary that `inverse_cdf` first adds up
HELD = 2**23  # logits of which copies are held at a time


def choose(
    logits: Tensor, draws: Tensor, sampling: Sampling, early: Tensor | None, ends: Tensor
) -> tuple[Tensor, Tensor]:
    """Choose the next tokens [n]; also return their log-probabilities [n] at the sampling
    temperature, unfiltered.

    logits: [n, vocabulary] fp32. draws: [n] fp64, uniform in [0, 1). early: [n] bool, slots that may
    not end yet; None: all may. ends: [m] the end tokens, on the device. Nothing looks at the
    results, for which a GPU would have to be waited for. A GPU takes all slots at once, as it waits
    for each operator to start.
    """
    count, vocabulary = logits.shape
    rows = count if logits.is_cuda else max(1, HELD // vocabulary)
    chosen, logprobs = list[Tensor](), list[Tensor]()
    for start in range(0, count, max(1, rows)):
        part = slice(start, start + rows)
        own_early = None if early is None else early[part]
        found = _choose(logits[part], draws[part], sampling, own_early, ends)
        chosen.append(found[0])
        logprobs.append(found[1])
    return torch.cat(chosen), torch.cat(logprobs)


def _choose(
    logits: Tensor, draws: Tensor, sampling: Sampling, early: Tensor | None, ends: Tensor
) -> tuple[Tensor, Tensor]:
    plain = sampling.temperature in (0, 1)
    logprobs = torch.log_softmax(logits if plain else logits / sampling.temperature, dim=-1)
    if sampling.temperature == 0:
        chosen = _forbid_ends(logits, early, ends).argmax(dim=-1)
    else:
        chosen = inverse_cdf(_filter(_forbid_ends(logprobs, early, ends), sampling).exp(), draws)
    return chosen, logprobs.gather(-1, chosen[:, None])[:, 0]


def inverse_cdf(weights: Tensor, draws: Tensor) -> Tensor:
    """Return the first index whose cumulative share exceeds the draw, [n]; never one of weight 0.

    weights: [n, vocabulary] fp32, at least 0, with any sum. draws: [n] fp64 in [0, 1), on any
    device. Finds a block first, then the index in it: a cumulative sum over the whole vocabulary in
    fp64 takes longer than a small model's forward pass.
    """
    if weights.device.type == "mps":  # Apple's GPUs have no fp64
        return inverse_cdf(weights.cpu(), draws.cpu()).to(weights.device)
    draws = draws.to(weights.device)
    count, size = weights.shape
    # padding by nothing would copy
    padded = F.pad(weights, (0, -size % BLOCK)) if size % BLOCK else weights
    blocks = padded.reshape(count, -1, BLOCK)
    cumulative = blocks.sum(dim=-1).double().cumsum(dim=-1)  # [n, blocks]
    target = draws[:, None] * cumulative[:, -1:]
    block = torch.searchsorted(cumulative, target, right=True).clamp_(max=_last(cumulative))
    # [n, BLOCK]
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, BLOCK))[:, 0].double().cumsum(dim=-1)
    before = F.pad(cumulative, (1, 0)).gather(1, block)
    index = torch.searchsorted(inside, target - before, right=True).clamp_(max=_last(inside))
    return (block * BLOCK + index)[:, 0]


def _last(cumulative: Tensor) -> Tensor:
    """Return where a cumulative sum [n, m] reaches its total, [n, 1]: rounding must not choose an
    index after it.
    """
    return (cumulative < cumulative[:, -1:]).sum(dim=-1, keepdim=True)


def _forbid_ends(scores: Tensor, early: Tensor | None, ends: Tensor) -> Tensor:
    """Mask the end tokens of slots that may not end yet."""
    if early is None:
        return scores
    scores = scores.clone()
    scores[:, ends] = scores[:, ends].masked_fill(early[:, None], float("-inf"))
    return scores


def _filter(logprobs: Tensor, sampling: Sampling) -> Tensor:
    """Keep the `top_k` most likely tokens, then the smallest set with probability `top_p`."""
    if sampling.top_k:
        smallest = logprobs.topk(min(sampling.top_k, logprobs.shape[-1]), dim=-1).values[:, -1:]
        logprobs = logprobs.masked_fill(logprobs < smallest, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, order = torch.softmax(logprobs, dim=-1).sort(dim=-1, descending=True)
        outside = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
        logprobs = logprobs.masked_fill(outside.scatter(-1, order, outside), float("-inf"))
    return logprobs
