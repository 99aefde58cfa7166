"""Helpfulness against harmlessness by version, as in Llama 2's figure 11 (Touvron et al. 2023, arXiv:2307.09288)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit_apps.report.curves import Figure, Series
from alignkit_apps.report.numbers import bounds

HALF = 0.5  # the win rate of the baseline against itself


def alignment_path(stage: str, figure: Mapping[str, Any]) -> Figure | None:
    """The path of the versions by win rate against the baseline, with 95% intervals; None without two rewards.

    figure: of figure.json. The baseline itself is in the middle. Versions without a win rate are left out.
    """
    rewards, baseline = [str(name) for name in figure.get("rewards") or ()], figure.get("baseline")
    if len(rewards) < 2 or baseline is None:
        return None
    x_name, y_name = _axes(rewards)
    points = []
    for version in figure["versions"]:
        own = version["policy"] == baseline
        x, y = (
            (HALF, None, None) if own else bounds(version["rewards"].get(name, {}).get("win_rate"))
            for name in (x_name, y_name)
        )
        if x[0] is not None and y[0] is not None:
            points.append((str(version["policy"]), x, y))
    if len(points) < 2:
        return None
    return {
        "stage": stage,
        "title": f"{x_name} against {y_name}, by version",
        "x_label": f"{x_name}: won against {baseline}, %",
        "y_label": f"{y_name}: won against {baseline}, %",
        "series": [_series(points)],
        "marks": [],
        "lines": [100 * HALF, 100 * HALF],
        "note": f"win rates with 95% intervals; {baseline} is at 50%; arrows follow the order of the policies",
    }


def _axes(rewards: Sequence[str]) -> tuple[str, str]:
    """The rewards of the axes: helpfulness and harmlessness if their names say so, or else the first two."""
    x = next((name for name in rewards if "help" in name.lower()), rewards[0])
    others = [name for name in rewards if name != x]
    signs = ("harm", "safe")
    return x, next((name for name in others if any(sign in name.lower() for sign in signs)), others[0])


def _series(points: Sequence[Any]) -> Series:
    def column(axis: int, part: int) -> list[Any]:
        return [None if point[axis][part] is None else 100 * point[axis][part] for point in points]

    return {
        "name": "versions",
        "style": "path",
        "x": column(1, 0),
        "y": column(2, 0),
        "x_low": column(1, 1),
        "x_high": column(1, 2),
        "low": column(2, 1),
        "high": column(2, 2),
        "labels": [point[0] for point in points],
    }
