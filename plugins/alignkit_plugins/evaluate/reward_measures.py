"""What pairs of people's preferences say of rewards and judges, next to how often these are
right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import median
from typing import Any

from alignkit import CheckedJudge, StepContext, seeds
from alignkit import functional as F
from alignkit.data.group import LEVELS
from alignkit.evaluation import statistics
from alignkit_plugins.ai_feedback.judge_card import card, mapped, with_people
from alignkit_plugins.compare.calibration import bins, error
from alignkit_plugins.compare.pairs import Choice, Gaps
from alignkit_plugins.compare.rows import Row
from alignkit_plugins.formats.spoken import all_turns

NONE = "(none)"  # pairs without a margin, or without the column


def judged(
    name: str, judge: CheckedJudge, pairs: Sequence[Choice], context: StepContext
) -> tuple[list[float | None], dict[str, Any]]:
    """How much more a judge prefers the better response of each pair, and its card.

    Half of the pairs, drawn by the seed, have the better response first: a judge that ignores its
    duty to ask in both orders must not learn the answer from the place. Pairs of equal texts are
    ties, and no judge is asked.
    """
    asked = [pair for pair in pairs if all_turns(pair.better) != all_turns(pair.worse)]
    order = seeds.stream(context.seed, "judged pairs", name).permutation(len(asked))
    turned, items = [bool(number % 2) for number in order], []
    for pair, turn in zip(asked, turned, strict=True):
        texts = [all_turns(pair.better), all_turns(pair.worse)]
        first, second = reversed(texts) if turn else texts
        items.append((list(pair.group.prompt), first, second))
    verdicts = mapped(judge.compare, name, context.map)(items)
    gaps, judgments = dict[int, float | None](), []
    for pair, turn, verdict in zip(asked, turned, verdicts, strict=True):
        p = verdict.p_first
        judgments.append((pair.prompt, verdict))
        gap = None if p is None else (1 - 2 * p if turn else 2 * p - 1)
        gaps[id(pair)] = 0.0 if gap is not None and F.nearly_equal(gap, 0.0) else gap
    people = with_people(judgments, [not turn for turn in turned])
    return [gaps.get(id(pair), 0.0) for pair in pairs], card(judgments, people)


def breakdowns(pairs: Sequence[Choice], columns: Sequence[str]) -> dict[str, dict[str, list[int]]]:
    """The places of pairs by people's margin, by which response is longer, and by columns of the
    prompts.
    """
    found: dict[str, dict[str, list[int]]] = {}
    labels: dict[str, list[str]] = {"margin": _margins(pairs)}
    labels["the chosen response"] = ["longer" if pair.longer > 0 else "shorter" for pair in pairs]
    for column in columns:
        found_values = [pair.group.meta.get(column) for pair in pairs]
        labels[column] = [NONE if value is None else str(value) for value in found_values]
    for name, values in labels.items():
        if set(values) != {NONE}:
            found[name] = {value: [] for value in sorted(set(values), key=_order)}
            for place, value in enumerate(values):
                found[name][value].append(place)
    return found


def _order(value: str) -> tuple[int, str]:
    """Levels of preference from the clearest on, then other values by name."""
    return (LEVELS.index(value) if value in LEVELS else len(LEVELS), value)


def _margins(pairs: Sequence[Choice]) -> list[str]:
    """How much better people found the chosen response, by name; numbers are cut at their
    median.
    """
    numbers = [pair.margin for pair in pairs if isinstance(pair.margin, int | float)]
    middle = median(numbers) if numbers else 0.0
    names = []
    for pair in pairs:
        margin = pair.margin
        if isinstance(margin, int | float):
            names.append(f"{'at least' if margin >= middle else 'below'} {middle:g}")
        else:
            names.append(NONE if margin is None else margin)
    return names


def calibration(pairs: Sequence[Choice], gaps: Gaps, rater: str) -> tuple[list[Row], Any]:
    """Whether a reward is right as often as its scores say, if it is a Bradley-Terry model; and its
    bins.

    Its confidence in a pair is sigmoid(|gap|); a label with a probability is right with that
    probability. The log loss is the mean of -log P(label) in nats; log 2 is a coin.
    """
    sure, right, losses, units = [], [], [], []
    for pair, gap in zip(pairs, gaps, strict=True):
        if gap is not None:
            sure.append(1 / (1 + math.exp(-abs(gap))))
            right.append(0.5 if gap == 0 else pair.p if gap > 0 else 1 - pair.p)
            losses.append(math.log1p(math.exp(-abs(gap))) + max(-gap, 0.0) + (1 - pair.p) * gap)
            units.append(pair.prompt)
    loss = {"mean": statistics.mean(losses) if losses else None, "low": None, "high": None}
    found = error(sure, right, 0, units)
    rows = [
        Row(rater, "calibration error (ECE)", "metric", found, lower=True),
        Row(rater, "log loss, nats", "metric", {**loss, "n": found["n"]}, lower=True),
    ]
    return rows, bins(sure, right)


def relations(pairs: Sequence[Choice], raters: Mapping[str, Gaps]) -> list[Row]:
    """What length explains of each rater, and in how many pairs two raters have the same winner.

    The first is Spearman's rank correlation of the gap in score with the gap in length, in
    characters. Pairs that a rater finds equal have no winner.
    """
    from scipy import stats

    rows = []
    for rater, gaps in raters.items():
        known = [
            (gap, pair.longer) for gap, pair in zip(gaps, pairs, strict=True) if gap is not None
        ]
        varied = len(known) > 2 and all(len(set(side)) > 1 for side in zip(*known, strict=True))
        found = float(stats.spearmanr(known).statistic) if varied else None
        estimate = {"mean": found, "low": None, "high": None, "n": len(known)}
        rows.append(Row(rater, "rank correlation with length", "metric", estimate))
    for one, other in combinations(raters, 2):
        products = [a * b for a, b in zip(raters[one], raters[other], strict=True) if a and b]
        share = statistics.share(sum(product > 0 for product in products), len(products))
        if share is not None:
            rows.append(Row(one, f"same winner as {other}", "metric", share, percent=True))
    return rows
