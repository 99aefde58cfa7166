"""Schedules: the learning rate over steps, and minibatches over an epoch."""

from __future__ import annotations

import math
from collections.abc import Iterator

from numpy.random import Generator

from alignkit.models.examples import Examples
from alignkit.models.packing import indivisible


def schedule(kind: str, step: int, total: int, warmup_ratio: float) -> float:
    """Factor on the learning rate at step 0, 1, ... of `total`; it rises to 1 over the first `warmup_ratio` of them."""
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    left = 1 - (step - warmup) / max(1, total - warmup)
    if kind == "linear":
        return max(0.0, left)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (1 - max(0.0, left))))
    return 1.0


def minibatches(examples: Examples, size: int | None, random: Generator) -> Iterator[Examples]:
    """Shuffled minibatches of `size` groups; None: one batch of all. Bundles stay whole and count as one group."""
    units = indivisible([encoded.group.bundle for encoded in examples.groups])
    order = random.permutation(len(units)).tolist()
    size = size or len(units)
    for start in range(0, len(order), size):
        yield examples.take([index for unit in order[start : start + size] for index in units[unit]])
