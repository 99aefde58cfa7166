"""Each combination by hand, the conformance kit, and a run that is stopped and goes on with the
same bytes.
"""

import json
import math
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alignkit_combinations import (
    GDPO,
    Clip,
    Lagrangian,
    Minimum,
    Product,
    RunningNormalization,
    Weighted,
    When,
)

from alignkit import DataError, Group, Response, RewardCombination
from alignkit.cli import main
from alignkit.testing import check_combination

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_combinations" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_combinations.py")]
NAN = math.nan
BOTH = {"rewards": {"a": "helpful", "b": {"length": {}}}}
OPTIONS: dict[type[RewardCombination], dict[str, Any]] = {
    When: {"reward": {"length": {}}, "condition": "helpful", "at_least": 0.0},
    Product: BOTH,
    Minimum: BOTH,
    Weighted: {**BOTH, "by": "domain", "weights": {"medicine": {"a": 3}, "default": {"b": 2}}},
    Clip: {"reward": "helpful", "low": -1.0, "high": 0.5},
    Lagrangian: {
        "reward": "helpful",
        "cost": "harmful",
        "limit": 0.1,
        "multiplier": 0.2,
        "multiplier_rate": 0.4,
    },
    RunningNormalization: {"reward": "helpful"},
    GDPO: {**BOTH, "weights": {"b": 0.5}},
}


def combined(cls: type[RewardCombination], **scores: list[float]) -> Any:
    size = len(next(iter(scores.values())))
    groups = [Group((), (Response(), Response()), id=str(n)) for n in range(size // 2)]
    thing = cls(cls.Options(**OPTIONS[cls]))
    found = thing.combine(
        groups, {name: torch.tensor(x, dtype=torch.float64) for name, x in scores.items()}
    )
    return found.reward.tolist(), thing.state


@pytest.mark.parametrize("cls", OPTIONS)
def test_it_conforms(cls: type[RewardCombination]) -> None:
    check_combination(cls, OPTIONS[cls])


def test_by_hand() -> None:
    same = pytest.approx
    assert combined(When, raw=[5, 6, NAN, 7], condition=[1.0, -1.0, 1.0, NAN])[0] == same(
        [5, 0, NAN, NAN], nan_ok=True
    )
    assert combined(Product, a=[2, NAN, 3, NAN], b=[0.5, 4, NAN, NAN])[0] == same(
        [1, 4, 3, NAN], nan_ok=True
    )
    assert combined(Minimum, a=[2, NAN, 3, NAN], b=[0.5, 4, NAN, NAN])[0] == same(
        [0.5, 4, 3, NAN], nan_ok=True
    )
    assert combined(Clip, raw=[-3, 0.2, 9, NAN])[0] == same([-1, 0.2, 0.5, NAN], nan_ok=True)
    reward, state = combined(Lagrangian, raw=[1.0, 2.0], cost=[1.0, 3.0])
    assert reward == same([1 - 0.2, 2 - 0.6]) and state == {
        "multiplier": same(0.2 + 0.4 * (2.0 - 0.1))
    }
    reward, state = combined(RunningNormalization, raw=[1.0, 5.0, NAN, 3.0])
    assert (
        reward == same([-2 / 1.632993, 2 / 1.632993, NAN, 0], nan_ok=True, abs=1e-6)
        and state["count"] == 3
    )


def test_weights_depend_on_the_prompts_column() -> None:
    thing = Weighted(Weighted.Options(**OPTIONS[Weighted]))
    rows = [
        Group((), (Response(),), id=str(n), meta={"domain": value})
        for n, value in enumerate(["medicine", True, None, "medicine"])
    ]
    scores = {"a": [1.0, 2.0, 3.0, NAN], "b": [10.0, 20.0, NAN, 30.0]}
    found = thing.combine(rows, {name: torch.tensor(x) for name, x in scores.items()})
    assert found.reward.tolist() == pytest.approx([3 + 20, 2 + 40, 3, 60])
    thing.check_prompts(rows)
    with pytest.raises(DataError, match="no prompt has 'domain' medicine; there are law"):
        thing.check_prompts([Group((), meta={"domain": "law"})])
    del thing.options.weights["default"]
    with pytest.raises(DataError, match="no weights for 'domain' None"):
        thing.check_prompts(rows[2:])


def test_gdpo_normalizes_each_reward_and_leaves_out_what_does_not_apply() -> None:
    reward, _ = combined(GDPO, a=[1.0, 3.0, 10.0, 10.0], b=[4.0, 0.0, NAN, NAN])
    one = math.sqrt(0.5)  # of two scores, by the unbiased deviation
    sums = np.array([-one + 0.5 * one, one - 0.5 * one, 0.0, 0.0])
    assert reward == pytest.approx(sums, abs=2e-3)


def test_a_run(tmp_path: Path) -> None:
    assert main(["run", str(HERE / "recipe.yaml"), *PLUGIN, "--out", str(tmp_path)]) == 0
    rows = [
        json.loads(line)
        for line in (tmp_path / "align/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    multiplier = 1.0
    for row in rows:  # each iteration's lambda follows from the costs before it
        assert row["reward/multiplier"] == pytest.approx(multiplier, rel=1e-4)
        multiplier = max(0.0, multiplier + 0.1 * (row["reward/cost_mean"] - 2.0))
