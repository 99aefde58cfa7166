"""An evaluation as a flat table, a row per metric and policy: what screens, reports, cards and
verdicts are made of.

The steps that compare policies write it into evaluation.json, as `results`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from alignkit.evaluation.statistics import CONFIDENCE, holm
from alignkit_plugins.text.readable import bounds

BASE_MODEL = "the base model"
PAIRS, TOKENS = "pairs right", "next tokens right"
COIN = 0.5  # what a judge says of equal policies; the share of pairs that a coin has right
RATED = ("metric", "reward", "judge")  # kinds of what says how good a policy is
ANSWERS = "answers"  # the kind of what describes the answers
LENGTH, TRUNCATED, KL = "length, tokens", "truncated", "KL, nats"
DISTINCT, SELF_BLEU = "distinct-2 of a prompt's answers", "self-BLEU of them"
POINTS = "{}, Bradley-Terry points"
# The order in which metrics decide, by whether the policy was trained on them
TRUST = (False, None, True)
EMPTY: tuple[Any, ...] = (None, "", {})  # what JSON leaves out


@dataclass(frozen=True)
class Row:
    """A number of a policy, and how far it is from the same number of another policy.

    Attributes:
        policy: Whose number it is.
        metric: Its name in tables.
        kind: One of RATED, or ANSWERS.
        estimate: `mean`, `low`, `high` and `n`; of a judge, of the probability that the policy's
            answer is better.
        baseline: Whom it is compared with; empty if nothing is compared.
        difference: The same prompt by prompt, with `p`; of a judge, from one half.
        equal_length: What is left of the difference between answers of equal length; of a judge,
            the win rate there.
        win_rate: The share of prompts won, without ties.
        counts: Prompts won, lost and tied.
        column, value: Of the prompts that count; empty for all.
        percent: Whether tables show it as a share.
        lower: Whether lower is better.
        margin: A loss below it counts as none; 0 without one.
        trained_on: Whether the policy learned from it; None if that is not known.
        tested: Whether a verdict may claim something of the difference.
        p: Adjusted for all that the evaluation tests in the direction of this difference.
        missing: Answers without this number, which do not count.
    """

    policy: str
    metric: str
    kind: str
    estimate: Mapping[str, Any]
    baseline: str = ""
    difference: Mapping[str, Any] = field(default_factory=dict)
    equal_length: Mapping[str, Any] = field(default_factory=dict)
    win_rate: Mapping[str, Any] = field(default_factory=dict)
    counts: str = ""
    column: str = ""
    value: str = ""
    percent: bool = False
    lower: bool = False
    margin: float = 0.0
    trained_on: bool | None = None
    tested: bool = False
    p: float | None = None
    missing: int = 0

    @property
    def mean(self) -> float | None:
        """That of the estimate; None if unknown."""
        return bounds(self.estimate)[0]

    @property
    def clear(self) -> int | None:
        """1 if the policy is clearly better than the baseline, -1 if clearly worse, else 0; None if
        unknown.

        Clear is what stays so with all other comparisons of the evaluation (`statistics.holm`).
        """
        if self.difference.get("mean") is None or not self.tested:
            return None
        if self.p is None or self.p >= 1 - CONFIDENCE:
            return 0
        return self.direction

    @property
    def chance(self) -> bool:
        """Whether it is no measurement: a base model's share of pairs, whose log-probabilities are
        compared with its own.
        """
        share = bounds(self.estimate)
        return self.metric.startswith(PAIRS) and share == (COIN, None, None)

    @property
    def direction(self) -> int:
        """1 if the policy looks better than the baseline, -1 if it looks worse, else 0."""
        mean = bounds(self.difference)[0]
        if not mean:
            return 0
        return 1 if (mean > 0) != self.lower else -1

    @property
    def within_margin(self) -> bool:
        """Whether a loss is below the margin for sure: one of two one-sided tests at 2.5%
        (Schuirmann 1987, "A comparison of the two one-sided tests procedure and the power approach").
        """
        _, low, high = bounds(self.difference)
        if low is None or high is None:
            return False
        return bool((high if self.lower else -low) < self.margin)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of the difference, which nothing adjusts, lies on one side of 0."""
        _, low, high = bounds(self.difference)
        return low is not None and high is not None and not low <= 0 <= high


def rows_in(evaluation: Mapping[str, Any]) -> list[Row]:
    """The rows of an evaluation.json."""
    return [Row(**row) for row in evaluation.get("results") or ()]


def plain(row: Row) -> dict[str, Any]:
    """A row for evaluation.json, without what is empty."""
    return {name: value for name, value in asdict(row).items() if value not in EMPTY}


def main_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows of the table of policies by metrics."""
    return [row for row in rows if not row.column and row.baseline != BASE_MODEL]


def decides(row: Row) -> bool:
    """Whether a verdict goes by a row: a comparison with the baseline, by what says how good a
    policy is.
    """
    return row.tested and row.kind in RATED and row.baseline not in ("", BASE_MODEL)


def deciding(rows: Sequence[Row]) -> dict[str, int]:
    """The place of the row that decides for each policy: the first by a metric that it learned from
    least.
    """
    found = dict[str, int]()
    for place, row in enumerate(rows):
        if decides(row) and row.difference.get("mean") is not None:
            known = rows[found.setdefault(row.policy, place)]
            if TRUST.index(row.trained_on) < TRUST.index(known.trained_on):
                found[row.policy] = place
    return found


def adjusted(rows: Sequence[Row], of_cells: bool = False) -> list[Row]:
    """All tested rows of an evaluation, or of a table of cells, with adjusted p values, each
    direction with half of the error.

    Among gains, the headline has most of it: the last policy's, by the metric that decides first.
    Cells share it equally, and one that passes by that metric has its share for the others (Holm
    1979). Among losses, all weigh the same, or an even headline would hide what else got worse.
    """
    gains, losses, heads = dict[int, float](), dict[int, float](), deciding(rows)
    others = dict[str, dict[int, float]]()
    for place, row in enumerate(rows):
        if row.tested and row.difference.get("mean") is not None:
            p = row.difference["p"]
            gains[place] = p if row.direction == 1 else 1.0
            losses[place] = p if row.direction == -1 else 1.0
            if decides(row) and place != heads[row.policy]:
                others.setdefault(row.policy, {})[place] = gains[place]
    better, worse = dict[int, float](), holm(losses)
    if of_cells:
        for policy, head in heads.items():
            for place, p in {head: 0.0, **holm(others.get(policy, {}))}.items():
                better[place] = min(1.0, len(heads) * max(gains[head], p))
    else:
        better = holm(gains, [None, *heads.values()][-1])
    found = list[Row]()
    for place, row in enumerate(rows):
        sides = {1: better, -1: worse, 0: dict.fromkeys(gains, 1.0)}
        found.append(replace(row, p=sides[row.direction].get(place)))
    return found
