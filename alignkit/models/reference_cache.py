"""Reference log-probabilities on disk: measured once for the same data and reference, then reused by all runs.

DPO with another beta or loss needs no second pass over the reference. The key covers everything that the bits depend on
(weights, tokens, precision, packing, hardware, library versions, code), so reuse changes no result.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from alignkit.io.atomic import whole_file
from alignkit.io.digest import digest, model_digest, versions
from alignkit.io.source_code import computing_code
from alignkit.kernels import capabilities
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.encoding import Encoded

CHECK = "sha256"
MOST_BYTES = 2**30  # of all files; the least recently used are deleted


@dataclass(frozen=True)
class ReferenceCache:
    """A folder with one file of log-probabilities per key."""

    folder: Path

    def logprobs(
        self, model: SharedModel, adapter: Path | None, encoded: Sequence[Encoded], measure: Callable[[], list[Tensor]]
    ) -> tuple[list[Tensor], bool]:
        """Return the log-probabilities of all responses, fp32 [tokens] each, and whether they were in the cache.

        adapter: the reference's folder; None: the base. measure: computes them from the other arguments only.
        """
        path, budget = self.folder / f"{_key(model, adapter, encoded)}.safetensors", model.token_budget
        lengths = [len(row.tokens) for group in encoded for row in group.rows]
        cached = _read(path, sum(lengths))
        if cached is not None:
            with suppress(OSError):
                os.utime(path)
            return list(cached.split(lengths)), True
        logprobs = measure()
        # If memory ran out, rows were packed shorter than the key says, and the last bits differ.
        if logprobs and model.token_budget == budget:
            with suppress(OSError):  # a folder without write access must not end the run
                self._write(path, torch.cat(logprobs))
        return logprobs, False

    def _write(self, path: Path, logprobs: Tensor) -> None:
        """Write a file and delete the least recently used ones over MOST_BYTES."""
        if logprobs.nbytes > MOST_BYTES:
            return
        with whole_file(path) as file:
            file.write(save({"logprobs": logprobs}, {CHECK: _check(logprobs)}))
        entries = [(entry, entry.stat()) for entry in self.folder.glob("*.safetensors")]
        total = 0
        for entry, stat in sorted(entries, key=lambda pair: -pair[1].st_mtime):
            total += stat.st_size
            if total > MOST_BYTES:
                entry.unlink(missing_ok=True)


def _key(model: SharedModel, adapter: Path | None, encoded: Sequence[Encoded]) -> str:
    facts = {
        "base": model_digest(model.source),
        "adapter": model_digest(str(adapter)) if adapter is not None else None,
        "precision": [str(model.dtype), str(model.spec.quantization), torch.get_float32_matmul_precision()],
        "packing": [model.packs, model.token_budget],
        "kernels": capabilities.choices(model.device),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "versions": versions(["bitsandbytes"]),
        "code": computing_code(),
    }
    key = hashlib.sha256(digest(facts).encode())
    for group in encoded:  # one at a time, because all of them as text may be larger than the model
        rows = [(row.tokens, row.mask) for row in group.rows]
        key.update(digest([group.prompt, rows, group.group.bundle]).encode())
    return key.hexdigest()


def _read(path: Path, count: int) -> Tensor | None:
    """Read `count` log-probabilities; None if the file is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            logprobs: Tensor = file.get_tensor("logprobs")
            check = (file.metadata() or {}).get(CHECK)
    except (OSError, SafetensorError):
        return None
    whole = logprobs.shape == (count,) and logprobs.dtype == torch.float32 and check == _check(logprobs)
    return logprobs if whole else None


def _check(logprobs: Tensor) -> str:
    """SHA-256 of the numbers: a flipped bit on the disk must not change a result."""
    return hashlib.sha256(logprobs.numpy().tobytes()).hexdigest()
