"""Log-probabilities of a reference, kept on disk: for the same data and reference they are measured once, in all runs.

DPO with another beta, or with another loss, needs no second pass of the reference. What is kept stands for everything
that its bits depend on (weights, tokens, precision, packing, hardware, this code), so that using it changes no result.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from alignkit.io.atomic import whole_file
from alignkit.io.digest import digest, file_digest, model_digest, versions
from alignkit.kernels import capabilities
from alignkit.models.encoding import Encoded
from alignkit.models.shared_model import SharedModel

PACKAGE = Path(__file__).parent.parent
KEPT = 2**30  # bytes of all files, the ones used last


@dataclass(frozen=True)
class ReferenceCache:
    """A folder of log-probabilities."""

    folder: Path

    def logprobs(
        self, policy: SharedModel, adapter: Path | None, encoded: Sequence[Encoded], measure: Callable[[], list[Tensor]]
    ) -> tuple[list[Tensor], bool]:
        """What `measure` gives for the rows of `encoded`, fp32 [tokens] each, and whether it was known already.

        adapter: the reference's folder; None: the base. `measure` must depend on nothing but the arguments.
        """
        path, packing = self.folder / f"{_key(policy, adapter, encoded)}.safetensors", policy.token_budget
        lengths = [len(row.tokens) for group in encoded for row in group.rows]
        known = _read(path, sum(lengths))
        if known is not None:
            with suppress(OSError):
                os.utime(path)
            return list(known.split(lengths)), True
        found = measure()
        if found and policy.token_budget == packing:  # packed smaller, when memory ran out, the last bits differ
            with suppress(OSError):  # a folder that cannot be written costs time, not the run
                self._keep(path, torch.cat(found))
        return found, False

    def _keep(self, path: Path, found: Tensor) -> None:
        if found.nbytes > KEPT:
            return
        with whole_file(path) as file:
            file.write(save({"logprobs": found}))
        facts = [(kept.stat(), kept) for kept in self.folder.glob("*.safetensors")]
        total = 0
        for fact, kept in sorted(facts, key=lambda pair: -pair[0].st_mtime):
            total += fact.st_size
            if total > KEPT:
                kept.unlink(missing_ok=True)


def _key(policy: SharedModel, adapter: Path | None, encoded: Sequence[Encoded]) -> str:
    facts = {
        "base": model_digest(policy.source),
        "adapter": model_digest(str(adapter)) if adapter is not None else None,
        "precision": [str(policy.dtype), policy.spec.quantization, torch.get_float32_matmul_precision()],
        "packing": [policy.packs, policy.token_budget],
        "kernels": capabilities.choices(policy.device),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "versions": versions() | {"bitsandbytes": importlib.metadata.version("bitsandbytes")},
        "code": [file_digest(file) for file in sorted(PACKAGE.rglob("*.py"))],
    }
    key = hashlib.sha256(digest(facts).encode())
    for group in encoded:  # piece by piece: as one text they may be larger than the model
        rows = [(row.tokens, row.mask) for row in group.rows]
        key.update(digest([group.prompt, rows, group.group.bundle]).encode())
    return key.hexdigest()


def _read(path: Path, count: int) -> Tensor | None:
    """The `count` numbers of a file; None where it is not there or not whole."""
    try:
        found = load(path.read_bytes()).get("logprobs")
    except (OSError, SafetensorError):
        return None
    return found if found is not None and found.shape == (count,) and found.dtype == torch.float32 else None
