"""Reward against KL: where more KL begins to cost reward, as in Gao et al. 2022
(arXiv:2210.10760).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit_plugins.compare.readable import number, short
from alignkit_plugins.report.curves import Figure, Series, figure

DRAWABLE = 3  # points


def gold(stage: str, rows: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Reward and gold of a stage's iterations against their KL, each as a gain in its own
    deviations at the start.

    A dotted line marks where gold was highest. Empty if there are fewer than DRAWABLE points.
    """
    found = [[number(row.get(key)) for key in ("kl", "reward", "gold", "step")] for row in rows]
    points = [[value for value in each if value is not None] for each in found if None not in each]
    scales = [
        next(filter(None, (number(row.get(key)) for row in rows)), None)
        for key in ("reward_std", "gold_std")
    ]
    if len({point[0] for point in points}) < DRAWABLE or None in scales:
        return []
    kl, rewards, golds, steps = (list(column) for column in zip(*points, strict=True))
    reward, true = (
        [(v - own[0]) / float(s or 1) for v in own]
        for own, s in zip((rewards, golds), scales, strict=True)
    )
    best = max(range(len(points)), key=true.__getitem__)
    where = f"gold was highest in iteration {steps[best]:.0f}, at a KL of {short(kl[best])} nats"
    change = (
        f"gold changed by {true[-1] - true[best]:+.2g} and the reward by "
        f"{reward[-1] - reward[best]:+.2g} deviations"
    )
    last = best == len(points) - 1
    note = (
        f"{where}, the last one: no over-optimization so far"
        if last
        else f"{where}; since then {change}"
    )
    roots = [math.sqrt(max(0.0, value)) for value in kl]
    series: list[Series] = [
        {"name": name, "style": "points", "x": roots, "y": y}
        for name, y in (("reward", reward), ("gold", true))
    ]
    labels = {"x_label": "√KL, √nats", "y_label": "gain, deviations"}
    return [
        figure(
            stage, "Reward and gold against KL", series, **labels, marks=[roots[best]], note=note
        )
    ]
