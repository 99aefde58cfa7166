"""CPUs: tiles of attention, the faster library for products, and packed weights."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from alignkit.kernels import memory
from alignkit.kernels.layout import AttentionArgs, GroupSpan
from alignkit_plugins.backends import processor, products, tiled_attention
from alignkit_plugins.backends.fast import Fast
from alignkit_plugins.backends.shared_cores import share_cores
from alignkit_plugins.backends.split_attention import SplitAttention, saves_products

MAX_SLOTS = 96  # with more slots, plain products are as fast as packed weights
MEMORY_SHARE = 1 / 16  # share of all memory that the packed weights may take
THRESHOLDS = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's `mallopt`


class CpuAttention(SplitAttention):
    """Computes each group by the fastest method that supports it."""

    def __init__(self, spans: Sequence[GroupSpan]):
        super().__init__(spans)
        self._tiles = functools.cache(tiled_attention.tiles)

    def group(
        self, span: GroupSpan, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs
    ) -> Tensor:
        """See `GroupAttention.group`."""
        # Values may differ in size from queries.
        tiled = k.shape == v.shape and args.softcap is None and not span.longer_than(args.window)
        if tiled and not saves_products(span) and tiled_attention.supported(q):
            price = tiled_attention.price(q, masked=len(span.responses) > 1)
            # A model's layers may differ in width
            if tiles := self._tiles(span, q.shape[1] * q.shape[3], price):
                return tiled_attention.attention(q[0], k[0], v[0], tiles, args.scaling)[None]
        if q.dtype != torch.bfloat16:
            return super().group(span, q, k, v, args)
        # Torch's kernel for CPUs is twice as fast in fp32
        return super().group(span, q.float(), k.float(), v.float(), args).to(q.dtype)


class Cpu(Fast):
    """A CPU."""

    attention, copy = CpuAttention, products.PackedWeight
    product = staticmethod(products.product)

    def __init__(self) -> None:
        if processor.uses_onednn():
            self.library = "oneDNN"

    def priority(self, device: torch.device, dtype: torch.dtype) -> int | None:
        """See `Backend.priority`."""
        if device.type != "cpu":
            return None
        return 2 if dtype == torch.bfloat16 and processor.multiplies_bf16() else 1

    def start(self) -> None:
        """Let glibc keep the memory of freed tensors, oneDNN few kernels, and torch's threads leave
        the cores to others.

        Returning memory and faulting it in again takes a tenth of a step. oneDNN makes kernels for
        every number of rows, and packs differ in length from step to step: SFT of a model
        with 135M weights in bf16 grew by 12 MB a step, up to 1024 kernels in each of its caches,
        which also lie between the tensors and leave gaps.
        """
        for threshold in THRESHOLDS:
            memory.glibc("mallopt", threshold, 2**31 - 1)
        # OneDNN and torch's layer above it cache what they compile. A step needs about 25 at a
        # time, and few of those of earlier steps.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
        share_cores()

    def prepares(self, model: Any, adapter: str | None, slots: int) -> bool:
        """True in fp32 only: no library packs bf16."""
        weight = model.get_output_embeddings().weight
        if not (0 < slots <= MAX_SLOTS and processor.can_pack_weights()):
            return False
        size = sum(parameter.nbytes for parameter in model.parameters())
        has_room = size <= MEMORY_SHARE * memory.total(weight.device)
        return bool(weight.dtype == torch.float32 and has_room)
