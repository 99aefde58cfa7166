"""What the simulated device must refuse or allow, checked by itself: a simulation that allows all
finds nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import device
import torch
import torch.nn.functional as F


@contextmanager
def refused(error: type[BaseException] = RuntimeError, text: str = "same device") -> Iterator[None]:
    try:
        yield
    except error as raised:
        assert text in str(raised), raised
    else:
        raise AssertionError("not refused")


def mixed_devices(cpu: torch.Tensor, cuda: torch.Tensor) -> None:
    pairs: list[Callable[[], Any]] = [
        lambda: cuda + cpu,
        lambda: cpu @ cuda,
        lambda: torch.cat([cuda, cpu]),
        lambda: cpu[cuda[0].long()],
        lambda: cuda.gather(1, cpu.long()),
        lambda: cuda.masked_fill(cpu > 0, 0.0),
        lambda: torch.zeros(()).add_(cuda.sum()),
        lambda: F.scaled_dot_product_attention(cuda[None, None], cuda[None, None], cpu[None, None]),
    ]
    for pair in pairs:
        with refused():
            pair()
    with refused(TypeError, "numpy"):
        cuda.numpy()


def allowed(cpu: torch.Tensor, cuda: torch.Tensor) -> None:
    assert (cuda * torch.tensor(2.0)).device == torch.device("cuda", 0)
    assert cuda[torch.tensor([0, 1])].tolist() == cpu[[0, 1]].tolist()
    assert cpu.clone().copy_(cuda).device.type == "cpu"


def backward_in_another_thread() -> None:
    threads = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, *upstream: torch.Tensor) -> torch.Tensor:
            threads.append(threading.get_ident())
            return upstream[0] * 2

    x = torch.ones(3, device="cuda", requires_grad=True)
    Watched.apply(x).sum().backward()
    assert threads and threads[0] != threading.get_ident()
    assert x.grad is not None and x.grad.tolist() == [2, 2, 2]


def memory(limit: device.Memory) -> None:
    before = limit.allocated
    kept = torch.empty(2**20, device="cuda")
    view = kept[:10]
    assert limit.allocated == before + 2**22
    with refused(torch.OutOfMemoryError, "out of memory"):
        torch.empty(limit.total, device="cuda")
    del kept
    assert limit.allocated == before + 2**22
    del view
    assert limit.allocated == before and limit.peak >= before + 2**22


def attention(counted: Any) -> None:
    def kernel(dtype: torch.dtype, heads: int, mask: bool) -> str:
        counted.clear()
        q, k = (torch.ones(1, h, 8, 16, dtype=dtype, device="cuda") for h in (4, heads))
        sees = torch.ones(8, 8, dtype=torch.bool, device="cuda") if mask else None
        F.scaled_dot_product_attention(
            q, k, k, attn_mask=sees, is_causal=not mask, enable_gqa=heads < 4
        )
        return next(iter(counted))

    assert kernel(torch.bfloat16, 4, False) == "cudnn"
    torch.backends.cuda.enable_cudnn_sdp(False)
    assert kernel(torch.bfloat16, 2, False) == "flash"
    assert kernel(torch.bfloat16, 4, True) == "efficient"
    assert kernel(torch.float32, 4, False) == "efficient"
    assert kernel(torch.float32, 2, False) == "math"


def main() -> None:
    simulated = device.enable(1.0)
    cpu = torch.arange(4.0).view(2, 2) % 2
    cuda = cpu.to("cuda")
    mixed_devices(cpu, cuda)
    allowed(cpu, cuda)
    backward_in_another_thread()
    memory(simulated.memory)
    attention(simulated.attention)
    before = sum(simulated.waits.values())
    cuda.sum().item()
    cuda.cpu()
    assert sum(simulated.waits.values()) == before + 2


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the device's threads do not end by themselves
