"""Attention over packed rows: several groups in one row of tokens, each prompt computed once for all its responses.

A model loaded with `attn_implementation="alignkit"` leaves its attention to the current `Layout`. There is no padding,
and a response's tokens see only their prompt and themselves. Transformers builds no mask for an implementation that it
does not know, so this is exact for every model that uses its attention interface.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from alignkit.kernels import capabilities, tiled_attention
from alignkit.kernels.layout import AttentionArgs, GroupSpan, Layout

NAME = "alignkit"

_layout: ContextVar[Layout] = ContextVar("alignkit_layout")


@contextmanager
def using(layout: Layout) -> Iterator[None]:
    """Let the forward passes inside compute their attention by `layout`."""
    token = _layout.set(layout)
    try:
        yield
    finally:
        _layout.reset(token)


class UnsupportedAttention(NotImplementedError):
    """A model's attention takes an argument that no `Layout` knows."""


# Beginnings of arguments that transformers passes to every implementation: the layout knows the places of tokens, and
# nothing else than the result is wanted.
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
    """Raises UnsupportedAttention for an argument that would change the result, such as GPT-OSS's sinks (`s_aux`)."""
    unknown = [name for name, value in kwargs.items() if value is not None and not name.startswith(_WITHOUT_EFFECT)]
    unknown += ["attention_mask"] * (attention_mask is not None) + ["dropout"] * (dropout != 0)
    if unknown:
        raise UnsupportedAttention(f"its attention takes {', '.join(unknown)}")
    args = AttentionArgs(scaling, sliding_window, softcap)
    out = _layout.get().attend(module.layer_idx, query, key, value, args)  # type: ignore[arg-type]
    return out.transpose(1, 2).contiguous(), None  # some models view it with other sizes


AttentionInterface.register(NAME, _interface)


@dataclass
class TreeLayout:
    """Groups in one row of tokens. Groups do not see each other; a response sees its prompt and itself.

    store_kv: store each layer's keys and values in `kv`, [heads, tokens, size] each; sampling continues from them.
    windows: the sliding windows that layers have asked for.
    """

    spans: Sequence[GroupSpan]
    store_kv: bool = False
    kv: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    windows: set[int | None] = field(default_factory=set)
    # Built once per row and shared by its layers.
    _group_masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)
    _causal_masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)
    _added: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)
    _padding: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _tiles: dict[tuple[int, int], list[tiled_attention.Tile] | None] = field(default_factory=dict)
    _row: Any = None  # of a GPU's attention

    @property
    def position_ids(self) -> Tensor:
        """[1, tokens]."""
        return torch.cat([span.positions() for span in self.spans])[None]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """Attention of the row, [1, heads, tokens, size] -> [1, heads, tokens, size of v]."""
        if self.store_kv:
            self.kv[layer] = (k[0].detach(), v[0].detach())
        self.windows.add(args.window)
        gpu = capabilities.on_gpu(q.device, "flex_attention")
        if gpu is not None and gpu.supported(q, v):
            self._row = self._row or gpu.Row(self.spans, q.device)
            whole: Tensor = gpu.attention(q, k, v, self._row, args)
            return whole
        # Split, not sliced: the backward pass of a slice writes a gradient as long as the whole row.
        lengths = [span.length for span in self.spans]
        qs, ks, vs = (x.split(lengths, dim=2) for x in (q, k, v))
        parts = [self._group(index, qs[index], ks[index], vs[index], args) for index in range(len(lengths))]
        # `_group` may have computed bf16 in fp32.
        return torch.cat([part.to(q.dtype) for part in parts], dim=2)

    def _group(self, index: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """Attention of one group, [1, heads, length, size], by the fastest method that supports it."""
        if tiles := self._tiles_of(index, q, k, v, args):
            return tiled_attention.attention(q[0], k[0], v[0], tiles, args.scaling)[None]
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            q, k, v = q.float(), k.float(), v.float()  # torch's kernel for CPUs is twice as fast in fp32
        if self.spans[index].split_responses:
            return self._split_responses(index, q, k, v, args)
        return attention(q, k, v, self._for_kernel(self._group_mask(index, args.window, q.device), q, args), args)

    def _tiles_of(
        self, index: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs
    ) -> list[tiled_attention.Tile] | None:
        """The group's tiles; None if tiles are slower or do not support these tensors and arguments."""
        span = self.spans[index]
        uniform = len({(x.shape[-1], x.dtype) for x in (q, k, v)}) == 1  # values may differ in size from queries
        limited = args.softcap is not None or (args.window is not None and args.window < span.longest)
        if span.split_responses or limited or not uniform or not tiled_attention.supported(q):
            return None
        key = (index, q.shape[1] * q.shape[3])  # a model's layers may differ in width
        if key not in self._tiles:
            self._tiles[key] = tiled_attention.tiles(span, key[1], tiled_attention.cost_model(q))
        return self._tiles[key]

    def _split_responses(self, index: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """The prompt, then its responses as padded rows that also see the prompt's keys.

        One mask over the whole group would compute products between responses that do not see each other.
        """
        span = self.spans[index]
        count, longest = len(span.responses), max(span.responses)
        gather, restore = self._padding_of(index, q.device)

        def padded(x: Tensor) -> Tensor:
            """[1, heads, tokens, size] -> [responses, heads, longest, size]; nothing reads the padding."""
            return x[0].index_select(1, gather).unflatten(1, (count, longest)).transpose(0, 1)

        lengths = [span.prompt, span.length - span.prompt]
        (q, rows_q), (k, rows_k), (v, rows_v) = (x.split(lengths, dim=2) for x in (q, k, v))
        # None unless there is a window: a prompt is an ordinary causal sequence.
        mask = self._for_kernel(self._causal_mask(span.prompt, 0, args.window, q.device), q, args)
        of_prompt = attention(q, k, v, mask, args)
        k, v = (
            torch.cat([prompt.expand(count, -1, -1, -1), padded(rows)], dim=2)
            for prompt, rows in ((k, rows_k), (v, rows_v))
        )
        # Padding is on the right, so causal order hides it from every token that is kept.
        mask = self._for_kernel(self._causal_mask(longest, span.prompt, args.window, q.device), q, args)
        of_responses = attention(padded(rows_q), k, v, mask, args)
        of_responses = of_responses.transpose(0, 1).flatten(1, 2).index_select(1, restore)
        return torch.cat([of_prompt, of_responses[None]], dim=2)

    def _for_kernel(self, mask: Tensor | None, q: Tensor, args: AttentionArgs) -> Tensor | None:
        """The mask as CUDA's kernels add it to the scores: converted here, it is stored once and not in every layer."""
        gpu = capabilities.on_gpu(q.device, "flex_attention")
        if gpu is None or mask is None or args.softcap is not None:
            return mask
        key = (id(mask), q.dtype)  # the layout keeps the mask
        if key not in self._added:
            self._added[key] = gpu.added_mask(mask, q.dtype)
        return self._added[key]

    def _padding_of(self, index: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Indices that pad the group's response tokens to [responses x longest], and indices that undo it."""
        if index not in self._padding:
            lengths = torch.tensor(self.spans[index].responses)
            starts = lengths.cumsum(0) - lengths  # from the first response's first token
            offsets = torch.arange(int(lengths.max()))[None]
            # [responses, longest]; padding repeats the last token, as good as any other index.
            gather = starts[:, None] + torch.minimum(offsets, lengths[:, None] - 1)
            # The cells that are no padding, in the order of the row.
            restore = (offsets < lengths[:, None]).flatten().nonzero()[:, 0]
            self._padding[index] = (gather.flatten().to(device), restore.to(device))
        return self._padding[index]

    def _causal_mask(self, queries: int, before: int, window: int | None, device: torch.device) -> Tensor | None:
        """[queries, before + queries], true if a query sees a key; None: causal masking is enough.

        before: keys that precede the first query's own.
        """
        if window is not None and window >= before + queries:
            window = None
        if before == 0 and window is None:
            return None
        key = (queries, before, window)
        if key not in self._causal_masks:
            # [queries, before + queries]: how far a key lies behind its query.
            distance = torch.arange(before, before + queries)[:, None] - torch.arange(before + queries)[None]
            sees = distance >= 0
            self._causal_masks[key] = (sees if window is None else sees & (distance < window)).to(device)
        return self._causal_masks[key]

    def _group_mask(self, index: int, window: int | None, device: torch.device) -> Tensor | None:
        """[length, length] of a group, true if a query sees a key; None: causal masking is enough."""
        span = self.spans[index]
        if window is not None and window >= span.longest:
            window = None
        if len(span.responses) <= 1 and window is None:
            return None
        key = (index, window)
        if key not in self._group_masks:
            sees = torch.ones(span.length, span.length, dtype=torch.bool).tril_()
            start = span.prompt
            for length in span.responses:
                sees[start : start + length, span.prompt : start] = False  # causal, but for earlier responses
                start += length
            if window is not None:
                # By positions, not places in the row: between prompt and response lie other responses.
                positions = span.positions()
                sees &= positions[:, None] - positions[None] < window
            self._group_masks[key] = sees.to(device)
        return self._group_masks[key]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, args: AttentionArgs) -> Tensor:
    """Scaled dot-product attention, [rows, heads, tokens, size], by torch's own operators.

    mask: true if a query sees a key, or what is added to the scores; None: causal.
    """
    if args.softcap is not None:  # torch's fused kernels cannot cap scores
        return _capped_attention(q, k, v, mask, args.softcap, args.scaling)
    grouped = q.shape[1] != k.shape[1]
    half = q.dtype in (torch.float16, torch.bfloat16)
    if grouped and q.device.type == "cuda" and (mask is not None or not half):
        # CUDA's only fused kernel for grouped heads, flash, takes neither a mask nor fp32. Without a fused kernel all
        # scores would be stored for the backward pass.
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
