"""Differences of policies over prompts and seeds, both of which are drawn.

`values[..., prompts, seeds]` are differences of two policies on the same prompts with the same
seeds. Their mean varies with both: two crossed random effects (Clark 1973, "The
language-as-fixed-effect fallacy"; Westfall, Judd and Kenny 2014, "Statistical power and optimal
design in experiments in which samples of participants respond to samples of stimuli"). A bootstrap
over prompts and seeds is too narrow for fewer than ten seeds (`python -m benchmarks.tables`).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
LEAST = 1e-12  # variance, whose logarithm is needed
POWER = 0.8
TAIL = 0.025
# Degrees of freedom at most, times those of the seeds: where two seeds agree by chance, an interval
# without this covers 88% (`python -m benchmarks.tables`)
MOST = 3
SHARED = (
    0.25  # correlation of the squares of two differences from one baseline: that of these, squared
)


class Parts(NamedTuple):
    """The mean of differences, and what it varies with: mean squares [...] as in an analysis of
    variance.

    prompts, seeds, rest: of the means of prompts, of the means of seeds, and of what neither
    explains; the first two are the rest and more. size: of the prompts. free, seed_free: degrees of
    freedom of the prompts and the seeds.
    """

    mean: Array
    prompts: Array
    seeds: Array
    rest: Array
    size: int
    runs: int
    free: int
    seed_free: Any


def parts(values: Array) -> Parts:
    """The parts of differences [..., prompts, seeds]."""
    count, runs = values.shape[-2:]
    mean, by_seed, by_prompt = values.mean((-2, -1)), values.mean(-2), values.mean(-1)
    apart = by_prompt - mean[..., None]
    rest = values - by_prompt[..., None] - by_seed[..., None, :] + mean[..., None, None]
    free = max(1, count - 1)
    return Parts(
        mean,
        runs * (apart**2).sum(-1) / free,
        count * ((by_seed - mean[..., None]) ** 2).sum(-1) / max(1, runs - 1),
        (rest**2).sum((-2, -1)) / (free * max(1, runs - 1)),
        count,
        runs,
        free,
        runs - 1.0,
    )


def moderated(squares: Array, free: float) -> tuple[Array, Array]:
    """Mean squares [..., cells], each drawn up toward that of all, and their degrees of freedom
    [..., 1].

    With few seeds one square says little, and all say how much one may differ from another (Smyth
    2004, "Linear models and empirical Bayes methods for assessing differential expression in
    microarray experiments", sections 3 and 6.2). Two things differ from it. A square that is larger
    than most stays as it is: a method may vary more than others. And all cells are compared with
    one baseline, so that their squares correlate: together they know less than as many independent
    ones.
    """
    cells = squares.shape[-1]
    if cells < 2:
        return squares, np.full((*squares.shape[:-1], 1), free)
    logs = np.log(np.maximum(squares, LEAST)) - special.digamma(free / 2) + math.log(free / 2)
    excess = logs.var(-1, ddof=1, keepdims=True) - special.polygamma(1, free / 2)
    prior = np.full(excess.shape, float(free * (cells - 1)))
    apart = excess > 1e-6
    prior[apart] = np.minimum(prior[apart], 2 * _inverse_trigamma(excess[apart]))
    typical = np.exp(logs.mean(-1, keepdims=True) + special.digamma(prior / 2) - np.log(prior / 2))
    prior = np.minimum(prior, free * cells / (1 + (cells - 1) * SHARED))
    drawn = (prior * typical + free * squares) / (prior + free)
    return np.maximum(drawn, squares), prior + free


def _inverse_trigamma(values: Array) -> Array:
    """Smyth 2004, appendix."""
    found = 0.5 + 1 / values
    for _ in range(20):
        at = special.polygamma(1, found)
        found = found + at * (1 - at / values) / special.polygamma(2, found)
    return found


class Spread(NamedTuple):
    """The variance of a mean, and its degrees of freedom."""

    variance: Array
    free: Array


def spread(found: Parts) -> Spread:
    """The variance of the mean, with Satterthwaite's degrees of freedom."""
    whole = found.prompts + found.seeds - found.rest
    whole = np.maximum(np.maximum(whole, LEAST), np.maximum(found.prompts, found.seeds))
    if found.runs == 1:
        return Spread(whole / found.size, np.full(whole.shape, found.free))
    parts = (found.prompts, found.free), (found.seeds, found.seed_free)
    below = sum(square**2 / free for square, free in parts)
    below += found.rest**2 / (found.free * (found.runs - 1))
    most = np.minimum(MOST * found.seed_free, found.free)
    degrees = np.clip(
        whole**2 / np.maximum(below, LEAST**2), np.minimum(found.seed_free, most), most
    )
    return Spread(whole / (found.size * found.runs), degrees)


def half_width(found: Spread) -> Array:
    """Half of the 95% interval of the mean."""
    return np.asarray(special.stdtrit(found.free, 0.975) * np.sqrt(found.variance))


class Interval(NamedTuple):
    """The middle and half the width of an interval of a mean difference, the spread that it rests
    on, and the parts.
    """

    middle: Array
    half: Array
    spread: Spread
    parts: Parts


def intervals(gaps: Array, of_shares: bool) -> Interval:
    """The 95% intervals of the mean differences [..., cells, prompts, seeds] of cells from one
    other. What seeds add is estimated from all cells.

    of_shares: gets Bonett and Price's two pseudo-prompts in every seed, one won and one lost, and
    is not narrower than without seeds (Bonett and Price 2012; see `statistics.paired_rates`).
    """
    *_, count, runs = gaps.shape
    drawn = gaps
    if of_shares:
        one = np.ones((*gaps.shape[:-2], 1, runs))
        drawn = np.concatenate([gaps, one, -one], -2)
    found = parts(drawn)
    if runs > 1:
        squares, free = moderated(found.seeds, runs - 1)
        found = found._replace(seeds=squares, seed_free=free)
    every = spread(found)
    half = half_width(every)
    if of_shares:
        by_prompt = gaps.mean(-1)
        middle = by_prompt.sum(-1) / (count + 2)
        square = ((by_prompt**2).sum(-1) + 2 / math.sqrt(runs)) / (count + 2)
        normal = float(special.ndtri(0.975))
        half = np.maximum(half, normal * np.sqrt((square - middle**2) / (count + 2)))
    return Interval(found.mean, half, every, found)


def one_sided(mean: Array, found: Spread) -> tuple[Array, Array]:
    """The p values of the mean above 0 and below 0."""
    t = mean / np.sqrt(found.variance)
    return np.asarray(special.stdtr(found.free, -t)), np.asarray(special.stdtr(found.free, t))


def visible(found: Parts, level: float) -> tuple[float, float, float]:
    """The smallest difference that a one-sided test at a level sees with 80% power: the least, the
    most likely and the most that it may be, because few seeds say little of what seeds add.

    found: parts [cells] with the moderated squares of their seeds, which are pooled.
    """
    prompts, seeds, rest = (
        np.asarray(one.mean()) for one in (found.prompts, found.seeds, found.rest)
    )
    free = np.asarray(np.mean(found.seed_free))
    ends = list[float]()
    for tail in (TAIL, 0.5, 1 - TAIL):
        most = np.maximum(rest, seeds * free / special.chdtri(free, tail))
        pooled = found._replace(prompts=prompts, seeds=most, rest=rest, seed_free=free)
        ends.append(seen(spread(pooled), level))
    least, likely, most = ends
    return least, likely, most


def seen(found: Spread, level: float) -> float:
    """The difference that a test sees with 80% power: the noncentral t."""
    free, error = float(found.free), math.sqrt(float(found.variance))
    critical = float(special.stdtrit(free, 1 - level))
    low, high = 0.0, critical + 12.0
    for _ in range(60):
        middle = (low + high) / 2
        # `scipy.stats.nct`, which takes half a second to load
        seen = 1 - float(special.nctdtr(free, middle, critical))
        low, high = (low, middle) if seen > POWER else (middle, high)
    return high * error
