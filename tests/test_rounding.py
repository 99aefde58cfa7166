"""Numbers that differ only by rounding are equal: in every formula, algorithm, filter, pair and
metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from alignkit import Group, Response
from alignkit import functional as F
from alignkit.data.group import resolved_pairs
from alignkit_plugins.ai_feedback.sample import best
from alignkit_plugins.algorithms.dpo import OnlineDPO
from alignkit_plugins.algorithms.filters import Spread
from alignkit_plugins.algorithms.hir import HIR
from alignkit_plugins.algorithms.ppo import _explained_variance
from alignkit_plugins.algorithms.rejection_sampling import (
    ExpertIteration,
    RejectionSampling,
    ReST,
    best_samples,
)
from alignkit_plugins.compare.scores import Measure, compare, scale_of, scores_of
from alignkit_plugins.evals.select_best import selected
from alignkit_plugins.formats.columns import ColumnFormat
from alignkit_plugins.rewards.combinations import EqualLength

# One number after sums in several orders, of three sizes.
NOISE = [
    [0.1 + 0.2, 0.3, 0.3 - 1e-16, 0.3],
    [1000.1 + 0.2, 1000.3, 999.9 + 0.4, 1000.3],
    [0.1 + 0.2 - 0.3, 0.0, 0.3 - 0.2 - 0.1, 0.0],
]
INDEX = torch.zeros(4)
log = SimpleNamespace(
    log=lambda **_: None, left_out=lambda *_: None, validation=False, rng=np.random.default_rng(0)
)
SELECTING = {cls.__name__: cls for cls in (OnlineDPO, HIR, ExpertIteration)}


def table(scores: list[float]) -> torch.Tensor:
    return torch.tensor(scores, dtype=torch.float64)


def group(scores: list[float]) -> Group:
    """Scored responses, of which each is from a policy of its own."""
    responses = (
        Response(text=str(n), tokens=(n,) * (n + 1), scores={"reward": x}, source=str(n))
        for n, x in enumerate(scores)
    )
    return Group(({"role": "user", "content": "hi"},), tuple(responses), id="a")


def combined(scores: list[float]) -> Any:
    thing = EqualLength(EqualLength.Options(reward="x", unit_variance=True))  # type: ignore[arg-type]
    parts = dict.fromkeys(thing.parts(), table(scores))
    return thing.combine([group(scores)], parts).reward.diff().abs().max() > 1e-3


def select(cls: Any, scores: list[float], **options: Any) -> list[Group]:
    chosen: list[Group] = cls(cls.Options(**options)).select([group(scores)], log)
    paired = cls is OnlineDPO
    return [each for each in chosen if each.responses and not (paired and each.pairs == ())]


def against(scores: list[float]) -> float:
    """What is found of two policies at four prompts, at which one of them always has the first
    score.
    """
    rows = [replace(group([scores[0], each]), id=str(n)) for n, each in enumerate(scores)]
    measure = Measure("reward", scale_of(rows, "reward"))
    row, _ = compare(scores_of(rows, ["0", "1"], {"reward": measure}), "1")
    return abs(row.difference["mean"]) + (not row.counts.startswith("0/0/"))


OVER_GROUPS = [
    "group_has_spread",
    "grpo_advantages",
    "centered_advantages",
    "rloo_advantages",
    "maxrl_advantages",
    "std_within_groups",
]
NOTHING: dict[str, Callable[[list[float]], Any]] = {
    "slope": lambda x: F.slope_within_groups(torch.arange(4.0), table(x), INDEX),
    "whiten": lambda x: F.whiten(table(x)).any(),
    "whiten in fp32": lambda x: F.whiten(table(x).float() + torch.tensor([0, 1e-7, 0, 0])).any(),
    "normalizer": lambda x: F.reward_normalizer(table(x))[1] != 1.0,
    "pairs": lambda x: set(F.preferred([(x[0], each) for each in x])) - {None},
    "equal_length": combined,
    "filter": lambda x: any(Spread(Spread.Options()).keep([group(x)])),
    "rest": lambda x: ReST(ReST.Options()).select([group(x)], log),
    "rejection_sampling": lambda x: select(RejectionSampling, x, pool="batch"),
    "best": lambda x: best_samples([[group(x)]]).popitem()[1].response.text != "0",
    "compare": against,
    "select_best": lambda x: selected([group(x)], list("0123"))[0] != "0",
    "best of N": lambda x: best(group(x)).responses[0].text != "0",
    "rankings": lambda x: ColumnFormat.pairs_by_score(group(x).responses),
    "explained_variance": lambda x: _explained_variance(torch.ones(4), table(x).float()) != 0.0,
}
ALL = [*NOTHING, *OVER_GROUPS, *SELECTING]


def found(what: str, scores: list[float]) -> Any:
    if what in SELECTING:
        return select(SELECTING[what], scores)
    if what in OVER_GROUPS:
        return getattr(F, what)(table(scores), INDEX).any()
    return NOTHING[what](scores)


@pytest.mark.silent_bug(
    "advantages: rounding",
    "Equal rewards differ by rounding, and dividing by their spread makes an advantage of "
    "thousands.",
    "A spread below rounding is none, in every algorithm, signal and metric.",
    "NVIDIA-NeMo/RL#4158",
    "NVIDIA-NeMo/RL#4161",
)
@pytest.mark.parametrize("what", ALL)
def test_rounding_is_no_spread_and_a_small_difference_is_one(what: str) -> None:
    assert not any(found(what, scores) for scores in NOISE)
    small = 1e-5 if "fp32" in what else 1e-9
    if what not in ("explained_variance", "equal_length"):
        assert found(what, [0.5, 0.5 + small, 0.5 + 3 * small, 0.5])


def test_what_is_no_number_or_infinite() -> None:
    assert F.group_has_spread(torch.tensor([math.nan, 1.0]), torch.zeros(2)).all()
    assert not F.nearly_equal(-math.inf, -3.0) and F.nearly_equal(math.inf, math.inf)
    assert F.nearly_equal(-1e6, -1e6 - 1e-7) and not F.nearly_equal(1.0, 1.0 + 1e-7)
    x = torch.tensor([1e6, 1.0, -math.inf], dtype=torch.float64)
    y = torch.tensor([1e6 + 1e-7, 1.0 + 1e-7, -3.0], dtype=torch.float64)
    assert F.nearly_equal(x, y).tolist() == [True, False, False]
    assert resolved_pairs(group([1.0, 1.0])) == ()
