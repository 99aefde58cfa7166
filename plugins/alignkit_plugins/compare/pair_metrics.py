"""What the scores of pairs say about a reward: how often it is right, how sure it may be, and what
length explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from alignkit.data.group import LEVELS
from alignkit.evaluation import statistics
from alignkit_plugins.compare.calibration import Cases, bins, error
from alignkit_plugins.compare.pairs import Comparison

BUCKETS = 4  # of margins, as in Llama 2's table 8
NO_MODEL = "no reward model"  # why there is no calibration
NONE = "(none)"  # pairs without a margin, or without the column


def accuracy(pairs: Sequence[Comparison]) -> dict[str, Any]:
    """How often the chosen response scores higher; a tie is wrong, as in RewardBench
    (arXiv:2403.13787, section 4).

    A prompt is the unit: the pairs of a prompt are averaged first, also if they are in several
    rows.
    """
    prompts: dict[int, list[float]] = {}
    for pair in pairs:
        prompts.setdefault(pair.prompt, []).append(float(pair.gap > 0))
    most = max(map(len, prompts.values()), default=1)
    estimate = statistics.rate([statistics.mean(each) for each in prompts.values()], most)
    correct, ties = sum(pair.gap > 0 for pair in pairs), sum(pair.gap == 0 for pair in pairs)
    return {"accuracy": estimate, "pairs": len(pairs), "correct": correct, "ties": ties}


def by_margin(pairs: Sequence[Comparison]) -> dict[str, dict[str, Any]]:
    """Accuracy by how much better people found the chosen response, the clearest first; empty
    without margins.

    Named levels are taken as they are. Numbers, of which there are many, are cut into quarters.
    """
    margins = {pair.pair.margin for pair in pairs}
    if margins <= {None}:
        return {}
    numbers = sorted(
        float(pair.pair.margin) for pair in pairs if isinstance(pair.pair.margin, int | float)
    )
    bucket = _bucket(numbers)
    found: dict[tuple[int, float, str], list[Comparison]] = {}
    for pair in pairs:
        margin = pair.pair.margin
        if margin is None:
            key = (2, 0.0, NONE)
        elif isinstance(margin, str):
            key = (0, float(LEVELS.index(margin)), margin)
        else:
            low, name = bucket(float(margin))
            key = (1, -low, name)
        found.setdefault(key, []).append(pair)
    return {key[2]: accuracy(found[key]) for key in sorted(found)}


def _bucket(numbers: Sequence[float]) -> Callable[[float], tuple[float, str]]:
    """From a margin to the least of its bucket, and the bucket's name."""
    different = sorted(set(numbers))
    text = _texts(different)
    if len(different) <= BUCKETS:
        return lambda margin: (margin, text[margin])
    starts = sorted({numbers[len(numbers) * quarter // BUCKETS] for quarter in range(BUCKETS)})
    members = {
        start: [n for n in different if start <= n < end]
        for start, end in zip(starts, [*starts[1:], math.inf], strict=True)
    }

    def bucket(margin: float) -> tuple[float, str]:
        start = max(start for start in starts if start <= margin)
        low, high = members[start][0], members[start][-1]
        return low, text[low] if low == high else f"{text[low]} to {text[high]}"

    return bucket


def _texts(different: Sequence[float]) -> dict[float, str]:
    """Different numbers in words that differ: with six digits, or with all."""
    short = {number: f"{number:g}" for number in different}
    return (
        short
        if len(set(short.values())) == len(short)
        else {number: repr(number) for number in different}
    )


def by_column(pairs: Sequence[Comparison], column: str) -> dict[str, dict[str, Any]]:
    """Accuracy at each value of a column of the prompts."""
    found: dict[str, list[Comparison]] = {}
    for pair in pairs:
        value = pair.group.meta.get(column)
        found.setdefault(NONE if value is None else str(value), []).append(pair)
    return {
        value: accuracy(found[value])
        for value in sorted(found, key=lambda value: (value == NONE, value))
    }


def calibration(pairs: Sequence[Comparison]) -> dict[str, Any] | None:
    """Whether the reward is right as often as its scores say, if it is a Bradley-Terry model; None
    without pairs.

    Its confidence in a pair is sigmoid(|gap|). error: of `calibration`, with prompts as units; a
    label with a probability is right with that probability. log_loss: the mean of -log P(label) in
    nats; log 2 is a coin.
    """
    if not pairs:
        return None
    cases = Cases.of([(_confidence(pair), _right(pair)) for pair in pairs])
    import torch

    from alignkit import functional as F

    values = torch.tensor(
        [(pair.chosen, pair.rejected, pair.p) for pair in pairs], dtype=torch.float64
    )
    chosen, rejected, p = values.unbind(dim=1)
    return {
        "error": error(cases, 0, [pair.prompt for pair in pairs]),
        "log_loss": float(F.pairwise_loss(chosen, rejected, p=p).mean()),
        "bins": bins(cases),
    }


def _confidence(pair: Comparison) -> float:
    return 1 / (1 + math.exp(-abs(pair.gap)))


def _right(pair: Comparison) -> float:
    return 0.5 if pair.gap == 0 else pair.p if pair.gap > 0 else 1 - pair.p


def length(pairs: Sequence[Comparison]) -> dict[str, Any]:
    """What length explains. correlation: Spearman's, of the gap in score with the gap in length;
    null if undefined.

    chosen_longer: the share of pairs whose chosen response is longer, which a reward for length
    alone would get right. longer, shorter: accuracy where it is longer, and where it is shorter.
    """
    unequal = [pair for pair in pairs if pair.longer]
    longer = [pair for pair in unequal if pair.longer > 0]
    return {
        "correlation": spearman(
            [pair.gap for pair in pairs], [float(pair.longer) for pair in pairs]
        ),
        "chosen_longer": statistics.share(len(longer), len(unequal)),
        "longer": accuracy(longer),
        "shorter": accuracy([pair for pair in unequal if pair.longer < 0]),
    }


def agreement(pairs: Mapping[str, Sequence[Comparison]]) -> dict[str, dict[str, Any]]:
    """How two rewards agree on the pairs that both scored: the share with the same winner, and
    Spearman's correlation.

    Pairs that one of them finds equal have no winner and do not count in the share.
    """
    gaps = {
        name: {(pair.row, pair.pair): pair.gap for pair in rows} for name, rows in pairs.items()
    }
    names, found = list(gaps), {}
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            both = [(gap, gaps[other][key]) for key, gap in gaps[one].items() if key in gaps[other]]
            decided = [a * b > 0 for a, b in both if a and b]
            correlation = spearman([a for a, _ in both], [b for _, b in both])
            found[f"{one}, {other}"] = {
                "same": statistics.share(sum(decided), len(decided)), "correlation": correlation
            }  # fmt: skip
    return found


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None for fewer than three values, or if one side is constant."""
    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    from scipy import stats

    return float(stats.spearmanr(first, second).statistic)
