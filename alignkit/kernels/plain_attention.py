"""Attention of groups in a pack, by torch's own operators."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from alignkit.kernels.layout import AttentionArgs, GroupSpan


class GroupAttention:
    """Attention of a pack, group by group. All layers share it, so masks are made once.

    spans: the groups, one behind another from token 0.
    """

    def __init__(self, spans: Sequence[GroupSpan]):
        self.spans = spans
        self._mask = functools.cache(group_mask)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """[1, heads, tokens, size], keys and values with at most as many heads -> [1, heads,
        tokens, size of v].
        """
        # Split, not sliced: the backward pass of a slice writes a gradient as long as the whole
        # pack.
        lengths = [span.length for span in self.spans]
        qs, ks, vs = (x.split(lengths, dim=2) for x in (q, k, v))
        parts = [self.group(*group, args) for group in zip(self.spans, qs, ks, vs, strict=True)]
        return torch.cat(parts, dim=2)

    def group(
        self, span: GroupSpan, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Attention of one group, [1, heads, length, size] -> [1, heads, length, size of v]."""
        return self.masked(q, k, v, self.mask(span, q, args), args)

    def mask(
        self, span: GroupSpan, q: Tensor, args: AttentionArgs, first: int = 0
    ) -> Tensor | None:
        """See `group_mask`."""
        return self._mask(span, args.window, q.device, first)

    def masked(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, args: AttentionArgs
    ) -> Tensor:
        """See `attention`."""
        return attention(q, k, v, mask, args)


def group_mask(
    span: GroupSpan, window: int | None, device: torch.device, first: int = 0
) -> Tensor | None:
    """[length - first, length] of a group, true if a query sees a key; None: causal masking is
    enough.

    window: sliding, in tokens. first: of the queries.
    """
    if not span.longer_than(window):
        window = None
    if len(span.responses) <= 1 and window is None and first == 0:
        return None
    sees = torch.ones(span.length, span.length, dtype=torch.bool).tril_()
    start = span.prompt
    for length in span.responses:
        # Causal, but for earlier responses
        sees[start : start + length, span.prompt : start] = False
        start += length
    if window is not None:
        # By positions, not places in the pack: between prompt and response lie other responses.
        positions = span.positions()
        sees &= positions[:, None] - positions[None] < window
    return sees[first:].to(device)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, args: AttentionArgs) -> Tensor:
    """Scaled dot-product attention, [sequences, heads, tokens, size].

    mask: true if a query sees a key, or what is added to the scores; None: causal.
    """
    if args.softcap is not None:  # torch's fused kernels cannot cap scores
        return _capped_attention(q, k, v, mask, args.softcap, args.scaling)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=args.scaling, enable_gqa=grouped
    )


def _capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, softcap: float, scaling: float | None
) -> Tensor:
    """Attention whose scores tanh keeps within +-softcap (Gemma 2), with the softmax in fp32 or
    wider.
    """
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = torch.tanh((q @ k.transpose(-1, -2)).to(wide) * scale / softcap) * softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    return torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1).to(q.dtype) @ v
