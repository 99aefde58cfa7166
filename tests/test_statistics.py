"""Intervals and p values by their papers' formulas, and a correction for length that claims nothing
which is not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkit.evaluation import statistics
from alignkit_plugins.compare.scores import Measure, Score, Scores, compare
from tests.rows import cells

Array = Any
equal: Any = statistics.at_equal_length

# Each number was worked out by other means than the code's: t tests and t intervals by scipy.stats;
# `rate` (Agresti and Coull 1998) as p of m trials, z^2/2 hits and z^2/2 misses, where m is n, or with
# samples p (1 - p) / (the variance of the mean), and at most n times the samples; `paired_rates`
# (Bonett and Price 2012) as the variance of differences and two more, at +-1 for one sample; `share`
# (Wilson 1927) as the roots of (p - q)^2 = z^2 q (1 - q) / n; `holm` as the closed test: the largest
# of min(p / weight), with weights that sum to 1, over all sets of hypotheses that have this one; the
# sign test as 2 * 0.5^n. `bought_with_length`: less than half remains, and not all of it may remain.
NUMBERS = """
rate | [[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]] | [0.607675, 0.103338, 0.3, 10]
rate | [[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]] | [0.375333, 0, 0.083333, 12]
rate | [[0, 0, 0], 1, [-1, 0]] | [0, -0.617472, 0.0, 3]
rate | [[0.5, 0.5, 0.5, 0.5, 0.25], 4] | [0.726947, 0.200873, 0.45, 5]
rate | [[1, 1, 1, 1, 1], 1] | [1.0, 0.510945, 1.0, 5]
rate | [[0.5, 0.25, 0.75, 0.5, 1, 0.5], 4] | [0.802849, 0.325152, 0.583333, 6]
rate | [[0.5, 0.5, 0.5, 0.5, 0.5], 4] | [0.889412, 0.110588, 0.5, 5]
rate | [[1, 0, 1, 0, 0], 4] | [0.87059, 0.061085, 0.4, 5]
rate | [[0.5], 4] | [0.945379, 0.054621, 0.5, 1]
rate | [[1, -1, 1], 1, [-1, 1]] | [0.887451, -0.595115, 0.333333, 3]
rate | [[]] | [null, null, null, 0]
paired_rates | [[1, 1, 1, 0, 0], [0, 0, 1, 1, 0]] | [0.759936, -0.474221, 0.2, 5, 0.621308]
paired_rates | [[0.5, 1, 0.75], [0.25, 1, 0], 4] | [0.667935, -0.267935, 0.333333, 3, 0.5]
paired_rates | [[1, 1, -1], [-1, 1, -1], 1, [-1, 1]] | [1.711859, -0.911859, 0.666667, 3, 1.0]
paired_rates | [[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0]] | [1.0, 0.291655, 1.0, 6, 0.03125]
paired_rates | [[1, 1, 0, 1], [0, 0, 0, 0]] | [1.0, -0.111126, 0.75, 4, 0.25]
paired_rates | [[], []] | [null, null, null, 0, 1.0]
paired_rates | [[0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]] | [-0.291655, -1, -1.0, 6, 0.03125]
estimate | [[1, 2, 4]] | [6.127916, -1.46125, 2.333333, 3]
estimate | [[3.5, 3.5]] | [null, null, 3.5, 2]
estimate | [[]] | [null, null, null, 0]
paired_difference | [[0.3, 2, 4.4, 1], [0, 2.1, 4, 0.5]] | [0.693485, -0.143485, 0.275, 4, 0.12762]
paired_difference | [[0.30000000000000004, 2], [0.3, 2]] | [0.0, 0.0, 0.0, 2, 1.0]
paired_difference | [[1e-17, 1e-17, 1e-17, 1e-17, 1e-17, 1e-17, 1e-17], [0, 0, 0, 0, 0, 0, 0]] | [0.0, 0.0, 0.0, 7, 1.0]
paired_difference | [[1], [1]] | [null, null, 0.0, 1, 1.0]
paired_difference | [[], []] | [null, null, null, 0, 1.0]
p_value | [[0.3, -0.1, 0.4, 0.2, 0.0, 0.5, 0.1, 0.3]] | 0.021125
p_value | [[1, 1, 1, 1, 1, 1, 1, 1]] | 0.007812
p_value | [[0, 0]] | 1.0
p_value | [[1.0, 1.1, 0.9]] | 0.25
p_value | [[1.0, 1.1, 0.9, 1.0]] | 0.000149
p_value | [[1.0, 0.0, 0.0]] | 1
holm | [{"headline": 0.04, "a": 0.001, "b": 0.5}, "headline"] | [0.04, 0.5, 0.041053]
holm | [{"headline": 0.03}, "headline"] | [0.03]
holm | [{"headline": 0.5, "a": 0.02, "b": 0.021}, "headline"] | [0.526316, 0.526316, 0.526316]
holm | [{"headline": 0.2, "a": 0.03}, "headline"] | [0.210526, 0.210526]
holm | [{"headline": 0.99, "a": 0.9}, "headline"] | [1.0, 1.0]
holm | [{"a": 0.004, "b": 0.007, "c": 1.0, "d": 0.4, "e": 0.8}] | [0.02, 0.028, 1.0, 1.0, 1.0]
share | [3, 10] | [0.603222, 0.107791, 0.3, 10]
share | [0, 10] | [0.277533, 0.0, 0.0, 10]
share | [10, 10] | [1.0, 0.722467, 1.0, 10]
share | [3, 10, 4] | [0.733354, 0.062603, 0.3, 10]
share | [0, 0] | null
share | [2.5, 4] | [0.908101, 0.219427, 0.625, 4]
share | [1, 40] | [0.128814, 0.004427, 0.025, 40]
equal | [1e-7, 0] | false
equal | [1e12, 1000000000000.1] | true
levels_of | [[0, 1]] | [0.0, 1.0]
levels_of | [[1]] | [0.0, 1.0]
levels_of | [[0]] | [0.0, 1.0]
levels_of | [[0, -0.0]] | [0.0, 1.0]
levels_of | [[-1, 1]] | [-1.0, 1.0]
levels_of | [[-1]] | [-1.0, 1.0]
levels_of | [[-1, 0]] | [-1.0, 0.0]
levels_of | [[-0.0, -0.0]] | [-1.0, 0.0]
levels_of | [[0, 0.5]] | null
levels_of | [[]] | null
levels_of | [[-1, 0, 1]] | null
bought_with_length | [{"mean": 1.0, "low": 0.5}, {"mean": 0.1, "high": 0.4}] | true
bought_with_length | [{"mean": 1.0, "low": 0.5}, {"mean": 0.6, "high": 0.9}] | false
bought_with_length | [{"mean": 1.0, "low": 0.5}, {"mean": 0.1, "high": 1.2}] | false
bought_with_length | [{"mean": 1.0, "low": -0.5}, {"mean": 0.1, "high": 0.4}] | false
bought_with_length | [{"mean": 1.0, "low": 0.0}, {"mean": 0.1, "high": 0.4}] | false
bought_with_length | [{"mean": 1.0, "low": 0.5}, null] | false
bought_with_length | [{"mean": 1.0, "low": null}, {"mean": 0.1, "high": 0.4}] | false
"""
# The variance of a mean of clusters is K / (K - 1) * sum (sum of a cluster - its mean part)^2 / n^2:
# `clustered` gives K values that have it, `clustered_p` is scipy's t test of them, and
# `clustered_share` Wilson's interval of p (1 - p) / variance trials, at most n, with the quantile of
# K - 1 degrees of freedom: 6 passages of 10 prompts have the true share in 88% with a normal one.
CLUSTERS = """
clustered | [[1, 1, 0, 0, 0.5, 0.5], ["a", "a", "b", "b", "c", "c"]] | [1.0, 0.0, 0.5]
clustered | [[1, 1, 1, 0], ["a", "a", "a", null]] | [1.125, 0.375]
clustered | [[1, 2], [null, null]] | [1, 2]
clustered | [[], []] | []
clustered_p | [[1, 1, 1, 0], [0, 1, 2, 3]] | 0.25
clustered_p | [[1, 1, 1, 0.5, -0.5], [0, 1, 2, 3, 3]] | 0.25
clustered_p | [[1, 1, 1, 0, 1], [0, 1, 2, 3, 3]] | 0.015392
clustered_p | [[1, 1, 0.5, 0, 1, 0.7, 0.9], [null, null, null, null, null, null, null]] | 0.002076
clustered_share | [[1, 1, 1, 0, 0, 0, 1, 0, 1, 1, 1, 1], [0,0,0,1,1,1,2,2,2,3,3,3]] | [0.963818, 0.130558, 0.666667, 12]
clustered_share | [[1, 0, 1, 1], [0, null, 2, null]] | [0.954413, 0.300642, 0.75, 4]
clustered_share | [[1, 0, 1, 0, 1, 1, 1, 0], [0, 0, 1, 1, 2, 2, 3, 3]] | [0.923702, 0.186625, 0.625, 8]
clustered_share | [[1, 1, 0, 0.5, 0, 0], [0, 0, 0, null, 2, 2]] | [0.929466, 0.037274, 0.416667, 6]
clustered_share | [[1, 1, 1], [0, 0, 2]] | [1.0, 0.34238, 1.0, 3]
clustered_share | [[], []] | null
"""
# What differs between two policies at 20 prompts: the reward, and the length in tokens
PAIRED: dict[str, list[float]] = json.loads("""
{"gain": [0.9, 0.2, 1.6, -0.7, 1.1, 0.8, 0.1, 0.6, -0.2, 1.7, 0.3, 1.3, 0.1, 0.5, -0.9, 0.4, 0.7, 0, 1, 0.3],
 "more": [3, -4, 10, -12, 5, 8, -6, 2, -9, 15, -3, 7, -5, 1, -20, 4, 2, -2, 3, -1],
 "theirs": [20, 30, 25, 40, 35, 50, 22, 28, 33, 45, 38, 27, 31, 24, 60, 41, 36, 29, 52, 26],
 "passage": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9],
 "longer": [3, 4, 10, 12, 5, 8, 6, 2, 9, 15, 3, 7, 5, 1, 20, 4, 2, 2, 3, 1],
 "shorter": [-3, -4, -10, -12, -5, -8, -6, -2, -9, -15, -3, -7, -5, -1, -20, -4, -2, -2, -3, -1],
 "four": [3, 4, 10, 12, 5, 8, 6, 2, 9, 15, 3, 7, 5, 1, 20, 4, -2, -2, -3, -1],
 "fewer": [-3, -4, -10, -12, -5, -8, -6, -2, -9, -15, -3, -7, -5, -1, -20, -4, 2, 2, 3, 1],
 "flat": [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
 "none": [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2],
 "same": [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5],
 "either": [1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1],
 "few": [0.9, 0.2, 1.6, -0.7, 1.1, 0.8, 0.1, 0.6, -0.2],
 "least": [3, -4, 10, -12, 5, 8, -6, 2, -9],
 "zeros": [0, 0, 0, 0, 0, 0, 9, -9, 9, -9, 9, -9, 9, -9],
 "pairs": [0, 0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 10],
 "five": [0, 0, 0, 0, 0, 9, -9, 9, -9, 9, -9, 9, -9],
 "empty": [0, 30, 25, 40, 35, 50, 22, 28, 33, 45, 38, 27, 31, 24, 60, 41, 36, 29, 52, 26]}
""")
# By weighted least squares in numpy (QR), with tricube weights (Cleveland 1979), HC3 of its hat
# matrix (MacKinnon and White 1985), and scipy's t quantile. Of six prompts at equal length, with all
# others too far, it is the plain mean of `gain`, and five are too few.
EQUAL = """
gain more theirs | [0.603013, 0.350205, 0.476609, 20, 15]
gain more theirs passage | [0.587805, 0.365412, 0.476609, 20, 15]
gain*2 more*2 | [0.463915, 0.327275, 0.395595, 40, 16]
gain*9 more*9 | [0.408773, 0.365544, 0.387159, 180, 72]
gain more empty | [0.603829, 0.373983, 0.488906, 20, 19]
gain zeros | [1.571832, -0.271832, 0.65, 14, 6]
gain zeros - pairs | [1.293962, 0.006038, 0.65, 14, 6]
gain five | null
gain longer theirs | null
gain shorter theirs | null
gain four theirs | null
gain fewer theirs | null
flat more theirs | null
gain shorter | null
gain none theirs | null
few least | null
few zeros | null
same either | null
"""


def plain(found: Any) -> Any:
    """Six decimals of the values, of a dictionary in the order of its keys: high, low, mean, n,
    and near or p.
    """
    values = [found[key] for key in sorted(found)] if isinstance(found, dict) else found
    return json.loads(json.dumps(values), parse_float=lambda text: round(float(text), 6))


@pytest.mark.parametrize(("function", "given", "expected"), cells(NUMBERS))
def test_numbers_are_those_of_the_formulas(function: str, given: str, expected: str) -> None:
    found = getattr(statistics, function)(*json.loads(given))
    if function == "share" and found and found["mean"] in (0, 1):
        assert found["mean"] in (found["low"], found["high"])  # exactly
    assert plain(found) == json.loads(expected)


@pytest.mark.silent_bug(
    "statistics: rows that belong together",
    "Questions about one passage count as independent, and intervals are up to three times too "
    "narrow.",
    "With `group` in the data of `evaluate`, intervals and verdicts are over groups.",
    "EvolvingLMMs-Lab/lmms-eval#989",
)
@pytest.mark.parametrize(("function", "given", "expected"), cells(CLUSTERS))
def test_values_of_a_cluster_count_as_far_as_they_differ(
    function: str, given: str, expected: str
) -> None:
    """The mean is that of all values, with the variance of sums; a unit that ties is no evidence,
    though the mean of all shifts it.
    """
    test_numbers_are_those_of_the_formulas(function, given, expected)


@pytest.mark.silent_bug(
    "statistics: rows that belong together",
    "A difference at equal length ignores what rows share.",
    "Each prompt twice has the interval of each prompt once, if both rows are in one group.",
    "EvolvingLMMs-Lab/lmms-eval#989",
)
@pytest.mark.parametrize(("columns", "expected"), cells(EQUAL))
def test_the_difference_at_equal_length(columns: str, expected: str) -> None:
    """None where lengths hardly overlap or do not vary, and of few prompts, or without spread."""
    names = [name.partition("*") for name in columns.split()]
    several = [PAIRED.get(name, []) * int(times or 1) for name, _, times in names]
    count = min(filter(None, map(len, several)))
    values: list[Any] = [column[:count] or None for column in several]
    assert plain(equal(*values)) == json.loads(expected)
    if columns == "gain more theirs passage":  # a row of a report says the same
        gain, more, theirs, units = values
        ours = [one + longer for one, longer in zip(theirs, more, strict=True)]
        scores = Scores({"r": Measure("reward")})
        for place, unit in enumerate(units):
            for policy, reward, length in (("sft", 0.0, theirs), ("align", gain[place], ours)):
                one = Score("r", policy, str(place), reward, unit, length=length[place])
                scores.rows.append(one)
        _, row = compare(scores, "sft")
        assert plain(row.equal_length) == json.loads(expected)
    if columns == "gain more theirs":  # twice as many rows say nothing new within groups
        twice = [PAIRED[name] * 2 for name in columns.split()]
        alone, grouped = equal(*twice), equal(*twice, [*range(20)] * 2)
        width = grouped["high"] - grouped["low"]
        assert width == pytest.approx(2**0.5 * (alone["high"] - alone["low"]), rel=0.1)


SHOWN = """
    0   0     0.089 |   | 0.00 [0.00, 0.09]
    3.5             |   | 3.50
    0   -0.05 0.05  | + | +0.00 [-0.05, 0.05]
    -0.0 -0.4 5.6   |   | 0 [0, 6]
    -0.0 -0.4 5.6   | + | +0 [0, 6]
    0.4 0.21 0.63   |   | 0.40 [0.21, 0.63]
    0.5 0.2 0.8     |   | 0.5 [0.2, 0.8]
    0   -2  2       |   | 0.0 [-2.0, 2.0]
    1e-5 0  2e-5    |   | 0.000010 [0.000000, 0.000020]
    1e-9 0  2e-9    |   | 0.000000 [0.000000, 0.000000]
    0.5  1  1       |   | 0.50 [1.00, 1.00]
    0.5 0.4 0.6     | % | 50% [40, 60]
    0.5 0.25        |   | 0.50
    -0.004 -0.1 0.1 | +% | -0.4 points [-10.0, 10.0]
    0.1 -4 4        | +  | +0.1 [-4.0, 4.0]
"""


@pytest.mark.parametrize(("numbers", "how", "text"), cells(SHOWN))
def test_digits_follow_the_interval(numbers: str, how: str, text: str) -> None:
    """A number that rounds to zero has no minus."""
    mean, low, high = [*map(float, numbers.split()), None, None][:3]
    found = {"mean": mean, "low": low, "high": high}
    assert statistics.interval_text(found, sign="+" in how, percent="%" in how) == text


def test_the_documentation_shows_the_interval_of_equal_scores() -> None:
    page = (Path(__file__).parent.parent / "docs" / "evaluate.md").read_text(encoding="utf-8")
    assert f"the mean is `{statistics.interval_text(statistics.rate([0] * 50))}`" in page


# --- the difference at equal length, by simulation

EFFECTS: dict[str, Callable[[Array], Array]] = {
    "linear": lambda length: 0.01 * length,
    "log": np.log,
    "saturating": lambda length: 2 * (1 - np.exp(-length / 60)),
    "capped": lambda length: np.minimum(length, 80) / 40,
}


def claims(ratio: float, effect: str, better: float, *, both: bool = True) -> float:
    """How often a difference is claimed between answers that are `ratio` times as long as the
    baseline's; over 200 simulations. both: whether lengths are known, or only their difference.
    """
    random, claimed = np.random.default_rng(int(10 * ratio)), 0
    for _ in range(200):
        ours, theirs = (60 * np.exp(0.5 * random.standard_normal(150)) for _ in range(2))
        ours = ratio * ours
        gains = EFFECTS[effect](ours) - EFFECTS[effect](theirs)
        gains += better + 0.8 * random.standard_normal(150)
        found = equal(list(gains), list(ours - theirs), list(theirs) if both else None)
        claimed += found is not None and not found["low"] <= 0 <= found["high"]
    return claimed / 200


@pytest.mark.parametrize("effect", EFFECTS)
def test_length_alone_is_no_quality_and_a_real_difference_is_found(effect: str) -> None:
    """A line through all prompts claims a difference in up to 100% of these cases, the tanh of
    AlpacaEval in up to 98%.
    """
    # 5%, and two and a half standard errors of 200 simulations
    assert max(claims(2.0, effect, 0.0), claims(1.5, effect, 0.0, both=False)) <= 0.09
    assert min(claims(1.5, effect, 0.5), claims(1.0, effect, 0.5, both=False)) >= 0.9
