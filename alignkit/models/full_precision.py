"""Forward passes in fp32 of a model whose weights are stored in fewer bits, one block at a time.

Two correct ways to compute the same in bf16 differ so much that a wrong one passes for right. In fp32 they agree. Every
block's weights are converted before the block runs and put back after it, so at most one block is in memory twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHORT = (torch.bfloat16, torch.float16)


@contextmanager
def full_precision(network: Any) -> Iterator[None]:
    """Compute the forward passes of a network, with its head if it has one, in fp32 inside."""
    with ExitStack() as stack:
        blocks = list(_blocks(network))
        inside = {id(module) for block in blocks for module in block.modules()}
        rest = [module for module in network.modules() if id(module) not in inside]
        stack.callback(_widened([tensor for module in rest for tensor in _own_tensors(module)]))
        for block in blocks:
            stack.callback(_widen_while_running(block))
        yield


@contextmanager
def widened(module: Any) -> Iterator[None]:
    """Hold a module's own weights in fp32 inside."""
    restore = _widened(_own_tensors(module))
    try:
        yield
    finally:
        restore()


def _blocks(network: Any) -> Iterator[Any]:
    """The largest modules that hold no list of others: layers, embeddings, norms, heads."""
    for child in network.children():
        is_layer = hasattr(child, "gradient_checkpointing") and not hasattr(child, "config")
        if not is_layer and any(isinstance(module, nn.ModuleList) for module in child.modules()):
            yield from _blocks(child)
        else:
            yield child


def _own_tensors(module: Any) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _widened(tensors: list[Tensor]) -> Callable[[], None]:
    """Convert tensors to fp32 in place; call the result to put the original values back."""
    before = [(tensor, tensor.data) for tensor in tensors if tensor.dtype in SHORT]
    for tensor, data in before:
        tensor.data = data.float()

    def restore() -> None:
        for tensor, data in before:
            tensor.data = data

    return restore


def _widen_while_running(block: Any) -> Callable[[], None]:
    """Let a block run in fp32 until the result is called."""
    if isinstance(block, nn.Embedding):  # its table may be as large as all layers, and looking up rounds nothing
        handle = block.register_forward_hook(lambda module, inputs, out: out.float())
        return lambda: handle.remove()
    restore: list[Callable[[], None]] = []

    def before(module: Any, inputs: Any) -> None:
        restore.append(_widened([tensor for part in module.modules() for tensor in _own_tensors(part)]))
        restore.extend(_dequantized(part) for part in module.modules() if isinstance(part, nn.Linear))

    def after(module: Any, inputs: Any, out: Any) -> None:
        while restore:
            restore.pop()()

    first, last = block.register_forward_pre_hook(before), block.register_forward_hook(after, always_call=True)

    def remove() -> None:
        first.remove()
        last.remove()

    return remove


def _dequantized(linear: Any) -> Callable[[], None]:
    """Let a layer of bitsandbytes multiply in fp32; call the result to undo it."""
    if hasattr(linear, "compute_dtype"):  # 4 bits
        dtype, linear.compute_dtype = linear.compute_dtype, torch.float32

        def restore() -> None:
            linear.compute_dtype = dtype

        return restore
    if type(linear).__name__ == "Linear8bitLt":  # rounds its inputs, too
        scale = linear.weight.SCB if linear.weight.SCB is not None else linear.state.SCB
        weight: Tensor = linear.weight.data.float() * (scale[:, None].float() / 127)
        linear.forward = lambda x: F.linear(x, weight, linear.bias)

        def forget() -> None:
            del linear.forward  # the class's own is found again

        return forget
    return lambda: None
