"""Overoptimization, again: whether the true reward of single proxies turns, compared with policies
that maximize the true reward itself. See `overoptimization`, whose tests ask for one turn of all
seeds, and whose control is of best of N alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.papers import overoptimization

compute, figures = overoptimization.compute, overoptimization.figures


def measures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """By `METHOD OPTIMIZER` and seed how far the true reward ends below its own peak."""
    found = dict[str, dict[int, float]]()
    for row in rows:
        for name, points in row["values"].items():
            true = [point[1] for point in points]
            own = found.setdefault(f"{row['method']} {name}", {})
            own[row["seed"]] = float(max(true) - true[-1])
    return found
