"""Activation checkpointing: a layer stores only its input, and is computed again during backward.

Roles share one model, so by the time of backward another role may be active, and attention may follow the layout of
another packed row. The second computation restores both; otherwise gradients would be wrong without an error.
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

Restore = Callable[[], AbstractContextManager[Any]]
_restore: ContextVar[Restore | None] = ContextVar("alignkit_restore", default=None)


def make_recomputable(model: nn.Module) -> bool:
    """Let `recomputing` act on the model's layers. Returns whether it has layers that support this."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return bool(layers)


@contextmanager
def recomputing(restore: Restore) -> Iterator[None]:
    """Recompute the layers of forward passes inside. restore: brings back this pass's role and layout in backward."""
    token = _restore.set(restore)
    try:
        yield
    finally:
        _restore.reset(token)


def _forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    layer_forward, restore = type(self).forward, _restore.get()
    if restore is None:
        return layer_forward(self, *args, **kwargs)

    def run(*inputs: Any) -> Any:
        with restore():
            return layer_forward(self, *inputs, **kwargs)

    # Layers draw no random numbers, because dropout is always off.
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)
