"""Nvidia's and AMD's GPUs: one attention call per pack, sampling without waiting for the host, and
weights with the adapter merged in.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignkit.kernels import memory
from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit.kernels.plain_attention import attention, group_mask
from alignkit_plugins.backends.fast import Fast
from alignkit_plugins.backends.prepared import plain_layers
from alignkit_plugins.backends.split_attention import SplitAttention
from alignkit_plugins.backends.static_decoding import StaticDecoding

DETERMINISTIC = "ALIGNKIT_DETERMINISTIC"
# Merged weights may take this share of the free memory; keys and values take half
FREE_SHARE = 1 / 4


def added_mask(
    span: GroupSpan, window: int | None, device: torch.device, dtype: torch.dtype, first: int
) -> Tensor | None:
    """`group_mask` as what torch's kernels add to the scores, [queries, keys]."""
    mask = group_mask(span, window, device, first)
    if mask is None:
        return None
    columns = mask.shape[1]
    # The kernels want rows that begin at a multiple of 16 numbers, or copy the mask.
    added = torch.zeros(len(mask), columns + -columns % 16, dtype=dtype, device=mask.device)[
        :, :columns
    ]
    return added.masked_fill_(~mask, float("-inf"))


class GpuAttention(SplitAttention):
    """The whole pack in one call where Triton compiles it, else group by group."""

    def __init__(self, spans: Sequence[GroupSpan]):
        super().__init__(spans)
        self._pack: Any = None
        self._added = functools.cache(added_mask)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        """See `GroupAttention`."""
        from alignkit_plugins.backends import flex_attention  # in seconds

        if not flex_attention.supported(q, v):
            return super().__call__(q, k, v, args)
        self._pack = self._pack or flex_attention.PackMasks(self.spans, q.device)
        return flex_attention.attention(q, k, v, self._pack, args)

    def mask(
        self, span: GroupSpan, q: Tensor, args: AttentionArgs, first: int = 0
    ) -> Tensor | None:
        """What torch's kernels add to scores of this dtype, unless they are capped: converted here,
        it is stored once and not in every layer.
        """
        if args.softcap is not None:
            return super().mask(span, q, args, first)
        return self._added(span, args.window, q.device, q.dtype, first)

    def masked(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, args: AttentionArgs
    ) -> Tensor:
        """See `attention`."""
        half = q.dtype in (torch.float16, torch.bfloat16)
        if q.shape[1] != k.shape[1] and args.softcap is None and (mask is not None or not half):
            # CUDA's only fused kernel for grouped heads, flash, takes neither a mask nor fp32.
            # Without a fused kernel all scores would be stored for the backward pass.
            k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
        return attention(q, k, v, mask, args)


class Gpu(Fast):
    """A GPU that torch calls `cuda`."""

    attention, decoding = GpuAttention, StaticDecoding

    def priority(self, device: torch.device, dtype: torch.dtype) -> int | None:
        """See `Backend.priority`. Emulated bf16 is slower than fp32."""
        if device.type != "cuda":
            return None
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return 2 if dtype == torch.bfloat16 and native else 1

    def start(self) -> None:
        """Choose among torch's kernels.

        cuDNN's attention builds a plan for every new shape, which takes longer than the attention:
        our groups differ in length. With `ALIGNKIT_DETERMINISTIC=1` torch takes operators that
        repeat their bits wherever it has some.
        """
        torch.backends.cuda.enable_cudnn_sdp(False)
        if os.environ.get(DETERMINISTIC, "") not in ("", "0"):
            # CuBLAS reads it when it starts
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True, warn_only=True)
            # Its backward pass adds in any order
            torch.backends.cuda.enable_mem_efficient_sdp(False)

    def prepares(self, model: Any, adapter: str | None, slots: int) -> bool:
        """The adapter's calls are half of all calls of a token; without one there is nothing to
        merge.
        """
        size = sum(layer.base_layer.weight.nbytes for layer in plain_layers(model))
        free = memory.available(model.get_output_embeddings().weight.device)
        return adapter is not None and bool(size <= FREE_SHARE * free)
