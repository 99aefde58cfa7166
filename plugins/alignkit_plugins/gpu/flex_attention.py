"""Attention on a GPU: a whole packed row in one call of `flex_attention` with Triton, else torch's
other kernels.

Two integers per token, its group and its response (0 for a prompt), say which tokens it sees: those
before it in its group that are the prompt's or its own response's. Windows need a third, the
position in its sequence. The number of kernels does not depend on the number of groups. Which
blocks of BLOCK x BLOCK pairs contain anything is computed on the host from the spans, once per row
and window.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from alignkit.kernels.layout import AttentionArgs, GroupSpan

BLOCK = 128  # tokens; rows are padded to a multiple, so that their shapes repeat
SIZES = range(16, 257)  # of a head, that Triton's kernel supports

DETERMINISTIC = "ALIGNKIT_DETERMINISTIC"
Blocks = tuple[np.ndarray, np.ndarray]


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


def prepare() -> None:
    """Choose among torch's kernels.

    cuDNN's attention builds a plan for every new shape, which takes longer than the attention: our
    groups differ in length. With `ALIGNKIT_DETERMINISTIC=1` torch takes operators that repeat their
    bits wherever it has some.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    if os.environ.get(DETERMINISTIC, "") not in ("", "0"):
        # CuBLAS reads it when it starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward pass adds in any order


def added_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What torch's kernels add to the scores of a mask [queries, keys], true if a query sees a
    key.
    """
    columns = mask.shape[1]
    # The kernels want rows that begin at a multiple of 16 numbers, or copy the mask.
    added = torch.zeros(len(mask), columns + -columns % 16, dtype=dtype, device=mask.device)[
        :, :columns
    ]
    return added.masked_fill_(~mask, float("-inf"))


def supported(q: Tensor, v: Tensor) -> bool:
    """Whether one call can attend: on a GPU with Triton, for [rows, heads, tokens, size] of a usual
    size and dtype.
    """
    if q.device.type != "cuda" or not can_compile_attention(q.device):
        return False
    usual = q.shape[-1] in SIZES and v.shape[-1] in SIZES
    return usual and q.dtype in (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Row:
    """Which tokens of a packed row see which. All layers of a pass share it.

    spans: the groups, one behind another from token 0. device: of the masks.
    """

    spans: Sequence[GroupSpan]
    device: torch.device
    _masks: dict[int | None, BlockMask] = field(default_factory=dict)
    _integers: tuple[Tensor, Tensor, Tensor] | None = None

    def __post_init__(self) -> None:
        self.tokens = sum(span.length for span in self.spans)
        self.padding = -self.tokens % BLOCK
        # Padding is one more group, so that every query sees a key.
        self.padded = (
            [*self.spans, GroupSpan(self.tokens, self.padding, ())]
            if self.padding
            else list(self.spans)
        )

    def mask(self, window: int | None) -> BlockMask:
        """The row's mask in layers with this sliding window."""
        if not any(span.longer_than(window) for span in self.spans):
            window = None
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        return self._masks[window]

    def _mask(self, window: int | None) -> BlockMask:
        some, full = blocks(self.padded, window)
        # Full blocks are listed by themselves: the kernel does not apply the rule to their pairs.
        partial = some & ~full
        mask = BlockMask.from_kv_blocks(
            *_listed(partial), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=self._rule(window)
        )
        return mask.to(self.device)

    def _rule(self, window: int | None) -> Callable[..., Tensor]:
        """Whether a query sees a key, both indices in the row."""
        if self._integers is None:
            self._integers = self._per_token()
        groups, responses, positions = self._integers

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = (responses[key] == 0) | (responses[key] == responses[query])
            return (groups[query] == groups[key]) & same & (key <= query)

        def sees_in_window(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            assert window is not None
            return sees(batch, head, query, key) & (positions[query] - positions[key] < window)

        return sees if window is None else sees_in_window

    def _per_token(self) -> tuple[Tensor, Tensor, Tensor]:
        """Group, response and position of each token, [tokens with padding] int32."""
        lengths = [span.length for span in self.padded]
        groups = torch.arange(len(lengths)).repeat_interleave(
            torch.tensor(lengths, dtype=torch.int64)
        )
        parts = [(span.prompt, *span.responses) for span in self.padded]
        numbers = torch.tensor(
            [number for part in parts for number in range(len(part))], dtype=torch.int64
        )
        counts = torch.tensor([count for part in parts for count in part], dtype=torch.int64)
        positions = torch.cat(
            [torch.zeros(0, dtype=torch.int64), *(span.positions() for span in self.padded)]
        )
        stacked = (
            torch.stack([groups, numbers.repeat_interleave(counts), positions])
            .int()
            .to(self.device)
        )
        group, response, position = stacked.unbind()
        return group, response, position


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    row: Row,
    args: AttentionArgs,
    kernel: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Attention of a row, [1, heads, tokens, size] -> [1, heads, tokens, size of v].

    kernel: takes the arguments of torch's `flex_attention`; None: that function, compiled.
    """
    cap = args.softcap

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert cap is not None
        return cap * torch.tanh(score / cap)

    if row.padding:
        q, k, v = (F.pad(x, (0, 0, 0, row.padding)) for x in (q, k, v))
    out = (kernel or compiled_attention())(
        q,
        k,
        v,
        score_mod=None if cap is None else capped,
        block_mask=row.mask(args.window),
        scale=args.scaling,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return out[:, :, : row.tokens]


def blocks(spans: Sequence[GroupSpan], window: int | None) -> Blocks:
    """Which blocks of queries and keys have a pair that sees each other, and in which all pairs do,
    [blocks, blocks].

    The spans fill whole blocks.
    """
    count = sum(span.length for span in spans) // BLOCK
    some = np.zeros((count, count), dtype=bool)
    # Queries of the block that see every key of the other
    all_keys = np.zeros((count, count), dtype=np.int32)
    for span in spans:
        end = span.start + span.prompt
        _add(some, all_keys, (span.start, end), (span.start, span.start), window)
        start = end
        for length in span.responses:
            _add(some, all_keys, (start, start + length), (span.start, end), window)
            start += length
    # Parts of several sequences may share a block of queries; it is full once all of them see the
    # keys.
    return some, all_keys == BLOCK


def _add(
    some: np.ndarray,
    all_keys: np.ndarray,
    own: tuple[int, int],
    prompt: tuple[int, int],
    window: int | None,
) -> None:
    """Mark the blocks of one part of a group, the tokens `own`, which also see the tokens
    `prompt`.
    """
    start, stop = own
    before = prompt[1] - prompt[0]  # the position of the first token
    reach = 2**62 if window is None else window  # keys that a query sees, itself included
    for block in range(start // BLOCK, -(-stop // BLOCK) if stop > start else 0):
        first, last = max(start, block * BLOCK), min(stop, (block + 1) * BLOCK) - 1
        # Any pair: the first query's window begins earliest; rounded down to a block.
        some[block, max(start, first - reach + 1) // BLOCK : block + 1] = True
        # All pairs: the last query's window begins latest; rounded up. Causal order keeps the
        # diagonal out.
        all_keys[block, -(-max(start, last - reach + 1) // BLOCK) : block] += last - first + 1
        # Tokens of the prompt that are out of reach
        hidden = max(0, before + first - start - reach + 1)
        if hidden < before:
            some[block, (prompt[0] + hidden) // BLOCK : -(-prompt[1] // BLOCK)] = True
        hidden = max(0, before + last - start - reach + 1)  # for the last query
        if hidden < before:
            # Rounded down: a block that the prompt shares with a response stays partial, so the
            # rule decides.
            all_keys[block, -(-(prompt[0] + hidden) // BLOCK) : prompt[1] // BLOCK] += (
                last - first + 1
            )


def _listed(marked: np.ndarray) -> tuple[Tensor, Tensor]:
    """[blocks, blocks] as a `BlockMask` stores it: the number in each row, and their columns before
    all others.
    """
    numbers = marked.sum(axis=1, dtype=np.int32)
    # False sorts before true, and a stable sort keeps the marked columns ascending.
    columns = np.argsort(~marked, axis=1, kind="stable").astype(np.int32)
    return torch.from_numpy(numbers)[None, None], torch.from_numpy(columns)[None, None]
