"""What numbers say of policies and judges: intervals, answers compared with known ones, and which
rows are held out for that.

A library of functions without a state. Its modules are imported on first use, as some
need numpy.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alignkit.evaluation import statistics as statistics


def __getattr__(name: str) -> ModuleType:
    if name.startswith("_") or not Path(__file__).with_name(f"{name}.py").is_file():
        raise AttributeError(f"module 'alignkit.evaluation' has no attribute '{name}'")
    import alignkit

    return alignkit._Lazy(f"alignkit.evaluation.{name}")
