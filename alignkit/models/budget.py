"""How many tokens a packed row may hold, and what happens when memory runs out."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from alignkit.models.shared_model import SharedModel
from alignkit.kernels.memory import ran_out, total

T = TypeVar("T")


ENOUGH = 1.0 * 2**30  # bytes of activations in a packed row on a CPU: more makes next to nothing faster


def activation_budget(device: torch.device) -> float:
    """Bytes that the activations of a packed row may take: a power of two up to a quarter of all memory, on a CPU no
    more than is of use. Not of what is free: the same recipe on the same machine is to be packed alike.
    """
    quarter = total(device) / 4
    rounded = 2.0 ** math.floor(math.log2(quarter)) if quarter < math.inf else quarter
    return rounded if device.type == "cuda" else min(ENOUGH, rounded)


def within_memory(policy: SharedModel, work: Callable[[], T]) -> T:
    """`work()`, again with half the policy's token budget whenever memory runs out, until it cannot be halved."""
    while True:
        try:
            return work()
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error) or not policy.halve_token_budget():
                raise
        # Outside of the handler: the error's traceback would keep the activations alive.
        gc.collect()
        if policy.device.type == "cuda":
            torch.cuda.empty_cache()
