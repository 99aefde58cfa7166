"""Reward models from scores: the losses in plain numpy, and what they recover of a few answers."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from alignkit import Batch, DataError, Group, Message, Outputs, Pairs, Response, SelectContext
from alignkit import functional as F
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit.testing import check_algorithm
from alignkit.training.learner import Averages
from alignkit.training.trainer import Trainer
from alignkit_plugins.algorithms.reward_model import (
    GAP,
    RewardOrdinal,
    RewardRegression,
)

NOTHING = torch.zeros(0, dtype=torch.int64)
NO_PAIRS = Pairs(NOTHING, NOTHING, NOTHING.double(), NOTHING.double(), NOTHING)
RATINGS = [[7.0, 4.0], [1.0, 4.0, 4.0], [7.0]]
MODEL = [0.3, -1.2, 2.0, 0.0, 5.0, -0.4]  # what the model says of them


def rated(ratings: list[list[float | None]]) -> list[Group]:
    return [
        Group((), tuple(Response(scores={"reward": x} if x is not None else {}) for x in row))
        for row in ratings
    ]


def context(
    validation: bool = False, said: list[str] | None = None
) -> tuple[SelectContext, dict[str, Any]]:
    logged: dict[str, Any] = {}
    rng, say = np.random.default_rng(0), [].append if said is None else said.append
    return SelectContext(
        0, 0, lambda: [], lambda **m: logged.update(m), rng, say=say, validation=validation
    ), logged


def batch(groups: list[Group]) -> Batch:
    sizes = [len(group.responses) for group in groups]
    ones = torch.ones(sum(sizes), 1, dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return Batch(groups, ones, ones.bool(), owner, NO_PAIRS, ones[:, 0] < 0)


def fitted(algorithm: Any, ratings: list[list[Any]] = RATINGS) -> tuple[Any, Batch]:
    return algorithm, batch(algorithm.select(rated(ratings), context()[0]))


def new(cls: Any, **options: Any) -> Any:
    return cls(cls.Options(**options))


def told(algorithm: Any, given: Batch, out: Outputs) -> dict[str, float]:
    averages = Averages()
    averages.add(algorithm.report_metrics(given, out), given)
    return averages.means()


OUT = Outputs(scores=torch.tensor(MODEL, dtype=torch.float64))
Y = np.array([x for row in RATINGS for x in row])


def sigma(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x)))


@pytest.mark.parametrize(
    ("cls", "options"),
    [(RewardRegression, {}), (RewardOrdinal, {}), (RewardOrdinal, {"threshold_rate": 0.5})],
)
def test_they_conform(cls: Any, options: dict[str, Any]) -> None:
    check_algorithm(cls, options)


def test_regression_predicts_the_normalized_score() -> None:
    """Mean 0 and population variance 1 over the training data."""
    algorithm, given = fitted(new(RewardRegression))
    target = (Y - Y.mean()) / Y.std()
    loss = algorithm.loss(given, OUT)
    assert list(loss) == ["squared_error"]
    assert loss["squared_error"].values.tolist() == pytest.approx((np.array(MODEL) - target) ** 2)
    error = np.abs(np.array(MODEL) * Y.std() + Y.mean() - Y)
    assert told(algorithm, given, OUT)["absolute_error"] == pytest.approx(error.mean())


def test_ordinal_predicts_levels() -> None:
    """-log P(level): P(rating <= level k) = sigma(threshold k - score), thresholds at the shares of
    the data.
    """
    algorithm, given = fitted(new(RewardOrdinal))
    shares = np.array([1 / 6, 4 / 6])  # one 1, three 4s, two 7s
    thresholds = np.log(shares / (1 - shares))
    assert algorithm.state["levels"] == [1.0, 4.0, 7.0]
    assert algorithm.state["thresholds"] == pytest.approx(thresholds)
    below = np.column_stack([np.zeros(6), sigma(thresholds - np.array(MODEL)[:, None]), np.ones(6)])
    p = np.diff(below, axis=1)
    places = [[1, 4, 7].index(int(y)) for y in Y]
    loss = algorithm.loss(given, OUT)["ordinal"].values
    assert loss.tolist() == pytest.approx(-np.log(p[np.arange(6), places]))
    error = np.abs(p @ np.array([1.0, 4.0, 7.0]) - Y)
    assert told(algorithm, given, OUT)["absolute_error"] == pytest.approx(error.mean())


def test_thresholds_learn_from_earlier_steps() -> None:
    """By numerical gradients of the mean loss; a step uses what the steps before it learned."""
    algorithm, given = fitted(new(RewardOrdinal, threshold_rate=0.7))
    start = np.array(algorithm.state["thresholds"])

    def loss(thresholds: Any) -> float:
        below = np.column_stack(
            [np.zeros(6), sigma(thresholds - np.array(MODEL)[:, None]), np.ones(6)]
        )
        return float(-np.log(np.diff(below, axis=1)[np.arange(6), [int(y) // 3 for y in Y]]).mean())

    step = 1e-6 * np.eye(2)
    gradient = np.array([(loss(start + d) - loss(start - d)) / 2e-6 for d in step])
    algorithm.state |= algorithm.before_step(given, OUT)
    assert algorithm.state["thresholds"] == pytest.approx(start)
    assert algorithm.state["next"] == pytest.approx(start - 0.7 * gradient, rel=1e-6)
    algorithm.state |= algorithm.before_step(given, OUT)
    assert algorithm.state["thresholds"] == pytest.approx(start - 0.7 * gradient, rel=1e-6)


def test_thresholds_stay_in_order() -> None:
    algorithm, given = fitted(new(RewardOrdinal, threshold_rate=1e4))
    for _ in range(2):
        algorithm.state |= algorithm.before_step(given, OUT)
    low, high = algorithm.state["thresholds"]
    assert low < high and math.isfinite(float(algorithm.loss(given, OUT)["ordinal"].values.sum()))
    algorithm.state["next"] = [-30.0, 30.0]  # both move inwards, past each other
    low, high = algorithm.before_step(given, OUT)["next"]
    assert low > 30 and high - low == pytest.approx(GAP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tails_of_an_ordered_logit_stay_finite(dtype: torch.dtype) -> None:
    scores = torch.tensor([80.0, -80.0, 0.0], dtype=dtype, requires_grad=True)
    losses = F.ordinal_loss(scores, torch.tensor([1, 1, 0]), torch.tensor([-1.0, 1.0]))
    gradient = torch.autograd.grad(losses.sum(), scores)[0]
    width = math.log(1 - math.exp(-2.0))
    assert losses.tolist() == pytest.approx(
        [79 - width, 79 - width, math.log(1 + math.e)], rel=1e-5
    )
    assert gradient.tolist() == pytest.approx([1.0, -1.0, 1 / (1 + math.exp(-1.0))], rel=1e-5)
    p = F.ordinal_probabilities(torch.tensor([0.0], dtype=dtype), torch.tensor([-1.0, 1.0]))
    assert p[0].tolist() == pytest.approx([sigma(-1), sigma(1) - sigma(-1), sigma(-1)], rel=1e-5)


# --- what they refuse, and what they count


def test_answers_without_a_score_are_counted() -> None:
    algorithm = new(RewardRegression)
    said: list[str] = []
    given, logged = context(said=said)
    groups = [
        replace(group, prompt=(Message(role="user", content=name),))
        for group, name in zip(
            rated([[7.0, None], [None], [1.0]]), ("partly", "not", "whole"), strict=True
        )
    ]
    kept = algorithm.select(groups, given)
    assert said == ["2 left out (without_score): 'partly', 'not'"]
    assert [len(group.responses) for group in kept] == [1, 1]
    assert logged == {"without_score": 2, "score_mean": 4.0, "score_std": 3.0}
    before = dict(algorithm.state)
    algorithm.select(rated([[2.0]]), context(validation=True)[0])
    assert algorithm.state == before  # held-out answers do not change the scale


@pytest.mark.parametrize(
    ("cls", "ratings", "message"),
    [
        (RewardRegression, [[None]], r"answers with different scores, but found \[\]"),
        (RewardOrdinal, [[3.0, 3.0]], r"answers with different scores, but found \[3\.0\]"),
        (
            RewardOrdinal,
            [[k / 7 for k in range(21)]],
            "21 different scores are no levels .* use reward_regression",
        ),
    ],
)
def test_data_without_ratings(cls: Any, ratings: list[list[Any]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        new(cls).select(rated(ratings), context()[0])


def test_a_level_that_training_never_saw() -> None:
    algorithm, _ = fitted(new(RewardOrdinal))
    with pytest.raises(DataError, match="score 5 is not among the levels of the training data"):
        algorithm.loss(batch(rated([[5.0, 1.0]])), Outputs(scores=torch.zeros(2)))
    # Before training, not after an epoch
    with pytest.raises(DataError, match="score 5 is not among the levels"):
        algorithm.select(rated([[5.0, 1.0]]), context(validation=True)[0])


# --- a whole run


TRUE = [-3.0, -1.0, 0.5, 2.5]
THRESHOLDS = np.array([-2.0, 0.0, 2.0])


LEVELS, ANSWERS = [1, 2, 3, 7], ["red", "green", "blue", "white"]


def counts() -> np.ndarray:
    """How many of 40 raters give each of the answers each level, by an ordered logit: [4, 4]."""
    below = np.column_stack([np.zeros(4), sigma(THRESHOLDS - np.array(TRUE)[:, None]), np.ones(4)])
    return np.round(np.diff(below, axis=1) * 40).astype(int)


@pytest.mark.parametrize(
    "algorithm", ["reward_regression", {"reward_ordinal": {"threshold_rate": 0.5}}], ids=str
)
def test_a_run_recovers_order_and_expected_score(
    algorithm: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    rows = [
        {"prompt": "which?", "response": answer, "score": level}
        for answer, row in zip(ANSWERS, counts(), strict=True)
        for level, count in zip(LEVELS, row, strict=True)
        for _ in range(count)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    stage = {
        "algorithm": algorithm,
        "data": "rows.jsonl",
        "epochs": 40,
        "batch_size": 40,
        "learning_rate": 0.01,
    }
    recipe = {"model": {"base": "tiny", "lora": "none"}, "stages": {"rm": stage}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    (tmp_path / "out").mkdir()
    run = Run(load_recipe(tmp_path / "recipe.json"), tmp_path / "out")
    run.execute()
    prompt = ({"role": "user", "content": "which?"},)
    group = Group(prompt, tuple(Response(text=answer) for answer in ANSWERS))
    scores = np.array(run.models["rm"].scores([group]))
    wanted = counts() @ np.array(LEVELS) / counts().sum(1)
    if algorithm == "reward_regression":
        ratings = np.repeat(np.array(LEVELS), counts().sum(0))
        found = scores * ratings.std() + ratings.mean()
    else:
        last = json.loads(
            (tmp_path / "out/rm/metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
        )
        thresholds = torch.tensor([last[f"threshold/{level}"] for level in LEVELS[:-1]])
        assert thresholds.tolist() != pytest.approx(np.log(counts().sum(0).cumsum()[:-1] / 160))
        found = F.ordinal_probabilities(torch.tensor(scores), thresholds).numpy() @ np.array(LEVELS)
    print(found, wanted)
    assert (np.diff(scores) > 0).all()
    assert found == pytest.approx(wanted, abs=0.2)


def test_learned_thresholds_survive_an_interruption(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`select` metrics the thresholds' start again when a run continues; what was learned since
    must not be lost.
    """
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    rows = [
        {"prompt": "which?", "response": answer, "score": n % 3} for n, answer in enumerate(ANSWERS)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    stage = {
        "algorithm": {"reward_ordinal": {"threshold_rate": 0.5}},
        "data": "rows.jsonl",
        "batch_size": 2,
    }
    stage |= {"epochs": 2, "learning_rate": 0.01, "checkpoint_every": 1}
    recipe = {"model": {"base": "tiny", "lora": "none"}, "stages": {"rm": stage}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")

    def metrics(name: str) -> list[dict[str, Any]]:
        (tmp_path / name).mkdir(exist_ok=True)
        Run(load_recipe(tmp_path / "recipe.json"), tmp_path / name).execute()
        lines = [
            json.loads(text)
            for text in (tmp_path / name / "rm/metrics.jsonl").read_text().splitlines()
        ]
        return [
            {key: line[key] for key in ("step", "loss", "threshold/0", "threshold/1")}
            for line in lines
        ]

    whole, log = metrics("whole"), Trainer.log

    def interrupted(work: Trainer, step: int, values: dict[str, Any]) -> None:
        if step == 4:
            raise KeyboardInterrupt
        log(work, step, values)

    monkeypatch.setattr(Trainer, "log", interrupted)
    with pytest.raises(KeyboardInterrupt):
        metrics("continued")
    monkeypatch.setattr(Trainer, "log", log)
    assert metrics("continued") == whole
    assert len({line["threshold/0"] for line in whole}) > 2
