"""Random draws come from named streams: a draw depends on the seed and its place, never on what ran before it."""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, *place: str | int) -> np.random.Generator:
    """A generator for one place, `stream(seed, "align", "rollout", iteration, prompt, sample)`."""
    return np.random.Generator(np.random.Philox(key=number(seed, *place)))


def number(seed: int, *place: str | int) -> int:
    """A 64-bit seed for one place, for libraries that want a number."""
    text = "\x1f".join([str(seed), *map(str, place)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
