"""Random numbers from named streams: a draw depends on the seed and the stream's name, never on
earlier draws.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def stream(seed: int, *name: str | int) -> np.random.Generator:
    """A generator for one stream, such as `stream(seed, "align", "rollout", iteration, prompt,
    sample)`.
    """
    return generator(number(seed, *name))


def generator(number: int) -> np.random.Generator:
    """The generator of the stream with this number."""
    import numpy as np  # only here, so that plugins load fast

    return np.random.Generator(np.random.Philox(key=number))


def number(seed: int, *name: str | int) -> int:
    """A non-negative 63-bit seed for one stream, for libraries that need a number."""
    text = "\x1f".join([str(seed), *map(str, name)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
