"""The kept samples, their advantages and the loss by hand in numpy, the conformance kit, and a
short run.
"""

import json
from importlib.metadata import entry_points
from pathlib import Path

import alignkit_gfpo
import numpy as np
import pytest
import torch

from alignkit import Batch, Group, Outputs, Pairs, Skip
from alignkit.cli import main
from alignkit.testing import check_algorithm

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_gfpo" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_gfpo.py")]
NONE = torch.zeros(0)


def gfpo(**options: object) -> alignkit_gfpo.GFPO:
    return alignkit_gfpo.GFPO(alignkit_gfpo.GFPO.Options(**options))


def rollouts(rewards: list[float], lengths: list[int], group: list[int]) -> Batch:
    """Responses of these lengths, padded, whose policy and reference give every token e^-1."""
    count, longest = len(rewards), max(lengths)
    return Batch(
        groups=[Group(()) for _ in set(group)],
        tokens=torch.zeros(count, longest, dtype=torch.int64),
        mask=torch.arange(longest) < torch.tensor(lengths)[:, None],
        group_index=torch.tensor(group),
        pairs=Pairs(NONE, NONE, NONE, NONE, NONE),
        truncated=torch.zeros(count, dtype=torch.bool),
        old_logprobs=torch.full((count, longest), -1.0),
        reference_logprobs=torch.full((count, longest), -1.0),
        rewards=torch.tensor(rewards),
    )


REWARDS, LENGTHS, GROUP = (
    [1.0, 0.0, 1.0, 0.6, 2.0, 4.0, 0.5],
    [4, 1, 2, 3, 5, 8, 1],
    [0, 0, 0, 0, 1, 1, 1],
)


def golden(kept: list[int]) -> list[float]:
    """(r - mean) / (std + 1e-4) among a prompt's kept samples, with the unbiased std; 0 for the
    others.
    """
    advantages = np.zeros(len(REWARDS))
    for prompt in (0, 1):
        own = [index for index in kept if GROUP[index] == prompt]
        rewards = np.array(REWARDS)[own]
        advantages[own] = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
    return advantages.tolist()


@pytest.mark.parametrize(
    ("metric", "keep", "kept"),
    [
        ("length", 2, [1, 2, 6, 4]),
        # 1/4, 0, 1/2, 1/5 and 2/5, 1/2, 1/2 per token: of the last two and of equal ones, the first
        ("efficiency", 2, [2, 0, 5, 6]),
        ("length", 9, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_advantages_are_among_the_kept(metric: str, keep: int, kept: list[int]) -> None:
    algorithm = gfpo(metric=metric, keep=keep)
    signal = algorithm.signal(rollouts(REWARDS, LENGTHS, GROUP))
    assert not isinstance(signal, Skip)
    assert signal["kept"].tolist() == [float(index in kept) for index in range(len(REWARDS))]
    assert signal["advantages"].tolist() == pytest.approx(golden(kept), abs=1e-6)
    assert algorithm.metrics == {
        "kept_tokens": pytest.approx(np.mean([LENGTHS[i] for i in kept])),
        "sampled_tokens": pytest.approx(np.mean(LENGTHS)),
    }


def test_the_loss_is_a_mean_over_the_kept_tokens() -> None:
    """Ratios of 1.1 for every token: -1.1 A each, but -A 1.05 where the range of 0.05 clips a good
    one.
    """
    algorithm, batch = (
        gfpo(keep=2, clip_range=0.05, kl_coefficient=0.5),
        rollouts(REWARDS, LENGTHS, GROUP),
    )
    batch.signals.update(algorithm.signal(batch))
    out = Outputs(logprobs=(batch.old_logprobs + np.log(1.1)).requires_grad_())
    terms, weights = algorithm.loss(batch, out), algorithm.term_weights(batch)
    tokens = sum(LENGTHS[i] for i in (1, 2, 6, 4))
    expected = sum(-max(golden([1, 2, 6, 4])[i], 0) * 1.05 * LENGTHS[i] for i in (1, 2, 6, 4))
    expected += sum(-min(golden([1, 2, 6, 4])[i], 0) * 1.1 * LENGTHS[i] for i in (1, 2, 6, 4))
    means = {
        name: (term.values * weights[name]).sum() / weights[name].sum()
        for name, term in terms.items()
    }
    assert means["policy_loss"].item() == pytest.approx(expected / tokens, rel=1e-5)
    # K3 of log(ref/pi) = -log 1.1
    assert means["kl_loss"].item() == pytest.approx(1 / 1.1 - 1 + np.log(1.1), rel=1e-4)
    assert terms["kl_loss"].coefficient == 0.5
    means["policy_loss"].backward()
    gradient = out.logprobs.grad
    assert gradient is not None
    # Left out, and padding
    assert not gradient[[0, 3, 5]].any() and not gradient[~batch.mask].any()
    assert (gradient[1, :1] > 0).all()  # kept, and worse than the others


def test_equal_rewards_teach_nothing() -> None:
    assert isinstance(gfpo(keep=2).signal(rollouts([1.0, 1.0, 0.0], [1, 2, 3], [0, 0, 0])), Skip)
    assert not isinstance(
        gfpo(keep=3).signal(rollouts([1.0, 1.0, 0.0], [1, 2, 3], [0, 0, 0])), Skip
    )


@pytest.mark.parametrize("metric", ["length", "efficiency"])
def test_it_conforms(metric: str) -> None:
    check_algorithm(alignkit_gfpo.GFPO, {"metric": metric, "keep": 2, "kl_coefficient": 0.1})


def test_a_run(tmp_path: Path) -> None:
    overrides = ["stages.align.iterations=2"]
    assert main(["run", str(HERE / "gfpo.yaml"), *overrides, "--out", str(tmp_path), *PLUGIN]) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "align" / "metrics.jsonl").read_text().splitlines()
    ]
    assert rows[0]["kept_tokens"] <= rows[0]["sampled_tokens"] and rows[0]["grad_norm"] > 0
    assert rows[1]["kl"] != 0.0
