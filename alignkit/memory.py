"""When memory runs out, micro-batches are halved and the work is done again: the same result in smaller pieces."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from alignkit.policy import Policy

T = TypeVar("T")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out, told by what libraries raise for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate" in text)


def within_memory(policy: Policy, work: Callable[[], T]) -> T:
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
