"""Combinations of rewards against plain numpy: sums, equal length, GDPO, and a constraint in a run that is
stopped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from alignkit import CombinedReward, DataError, Group, Response, RewardCombination
from alignkit import functional as F
from alignkit.errors import PluginError
from alignkit.host import returns
from alignkit.host.plugins import load_plugins, plugins
from alignkit.io.results import read_record
from alignkit_plugins.rewards.combinations import EqualLength, WeightedSum
from tests.rows import read_rows, run, with_plugin, write_recipe

NAN = math.nan


def group(lengths: Sequence[int], name: str = "") -> Group:
    """A prompt with responses of these lengths."""
    responses = [Response("x", tokens=(1,) * n, action_mask=(True,) * n) for n in lengths]
    return Group((), tuple(responses), id=name)


def combined(thing: RewardCombination, groups: Sequence[Group], **scores: Sequence[float]) -> Any:
    columns = {name: torch.tensor(x, dtype=torch.float64) for name, x in scores.items()}
    return thing.combine(groups, columns)


def numbers(values: Any) -> Any:
    return pytest.approx(list(values), nan_ok=True, rel=1e-9, abs=1e-12)


# Sums


def weighted_sum(weights: dict[str, float], rewards: str) -> WeightedSum:
    named = {name: name for name in rewards}
    return WeightedSum(WeightedSum.Options(rewards=named, weights=weights))


def test_a_weighted_sum_leaves_out_what_does_not_apply() -> None:
    thing = weighted_sum({"a": 2.0, "b": -0.5}, "ab")
    found = combined(thing, [group([1] * 4)], a=[1, 2, NAN, NAN], b=[4, 0, 1, NAN])
    assert list(thing.parts()) == ["a", "b"]
    assert found.reward.tolist() == numbers([0.0, 4.0, -0.5, NAN])
    assert found.metrics == pytest.approx({"a_mean": 1.5, "b_mean": 5 / 3, "raw_mean": 3.5 / 3})


NAMES = yaml.safe_load("""
- [{a: 1.0}, ab, no weight for b]
- [{a: 1.0, c: 1.0}, a, "weights for c, which are not among the rewards"]
- [{}, "", at least 1]
""")


@pytest.mark.parametrize(("weights", "rewards", "message"), NAMES)
def test_weights_and_rewards_have_the_same_names(
    weights: dict[str, float], rewards: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        weighted_sum(weights, rewards)


def test_a_combination_that_gives_no_number_is_an_error() -> None:
    returns.combined(2, CombinedReward(torch.tensor([1.0, NAN])))
    for reward in ([math.inf, 2.0], [1e30, 2.0]):
        with pytest.raises(PluginError, match="return finite rewards"):
            returns.combined(2, CombinedReward(torch.tensor(reward)))


# Equal length


def corrected(groups: Sequence[Group], scores: Sequence[float], **options: Any) -> list[float]:
    thing = EqualLength(EqualLength.Options(reward="liked", **options))
    found = combined(thing, groups, raw=scores)
    values: list[float] = found.reward.tolist()
    return values


# Lengths of each prompt's answers, scores, and scores at equal length.
AT_EQUAL_LENGTH = yaml.safe_load("""
- [[[3, 9, 12], [20, 40]], [0.3, 0.9, 1.2, 2.0, 4.0], [1.68, 1.68, 1.68, 1.68, 1.68]]  # length alone
# What length does not explain stays: the slope of [-1, 1, -2, 2] to [-0.5, 0.5, -1.5, 1.5] is 0.7.
- [[[1, 3], [10, 14]], [1.0, 2.0, 7.0, 10.0], [5.2, 4.8, 4.9, 5.1]]
# Prompts with long answers say nothing about length.
- [[[10, 10], [50, 50]], [0.0, 1.0, 5.0, 7.0], [0.0, 1.0, 5.0, 7.0]]
- [[[10], [50]], [0.0, 5.0], [0.0, 5.0]]
- [[[2, 4]], [.nan, .nan], [.nan, .nan]]
- [[], [], []]
""")


@pytest.mark.parametrize(("lengths", "scores", "expected"), AT_EQUAL_LENGTH)
def test_what_length_explains_within_prompts_is_gone(
    lengths: Any, scores: Any, expected: Any
) -> None:
    assert corrected(list(map(group, lengths)), scores) == numbers(expected)


def test_an_answer_without_a_score_or_tokens_of_a_tool_have_no_part_in_it() -> None:
    found = corrected([group([2, 4, 400]), group([10, 14])], [1.0, 2.0, NAN, 7.0, 9.0])
    without = corrected([group([2, 4]), group([10, 14])], [1.0, 2.0, 7.0, 9.0])
    assert found == numbers([*without[:2], NAN, *without[2:]])
    tool = Response("x", tokens=(1,) * 30, action_mask=(True,) * 4 + (False,) * 26)
    mixed = Group((), (tool, *group([8]).responses))
    assert corrected([mixed], [1.0, 3.0]) == numbers([2.0, 2.0])
    with pytest.raises(DataError, match="was not sampled in this run"):
        corrected([Group((), (Response("x"), Response("y")))], [1.0, 2.0])


def test_unit_variance_makes_two_rewards_count_alike() -> None:
    """Scores are divided, not shifted: `llama2` compares them with a threshold."""
    groups = [group([10, 10, 10]), group([30, 30]), group([7])]
    scores = np.array([0.1, 0.3, 0.5, 2.0, 2.2, -4.0])
    pooled = math.sqrt((0.2**2 + 0.2**2 + 0.1**2 + 0.1**2) / 3)  # three values above two means
    for factor in (1e-4, 1, 100):
        found = corrected(groups, (factor * scores).tolist(), unit_variance=True)
        assert found == pytest.approx(scores / pooled)
    assert corrected([group([5, 5])], [0.25, 0.25], unit_variance=True) == [0.25, 0.25]
    # As above, at equal length: of deviations of 0.2 and 0.1, each twice
    std, thing = (
        math.sqrt(0.1 / 2),
        EqualLength(EqualLength.Options(reward="x", unit_variance=True)),
    )
    found = combined(thing, [group([1, 3]), group([10, 14])], raw=[1, 2, 7, 10])
    assert found.reward.tolist() == pytest.approx(np.array([5.2, 4.8, 4.9, 5.1]) / std)
    assert found.metrics == pytest.approx({"slope": 0.7, "std": std})
    assert float(F.std_within_groups(torch.tensor([1.0, 2.0]), torch.arange(2))) == 0.0


# Those of the package of rare combinations


@pytest.mark.usefixtures("combinations")
@pytest.mark.silent_bug(
    "rewards: does not apply",
    "GDPO normalizes each reward over scores that include NaN.",
    "Each part is normalized over the scores that it has.",
    "modelscope/ms-swift#8123",
)
def test_gdpo_leaves_out_scores_that_do_not_apply() -> None:
    """They have no part in their group's statistics, and the response keeps its other scores."""
    kind = plugins().get("reward", "gdpo").implementation
    thing = kind(kind.Options(rewards={"a": "x", "b": "y"}))
    groups = [group([1] * 3, "0"), group([1] * 2, "1")]
    found = combined(thing, groups, a=[1, NAN, 2, NAN, NAN], b=[4, 9, 3.5, NAN, 1])
    first, second = (
        (x - x.mean()) / (x.std(ddof=1) + 1e-4) for x in (np.array([1, 2]), np.array([4, 9, 3.5]))
    )
    wanted = [first[0] + second[0], second[1], first[1] + second[2], NAN, 0.0]
    assert found.reward.tolist() == numbers(wanted)


STOPPER = """
import os
from alignkit import hookimpl

@hookimpl
def metrics_logged(run, stage, step, metrics):
    if os.environ.get("STOP_AFTER") == str(step):
        run.request_stop("a test")
"""
PACKAGE = "docs/examples/alignkit-combinations/alignkit_combinations.py"
STAGES = """
align:
  algorithm: rloo
  prompts: prompts.jsonl
  reward: {lagrangian: {reward: {length: {unit: characters}}, cost: length, limit: 2.0}}
  rollout: {samples_per_prompt: 2, max_new_tokens: 4}
  iterations: 4
  prompts_per_iteration: 2
"""


def test_what_a_combination_remembers_survives_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, STAGES)
    package = Path(__file__).parents[2] / PACKAGE
    words = (*with_plugin(tmp_path / "stopper.py", STOPPER), "--plugin", str(package))
    whole = run(recipe, *words, out=tmp_path / "whole")
    monkeypatch.setenv("STOP_AFTER", "2")
    run(recipe, *words, code=75)
    monkeypatch.delenv("STOP_AFTER")
    out = run(recipe, *words)
    load_plugins()
    weights = "align/adapter/adapter_model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()
    # Each iteration's multiplier follows from the costs before it.
    multiplier = 1.0
    for row in read_rows(out / "align" / "metrics.jsonl"):
        assert row["reward/multiplier"] == pytest.approx(multiplier, rel=1e-4)
        multiplier = max(0.0, multiplier + 0.1 * (row["reward/cost_mean"] - 2.0))
    told = read_record(out / "align")["summary"]["combinations"]
    assert told == {"lagrangian": {"multiplier": pytest.approx(multiplier, rel=1e-4)}}
