"""Attention on a card, in shapes: what flash attention keeps for its backward pass, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import AttentionArgs


class CardLayout(TreeLayout):
    """A packed row whose attention has the shapes of fused kernels: no scores are stored, unless they are capped."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, args: AttentionArgs) -> Tensor:
        if self.store_kv:
            self.kv[layer] = (k[0].detach(), v[0].detach())
        if args.softcap is not None:  # no fused kernel caps scores: they are stored
            return super().attend(layer, q, k, v, args)
        out: Tensor = _Fused.apply(q, k, v)
        return out


class _Fused(torch.autograd.Function):
    """Keeps queries, keys, values, the result and a number per query (Dao et al. 2023, algorithm 1)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, ...]:
        q, k, v, _, _ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
