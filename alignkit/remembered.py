"""Log-probabilities of a reference, kept on disk: for the same data and reference they are measured once, in all runs.

DPO with another beta, or with another loss, needs no second pass of the reference. What is kept stands for everything
that its bits depend on (weights, tokens, precision, packing, threads, this code), so that using it changes no result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from alignkit.batch import Encoded
from alignkit.checkpoint import digest, file_digest, whole_file
from alignkit.fingerprint import model_digest, versions
from alignkit.policy import Policy

KEPT = 100  # files, the ones used last


@dataclass(frozen=True)
class Remembered:
    """A folder of log-probabilities. base: gives what identifies the base model (`fingerprint.model_digest`)."""

    folder: Path
    base: Callable[[], Any]

    def logprobs(
        self, policy: Policy, adapter: Path | None, encoded: Sequence[Encoded], measure: Callable[[], list[Tensor]]
    ) -> tuple[list[Tensor], bool]:
        """What `measure` gives for the rows of `encoded`, fp32 [tokens] each, and whether it was known already.

        adapter: the reference's folder; None: the base. `measure` must depend on nothing but the arguments.
        """
        path = self.folder / f"{self._key(policy, adapter, encoded)}.safetensors"
        lengths = [len(row.tokens) for group in encoded for row in group.rows]
        known = _read(path, sum(lengths))
        if known is not None:
            path.touch()
            return list(known.split(lengths)), True
        found = measure()
        if found:
            with whole_file(path) as file:
                file.write(save({"logprobs": torch.cat(found)}))
            self._forget_oldest()
        return found, False

    def _key(self, policy: Policy, adapter: Path | None, encoded: Sequence[Encoded]) -> str:
        facts = {
            "base": self.base(),
            "adapter": model_digest(str(adapter)) if adapter is not None else None,
            "precision": [str(policy.dtype), policy.spec.quantization, str(policy.device)],
            "packing": [policy.packs, policy.token_budget],
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "code": [file_digest(file) for file in sorted(Path(__file__).parent.glob("*.py"))],
        }
        key = hashlib.sha256(digest(facts).encode())
        for group in encoded:  # piece by piece: as one text they may be larger than the model
            key.update(digest([group.prompt, [(row.tokens, row.mask) for row in group.rows]]).encode())
        return key.hexdigest()

    def _forget_oldest(self) -> None:
        files = sorted(self.folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
        for file in files[:-KEPT]:
            file.unlink(missing_ok=True)


def _read(path: Path, count: int) -> Tensor | None:
    """The `count` numbers of a file; None where it is not there or not whole."""
    try:
        found = load(path.read_bytes()).get("logprobs")
    except (OSError, SafetensorError):
        return None
    return found if found is not None and found.shape == (count,) and found.dtype == torch.float32 else None
