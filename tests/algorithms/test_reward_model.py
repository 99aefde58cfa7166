"""The reward model: margins by level or number, weights of a ranking's pairs, what it reports, by
hand.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from alignkit import Batch, DataError, Group, Outputs, Pair, Pairs, Response, SelectContext
from alignkit.training.learner import Averages
from alignkit_plugins.algorithms.reward_model import RewardModel

SCORES = torch.tensor([2.0, 0.5, -1.0, 0.25], dtype=torch.float64)
LEVELS = ("significantly", "better", None, "unsure")
# Llama 2, table 27.
MARGINS = {
    "llama2-small": (1.0, 2 / 3, 0.0, 0.0),
    "llama2-large": (3.0, 2.0, 0.0, 0.0),
    "none": (0.0,) * 4,
}
MARGINS["data"] = (0.0, 0.0, 1.5, 0.0)


def batch() -> Batch:
    """Two rankings: three pairs of the first, one of the second; the third pair's margin is a
    number.
    """
    pairs = Pairs(
        better=torch.tensor([0, 0, 1, 3]),
        worse=torch.tensor([1, 2, 2, 2]),
        p=torch.tensor([1.0, 0.7, 0.2, 0.5], dtype=torch.float64),
        margin=torch.tensor(MARGINS["data"], dtype=torch.float64),
        group_index=torch.tensor([0, 0, 0, 1]),
        levels=LEVELS,
    )
    ones = torch.ones(4, 1, dtype=torch.int64)
    return Batch(
        [Group(()), Group(())], ones, ones.bool(), torch.tensor([0, 0, 0, 1]), pairs, ones[:, 0] < 0
    )


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.silent_bug(
    "losses: masks",
    "The loss of a reward model includes scores of padding.",
    "A response has one score.",
    "deepspeedai/DeepSpeedExamples#316",
)
@pytest.mark.parametrize("kind", list(MARGINS))
def test_the_loss_of_a_pair_with_its_margin(kind: str) -> None:
    """-p log sigma(d - m) - (1 - p) log sigma(-d - m), d the difference of the scores."""
    model = RewardModel(RewardModel.Options(margin=kind, center_coefficient=0.3))
    given = batch()
    loss = model.loss(given, Outputs(scores=SCORES))
    pairs = zip(
        given.pairs.better.tolist(), given.pairs.worse.tolist(), given.pairs.p.tolist(), strict=True
    )
    for place, ((better, worse, p), margin) in enumerate(zip(pairs, MARGINS[kind], strict=True)):
        d = float(SCORES[better] - SCORES[worse])
        wanted = -p * math.log(sigma(d - margin)) - (1 - p) * math.log(sigma(-d - margin))
        assert float(loss["rank"].values[place]) == pytest.approx(wanted)
        assert float(loss["center"].values[place]) == pytest.approx(
            float(SCORES[better] + SCORES[worse]) ** 2
        )
    assert loss["rank"].coefficient == 1.0 and loss["center"].coefficient == 0.3
    # A ranking counts once, however many pairs it has.
    assert all(
        w.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1.0])
        for w in model.term_weights(given).values()
    )


def test_what_it_reports() -> None:
    given = batch()
    averages = Averages()
    averages.add(
        RewardModel(RewardModel.Options()).report_metrics(given, Outputs(scores=SCORES)), given
    )
    found = averages.means()
    # Right: 0 over 1, 0 over 2; wrong: 1 over 2 (P 0.2 says the other way); undecided: 3 over 2.
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["rewards/margins"] == pytest.approx((1.5 + 3.0 + 1.5 + 1.25) / 4)
    assert found["accuracy/significantly"] == 1.0 and found["accuracy/better"] == 1.0
    assert "accuracy/unsure" not in found


@pytest.mark.parametrize(
    ("kind", "without", "wanted"),
    [("data", 2, "a number"), ("llama2-small", 3, "the name of a level"), ("none", None, "")],
)
def test_pairs_without_a_margin_are_counted(kind: str, without: int | None, wanted: str) -> None:
    logged: dict[str, Any] = {}
    context = SelectContext(
        0, 0, lambda: [], lambda **m: logged.update(m), np.random.default_rng(0)
    )
    responses = (Response("a"), Response("b"))
    groups = [
        Group((), responses, (Pair(0, 1, margin=margin),)) for margin in (2.0, 1.0, None, "better")
    ]
    model = RewardModel(RewardModel.Options(margin=kind))
    assert model.select(groups, context) == groups
    assert logged == ({} if without is None else {"pairs_without_margin": without})
    if kind != "none":
        bare = [Group((), responses, (Pair(0, 1),))]
        with pytest.raises(
            DataError, match=f"'margin: {kind}' needs pairs whose margin is {wanted}"
        ):
            model.select(bare, context)
        held_out = SelectContext(
            0, 0, lambda: [], lambda **m: None, np.random.default_rng(0), validation=True
        )
        assert model.select(bare, held_out) == bare
