"""Attention on a GPU: a whole pack in one call of `flex_attention` with Triton, else torch's other
kernels.

Two integers per token, its group and its response (0 for a prompt), say which tokens it sees: those
before it in its group that are the prompt's or its own response's. Windows need a third, the
position in its sequence. The number of kernels does not depend on the number of groups. The host
computes from the spans which blocks of BLOCK x BLOCK pairs are not empty, once per pack and window.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from alignkit.kernels.layout import AttentionArgs, GroupSpan

BLOCK = 128  # tokens; packs are padded to a multiple, so that their shapes repeat
SIZES = range(16, 257)  # sizes of a head that Triton's kernel supports


@functools.cache
def has_triton() -> bool:
    """Whether torch can compile kernels for a GPU: Triton is installed, and a C compiler, which it
    calls.
    """
    compiler = os.environ.get("CC") or shutil.which("clang") or shutil.which("gcc")
    return importlib.util.find_spec("triton") is not None and compiler is not None


def can_compile_attention(device: torch.device) -> bool:
    """Whether a GPU runs compiled attention: Triton on Ampere (compute capability 8.0) and
    later.
    """
    return (
        device.type == "cuda"
        and has_triton()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


@functools.cache
def compiled_attention() -> Callable[..., Tensor]:
    """torch's `flex_attention` as one kernel. Without compilation it would store all scores."""
    import torch._dynamo
    from torch.nn.attention.flex_attention import flex_attention

    # Every model, dtype, window and cap is a version of its own, with and without gradients. Beyond
    # torch's limit of 8 a call would raise.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, fullgraph=True)
    return compiled


def supported(q: Tensor, v: Tensor) -> bool:
    """Whether one call can attend: on a GPU with Triton, for [1, heads, tokens, size] of a usual size
    and dtype.
    """
    usual = q.shape[-1] in SIZES and v.shape[-1] in SIZES
    known = q.dtype in (torch.float32, torch.bfloat16, torch.float16)
    return usual and known and can_compile_attention(q.device)


class PackMasks:
    """The tokens of a pack that each token sees. All layers of a pass share it."""

    def __init__(self, spans: Sequence[GroupSpan], device: torch.device):
        """spans: the groups, one behind another from token 0. device: of the masks."""
        self.spans, self.device = spans, device
        self.tokens = sum(span.length for span in spans)
        self.padding = -self.tokens % BLOCK
        self._masks: dict[int | None, BlockMask] = {}

    @cached_property
    def _places(self) -> np.ndarray:
        """[6, tokens with padding] int32: each token's group, its response (0 for a prompt) and its
        position in its sequence; where its group begins, the length of the prompt that it sees
        besides its own part, and where this part begins.
        """
        columns = []
        # Padding is one more group, so that every query sees a key.
        padding = GroupSpan(self.tokens, self.padding, ())
        for group, span in enumerate((*self.spans, padding)):
            start = span.start
            for response, length in enumerate((span.prompt, *span.responses)):
                prompt = span.prompt if response else 0
                positions = np.arange(prompt, prompt + length, dtype=np.int32)
                facts = group, response, positions, span.start, prompt, start
                columns.append(np.stack(np.broadcast_arrays(*facts)))
                start += length
        return np.concatenate(columns, axis=1).astype(np.int32)

    def mask(self, window: int | None) -> BlockMask:
        """The pack's mask in layers with this sliding window."""
        if not any(span.longer_than(window) for span in self.spans):
            window = None
        if window not in self._masks:
            some, full = self.blocks(window)
            # Full blocks are listed by themselves: the kernel does not apply the rule to their
            # pairs.
            partial = _listed(some & ~full)
            rule = self._rule(window)
            mask = BlockMask.from_kv_blocks(
                *partial, *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=rule
            )
            self._masks[window] = mask.to(self.device)
        return self._masks[window]

    def blocks(self, window: int | None) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of queries and keys in which some pair sees each other, and those in which all
        pairs do, [blocks, blocks].
        """
        _, _, positions, groups, prompts, parts = self._places
        queries = np.arange(len(positions), dtype=np.int32)
        reach = len(queries) if window is None else window  # keys that a query sees, with itself
        # The first visible position of the prompt
        nearest = groups + np.maximum(0, positions - reach + 1)
        # Keys that a query sees: those of its part up to itself, and those of its prompt.
        seen = (
            (np.maximum(parts, queries - reach + 1), queries + 1),
            (nearest, groups + prompts),
        )
        edges = np.arange(0, len(queries), BLOCK, dtype=np.int32)
        some: Any = np.zeros((len(queries), len(edges)), dtype=bool)
        every = some.copy()
        for first, end in seen:
            low = np.maximum(first[:, None], edges)
            count = np.minimum(end[:, None], edges + BLOCK) - low
            some |= count > 0
            every |= count == BLOCK
        shape = -1, BLOCK, len(edges)
        return some.reshape(shape).any(axis=1), every.reshape(shape).all(axis=1)

    def _rule(self, window: int | None) -> Callable[..., Tensor]:
        """Whether a query sees a key, both indices in the pack."""
        places = torch.from_numpy(self._places).to(self.device)
        groups, responses, positions, *_ = places

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = (responses[key] == 0) | (responses[key] == responses[query])
            return (groups[query] == groups[key]) & same & (key <= query)

        def sees_in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            near = positions[query] - positions[key] < window
            return sees(batch, head, query, key) & near

        return sees if window is None else sees_in_window


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pack: PackMasks,
    args: AttentionArgs,
    kernel: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Attention of a pack, [1, heads, tokens, size] -> [1, heads, tokens, size of v].

    kernel: takes the arguments of torch's `flex_attention`; None: that function, compiled.
    """
    cap = args.softcap

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert cap is not None
        return cap * torch.tanh(score / cap)

    if pack.padding:
        q, k, v = (F.pad(x, (0, 0, 0, pack.padding)) for x in (q, k, v))
    out = (kernel or compiled_attention())(
        q,
        k,
        v,
        score_mod=None if cap is None else capped,
        block_mask=pack.mask(args.window),
        scale=args.scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[:, :, : pack.tokens]


def _listed(marked: np.ndarray) -> tuple[Tensor, Tensor]:
    """[blocks, blocks] as a `BlockMask` stores it: the number in each row, and their columns before
    all others.
    """
    numbers = marked.sum(axis=1, dtype=np.int32)
    # False sorts before true, and a stable sort keeps the marked columns ascending.
    columns = np.argsort(~marked, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(numbers)[None, None], torch.from_numpy(columns)[None, None]
