"""The hardware limit: rates measured in the same run, and the least work that a benchmark needs.

The floor is the shortest possible time: FLOP at the measured rate of matrix products, or bytes at
the measured memory rate, whichever takes longer. It counts every prompt once, no padding, no
recomputation, the language head for scored tokens only, and no gradients of frozen weights.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.tokens.encoder import Encoded

Lengths = tuple[int, Sequence[int]]  # the tokens of a prompt and of each response
BYTES = {"float32": 4, "bfloat16": 2}
RANK = 16
TRIES = 5
PACKAGES = ("torch", "transformers", "trl", "peft")


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Llama-like model with LoRA on all linear layers."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int

    @classmethod
    def of(cls, source: str) -> Shape:
        """Read the config of a model's folder."""
        config = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
        heads = config["num_attention_heads"]
        return cls(
            config["num_hidden_layers"],
            config["hidden_size"],
            config["intermediate_size"],
            heads,
            config.get("num_key_value_heads") or heads,
            config.get("head_dim") or config["hidden_size"] // heads,
            config["vocab_size"],
        )

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(inputs, outputs) of the linear layers in one transformer layer: q, k, v, o, gate, up,
        down.
        """
        h, q, kv = self.hidden, self.heads * self.head_size, self.kv_heads * self.head_size
        return [(h, q), (h, kv), (h, kv), (q, h), (h, self.inner), (h, self.inner), (self.inner, h)]

    @property
    def weights(self) -> int:
        """The number of weights in all layers, without embeddings."""
        return self.layers * sum(i * o for i, o in self.linear)

    @property
    def adapter(self) -> int:
        """The number of LoRA weights."""
        return self.layers * RANK * sum(i + o for i, o in self.linear)

    @property
    def head(self) -> int:
        """The number of weights in the language head."""
        return self.vocabulary * self.hidden


@dataclass
class Work:
    """Pieces of work as (FLOP, bytes). lora: whether the layers have an adapter."""

    shape: Shape
    dtype: str
    lora: bool = True
    pieces: list[tuple[float, float]] = field(default_factory=list)

    def read(self, groups: Sequence[Lengths], head: bool = True) -> None:
        """A forward pass; `head` includes the log-probabilities of response tokens."""
        flop = self._forward(groups) + (self._head(groups) if head else 0.0)
        self.pieces.append((flop, self._weights(head)))

    def learn(self, groups: Sequence[Lengths], head: bool = True) -> None:
        """A forward and a backward pass; only the adapter's weights get gradients."""
        s = self.shape
        tokens = sum(prompt + sum(responses) for prompt, responses in groups)
        # The backward pass of a product has two products of its size: frozen weights need only the
        # gradient of the input, adapters both; attention has twice as many. Nothing before the
        # first layer learns, so its q, k and v need no gradient of their input.
        first = sum(i * o + (RANK * i if self.lora else 0) for i, o in s.linear[:3])
        backward = 2.0 * tokens * (s.weights + 2 * self._adapter - first) + 2 * self._attention(
            groups
        )
        heads = 2 * self._head(groups) if head else 0.0
        self.pieces.append((self._forward(groups) + backward + heads, 2 * self._weights(head)))

    def write(self, groups: Sequence[Lengths]) -> None:
        """Sampling: each prompt is read once, then one token at a time of all responses that have
        not ended.
        """
        s = self.shape
        self.read([(prompt, ()) for prompt, _ in groups], head=False)
        rows = [(prompt, length) for prompt, responses in groups for length in responses]
        # Keys and values of a token
        cached = 2 * s.layers * s.kv_heads * s.head_size * BYTES[self.dtype]
        for step in range(max((length for _, length in rows), default=0)):
            seen = [prompt + step for prompt, length in rows if length > step]
            flop = 2.0 * len(seen) * (s.weights + self._adapter + s.head)
            flop += 4.0 * s.layers * s.heads * s.head_size * sum(seen)
            self.pieces.append((flop, self._weights(True) + cached * sum(seen)))

    def score_head(self, positions: int) -> None:
        """Only the language head, forward and backward to the hidden states."""
        self.pieces.append(
            (4.0 * positions * self.shape.head, 2.0 * self.shape.head * BYTES[self.dtype])
        )

    @property
    def _adapter(self) -> int:
        return self.shape.adapter if self.lora else 0

    def _weights(self, head: bool) -> float:
        """Bytes of all weights."""
        return float(
            BYTES[self.dtype]
            * (self.shape.weights + self._adapter + (self.shape.head if head else 0))
        )

    def _forward(self, groups: Sequence[Lengths]) -> float:
        tokens = sum(prompt + sum(responses) for prompt, responses in groups)
        return 2.0 * tokens * (self.shape.weights + self._adapter) + self._attention(groups)

    def _attention(self, groups: Sequence[Lengths]) -> float:
        """FLOP of two products over all pairs of a query and a key that it attends to."""
        pairs = sum(
            p * (p + 1) // 2 + sum(n * p + n * (n + 1) // 2 for n in responses)
            for p, responses in groups
        )
        return 4.0 * self.shape.layers * self.shape.heads * self.shape.head_size * pairs

    def _head(self, groups: Sequence[Lengths]) -> float:
        return 2.0 * self.shape.head * sum(sum(responses) for _, responses in groups)


def lengths(groups: Sequence[Encoded]) -> list[Lengths]:
    return [
        (len(group.prompt), [len(response.tokens) for response in group.responses])
        for group in groups
    ]


def seconds(pieces: Sequence[Sequence[float]], rates: Mapping[str, Any], dtype: str) -> float:
    """The shortest time for pieces of work on a machine with these rates."""
    return sum(max(flop / rates["flop"][dtype], size / rates["bandwidth"]) for flop, size in pieces)


def probe(job: Job, gate: Gate) -> None:
    """Worker function: the machine and its rates, in FLOP/s by dtype and bytes/s, each the best of
    several tries.

    There is no rate of bf16 on a machine without instructions that multiply it: one product would
    take minutes.
    """
    gate.begin()
    import torch

    from alignkit.contract.settings import ModelSpec
    from alignkit.kernels.backends import chosen
    from alignkit.models.loading import device_of, dtype_of

    device = device_of("auto").type
    width = 8192 if device == "cuda" else 256 if job.short else 2048
    rates: dict[str, Any] = {"flop": {}}
    bf16 = dtype_of(ModelSpec(base="tiny"), torch.device(device)) == torch.bfloat16
    for name in BYTES if bf16 else ["float32"]:
        a, b = (
            torch.randn(width, width, device=device, dtype=getattr(torch, name)) for _ in range(2)
        )
        linear = chosen(a.device, a.dtype).linear
        # The faster of torch's product and ours: a low rate would flatter us.
        best = min(_best(partial(product, a, b)) for product in (torch.mm, linear))
        rates["flop"][name] = 2 * width**3 / best
    x = torch.ones((32 if job.short else 256) * 2**20, device=device)
    rates["bandwidth"] = x.numel() * 4 / _best(x.sum)
    gate.end(1, {}, evidence={"machine": machine(), "rates": rates})


def _best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest try."""
    import torch

    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def machine() -> dict[str, Any]:
    """The machine that produced the results."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(_memory() / 2**30, 1),
        "gpu": gpu,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    facts = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    known = {key.strip(): value.strip() for key, value in facts.items()}
    name = known.get("model name") or platform.processor() or platform.machine()
    model = (
        f" (family {known['cpu family']}, model {known['model']})" if "cpu family" in known else ""
    )
    return name + model


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
