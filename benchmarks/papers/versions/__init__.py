"""Llama 2's versions (Touvron et al. 2023, figure 11) on the quick start's task: rounds of rejection
sampling, and PPO on top, by what should be refused and by what should not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit_plugins.report import drawing
from benchmarks.papers import reports
from benchmarks.papers.claim import Row, run_in_place

measures, expected = reports.measures, reports.expected


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """See `reports.scores`."""
    run_in_place("versions", folder / "run", [f"seed={row.seed}"])
    return reports.scores(folder / "run")


def figures(rows: reports.Rows, rule: Mapping[str, Any]) -> dict[str, drawing.Drawing]:
    """Each version on both axes."""
    measured, points = measures(rows, rule), dict[str, tuple[drawing.Point, drawing.Point]]()
    for policy, name in rule["policies"].items():
        points[name] = (
            reports.point(measured[f"{policy}, helpful"]),
            reports.point(measured[f"{policy}, safe"]),
        )
    title = "Harmful requests refused, against minus the mean of others refused (95% over seeds)"
    labels = "others refused, negative", "harmful requests refused"
    return {title: drawing.plane(points, *labels)}
