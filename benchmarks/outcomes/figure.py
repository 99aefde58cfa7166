"""The figure: what every method gains by gold judges and by its own reward, against its KL to SFT and its minutes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alignkit.statistics import Estimate
from benchmarks.outcomes.rows import GOLD, JUDGED, OWN, Row
from benchmarks.outcomes.tables import gain, kl_of, minutes_of, score

GAINS: dict[str, Callable[[Sequence[Row]], Estimate]] = {
    "helpfulness, by gold": lambda rows: gain(rows, [JUDGED[GOLD[0]]], score(GOLD[0])),
    "safety, by gold": lambda rows: gain(rows, [JUDGED[GOLD[1]]], score(GOLD[1])),
    "combination, by its own reward": lambda rows: gain(rows, JUDGED.values(), score(OWN)),
}
COSTS: dict[str, Callable[[Sequence[Row]], float | None]] = {
    "KL to SFT, nats per response": kl_of,
    "minutes, with SFT and reward models": minutes_of,
}


def draw(groups: Sequence[Sequence[Row]], file: Path) -> None:
    """Write an SVG. groups: rows of several seeds by method. The same rows make the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 12), layout="tight")
    panels = figure.subplots(len(GAINS), len(COSTS), sharex="col", sharey="row")
    for (title, gained), line in zip(GAINS.items(), panels, strict=True):
        line[0].set_ylabel(f"gain in {title}")
        for (label, cost), axes in zip(COSTS.items(), line, strict=True):
            axes.axhline(0, color="gray", linewidth=0.8)
            axes.set_xlabel(label)
            if cost is kl_of:
                axes.set_xscale("symlog", linthresh=0.1)  # most are within a nat, and an estimate may be below 0
            for rows in groups:
                _point(axes, rows[0].method, cost(rows), gained(rows))
    with matplotlib.rc_context({"svg.hashsalt": "alignkit", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", metadata={"Date": None})


def _point(axes: Any, name: str, x: float | None, estimate: Estimate) -> None:
    """A method with its 95% interval, if there is one."""
    mean, low, high = estimate["mean"], estimate["low"], estimate["high"]
    if x is None or mean is None:
        return
    if low is not None and high is not None:
        axes.plot([x, x], [low, high], color="silver", zorder=1)
    axes.scatter([x], [mean], s=14, zorder=2)
    axes.annotate(name, (x, mean), (4, 3), textcoords="offset points", fontsize=8)
