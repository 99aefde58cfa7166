"""How much memory the weights of a model take once they are loaded, found out from the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from alignkit.errors import RunFailed
from alignkit.models.files_check import weight_files
from alignkit.models.loading import device_of, dtype_of

if TYPE_CHECKING:
    from alignkit.settings import ModelSpec

# Bytes per weight of quantized matrices, with their scales (bitsandbytes: one per 64 weights, or one per row).
QUANTIZED = {"nf4": 0.5625, "fp4": 0.5625, "int8": 1.0}
_WHOLE = ("embed", "lm_head", "wte", "wpe")  # matrices that bitsandbytes leaves as they are


def weight_bytes(spec: ModelSpec, folder: Path) -> float | None:
    """Bytes of a model's weights with these settings; None if its files cannot be read, which loading will report."""
    width = dtype_of(spec, device_of(spec.device)).itemsize
    try:
        return sum(_bytes(spec, name, shape, width) for name, shape in _shapes(folder))
    except (RunFailed, SafetensorError, OSError):
        return None


def _shapes(folder: Path) -> Iterator[tuple[str, list[int]]]:
    for file in weight_files(folder):
        with safe_open(file, "pt") as content:
            for name in content.keys():  # noqa: SIM118  (a safetensors file is not iterable)
                yield name, content.get_slice(name).get_shape()


def _bytes(spec: ModelSpec, name: str, shape: list[int], width: int) -> float:
    if len(shape) == 2 and not any(part in name for part in _WHOLE):
        return math.prod(shape) * QUANTIZED.get(spec.quantization, width)
    return float(math.prod(shape) * width)
