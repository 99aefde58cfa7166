"""What numbers say of policies and judges: intervals, rankings, agreement, judges compared with people.

A library: nothing that a run computes depends on it.
"""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignkit.evaluation import agreement as agreement
    from alignkit.evaluation import concordance as concordance
    from alignkit.evaluation import ranking as ranking

_LATER = ("agreement", "concordance", "ranking")  # they import numpy, which takes a tenth of a second


def __getattr__(name: str) -> ModuleType:
    if name not in _LATER:
        raise AttributeError(f"module 'alignkit.evaluation' has no attribute '{name}'")
    import alignkit

    return alignkit._Lazy(f"alignkit.evaluation.{name}")
