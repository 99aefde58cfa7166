"""How much a number has changed between two looks, with an interval whose unit is a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

LEAST = 8  # prompts


class Change(NamedTuple):
    """A difference with its interval. before, after: the means that it compares. prompts: how many it rests on."""

    mean: float
    low: float
    high: float
    before: float
    after: float
    prompts: int

    def __str__(self) -> str:
        from alignkit.evaluation.statistics import shown

        return shown(self._asdict(), sign=True)


def change(before: Mapping[str, float], after: Mapping[str, float], level: float = 0.05) -> Change | None:
    """`after - before` with its interval at 1 - level; None with too few prompts.

    Prompts that both have are compared with themselves, which is far more precise, as prompts differ more than
    policies do. If there are too few of them, the two means are compared as independent (Welch's t interval).
    """
    import numpy as np
    from scipy import stats

    common = [prompt for prompt in before if prompt in after]
    if len(common) >= LEAST:
        old, new = np.array([before[p] for p in common]), np.array([after[p] for p in common])
        differences = new - old
        error, freedom = float(stats.sem(differences)), float(len(common) - 1)
    else:
        old, new = np.array(list(before.values())), np.array(list(after.values()))
        if min(len(old), len(new)) < LEAST:
            return None
        parts = (old.var(ddof=1) / len(old), new.var(ddof=1) / len(new))
        error = math.sqrt(sum(parts))
        spread = parts[0] ** 2 / (len(old) - 1) + parts[1] ** 2 / (len(new) - 1)
        freedom = sum(parts) ** 2 / spread if spread else float(len(old) + len(new) - 2)
    middle = float(new.mean() - old.mean())
    half = float(stats.t.ppf(1 - level / 2, freedom)) * error if error else 0.0
    return Change(middle, middle - half, middle + half, float(old.mean()), float(new.mean()), min(len(old), len(new)))
