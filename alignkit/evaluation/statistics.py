"""Means and proportions with 95% confidence intervals: plain numbers in, plain dictionaries out.

The unit is one independent draw. In alignkit that is a prompt: average the samples of a prompt
first.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain, combinations
from typing import TYPE_CHECKING, Any, TypedDict

from alignkit import seeds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["estimate", "paired_difference"]  # what plugins of others may rely on
CONFIDENCE = 0.95
FEW = 4  # differences; for more, a t test is right often enough (`python -m benchmarks.verdicts`)
# The headline has this share of the gains that may be claimed by mistake; others share the rest.
HEADLINE = 0.95
# For `at_equal_length`, chosen by simulation (tests/test_statistics.py):
NEAR_RATIO = 1.5  # how far prompts count, in standard deviations of the difference in log length
# The same for the difference in length, if only that is known; smaller for more than 150 prompts
NEAR_TOKENS = 0.5
SIDE = 5  # prompts there must be on each side of equal length
LEAST = 6  # independent prompts
REPETITIONS = 2000  # samples of the bootstrap
FEW_SHARED = 50  # items of several raters, below which their agreement is hardly known


class Estimate(TypedDict):
    """The mean of `n` values and its interval; None if there are too few values."""

    mean: float | None
    low: float | None
    high: float | None
    n: int


def clustered(values: Sequence[float], units: Sequence[Any]) -> list[float]:
    """A value for each independent draw, with the mean of all and its variance (Liang and Zeger
    1986, "Longitudinal data analysis using generalized linear models"), for what has intervals of
    independent values.

    units: of each value, what it has in common with others, such as a passage that several
    questions are about; None if nothing.
    """
    if not values:
        return []
    middle = mean(values)
    sums = _sums([value - middle for value in values], units)
    if len(sums) == len(values):
        return list(values)
    return [middle + len(sums) / len(values) * total for total in sums]


def _sums(values: Sequence[float], units: Sequence[Any]) -> list[float]:
    """The sum of the values of each independent draw; see `clustered`."""
    sums = dict[Any, float]()
    for place, (value, unit) in enumerate(zip(values, units, strict=True)):
        key = ("alone", place) if unit is None else ("together", unit)
        sums[key] = sums.get(key, 0.0) + value
    return list(sums.values())


class Difference(Estimate):
    """The mean of differences. p: of the two-sided test that the mean is 0; 1 without values."""

    p: float


class Share(TypedDict):
    """A proportion of `n` trials with its interval."""

    mean: float
    low: float
    high: float
    n: int


class EqualLength(Share):
    """A difference corrected for length; see `at_equal_length`. near: prompts of similar length, on
    which it rests.
    """

    near: int


def mean(values: Sequence[float]) -> float:
    """The average of at least one value."""
    return math.fsum(values) / len(values)


def without_interval(mean: float | None, n: int) -> Estimate:
    """An estimate whose spread is not known."""
    return {"mean": mean, "low": None, "high": None, "n": n}


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of independent values with its t interval (Student 1908, "The probable error of a
    mean").

    Equal values show no spread, so they have no interval. For scores of 0 or 1, use `rate`.

    Args:
        values: One for each independent draw, such as a prompt.
    """
    import numpy as np
    from scipy import special

    n = len(values)
    if n == 0 or min(values) == max(values):
        return without_interval(next(iter(values), None), n)
    middle = mean(values)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    low, high = (
        middle + error * float(special.stdtrit(n - 1, end))
        for end in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    )
    return {"mean": middle, "low": low, "high": high, "n": n}


def of_share(found: Estimate, most: float = 1.0, least: float = 0.0) -> Estimate:
    """An estimate of what lies between `least` and `most`, where its interval ends; by default a
    share.
    """
    if found["low"] is None or found["high"] is None:
        return found
    return {**found, "low": max(least, found["low"]), "high": min(most, found["high"])}


def equal(one: float, other: float) -> bool:
    """Whether two numbers differ by no more than rounding, as `alignkit.functional.nearly_equal`,
    but without torch.
    """
    return math.isclose(one, other, rel_tol=1e-12, abs_tol=1e-12)


def differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """`ours - theirs`, value by value; 0 where they differ only by rounding, or equal policies
    would win and lose.

    Raises `ValueError` if the numbers of values differ.
    """
    return [0.0 if equal(a, b) else a - b for a, b in zip(ours, theirs, strict=True)]


def clustered_p(
    differences: Sequence[float], units: Sequence[Any], added: Sequence[float] = ()
) -> float:
    """`p_value` for differences of which those of a unit depend on each other; see `clustered`.
    added: differences of no unit, so that equal ones do not look certain.

    A unit has a difference if its own differences do not cancel; among the draws, the mean of all
    shifts those without.
    """
    apart = sum(not equal(total, 0.0) for total in _sums(differences, units))
    return p_value([*clustered(differences, units), *added], apart)


def p_value(differences: Sequence[float], apart: int | None = None) -> float:
    """The p value of the two-sided t test that the mean of independent differences is 0; 1 if there
    are none.

    A t test knows nothing of differences that are all equal, and a few that happen to be alike
    look certain to it: there a sign test decides, on which all agree, 2 * 0.5**n. apart: how many
    there are, if not all other than 0.
    """
    import numpy as np
    from scipy import special

    n = len(differences)
    apart = sum(map(bool, differences)) if apart is None else apart
    error = float(np.std(differences, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    p = 2 * float(special.stdtr(n - 1, -abs(mean(differences)) / error)) if error else 0.0
    return not_surer(p, apart, not error)


def not_surer(p: float, apart: int, equal: bool) -> float:
    """A p value, at least that of a sign test on which all agree if differences are equal or few.
    apart: how many there are.
    """
    if apart < FEW or equal:
        p = max(p, 2.0 * 0.5**apart)
    return min(1.0, p)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The mean of `ours - theirs`, value by value, with the interval and the p value of the paired
    t test.

    Measured on the same prompts, this interval is narrower than those of the two means: prompts
    differ more than policies do. For scores of 0 or 1, use `paired_rates`.

    Args:
        ours: One value per prompt.
        theirs: Those of the other policy, in the same order.

    Raises:
        ValueError: If the numbers of values differ.
    """
    found = differences(ours, theirs)
    # No chance: scores that are not binary tie if answers are equal
    if len(found) > 1 and not any(found):
        return {"mean": 0.0, "low": 0.0, "high": 0.0, "n": len(found), "p": 1.0}
    return {**estimate(found), "p": p_value(found)}


def holm(p_values: Mapping[Any, float], headline: Any = None) -> dict[Any, float]:
    """Adjusted p values: where one is below a level, a claim; any false claim at all is made no
    more often than that.

    p_values: of all comparisons, by whatever names them. headline: the one that was named before
    the run. It has most of the error, so that it hardly loses power to the others, which share the
    rest; by default, all have the same.

    Holm 1979, "A simple sequentially rejective multiple test procedure", with the weights of its
    section 4: whatever is rejected passes on its share, so that the others have all of it where the
    headline is clear.
    """
    others = max(1, len(p_values) - 1)
    weights = {name: HEADLINE if name == headline else (1 - HEADLINE) / others for name in p_values}
    left, least, found = math.fsum(weights.values()), 0.0, dict[Any, float]()
    for name in sorted(p_values, key=lambda name: p_values[name] / weights[name]):
        least = found[name] = max(least, min(1.0, p_values[name] * left / weights[name]))
        left -= weights[name]
    return found


def levels_of(scores: Sequence[float]) -> tuple[float, float] | None:
    """The two levels of binary scores: (0, 1), (-1, 1) or (-1, 0); None if there are other scores,
    or none.

    Zeros alone are misses. If they are negative zeros, as a negative scale makes them, a hit would
    be -1.
    """
    different = set(scores)
    if different == {0.0} and all(math.copysign(1.0, score) < 0 for score in scores):
        return (-1.0, 0.0)
    known = ((0.0, 1.0), (-1.0, 1.0), (-1.0, 0.0))
    return next((levels for levels in known if different and different <= set(levels)), None)


def rate(
    values: Sequence[float], samples: int = 1, levels: tuple[float, float] = (0.0, 1.0)
) -> Estimate:
    """The mean of binary scores with the interval of Agresti and Coull; near its bounds a t
    interval is too narrow.

    values: the average of each prompt's samples. samples: how many each prompt has. levels: the two
    possible scores.

    Agresti and Coull 1998, "Approximate is better than 'exact' for interval estimation of binomial
    proportions", which contains Wilson's interval and covers rare scores better. Samples of a
    prompt resemble each other: they count as the number of independent samples whose mean varies as
    much (Franco et al. 2019, "Comparative study of confidence intervals for proportions in complex
    sample surveys"). If all prompts agree, a prompt is one sample.
    """
    import numpy as np
    from scipy import special

    n, (bottom, top) = len(values), levels
    if n == 0:
        return without_interval(None, 0)
    shares = (np.asarray(values, dtype=float) - bottom) / (top - bottom)
    middle = float(shares.mean())
    independent, quantile = float(n), _quantile()
    if samples > 1 and n > 1:
        quantile = float(special.stdtrit(n - 1, (1 + CONFIDENCE) / 2))
        if variance := float(shares.var(ddof=1)):
            independent = min(n * middle * (1 - middle) / variance, float(n * samples))
    trials = independent + quantile**2
    center = (middle * independent + quantile**2 / 2) / trials
    half = quantile * math.sqrt(center * (1 - center) / trials)
    low, high = max(0.0, center - half), min(1.0, center + half)
    width = top - bottom
    return {
        "mean": bottom + middle * width,
        "low": bottom + low * width,
        "high": bottom + high * width,
        "n": n,
    }


def paired_rates(
    ours: Sequence[float],
    theirs: Sequence[float],
    samples: int = 1,
    levels: tuple[float, float] = (0.0, 1.0),
) -> Difference:
    """The mean of `ours - theirs` for binary scores, with Bonett and Price's interval; arguments as
    in `rate`.

    Bonett and Price 2012, "Adjusted Wald confidence interval for a difference of binomial
    proportions based on paired data": two prompts are added, one won and one lost, so that equal
    results do not look certain. With several samples per prompt, differences are smaller, and so
    are those of the added prompts: 1 / sqrt(samples) of their variance.
    """
    width = levels[1] - levels[0]
    differences = [(a - b) / width for a, b in zip(ours, theirs, strict=True)]
    n = len(differences)
    if n == 0:
        return {**without_interval(None, 0), "p": 1.0}
    middle = math.fsum(differences) / (n + 2)
    squares = math.fsum([d * d for d in differences]) + 2 / math.sqrt(samples)
    half = _quantile() * math.sqrt((squares / (n + 2) - middle**2) / (n + 2))
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    found: Estimate = {
        "mean": mean(differences) * width,
        "low": low * width,
        "high": high * width,
        "n": n,
    }
    return {**found, "p": p_value(differences)}


def at_equal_length(
    differences: Sequence[float],
    longer: Sequence[float],
    lengths: Sequence[float] | None = None,
    units: Sequence[Any] | None = None,
) -> EqualLength | None:
    """The difference expected between answers of equal length, with its 95% interval; None if
    lengths hardly overlap.

    differences: paired differences in reward. longer: paired differences in length, in tokens.
    lengths: of the baseline's answers, in tokens; they make the estimate sharper. units: see
    `clustered`.

    A reward may grow with length in any way: a line through all prompts, or the tanh of
    length-controlled AlpacaEval (Dubois et al. 2024, arXiv:2404.04475), mistakes a curve for a
    difference in quality. Therefore only prompts with similar lengths count, in a local regression
    (Cleveland 1979, "Robust locally weighted regression and smoothing scatterplots", section 2) at
    equal length: on the differences of the lengths and of their logarithms, weighted by the latter.
    The variance is jackknifed (HC3; MacKinnon and White 1985). There must be several prompts on
    both sides of equal length. Units are clustered (Liang and Zeger 1986).
    """
    import numpy as np
    from scipy import special

    gap, reward = np.asarray(longer, dtype=float), np.asarray(differences, dtype=float)
    columns = [gap]
    bandwidth = NEAR_TOKENS * (150 / max(150, len(gap))) ** (1 / 3)
    if lengths is not None:
        theirs = np.maximum(np.asarray(lengths, dtype=float), 1.0)
        columns.append(np.log(np.maximum(theirs + gap, 1.0) / theirs))
        bandwidth = NEAR_RATIO
    distance = columns[-1]
    if len(gap) < 2 * SIDE or not distance.std():
        return None
    # Tricube
    weights = np.maximum(0.0, 1 - np.abs(distance / (bandwidth * distance.std())) ** 3) ** 3
    near = weights > 0
    if min((distance[near] <= 0).sum(), (distance[near] >= 0).sum()) < SIDE:
        return None
    design = np.stack(
        [np.ones_like(gap), *(column / (column.std() or 1.0) for column in columns)], axis=1
    )[near]
    weighted, kept = design.T * weights[near], reward[near]
    # [coefficients, prompts]
    smoother = np.linalg.pinv(weighted @ design, rcond=1e-10, hermitian=True) @ weighted
    leverage = np.einsum("pc,cp->p", design, smoother)
    residuals = (kept - design @ (smoother @ kept)) / np.clip(1 - leverage, 0.05, None)
    row = smoother[0]
    independent = float((row**2).sum() ** 2 / (row**4).sum())  # prompts, by how evenly they count
    if independent < LEAST:
        return None
    errors = np.zeros_like(gap)  # what each prompt adds to the error of the mean
    errors[near] = row * residuals
    sums = np.array(_sums(errors.tolist(), units or [None] * len(errors)))
    freedom = max(1.0, min(independent - len(columns), float(np.count_nonzero(sums) - 1)))
    half = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(float((sums**2).sum()))
    if half <= 1e-9 * float(np.abs(kept).max()):  # no spread, so no interval
        return None
    middle = float(row @ kept)
    return {
        "mean": middle,
        "low": middle - half,
        "high": middle + half,
        "n": len(errors),
        "near": int(near.sum()),
    }


def bought_with_length(difference: Mapping[str, Any], equal: Mapping[str, Any] | None) -> bool:
    """Whether most of a gain disappears between answers of equal length.

    difference: an estimate that is clearly above 0. equal: the same at equal length, which must
    keep less than half, and must be clearly below the whole.
    """
    if equal is None or difference["low"] is None or difference["low"] <= 0:
        return False
    return bool(equal["mean"] < difference["mean"] / 2 and equal["high"] < difference["mean"])


def _quantile() -> float:
    """How many standard errors the interval of a normal variable reaches to each side."""
    from scipy import special

    return float(special.ndtri((1 + CONFIDENCE) / 2))


def share(
    hits: float, n: int, independent: float | None = None, quantile: float | None = None
) -> Share | None:
    """A proportion with its Wilson interval; None without a trial.

    Wilson 1927, "Probable inference, the law of succession, and statistical inference". The
    interval is valid for few trials and for proportions near 0 and 1. A tie may count as half a
    hit: ties vary less than hits and misses, so the interval is then too wide, never too narrow.
    (scipy's version accepts integers only.)

    independent: trials whose mean varies as much, if some of the n depend on each other. quantile:
    of the distribution of their mean; default: of a normal one.
    """
    if n == 0:
        return None
    p, trials, z = hits / n, independent or n, quantile or _quantile()
    shrink = 1 + z * z / trials
    middle = (p + z * z / (2 * trials)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / trials + (z / (2 * trials)) ** 2)
    low, high = middle - half, middle + half
    if p == 0:
        low = 0.0  # exact, unlike the formula
    if p == 1:
        high = 1.0
    return {"mean": p, "low": low, "high": high, "n": n}


def clustered_share(cases: Sequence[float], units: Sequence[Any]) -> Share | None:
    """A proportion of cases, of which those of a unit depend on each other, see `clustered`; None
    without a case.

    As many independent cases as have a mean that varies as much are in `share` (Franco et al. 2019,
    see `rate`). If all cases are alike, a unit is one case. n: cases.
    """
    from scipy import special

    if not cases:
        return None
    n, p, quantile = len(cases), mean(cases), None
    sums = _sums([case - p for case in cases], units)
    independent = float(len(sums))
    if n > len(sums) > 1:
        rest = math.fsum(total**2 for total in sums)
        if rest > 1e-12:
            quantile = float(special.stdtrit(len(sums) - 1, (1 + CONFIDENCE) / 2))
            variance = len(sums) / (len(sums) - 1) * rest / n**2
            independent = min(float(n), max(1.0, p * (1 - p) / variance))
    return share(math.fsum(cases), n, independent, quantile)


def interval_text(
    estimate: Mapping[str, Any] | None,
    *,
    sign: bool = False,
    percent: bool = False,
    digits: int | None = None,
) -> str:
    """`0.42 [0.21, 0.63]`, with as many digits as the interval justifies; `-` without a mean.

    sign: it is a difference, and those of shares are in points. digits: decimals.
    """
    known = estimate or {}
    mean, low, high = map(known.get, ("mean", "low", "high"))
    if mean is None:
        return "-"
    scale, unit = (100, " points" if sign else "%") if percent else (1, "")
    digits = 0 if percent else decimals(known) if digits is None else digits
    if sign and 0 < abs(mean * scale) < 0.5:
        digits = max(1, digits)  # or it would read as no difference
    # z: a mean of -0.001 reads as 0, not as -0.
    text = f"{mean * scale:{'+' if sign else ''}z.{digits}f}{unit}"
    if low is None or high is None:
        return text
    return f"{text} [{low * scale:z.{digits}f}, {high * scale:z.{digits}f}]"


def decimals(estimate: Mapping[str, Any]) -> int:
    """Decimals that show two digits of half the interval's width, or one if the first digit is
    above 2.
    """
    low, high = estimate.get("low"), estimate.get("high")
    width = 0.0 if low is None or high is None else high - low
    if not math.isfinite(width) or width <= 0:
        return 2
    digits = math.log10(width / 2)
    return min(6, max(0, (0 if digits % 1 > math.log10(2.95) else 1) - math.floor(digits)))


# Percent agreement and Krippendorff's alpha


class Agreement(TypedDict):
    """How far raters agree. same: the share of equal ratings; alpha: Krippendorff's. n: units with
    two ratings.
    """

    same: Estimate
    alpha: Estimate


def agreement_of(
    units: Sequence[Sequence[Hashable]], *, clusters: Sequence[Hashable] = (), seed: int = 0
) -> Agreement:
    """Percent agreement and Krippendorff's alpha, each with its 95% interval.

    Alpha is agreement of any number of raters beyond chance, for nominal data with missing ratings
    (Krippendorff 2011, "Computing Krippendorff's alpha-reliability"): 1 is perfect, 0 is chance,
    and negative values are worse. Units with fewer than two ratings are left out. It is None if all
    ratings are equal, so that chance could never disagree, or if no unit has two.

    A unit is a rated item, such as a prompt with two responses. Ratings are any hashable values, of
    which only the equality matters; None or NaN is a missing rating.

    Every two ratings of a unit count once in the percent agreement; its interval is that of
    `clustered_share`. InstructGPT's labelers agreed on 72.6% of comparisons (Ouyang et al. 2022,
    arXiv:2203.02155, section 3.4). The interval of alpha has the percentiles of 2,000 bootstrap
    draws of clusters (Efron 1979, "Bootstrap methods: another look at the jackknife"); there is
    none if alpha is not defined for nearly all of them.

    Args:
        units: The ratings of each unit, in any order.
        clusters: A name for each unit; units with the same one depend on each other. Default: none
            do.
        seed: The seed of the bootstrap.
    """
    import numpy as np

    shared: dict[Hashable, list[list[Hashable]]] = defaultdict(list)
    for name, unit in zip(clusters or range(len(units)), units, strict=True):
        # Only NaN differs from itself.
        ratings = [rating for rating in unit if rating is not None and rating == rating]
        if len(ratings) > 1:
            shared[name].append(ratings)
    rated = [*chain.from_iterable(shared.values())]
    values = [*dict.fromkeys(chain.from_iterable(rated))]
    alike, where = list[float](), list[int]()
    agreeing = np.zeros(len(shared))  # by cluster, see `_alpha`
    totals = np.zeros((len(shared), len(values)))
    for number, those in enumerate(shared.values()):
        for unit in those:
            alike += [float(one == other) for one, other in combinations(unit, 2)]
            where += [number] * (len(alike) - len(where))
            counts = np.array(list(map(unit.count, values)))
            agreeing[number] += counts @ (counts - 1) / (len(unit) - 1)
            totals[number] += counts
    same = without_interval(None, len(rated))
    if share := clustered_share(alike, where):
        same = {**share, "n": len(rated)}
    mean = _alpha(agreeing.sum(), totals.sum(0))
    alpha = without_interval(mean, len(rated))
    n = len(shared)
    if mean is not None and n > 1:
        draws = seeds.stream(seed, "agreement", n).integers(0, n, size=(REPETITIONS, n))
        spread = []
        for drawn in draws:
            value = _alpha(agreeing[drawn].sum(), totals[drawn].sum(0))
            if value is not None:
                spread.append(value)
        if len(spread) >= 0.95 * REPETITIONS:
            tail = (1 - CONFIDENCE) / 2
            alpha["low"], alpha["high"] = np.quantile(spread, [tail, 1 - tail]).tolist()
    return {"same": same, "alpha": alpha}


def agreement_text(agreed: Mapping[str, Any], shared: int) -> str:
    """How far raters agree, in words. shared: items with ratings of several, as `agreed` counts
    them.
    """
    same, alpha = agreed["same"], agreed["alpha"]
    text = f"{interval_text({'mean': same['mean']}, percent=True)} of labels agree"
    if alpha["mean"] is not None:
        text += f", alpha {interval_text(alpha)}"
    return f"{text} over {shared} items" + ": too few items to say" * (shared < FEW_SHARED)


def _alpha(agreeing: float, totals: NDArray[np.float64]) -> float | None:
    """Alpha from the ratings that agree with another one of their unit, weighted by 1 / (the unit's
    ratings - 1), and from how often each value was rated.
    """
    n = totals.sum()
    differing = n * (n - 1) - totals @ (totals - 1)  # pairs of all ratings that chance would make
    if differing <= 0:
        return None
    return float(1 - (n - agreeing) * (n - 1) / differing)
