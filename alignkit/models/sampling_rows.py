"""How many rows are sampled together, and what a row's keys and values take."""

from __future__ import annotations

from typing import Any

from alignkit.models.loading import largest

# Rows decoded together: enough to keep a CPU busy. A GPU reads all weights for each token, however few rows it has.
ROWS, ROWS_ON_GPU = 128, 1024
CACHE_BYTES = 2 * 2**30  # of keys and values, on a CPU; fewer rows are decoded together if they need more
CACHE_SHARE = 1 / 8  # of a CPU's memory at most
FREE_SHARE = 1 / 2  # of a GPU's free memory, for keys, values and logits
LOGIT_COPIES = 6  # of a row's logits in fp32 that choosing a token takes


def token_bytes(config: Any, width: int) -> int:
    """Bytes of a token's keys and values in all layers. config: of the language model. width: bytes of a number."""
    heads = largest(config, "num_key_value_heads") or config.num_attention_heads
    size = largest(config, "head_dim") or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * size * width)


def row_bytes(config: Any, width: int, longest: int, new: int) -> int:
    """Bytes of a row's keys and values. longest: tokens of the longest prompt. new: tokens that a row may write."""
    # Twice the new tokens, because a row that has written all of its own may share the cache with a new one.
    return token_bytes(config, width) * (longest + 2 * new)


def most_rows(row: int, memory: float, halvings: int, vocabulary: int = 0) -> int:
    """Rows whose keys and values fit the memory for them, halved for each time that it ran out while sampling.

    row: bytes of one. memory: free bytes of a GPU, or all of a CPU's. vocabulary: its size, on a GPU; 0 means a CPU.
    """
    if vocabulary:
        rows = int(FREE_SHARE * memory) // (row + LOGIT_COPIES * 4 * vocabulary)
        return max(1, min(ROWS_ON_GPU, rows) >> halvings)
    return max(1, min(ROWS, int(min(CACHE_BYTES, CACHE_SHARE * memory) // row)) >> halvings)
