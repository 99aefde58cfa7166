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
from alignkit_plugins.algorithms.dpo import OnlineDPO
from alignkit_plugins.algorithms.filters import Spread
from alignkit_plugins.algorithms.grpo import GRPO
from alignkit_plugins.algorithms.hir import HIR
from alignkit_plugins.algorithms.ppo import _explained_variance
from alignkit_plugins.algorithms.rejection_sampling import (
    ExpertIteration,
    RejectionSampling,
    ReST,
    best_samples,
)
from alignkit_plugins.compare.compared import rated
from alignkit_plugins.evaluate.sample import best
from alignkit_plugins.evaluate.select_best import selected
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


def table(scores: list[float]) -> torch.Tensor:
    return torch.tensor(scores, dtype=torch.float64)


def group(scores: list[float]) -> Group:
    responses = (
        Response(text=str(n), tokens=(n,) * (n + 1), scores={"reward": x})
        for n, x in enumerate(scores)
    )
    return Group(({"role": "user", "content": "hi"},), tuple(responses), id="a")


def by_policy(scores: list[float]) -> Group:
    """The scores as those of four policies."""
    found = group(scores)
    responses = (replace(each, source=each.text) for each in found.responses)
    return replace(found, responses=tuple(responses))


def combined(cls: Any, scores: list[float], **options: Any) -> torch.Tensor:
    thing = cls(cls.Options(**options))
    parts = dict.fromkeys(thing.parts(), table(scores))
    reward: torch.Tensor = thing.combine([group(scores)], parts).reward
    return reward


def select(cls: Any, scores: list[float], **options: Any) -> list[Group]:
    chosen: list[Group] = cls(cls.Options(**options)).select([group(scores)], log)
    paired = cls is OnlineDPO
    return [each for each in chosen if each.responses and not (paired and each.pairs == ())]


def against(scores: list[float]) -> float:
    """What is found of two policies at four prompts, at which one of them always has the first
    score.
    """
    rows = []
    for number, each in enumerate(scores):
        a, b = group([scores[0], each]).responses
        both = replace(a, source="a"), replace(b, source="b")
        rows.append(Group(group(scores).prompt, both, id=str(number)))
    row, _ = rated(rows, ["a", "b"], "b", "reward")
    wins, losses, _ = map(int, row.counts.split("/"))
    return float(wins + losses + abs(row.difference["mean"]))


NOTHING: dict[str, Callable[[list[float]], Any]] = {
    "spread": lambda x: F.group_has_spread(table(x), INDEX).any(),
    "grpo": lambda x: F.grpo_advantages(table(x), INDEX).any(),
    "centered": lambda x: F.centered_advantages(table(x), INDEX).any(),
    "rloo": lambda x: F.rloo_advantages(table(x), INDEX).any(),
    "maxrl": lambda x: F.maxrl_advantages(table(x), INDEX).any(),
    "std_within_groups": lambda x: F.std_within_groups(table(x), INDEX),
    "slope": lambda x: F.slope_within_groups(torch.arange(4.0), table(x), INDEX),
    "whiten": lambda x: F.whiten(table(x)).any(),
    "whiten in fp32": lambda x: F.whiten(table(x).float() + torch.tensor([0, 1e-7, 0, 0])).any(),
    "normalizer": lambda x: F.reward_normalizer(table(x))[1] != 1.0,
    "pairs": lambda x: set(F.preferred([(x[0], each) for each in x])) - {None},
    "equal_length": lambda x: (
        combined(EqualLength, x, reward="x", unit_variance=True).diff().abs().max() > 1e-3
    ),
    "dynamic sampling": lambda x: GRPO(GRPO.Options(dynamic_sampling=True)).keep_group(group(x)),
    "filter": lambda x: any(Spread(Spread.Options()).keep([group(x)])),
    "online_dpo": lambda x: select(OnlineDPO, x),
    "hir": lambda x: select(HIR, x),
    "rest": lambda x: ReST(ReST.Options()).select([group(x)], log),
    "expert_iteration": lambda x: select(ExpertIteration, x),
    "rejection_sampling": lambda x: select(RejectionSampling, x, pool="batch"),
    "best": lambda x: best_samples([[group(x)]]).popitem()[1].response.text != "0",
    "compare": against,
    "select_best": lambda x: selected([by_policy(x)], list("0123"))[0] != "0",
    "best of N": lambda x: best(group(x)).responses[0].text != "0",
    "rankings": lambda x: ColumnFormat.pairs_by_score(group(x).responses),
    "explained_variance": lambda x: _explained_variance(torch.ones(4), table(x).float()) != 0.0,
}


@pytest.mark.silent_bug(
    "advantages: rounding",
    "Equal rewards differ by rounding, and dividing by their spread makes an advantage of "
    "thousands.",
    "A spread below rounding is none, in every algorithm, signal and metric.",
    "NVIDIA-NeMo/RL#4158",
    "NVIDIA-NeMo/RL#4161",
)
@pytest.mark.parametrize("scores", NOISE)
@pytest.mark.parametrize("what", NOTHING)
def test_rounding_is_no_spread(what: str, scores: list[float]) -> None:
    assert not NOTHING[what](scores)


@pytest.mark.parametrize("what", [name for name in NOTHING if name != "explained_variance"])
def test_a_small_difference_is_one(what: str) -> None:
    difference = 1e-5 if "fp32" in what else 1e-9
    assert (
        NOTHING[what]([0.5, 0.5 + difference, 0.5 + 3 * difference, 0.5]) or what == "equal_length"
    )


def test_what_is_no_number_or_infinite() -> None:
    assert F.group_has_spread(torch.tensor([math.nan, 1.0]), torch.zeros(2)).all()
    assert not F.nearly_equal(-math.inf, -3.0) and F.nearly_equal(math.inf, math.inf)
    assert resolved_pairs(group([1.0, 1.0])) == ()
