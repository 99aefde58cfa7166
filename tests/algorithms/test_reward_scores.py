"""Reward models from scores: the losses in plain numpy, and what they recover of a few answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignkit import Batch, DataError, Group, Outputs, Response
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit.training.trainer import Trainer
from alignkit_plugins.algorithms.reward_model import GAP, RewardOrdinal, RewardRegression
from tests.by_hand import Looking, asked, batch, double, new, reported, scored
from tests.rows import TINY, read_rows, write_recipe, write_rows

RATINGS = [[7.0, 4.0], [1.0, 4.0, 4.0], [7.0]]
Y = np.array([x for row in RATINGS for x in row])
MODEL = np.array([0.3, -1.2, 2.0, 0.0, 5.0, -0.4])  # what the model says of them
OUT = Outputs(scores=double(MODEL))


def rated(groups: Sequence[Group]) -> Batch:
    owner = [place for place, group in enumerate(groups) for _ in group.responses]
    return batch(torch.ones(len(owner), 1), groups=groups, group=owner)


def fitted(cls: Any, **options: Any) -> tuple[Any, Batch]:
    algorithm = new(cls, **options)
    return algorithm, rated(algorithm.select(scored(RATINGS), Looking()))


def sigma(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x)))


def chances(thresholds: Any, scores: Any = MODEL) -> np.ndarray:
    """P(level) by an ordered logit, [scores, levels]: P(rating <= level k) = sigma(threshold k -
    score).
    """
    scores = np.asarray(scores)[:, None]
    ends = np.zeros_like(scores), np.ones_like(scores)
    return np.diff(np.hstack([ends[0], sigma(thresholds - scores), ends[1]]), axis=1)


def test_regression_predicts_the_normalized_score() -> None:
    """Mean 0 and population variance 1 over the training data."""
    algorithm, given = fitted(RewardRegression)
    loss = algorithm.loss(given, OUT)
    assert list(loss) == ["squared_error"]
    wanted = (MODEL - (Y - Y.mean()) / Y.std()) ** 2
    assert loss["squared_error"].values.tolist() == pytest.approx(wanted)
    error = np.abs(MODEL * Y.std() + Y.mean() - Y).mean()
    assert reported(algorithm, given, OUT)["absolute_error"] == pytest.approx(error)


def test_ordinal_predicts_levels() -> None:
    """-log P(level), with thresholds at the shares of the data: one 1, three 4s, two 7s."""
    algorithm, given = fitted(RewardOrdinal)
    shares = np.array([1 / 6, 4 / 6])
    thresholds = np.log(shares / (1 - shares))
    assert algorithm.state["levels"] == [1.0, 4.0, 7.0]
    assert algorithm.state["thresholds"] == pytest.approx(thresholds)
    p = chances(thresholds)
    loss = algorithm.loss(given, OUT)["ordinal"].values
    assert loss.tolist() == pytest.approx(-np.log(p[np.arange(6), (Y // 3).astype(int)]))
    error = np.abs(p @ np.array([1.0, 4.0, 7.0]) - Y).mean()
    assert reported(algorithm, given, OUT)["absolute_error"] == pytest.approx(error)


def test_thresholds_learn_from_earlier_steps() -> None:
    """By numerical gradients of the mean loss; a step uses what the steps before it learned. A
    response without a token says nothing.
    """
    algorithm, given = fitted(RewardOrdinal, threshold_rate=0.7)
    given.mask[0] = False
    start = np.array(algorithm.state["thresholds"])

    def loss(thresholds: Any) -> float:
        return float(-np.log(chances(thresholds)[np.arange(6), (Y // 3).astype(int)])[1:].mean())

    gradient = [(loss(start + d) - loss(start - d)) / 2e-6 for d in 1e-6 * np.eye(2)]
    learned = pytest.approx(start - 0.7 * np.array(gradient), rel=1e-6)
    algorithm.state |= algorithm.before_step(given, OUT)
    assert algorithm.state["thresholds"] == pytest.approx(start)
    assert algorithm.state["next"] == learned
    algorithm.state |= algorithm.before_step(given, OUT)
    assert algorithm.state["thresholds"] == learned


@pytest.mark.parametrize(
    ("cls", "options"), [(RewardRegression, {}), (RewardOrdinal, {"threshold_rate": 0.5})]
)
def test_a_weight_counts_in_the_scale_as_copies_of_the_row_do(cls: Any, options: Any) -> None:
    """Also in the thresholds that are learned; a row of weight 0, with a score of its own, has no
    part in either.
    """
    groups, weights = scored([[7.0, 4.0], [1.0], [4.0], [9.0]]), (3, 1, 2, 0)
    weighted = [replace(g, weight=float(w)) for g, w in zip(groups, weights, strict=True)]
    copies = [g for g, w in zip(groups, weights, strict=True) for _ in range(w)]
    states = []
    for given in (weighted, copies):
        algorithm = new(cls, **options)
        learned = rated([g for g in algorithm.select(given, Looking()) if g.weight])
        # What the model says of an answer follows from the answer
        scores = [len(r.text) - float(r.text) for g in learned.groups for r in g.responses]
        algorithm.state |= algorithm.before_step(learned, Outputs(scores=double(scores)))
        states.append({name: pytest.approx(value) for name, value in algorithm.state.items()})
    assert {name: value.expected for name, value in states[0].items()} == states[1]


def test_thresholds_stay_in_order() -> None:
    algorithm, given = fitted(RewardOrdinal, threshold_rate=1e4)
    for _ in range(2):
        algorithm.state |= algorithm.before_step(given, OUT)
    low, high = algorithm.state["thresholds"]
    assert low < high and algorithm.loss(given, OUT)["ordinal"].values.isfinite().all()
    algorithm.state["next"] = [-30.0, 30.0]  # both move inwards, past each other
    low, high = algorithm.before_step(given, OUT)["next"]
    assert low > 30 and high - low == pytest.approx(GAP)


# What they refuse, and what they count


def test_answers_without_a_score_are_counted() -> None:
    """Held-out answers do not change the scale."""
    algorithm, looking = new(RewardRegression), Looking()
    kept = algorithm.select(scored([[7.0, None], [None], [1.0], []], "row "), looking)
    assert "3 left out (without_score): 'row 0', 'row 1', 'row 3'" in looking.said
    assert [len(group.responses) for group in kept] == [1, 1]
    assert looking.logged == {"without_score": 3, "score_mean": 4.0, "score_std": 3.0}
    before = dict(algorithm.state)
    algorithm.select(scored([[2.0]]), Looking(validation=True))
    assert algorithm.state == before


@pytest.mark.parametrize(
    ("cls", "ratings", "named"),
    [
        (RewardRegression, [None], r"found \[\]"),
        (RewardOrdinal, [3.0, 3.0], r"found \[3\.0\]"),
        (RewardOrdinal, [k / 7 for k in range(21)], "use reward_regression"),
    ],
)
def test_data_without_ratings(cls: Any, ratings: list[float | None], named: str) -> None:
    with pytest.raises(DataError, match=named):
        new(cls).select(scored([ratings]), Looking())
    new(RewardOrdinal).select(scored([range(20)]), Looking())  # 20 levels are not too many


def test_a_level_that_training_never_saw() -> None:
    """Before training, not after an epoch."""
    algorithm, _ = fitted(RewardOrdinal)
    unknown = scored([[6.0, 5.0, 1.0]])
    with pytest.raises(DataError, match="score 5 is not among the levels"):
        algorithm.loss(rated(unknown), Outputs(scores=torch.zeros(3)))
    with pytest.raises(DataError, match="score 5"):
        algorithm.select(unknown, Looking(validation=True))


# Whole runs

LEVELS, ANSWERS = np.array([1, 2, 3, 7]), ["red", "green", "blue", "white"]


def run_on(folder: Path, ratings: list[tuple[str, int]], name: str, **stage: Any) -> Run:
    """A reward model of these (answer, score)."""
    rows = [{"prompt": "which?", "response": text, "score": score} for text, score in ratings]
    write_rows(folder / "rows.jsonl", rows)
    stages = {"rm": {"data": "rows.jsonl", "learning_rate": 0.01, **stage}}
    recipe = write_recipe(folder, stages, {**TINY, "lora": "none"})
    (folder / name).mkdir(exist_ok=True)
    run = Run(load_recipe(recipe), folder / name)
    run.execute()
    return run


ORDINAL = {"reward_ordinal": {"threshold_rate": 0.5}}


@pytest.mark.slow
def test_a_run_recovers_order_and_expected_score(tmp_path: Path) -> None:
    """Of four answers by 40 raters each."""
    true = chances(np.array([-2.0, 0.0, 2.0]), [-3.0, -1.0, 0.5, 2.5])
    counts = np.round(true * 40).astype(int)
    ratings = []
    for answer, row in zip(ANSWERS, counts, strict=True):
        for level, count in zip(LEVELS.tolist(), row, strict=True):
            ratings += [(answer, level)] * int(count)
    run = run_on(tmp_path, ratings, "out", algorithm=ORDINAL, epochs=40, batch_size=40)
    group = Group(asked("which?"), tuple(Response(text=answer) for answer in ANSWERS))
    scores = np.array(run.models["rm"].scores([group]))
    assert (np.diff(scores) > 0).all()
    last = read_rows(tmp_path / "out" / "rm" / "metrics.jsonl")[-1]
    thresholds = [last[f"threshold/{level}"] for level in LEVELS[:-1]]
    found = chances(np.array(thresholds), scores) @ LEVELS
    assert found == pytest.approx(counts @ LEVELS / counts.sum(1), abs=0.2)


def test_learned_thresholds_survive_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`select` sets the thresholds' start again when a run continues; what was learned since must
    not be lost.
    """
    ratings = [(answer, n % 3) for n, answer in enumerate(ANSWERS)]

    def metrics(name: str) -> list[Any]:
        more = {"batch_size": 2, "epochs": 2, "checkpoint_every": 1}
        run_on(tmp_path, ratings, name, algorithm=ORDINAL, **more)
        keys = ("step", "loss", "threshold/0", "threshold/1")
        rows = read_rows(tmp_path / name / "rm" / "metrics.jsonl")
        return [[row[key] for key in keys] for row in rows]

    whole, log = metrics("whole"), Trainer.log

    def interrupted(work: Trainer, step: int, values: dict[str, Any]) -> None:
        if step == 4:
            raise KeyboardInterrupt
        log(work, step, values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "log", interrupted)
        metrics("continued")
    assert metrics("continued") == whole
    assert len({row[2] for row in whole}) > 2
