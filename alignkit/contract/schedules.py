"""The schedules of the learning rate that alignkit itself provides.

A schedule is `factor(step, total)` for step 0, 1, ... of `total`, so that a resumed run needs none
of its past. It may take `warmup`, the steps in which alignkit lets the rate rise and after which it
is asked, and `rate`, the highest one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any


def constant(step: int, total: int) -> float:
    """Return the factor of the same rate after the warmup."""
    return 1.0


def linear(step: int, total: int, warmup: int) -> float:
    """Return a factor that falls to 0."""
    return max(0.0, 1 - (step - warmup) / max(1, total - warmup))


def cosine(step: int, total: int, warmup: int, num_cycles: float = 0.5) -> float:
    """Return a factor that falls to 0 as half a wave of the cosine."""
    return max(
        0.0, 0.5 * (1 + math.cos(math.pi * (1 - linear(step, total, warmup)) * 2 * num_cycles))
    )


# Schedules that alignkit itself provides, without options
OWN: dict[str, Callable[..., Any]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
}
