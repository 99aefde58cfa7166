"""Counts the bytes of tensors while code runs, whether they hold numbers or only have shapes.

With torch's fake tensors the code of training itself can run for a model of any size: it makes the same tensors, keeps
them as long, and computes nothing. So its peak follows from the code and not from a formula next to it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Inside, counts the storages that operators make, from the first use until they are freed.

    live, peak: bytes, above those of the tensors that are known from the start.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        """known: tensors that are counted elsewhere, such as weights."""
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()
        self._kept = list(known)
        for tensor in self._kept:
            self._known.add(id(tensor.untyped_storage()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def bytes_of(tensors: Iterable[Any]) -> int:
    """Bytes of tensors, each storage once."""
    sizes = {id(tensor.untyped_storage()): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())
