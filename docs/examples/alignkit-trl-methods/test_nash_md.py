"""The advantages against the paper's expectation by enumeration, the conformance kit, and a short
run.
"""

import json
from importlib.metadata import entry_points
from pathlib import Path

import alignkit_nash_md
import numpy as np
import pytest
import torch

from alignkit import Batch, Group, Outputs, Pairs
from alignkit.cli import main
from alignkit.testing import check_algorithm

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_nash_md" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_nash_md.py")]
NONE = torch.zeros(0)


def nash_md(**options: object) -> alignkit_nash_md.NashMD:
    return alignkit_nash_md.NashMD(alignkit_nash_md.NashMD.Options(**options))


def rollouts(
    scores: list[float], old: list[float], reference: list[float], group: list[int]
) -> Batch:
    """Responses with these log-probabilities in nats, split over two tokens; a third token does not
    count.
    """
    count = len(scores)

    def tokens(logprobs: list[float], garbage: float) -> torch.Tensor:
        return torch.tensor([[x / 4, 3 * x / 4, garbage] for x in logprobs])

    return Batch(
        groups=[Group(()) for _ in set(group)],
        tokens=torch.zeros(count, 3, dtype=torch.int64),
        mask=torch.tensor([[True, True, False]]).repeat(count, 1),
        group_index=torch.tensor(group),
        pairs=Pairs(NONE, NONE, NONE, NONE, NONE),
        truncated=torch.zeros(count, dtype=torch.bool),
        old_logprobs=tokens(old, 3.0),
        reference_logprobs=tokens(reference, -8.0),
        rewards=torch.tensor(scores),
    )


POLICY, REFERENCE = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.3, 0.6])
# Samples of the prompt: each response as often as it is likely
SCORES, TIMES = np.array([1.0, -0.5, 2.5]), 400


@pytest.mark.parametrize("mixture", [0.0, 0.125, 0.7, 1.0])
@pytest.mark.parametrize("preference", ["bradley_terry", "score"])
def test_with_many_samples_the_opponent_is_the_papers_mixture(
    mixture: float, preference: str
) -> None:
    """E over y' ~ pi^(1 - b) mu^b / Z of P(y wins), - 1/2 - tau log(pi/mu), by enumeration."""
    weights = POLICY ** (1 - mixture) * REFERENCE**mixture
    opponent = weights / weights.sum()
    margin = SCORES[:, None] - SCORES[None]
    wins = 1 / (1 + np.exp(-margin)) if preference == "bradley_terry" else (np.sign(margin) + 1) / 2
    expected = wins @ opponent - 0.5 - 0.05 * np.log(POLICY / REFERENCE)
    drawn = np.repeat(np.arange(3), np.round(TIMES * POLICY).astype(int))
    batch = rollouts(
        SCORES[drawn].tolist(),
        np.log(POLICY)[drawn].tolist(),
        np.log(REFERENCE)[drawn].tolist(),
        [0] * TIMES,
    )
    algorithm = nash_md(tau=0.05, mixture=mixture, preference=preference)
    advantages = algorithm.signal(batch)["advantages"].numpy()
    # Nobody is its own opponent, which changes each expectation by about 1 / TIMES; a wrong sign
    # changes it by 0.1.
    assert np.abs(advantages - expected[drawn]).max() < 5 / TIMES


def test_three_samples_by_hand() -> None:
    """Only samples of the same prompt are opponents; the second prompt has other scores."""
    batch = rollouts(
        [2.0, 1.0, 2.0, 9.0, 7.0, 8.0], [-1.0, -2.0, -1.0, -3.0, -3.0, -3.0], [-2.0, -2.0, -4.0, -3.0, -3.0, -3.0],
        [0, 0, 0, 1, 1, 1],
    )  # fmt: skip
    advantages = nash_md(tau=0.1, mixture=0.5, preference="score").signal(batch)["advantages"]
    # log pi/mu = 1, 0, 3, so the weights (mu/pi)^(1/2) are a = e^-0.5, 1, b = e^-1.5; a tie wins
    # half.
    a, b = np.exp(-0.5), np.exp(-1.5)
    first = [(1 + b / 2) / (1 + b) - 0.5 - 0.1, 0 - 0.5, (a / 2 + 1) / (a + 1) - 0.5 - 0.3]
    assert advantages.tolist() == pytest.approx([*first, 0.5, -0.5, 0.0], abs=1e-6)


def test_a_winner_becomes_likelier() -> None:
    batch = rollouts([1.0, 0.0, 0.0], [-1.0] * 3, [-1.0] * 3, [0, 0, 0])
    algorithm = nash_md()
    batch.signals.update(algorithm.signal(batch))
    out = Outputs(logprobs=batch.old_logprobs.clone().requires_grad_())
    algorithm.loss(batch, out)["policy_loss"].values.sum().backward()
    gradient = out.logprobs.grad
    assert gradient is not None
    assert (gradient[0, :2] < 0).all() and (gradient[1:, :2] > 0).all() and not gradient[:, 2].any()


@pytest.mark.parametrize("preference", ["bradley_terry", "score"])
def test_it_conforms(preference: str) -> None:
    check_algorithm(alignkit_nash_md.NashMD, {"preference": preference, "mixture": 0.5})


def test_a_run(tmp_path: Path) -> None:
    overrides = ["stages.align.iterations=2"]
    assert (
        main(["run", str(HERE / "nash_md.yaml"), *overrides, "--out", str(tmp_path), *PLUGIN]) == 0
    )
    rows = [
        json.loads(line) for line in (tmp_path / "align" / "metrics.jsonl").read_text().splitlines()
    ]
    # The first opponent is the policy itself
    assert rows[0]["win_rate"] == pytest.approx(0.5, abs=1e-5)
    assert rows[0]["effective_opponents"] == pytest.approx(15, abs=1e-3)
    assert rows[0]["grad_norm"] > 0 and rows[1]["kl"] != 0.0
