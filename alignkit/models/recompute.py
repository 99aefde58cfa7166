"""Activation checkpointing: what happens inside a layer is not kept for backward but computed a second time there.

Roles share one model, so by the time of backward another role may be switched on, and another row of tokens may be the
one that attention sees. The second computation therefore brings both back; without that gradients are wrong and nobody
notices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from types import MethodType
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

Restored = Callable[[], AbstractContextManager[Any]]
_restored: ContextVar[Restored | None] = ContextVar("alignkit_restored", default=None)


def prepare(model: nn.Module) -> bool:
    """Let the model's layers be computed twice under `recomputing`. Gives whether it has such layers."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return bool(layers)


@contextmanager
def recomputing(restored: Restored) -> Iterator[None]:
    """Layers of forward passes inside keep their inputs alone. restored: makes role and row those of this pass."""
    token = _restored.set(restored)
    try:
        yield
    finally:
        _restored.reset(token)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    plain, restored = type(self).forward, _restored.get()
    if restored is None:
        return plain(self, *args, **kwargs)

    def run(*given: Any) -> Any:
        with restored():
            return plain(self, *given, **kwargs)

    # Nothing in a layer is random: dropout is off for ever.
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)
