"""The notebook in the documentation: its cells run, its curves are of the runs, and its stored
outputs are whole.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest

from alignkit.host.plugins import load_plugins
from tests.rows import read_json

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebooks" / "first_run.ipynb"
CELLS: list[dict[str, Any]] = read_json(NOTEBOOK)["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_every_run_is_stored_without_an_error() -> None:
    outputs = [output for cell in CODE for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 2
    assert outputs[-1]["data"]["text/plain"] == ["True"]  # the last cell reuses the run


@pytest.mark.slow
def test_the_cells_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    names: dict[str, Any] = {}
    try:
        for cell in CODE:
            exec("".join(cell["source"]), names)
        # The last figure has a line per run and metric, through the metrics of the run.
        runs = {name: result["align"].metrics for name, result in names["results"].items()}
        for axes, metric in zip(plt.gcf().axes, ("reward", "kl"), strict=True):
            drawn = [list(line.get_ydata()) for line in axes.lines]
            assert drawn == [[row[metric] for row in rows] for rows in runs.values()]
            assert all(values[-1] > values[0] for values in drawn)
    finally:
        plt.close("all")
        load_plugins()
    assert names["again"]["align"].metrics == names["grpo"]["align"].metrics
