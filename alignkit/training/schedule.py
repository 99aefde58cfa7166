"""Learning-rate schedules."""

from __future__ import annotations

import math


def schedule(kind: str, step: int, total: int, warmup_ratio: float) -> float:
    """Factor on the learning rate at step `step` (from 0) of `total`; the first `warmup_ratio` of them rise to 1."""
    warmup = math.ceil(warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    left = 1 - (step - warmup) / max(1, total - warmup)
    if kind == "linear":
        return max(0.0, left)
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (1 - max(0.0, left))))
    return 1.0
