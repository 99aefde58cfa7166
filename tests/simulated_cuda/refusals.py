"""What the simulated device must refuse or allow, checked by itself: a simulation that allows all
finds nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import device
import torch
import torch.nn.functional as F

MIXED = """
cuda + cpu
cpu @ cuda
torch.cat([cuda, cpu])
cpu[cuda[0].long()]
cuda.gather(1, cpu.long())
cuda.masked_fill(cpu > 0, 0.0)
torch.zeros(()).add_(cuda.sum())
F.scaled_dot_product_attention(cuda[None, None], cuda[None, None], cpu[None, None])
"""
# dtype, heads of keys, with a mask -> the kernel that an H100 takes, without cuDNN
KERNELS = {
    (torch.bfloat16, 2, False): "flash",
    (torch.bfloat16, 4, True): "efficient",
    (torch.float32, 4, False): "efficient",
    (torch.float32, 2, False): "math",
}


def refused(line: str, names: dict[str, Any], text: str) -> bool:
    try:
        eval(line, {"torch": torch, "F": F}, names)
    except (RuntimeError, TypeError) as error:
        return text in str(error)
    return False


def kernel(counted: Any, dtype: torch.dtype, heads: int, masked: bool) -> str:
    counted.clear()
    q, k = (torch.ones(1, h, 8, 16, dtype=dtype, device="cuda") for h in (4, heads))
    sees = torch.ones(8, 8, dtype=torch.bool, device="cuda") if masked else None
    F.scaled_dot_product_attention(
        q, k, k, attn_mask=sees, is_causal=not masked, enable_gqa=heads < 4
    )
    return next(iter(counted))


class Watched(torch.autograd.Function):
    """Backward runs in another thread."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> torch.Tensor:
        assert threading.current_thread() is not threading.main_thread()
        return upstream[0] * 2


def main() -> None:
    simulated = device.enable(1.0)
    cpu = torch.arange(4.0).view(2, 2) % 2
    cuda = cpu.to("cuda")
    names = {"cpu": cpu, "cuda": cuda}
    allowed = [
        line for line in MIXED.split("\n") if line and not refused(line, names, "same device")
    ]
    assert not allowed, allowed
    assert refused("cuda.numpy()", names, "numpy")
    assert (cuda * torch.tensor(2.0)).device == torch.device("cuda", 0)
    assert cuda[torch.tensor([0, 1])].tolist() == cpu[[0, 1]].tolist()
    assert cpu.clone().copy_(cuda).device.type == "cpu"
    x = torch.ones(3, device="cuda", requires_grad=True)
    Watched.apply(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2, 2, 2]
    assert kernel(simulated.attention, torch.bfloat16, 4, False) == "cudnn"
    torch.backends.cuda.enable_cudnn_sdp(False)
    assert {case: kernel(simulated.attention, *case) for case in KERNELS} == KERNELS
    before = simulated.waits
    cuda.sum().item()
    cuda.cpu()
    assert simulated.waits == before + 2


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # the device's threads do not end by themselves
