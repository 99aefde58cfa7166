"""Attention over packed rows: several groups in one row of tokens, each prompt computed once for
all its responses.

A model loaded with `attn_implementation="alignkit"` leaves its attention to the current `Layout`.
There is no padding, and a response's tokens see only their prompt and themselves. Transformers
builds no mask for an implementation that it does not know, so this is exact for every model that
uses its attention interface.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from alignkit.kernels import capabilities, tiled_attention
from alignkit.kernels.layout import AttentionArgs, GroupSpan, Layout, setting

NAME = "alignkit"

_layout: ContextVar[Layout] = ContextVar("alignkit_layout")


def using(layout: Layout) -> AbstractContextManager[None]:
    """Let the forward passes inside compute their attention by `layout`."""
    return setting(_layout, layout)


class UnsupportedAttention(NotImplementedError):
    """A model's attention takes an argument that no `Layout` knows."""


# Beginnings of arguments that transformers passes to every implementation: the layout knows the
# places of tokens, and nothing else than the result is wanted.
_WITHOUT_EFFECT = ("position_ids", "cache_position", "use_cache", "output_")


def _interface(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Raises UnsupportedAttention for an argument that would change the result, such as GPT-OSS's
    sinks (`s_aux`).
    """
    unknown = [
        name
        for name, value in kwargs.items()
        if value is not None and not name.startswith(_WITHOUT_EFFECT)
    ]
    unknown += ["attention_mask"] * (attention_mask is not None) + ["dropout"] * (dropout != 0)
    if unknown:
        raise UnsupportedAttention(f"its attention takes {', '.join(unknown)}")
    args = AttentionArgs(scaling, sliding_window, softcap)
    out = _layout.get().attend(module.layer_idx, query, key, value, args)  # type: ignore[arg-type]
    return out.transpose(1, 2).contiguous(), None  # some models view it with other sizes


AttentionInterface.register(NAME, _interface)


@dataclass
class TreeLayout:
    """Groups in one row of tokens. Groups do not see each other; a response sees its prompt and
    itself.

    store_kv: store each layer's keys and values in `kv`, [heads, tokens, size] each; sampling
    continues from them.
    """

    spans: Sequence[GroupSpan]
    store_kv: bool = False
    kv: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Made once per row and shared by its layers.
        self._mask = functools.cache(group_mask)
        self._padding = functools.cache(_padding)
        self._tiles = functools.cache(tiled_attention.tiles)
        self._row: Any = None  # the packed row of a GPU's attention

    @property
    def position_ids(self) -> Tensor:
        """[1, tokens]."""
        return torch.cat([span.positions() for span in self.spans])[None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """Attention of the row, [1, heads, tokens, size] -> [1, heads, tokens, size of v]."""
        if self.store_kv:
            self.kv[layer] = (k[0].detach(), v[0].detach())
        gpu = capabilities.on_gpu(q.device, "flex_attention")
        if gpu is not None and gpu.supported(q, v):
            self._row = self._row or gpu.Row(self.spans, q.device)
            whole: Tensor = gpu.attention(q, k, v, self._row, args)
            return whole
        # Split, not sliced: the backward pass of a slice writes a gradient as long as the whole
        # row.
        lengths = [span.length for span in self.spans]
        qs, ks, vs = (x.split(lengths, dim=2) for x in (q, k, v))
        parts = [self._group(*group, args) for group in zip(self.spans, qs, ks, vs, strict=True)]
        # `_group` may have computed bf16 in fp32.
        return torch.cat([part.to(q.dtype) for part in parts], dim=2)

    def _group(
        self, span: GroupSpan, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs
    ) -> Tensor:
        """Attention of one group, [1, heads, length, size], by the fastest method that supports
        it.
        """
        split = span.split_responses
        # Values may differ in size from queries.
        tiled = k.shape == v.shape and args.softcap is None and not span.longer_than(args.window)
        if tiled and not split and tiled_attention.supported(q):
            price = tiled_attention.price(q, masked=len(span.responses) > 1)
            # A model's layers may differ in width
            if tiles := self._tiles(span, q.shape[1] * q.shape[3], price):
                return tiled_attention.attention(q[0], k[0], v[0], tiles, args.scaling)[None]
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            # Torch's kernel for CPUs is twice as fast in fp32
            q, k, v = q.float(), k.float(), v.float()
        if split:
            return self._split_responses(span, q, k, v, args)
        return attention(q, k, v, self._mask(span, args, q.device, q.dtype), args)

    def _split_responses(
        self, span: GroupSpan, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs
    ) -> Tensor:
        """The prompt, then its responses as padded rows that also see the prompt's keys.

        One mask over the whole group would compute products between responses that do not see each
        other.
        """
        count, longest = len(span.responses), max(span.responses)
        gather, restore = self._padding(span.responses, q.device)

        def padded(x: Tensor) -> Tensor:
            """[1, heads, tokens, size] -> [responses, heads, longest, size]; nothing reads the
            padding.
            """
            return x[0].index_select(1, gather).unflatten(1, (count, longest)).transpose(0, 1)

        lengths = [span.prompt, span.length - span.prompt]
        (q, rows_q), (k, rows_k), (v, rows_v) = (x.split(lengths, dim=2) for x in (q, k, v))
        of_prompt = attention(
            q, k, v, self._mask(GroupSpan(0, span.prompt, ()), args, q.device, q.dtype), args
        )
        k = torch.cat([k.expand(count, -1, -1, -1), padded(rows_k)], dim=2)
        v = torch.cat([v.expand(count, -1, -1, -1), padded(rows_v)], dim=2)
        # Padding is on the right, so causal order hides it from every token that is kept.
        mask = self._mask(
            GroupSpan(0, span.prompt, (longest,)), args, q.device, q.dtype, span.prompt
        )
        of_responses = attention(padded(rows_q), k, v, mask, args)
        of_responses = of_responses.transpose(0, 1).flatten(1, 2).index_select(1, restore)
        return torch.cat([of_prompt, of_responses[None]], dim=2)


def group_mask(
    span: GroupSpan, args: AttentionArgs, device: torch.device, dtype: torch.dtype, first: int = 0
) -> Tensor | None:
    """[length - first, length] of a group, true if a query sees a key; None: causal masking is
    enough.

    first: of the queries. On a GPU the mask is what its kernels add to scores of this dtype:
    converted here, it is stored once and not in every layer.
    """
    window = args.window if span.longer_than(args.window) else None
    if len(span.responses) <= 1 and window is None and first == 0:
        return None
    sees = torch.ones(span.length, span.length, dtype=torch.bool).tril_()
    start = span.prompt
    for length in span.responses:
        # Causal, but for earlier responses
        sees[start : start + length, span.prompt : start] = False
        start += length
    if window is not None:
        # By positions, not places in the row: between prompt and response lie other responses.
        positions = span.positions()
        sees &= positions[:, None] - positions[None] < window
    mask = sees[first:].to(device)
    gpu = capabilities.on_gpu(device, "flex_attention")
    if gpu is None or args.softcap is not None:
        return mask
    added: Tensor = gpu.added_mask(mask, dtype)
    return added


def _padding(responses: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices that pad a group's response tokens to [responses x longest], and indices that undo
    it.
    """
    # [responses, longest], true for a token.
    filled = torch.arange(max(responses)) < torch.tensor(responses)[:, None]
    restore = filled.flatten().nonzero()[:, 0]
    # Padding is the first token, as good as any other
    gather = torch.zeros(filled.numel(), dtype=torch.int64)
    gather[restore] = torch.arange(len(restore))
    return gather.to(device), restore.to(device)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, args: AttentionArgs) -> Tensor:
    """Scaled dot-product attention, [rows, heads, tokens, size], by torch's own operators.

    mask: true if a query sees a key, or what is added to the scores; None: causal.
    """
    if args.softcap is not None:  # torch's fused kernels cannot cap scores
        return _capped_attention(q, k, v, mask, args.softcap, args.scaling)
    grouped = q.shape[1] != k.shape[1]
    half = q.dtype in (torch.float16, torch.bfloat16)
    if grouped and q.device.type == "cuda" and (mask is not None or not half):
        # CUDA's only fused kernel for grouped heads, flash, takes neither a mask nor fp32. Without
        # a fused kernel all scores would be stored for the backward pass.
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        grouped = False
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=args.scaling, enable_gqa=grouped
    )


def _capped_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, softcap: float, scaling: float | None
) -> Tensor:
    """Attention whose scores tanh keeps within +-softcap (Gemma 2), with the softmax in fp32."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scale = scaling if scaling is not None else q.shape[-1] ** -0.5
    scores = torch.tanh((q @ k.transpose(-1, -2)).float() * scale / softcap) * softcap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    return torch.softmax(scores.masked_fill(~mask, float("-inf")), dim=-1).to(q.dtype) @ v
