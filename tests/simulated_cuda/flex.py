"""torch's `flex_attention` by plain operators, with a gradient on CPUs: torch's own refuses that
there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def seen(mask: Any) -> Tensor:
    """[queries, keys] of a `BlockMask`, as the kernel reads it: pairs in no listed block are never
    looked at.
    """
    length = mask.seq_lengths[0]
    query, key = torch.arange(length)[:, None], torch.arange(length)[None]
    partial, full = (
        _blocks(*(x[0, 0].cpu() for x in listed), mask.BLOCK_SIZE[0], length)
        for listed in (
            (mask.kv_num_blocks, mask.kv_indices),
            (mask.full_kv_num_blocks, mask.full_kv_indices),
        )
    )
    device = mask.kv_indices.device
    rule = mask.mask_mod(
        *(torch.zeros((), dtype=torch.int64, device=device),) * 2, query.to(device), key.to(device)
    )
    return (partial & rule.cpu()) | full


def _blocks(numbers: Tensor, columns: Tensor, size: int, length: int) -> Tensor:
    marked = torch.zeros(len(numbers), len(numbers), dtype=torch.bool)
    for row, (number, order) in enumerate(zip(numbers.tolist(), columns.tolist(), strict=True)):
        marked[row, order[:number]] = True
    return marked.repeat_interleave(size, 0).repeat_interleave(size, 1)[:length, :length]


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_mod: Callable[..., Tensor] | None = None,
    block_mask: Any = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    sees: Tensor | None = None,
) -> Tensor:
    """The same arguments. sees: `seen(block_mask)`, if known. Scores and softmax are at least
    fp32.
    """
    if not enable_gqa and q.shape[1] != k.shape[1]:
        raise ValueError(
            f"the heads of queries and keys differ without enable_gqa: {q.shape[1]} and "
            f"{k.shape[1]}"
        )
    sees = seen(block_mask) if sees is None else sees
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q.to(wide) @ k.to(wide).transpose(-1, -2)) * (
        q.shape[-1] ** -0.5 if scale is None else scale
    )
    if score_mod is not None:
        index = torch.zeros((), dtype=torch.int64)
        scores = score_mod(scores, index, index, index, index)  # no cap looks at places
    weights = torch.softmax(scores.masked_fill(~sees, float("-inf")), dim=-1)
    return (weights.to(q.dtype) @ v).to(q.dtype)
