"""The reward model: margins by level or number, weights of a ranking's pairs, what it reports, by
hand.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import logsigmoid

from alignkit import DataError, Group, Outputs, Pair, Response
from alignkit_plugins.algorithms.reward_model import RewardModel
from tests.by_hand import Looking, batch, close, double, new, pairs_of, reported

SCORES = double([2.0, 0.5, -1.0, 0.25])
# Llama 2, table 27.
MARGINS = {
    "llama2-small": (1.0, 2 / 3, 0.0, 0.0),
    "llama2-large": (3.0, 2.0, 0.0, 0.0),
    "none": (0.0, 0.0, 0.0, 0.0),
    "data": (0.0, 0.0, 1.5, 0.0),
}
# Two rankings: three pairs of the first, one of the second; the third pair's margin is a number.
OWNER = torch.tensor([0, 0, 0, 1])
PAIRS = pairs_of(
    [(0, 1, 1.0), (0, 2, 0.7), (1, 2, 0.2), (3, 2, 0.5)],
    OWNER,
    margin=double(MARGINS["data"]),
    levels=("significantly", "better", None, "unsure"),
)
BATCH = batch(torch.ones(4, 1), PAIRS, group=OWNER)
OUT = Outputs(scores=SCORES)


@pytest.mark.silent_bug(
    "losses: masks",
    "The loss of a reward model includes scores of padding.",
    "A response has one score.",
    "deepspeedai/DeepSpeedExamples#316",
)
@pytest.mark.parametrize("kind", MARGINS)
def test_the_loss_of_a_pair_with_its_margin(kind: str) -> None:
    """-p log sigma(d - m) - (1 - p) log sigma(-d - m), d the difference of the scores. A ranking
    counts once, however many pairs it has.
    """
    model = new(RewardModel, margin=kind, center_coefficient=0.3)
    loss, d, p, m = model.loss(BATCH, OUT), double([1.5, 3.0, 1.5, 1.25]), PAIRS.p, MARGINS[kind]
    close(
        loss["rank"].values, -p * logsigmoid(d - double(m)) - (1 - p) * logsigmoid(-d - double(m))
    )
    close(loss["center"].values, double([2.5, 1.0, -0.5, -0.75]) ** 2)
    assert loss["rank"].coefficient == 1.0 and loss["center"].coefficient == 0.3
    for weights in model.term_weights(BATCH).values():
        close(weights, [1 / 3, 1 / 3, 1 / 3, 1.0], rtol=1e-6)
    # As do rows with weights
    weighted = batch(torch.ones(4, 1), PAIRS, [Group((), weight=2.0), Group(())], OWNER)
    close(model.term_weights(weighted)["rank"], [2 / 3, 2 / 3, 2 / 3, 1.0], rtol=1e-6)
    # Margins pull scores further apart than the log-odds of a pair.
    assert model.log_odds == (kind == "none")


def test_what_it_reports() -> None:
    """Right: 0 over 1, 0 over 2; wrong: 1 over 2 (P 0.2 says the other way); undecided: 3 over
    2.
    """
    found = reported(new(RewardModel), BATCH, OUT)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["rewards/margins"] == pytest.approx((1.5 + 3.0 + 1.5 + 1.25) / 4)
    assert found["accuracy/significantly"] == 1.0 and found["accuracy/better"] == 1.0
    assert "accuracy/unsure" not in found


@pytest.mark.parametrize(
    ("kind", "without", "wanted"),
    [("data", 2, "a number"), ("llama2-small", 3, "the name of a level"), ("none", None, "")],
)
def test_pairs_without_a_margin_are_counted(kind: str, without: int | None, wanted: str) -> None:
    def pair(margin: float | str | None) -> Group:
        return Group((), (Response("a"), Response("b")), (Pair(0, 1, margin=margin),))

    model, looking = new(RewardModel, margin=kind), Looking()
    groups = [pair(margin) for margin in (2.0, 1.0, None, "better")]
    assert model.select(groups, looking) == groups
    assert looking.logged == ({} if without is None else {"pairs_without_margin": without})
    assert "4 pairs are too few" in looking.said[0]
    model.select((groups * 13)[:50], enough := Looking())
    assert enough.said == []
    assert model.select([pair(None)], Looking(validation=True)) == [pair(None)]
    if kind != "none":
        with pytest.raises(DataError, match=f"'margin: {kind}' .* {wanted}"):
            model.select([pair(None)], Looking())
