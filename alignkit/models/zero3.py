"""A frozen network of which every process holds a part, by DeepSpeed's ZeRO-3.

`deepspeed.zero.Init` cuts the base's weights, and `deepspeed.zero.GatheredParameters` brings those of a layer together.
When, is decided here. DeepSpeed's engine cuts and hooks whole modules, adapters included, and expects the same layers
in every step; here roles with adapters of their own take turns on one base.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from alignkit.errors import RunFailed
from alignkit.models.parts import NetworkInParts, layers_of
from alignkit.models.passes import last_states


class Zero3Network(NetworkInParts):
    """Cut by DeepSpeed. adapters: parameters that stay whole. Raises RunFailed if it computes on another device."""

    def __init__(self, network: Any, adapters: Iterable[nn.Parameter], device: torch.device):
        zero, whole = _deepspeed(device).zero, set(adapters)
        self.network, self._whole = network, False
        layers = list(layers_of(network))
        inside = [[p for p in layer.parameters() if p not in whole] for layer in layers]
        known = whole.union(*inside)
        outside = [p for p in network.parameters() if p not in known]
        frozen = nn.ParameterList([p for part in (*inside, outside) for p in part])
        zero.Init(module=frozen, mem_efficient_linear=False)  # otherwise it replaces torch's function for everyone
        self._layers = [_Part(zero, own) for own in inside]
        self._rest = _Part(zero, outside)
        self._backward: _Part | None = None  # the layer that backward has reached
        for layer, part in zip(layers, self._layers, strict=True):
            layer.forward = partial(self._forward, part, layer.forward)

    @property
    def whole(self) -> bool:
        return self._whole

    def states(self, tokens: Tensor, positions: Tensor) -> Tensor:
        self._rest.gather()
        return last_states(self.network, tokens, positions)

    def unshard(self) -> None:
        self._whole = True
        for part in (*self._layers, self._rest):
            part.gather()

    def reshard(self) -> None:
        self._whole, self._backward = False, None
        for part in (*self._layers, self._rest):
            part.release()

    def _forward(self, part: _Part, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """A layer's own forward pass."""
        if self._whole:
            return forward(*args, **kwargs)
        part.gather()
        with saved_tensors_hooks(part.described, restored):
            output = forward(*args, **kwargs)
        part.release()
        for tensor in output if isinstance(output, tuple) else (output,):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(lambda gradient: self._reach(part))
        return output

    def _reach(self, part: _Part) -> None:
        """Backward has come to a layer, and is done with the one behind it."""
        if self._backward is not None and self._backward is not part:
            self._backward.release()
        self._backward = part
        part.gather()


class View(NamedTuple):
    """A view of a weight, without its numbers."""

    weight: nn.Parameter
    size: Sequence[int]
    stride: Sequence[int]
    offset: int


class _Part:
    """Weights that are brought together at once. zero: DeepSpeed's module of that name."""

    def __init__(self, zero: Any, weights: Sequence[nn.Parameter]):
        self._zero, self._weights = zero, weights
        self._gathered = ExitStack()
        self._places: dict[int, nn.Parameter] = {}  # weights by the address of their numbers, while they are here

    def gather(self) -> None:
        if self._weights and not self._places:
            self._gathered.enter_context(self._zero.GatheredParameters(self._weights))
            self._places = {weight.untyped_storage().data_ptr(): weight for weight in self._weights}

    def release(self) -> None:
        self._gathered.close()
        self._places = {}

    def described(self, tensor: Tensor) -> Tensor | View:
        """What autograd keeps: a view would keep the whole weight, which backward brings here again."""
        weight = self._places.get(tensor.untyped_storage().data_ptr())
        if weight is None or weight.dtype != tensor.dtype:
            return tensor
        return View(weight, tensor.size(), tensor.stride(), int(tensor.storage_offset()))


def restored(kept: Tensor | View) -> Tensor:
    """The tensor that `described` was given."""
    if isinstance(kept, Tensor):
        return kept
    return kept.weight.detach().as_strided(kept.size, kept.stride, kept.offset)


def is_installed() -> bool:
    """Whether DeepSpeed can be imported. Does not import it."""
    return importlib.util.find_spec("deepspeed") is not None


def _deepspeed(device: torch.device) -> Any:
    """The package, for a device. It prints warnings to stdout, and starts torch's collectives unless they run."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # it would take a GPU that the recipe does not
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r".*all_gather_into_tensor. is deprecated", FutureWarning)  # which it calls
    if (found := deepspeed.accelerator.get_accelerator().device_name()) != device.type:
        raise RunFailed(
            f"DeepSpeed computes on '{found}', but the model is on '{device.type}'\nhelp: unset DS_ACCELERATOR"
        )
    # It would compile collectives of its own for the processors of one machine, and print that.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
