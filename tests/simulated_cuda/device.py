"""A simulated CUDA device: tensors say `cuda:0`, their numbers are computed on the CPU, mixing
devices fails.

torch sees a backend written in Python (`PrivateUse1`), so backward runs in a thread of its own, as
on CUDA. Counted are the waits of the host for the device and the kernels of attention. A process
that has called `enable` keeps the device until it ends, so tests run it in subprocesses.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NAME = "simulated"
CUDA = torch.device("cuda", 0)  # what Python code sees
ROOT = Path(__file__).parent.parent.parent
OURS = (str(ROOT / "alignkit"), str(ROOT / "plugins"))

# Operators that may read tensors of two devices.
COPIES = "_to_copy copy_"
# Operators whose index tensors may be on the CPU.
INDEXING = "index index_put index_put_ _index_put_impl_ _unsafe_index"
# Operators whose result has a size, or a type, that only the device knows: the host waits.
WAITS = "_local_scalar_dense is_nonzero equal nonzero masked_select _unique2"
# Operators that take no number from the CPU, not even a tensor without dimensions.
STRICT = "cat stack mm bmm addmm embedding gather scatter index_select searchsorted"


@dataclass
class Device:
    """What was counted since `enable`. waits: of the host for the device, by the file that reads.
    attention: calls by kind of kernel. converted_masks: of calls with a gradient.
    """

    waits: Counter[str] = field(default_factory=Counter)
    converted_masks: int = 0
    attention: Counter[str] = field(default_factory=Counter)

    def wait(self) -> None:
        self.waits[place().partition(":")[0]] += 1


device = Device()


def place() -> str:
    """The innermost line of alignkit that is running."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(OURS):
            return f"{name.removeprefix(str(ROOT))[1:]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class CudaTensor(Tensor):
    """A tensor on the device. `elem`: its numbers, on the CPU."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> CudaTensor:
        made: CudaTensor = Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=torch.device(NAME, 0),
        )
        return made

    def __init__(self, elem: Tensor):
        self.elem = elem

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})

    @property
    def data(self) -> Any:
        return torch._C.TensorBase.data.__get__(self)  # type: ignore[attr-defined]

    @data.setter
    def data(self, other: CudaTensor) -> None:
        torch._C.TensorBase.data.__set__(self, other)  # type: ignore[attr-defined]
        self.elem = other.elem

    def tolist(self) -> Any:
        device.wait()
        return self.elem.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first."
        )

    __array__ = numpy


def on_cuda(wanted: torch.device | None) -> bool:
    return wanted is not None and wanted.type in ("cuda", NAME)


def call(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator, whose arguments or result may be on the device."""
    given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    cuda = [x for x in given if isinstance(x, CudaTensor)]
    wanted = kwargs.get("device")
    if not cuda and not on_cuda(wanted):
        return func(*args, **kwargs)
    check_devices(func, given, cuda)
    arrives = on_the_device(func, args, bool(cuda), wanted)
    known = {id(x.elem): x for x in cuda}

    def down(x: Any) -> Any:
        if isinstance(x, CudaTensor):
            return x.elem
        return torch.device("cpu") if isinstance(x, torch.device) and on_cuda(x) else x

    def up(x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, CudaTensor):
            return x
        if id(x) in known:
            return known[id(x)]
        return CudaTensor(x) if arrives else x

    kwargs.pop("pin_memory", None)
    args, kwargs = tree_map(down, (args, kwargs))
    return tree_map(up, func(*args, **kwargs))


def name_of(func: Any) -> str:
    name: str = func._schema.name.partition("::")[2]
    return name


def check_devices(func: Any, given: list[Tensor], cuda: list[CudaTensor]) -> None:
    """Raise RuntimeError where CUDA would, if an operator reads tensors of both devices."""
    name = name_of(func)
    if len(cuda) in (0, len(given)) or name in COPIES.split():
        return
    first = isinstance(given[0], CudaTensor)
    # The indexed tensor decides. Indices may stay on the CPU, but not the other way round.
    mixed = not first
    if name not in INDEXING.split():
        cpu = [x for x in given if not isinstance(x, CudaTensor)]
        numbers = all(x.dim() == 0 for x in cpu) and name not in STRICT.split()
        mixed = not numbers or (func._schema.is_mutable and not first)
    if mixed:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"cuda:0 and cpu! ({func} at {place()})"
        )


def on_the_device(func: Any, args: Any, from_cuda: bool, wanted: Any) -> bool:
    """Whether an operator's result is on the device. Counts whether the host waits for it."""
    name = name_of(func)
    arrives = from_cuda if wanted is None else on_cuda(wanted)
    masks = args[1] if name in INDEXING.split() else ()
    waits = any(isinstance(x, CudaTensor) and x.dtype == torch.bool for x in masks)
    if name in COPIES.split():
        source = args[1] if name == "copy_" else args[0]
        if name == "copy_":
            arrives = isinstance(args[0], CudaTensor)
        waits = isinstance(source, CudaTensor) and not arrives
    if waits or name in WAITS.split():
        device.wait()
    return arrives


class _Operators(TorchDispatchMode):
    """Makes new tensors on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return call(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """Turns the device `cuda` of a call, which this torch cannot have, into the simulated one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.device:
            return func(*args, **kwargs)
        if on_cuda_argument(kwargs.get("device")):
            kwargs["device"] = torch.device(NAME, 0)
        return func(*(torch.device(NAME, 0) if on_cuda_argument(x) else x for x in args), **kwargs)


def on_cuda_argument(argument: Any) -> bool:
    if isinstance(argument, torch.device):
        return argument.type == "cuda"
    return isinstance(argument, str) and (argument == "cuda" or argument.startswith("cuda:"))


def move(module: nn.Module) -> nn.Module:
    """Replace a module's parameters and buffers by tensors on the device; shared ones stay
    shared.
    """
    moved: dict[int, Tensor] = {}
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, value in list(store.items()):
                if value is None or isinstance(value, CudaTensor):
                    continue
                if id(value) not in moved:
                    new: Tensor = CudaTensor(value.detach().clone())
                    moved[id(value)] = (
                        nn.Parameter(new, value.requires_grad)
                        if isinstance(value, nn.Parameter)
                        else new
                    )
                store[name] = moved[id(value)]  # type: ignore[assignment]
    return module


def enable(triton: bool = False) -> Device:
    """From here on, until the process ends, `cuda` is the simulated device. triton: whether it
    compiles attention.
    """
    import peft  # noqa: F401 - it imports bitsandbytes, which looks for a real CUDA
    from attention import flex_attention, scaled_dot_product_attention

    from alignkit_plugins.backends import flex_attention as gpu_attention

    backend_registration._setup_privateuseone_for_python_backend(NAME)
    whole = 80 * 2**30
    answers: dict[str, Any] = {
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), True),
        **dict.fromkeys(("_lazy_init", "synchronize", "empty_cache", "reset_peak_memory_stats")),
        **dict.fromkeys(("memory_allocated", "memory_reserved", "max_memory_allocated"), 0),
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "simulated",
        "get_device_capability": (9, 0),
        "get_device_properties": SimpleNamespace(total_memory=whole, major=9, minor=0),
        "mem_get_info": (whole, whole),
    }
    for name, value in answers.items():
        setattr(torch.cuda, name, lambda *args, value=value, **options: value)
    torch.nn.functional.scaled_dot_product_attention = scaled_dot_product_attention
    gpu_attention.has_triton = lambda: triton  # type: ignore[assignment]
    gpu_attention.compiled_attention = lambda: flex_attention  # type: ignore[assignment]
    _load_on_cpu_first()
    # `torch.tensor(..., device="cuda")` becomes a copy that a mode can see
    torch._C._set_only_lift_cpu_tensors(True)
    _Functions().__enter__()
    _Operators().__enter__()
    return device


def _load_on_cpu_first() -> None:
    """Let transformers and modules reach the device by `move`: they would write into memory that
    does not exist.
    """
    from transformers import PreTrainedModel

    original = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    to = nn.Module.to

    def from_pretrained(cls: Any, *args: Any, device_map: Any = None, **kwargs: Any) -> Any:
        loaded = original(cls, *args, **kwargs)
        if on_cuda(torch.device((device_map or {}).get("", "cpu"))):
            move(loaded[0] if isinstance(loaded, tuple) else loaded)
        return loaded

    def to_device(self: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        if any(on_cuda_argument(x) for x in (*args, kwargs.get("device"))):
            args = tuple(x for x in args if not on_cuda_argument(x))
            kwargs = {key: value for key, value in kwargs.items() if key != "device"}
            return move(to(self, *args, **kwargs) if args or kwargs else self)
        return to(self, *args, **kwargs)

    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[assignment]
    nn.Module.to = to_device  # type: ignore[method-assign, assignment]
