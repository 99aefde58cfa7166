"""The length-controlled win rate of AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475).

A logistic regression explains the preferences by the difference in length, the difficulty of the
prompt if it is known, and the policy; the win rate is its prediction at equal length. As in
AlpacaEval's code, it has an L1 penalty whose strength is chosen by 5-fold cross-validation. Differs
from it: the public leaderboard also adds the preferences of two models that were asked to be brief
and to be verbose, which exist only for AlpacaEval's own 805 prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

FOLDS = 5
STRENGTHS = 10  # inverse strengths of the penalty to choose from, from 1e-4 to 1e4


def length_controlled(
    preferences: Sequence[float], longer: Sequence[float], difficulty: Sequence[float] | None = None
) -> dict[str, Any] | None:
    """The win rate against the baseline that the regression expects at equal length; None for fewer
    than 5 prompts.

    preferences: how strongly each prompt's answer is preferred to the baseline's, from 0 to 1; 0.5
    is a tie. longer: its length minus the baseline's, in characters as in AlpacaEval. difficulty:
    of each prompt, on any scale.

    The standard error is that of the win rate, robust to a wrong model (White 1982, "Maximum
    likelihood estimation of misspecified models"). AlpacaEval's `lc_standard_error` is the spread
    of its predictions, 0 without a difficulty.

    Raises `ValueError` for numbers that are not of the same prompts, or preferences outside of 0 to
    1.
    """
    import numpy as np
    from scipy.special import expit

    p, gap = np.asarray(preferences, dtype=float), np.asarray(longer, dtype=float)
    if len(gap) != len(p) or (difficulty is not None and len(difficulty) != len(p)):
        raise ValueError("preferences, lengths and difficulties must be of the same prompts")
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("preferences must lie between 0 and 1")
    if len(p) < FOLDS:
        return None
    spread = gap.std(ddof=1)
    columns = [np.tanh(gap / spread) if spread else np.zeros_like(gap), np.ones_like(gap)]
    columns += [] if difficulty is None else [np.asarray(difficulty, dtype=float)]
    design = np.stack(columns, axis=1)
    strength = _chosen_strength(design, p)
    weights = _fitted(design, p, strength)
    equal = design.copy()
    equal[:, 0] = 0.0
    predicted = expit(equal @ weights)
    error = _standard_error(design, equal, p, weights)
    return {"mean": float(predicted.mean()), "standard_error": error, "n": len(p)}


def _chosen_strength(design: Array, p: Array) -> float:
    """The inverse strength of the penalty that predicts best what the fit has not seen."""
    import numpy as np
    from scipy.special import expit

    # scikit-learn's GroupKFold, which AlpacaEval uses, gives prompts to folds in this order.
    fold = np.empty(len(p), dtype=int)
    fold[np.argsort(np.full(len(p), 2))[::-1]] = np.arange(len(p)) % FOLDS
    losses = {}
    for strength in np.logspace(-4, 4, STRENGTHS):
        parts = []
        for number in range(FOLDS):
            seen = fold != number
            q = np.clip(
                expit(design[~seen] @ _fitted(design[seen], p[seen], strength)), 1e-15, 1 - 1e-15
            )
            parts.append(-(p[~seen] * np.log(q) + (1 - p[~seen]) * np.log(1 - q)).mean())
        losses[float(strength)] = float(np.mean(parts))
    return min(losses, key=losses.__getitem__)


def _fitted(design: Array, p: Array, strength: float) -> Array:
    """The weights that minimize `sum of |weights| / strength + the cross-entropy`, as differences
    of positive parts.
    """
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import expit

    def cost(parts: Array) -> tuple[float, Array]:
        above, below = parts.reshape(2, -1)
        z = design @ (above - below)
        slope = design.T @ (expit(z) - p)
        value = (np.logaddexp(0, z) - p * z).sum() + parts.sum() / strength
        return float(value), np.concatenate([slope, -slope]) + 1 / strength

    start = np.zeros(2 * design.shape[1])
    options = {"ftol": 0, "gtol": 1e-8, "maxls": 100}
    found = minimize(cost, start, jac=True, bounds=[(0, None)] * len(start), options=options)
    above, below = found.x.reshape(2, -1)
    weights: Array = above - below
    return weights


def _standard_error(design: Array, equal: Array, p: Array, weights: Array) -> float:
    """Of the mean prediction at equal length: the delta method with the sandwich covariance of the
    weights.
    """
    import numpy as np
    from scipy.special import expit

    n = len(p)
    q, predicted = expit(design @ weights), expit(equal @ weights)
    bread = np.linalg.pinv((design * (q * (1 - q))[:, None]).T @ design)
    influence = ((p - q)[:, None] * design) @ bread  # of each prompt on the weights
    slope = (equal * (predicted * (1 - predicted))[:, None]).mean(0)
    whole = (
        influence @ slope + (predicted - predicted.mean()) / n
    )  # also of the prompt itself on the average
    return float(np.sqrt((whole**2).sum() * n / max(1, n - design.shape[1])))
