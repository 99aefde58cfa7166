"""The buffer and its draws, the loss by hand in numpy, the conformance kit, and a short run."""

import json
from importlib.metadata import entry_points
from pathlib import Path

import alignkit_replay
import numpy as np
import pytest
import torch

from alignkit import Batch, Group, Outputs, Pairs, Response, SelectContext
from alignkit.cli import main
from alignkit.testing import check_algorithm

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_replay" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_replay.py")]
NONE = torch.zeros(0)


def replay(**options: object) -> alignkit_replay.GRPOWithReplay:
    return alignkit_replay.GRPOWithReplay(alignkit_replay.GRPOWithReplay.Options(**options))


def group(name: str, *rewards: float, logprobs: tuple[float, ...] | None = None) -> Group:
    responses = [
        Response(text=name, tokens=(1, 2), logprobs=logprobs, scores={"reward": r}) for r in rewards
    ]
    return Group(({"role": "user", "content": name},), tuple(responses), id=name)


def select(
    new: list[Group], earlier: list[list[Group]], seed: int = 0, **options: object
) -> tuple[list[str], dict]:
    logged: dict[str, float] = {}
    context = SelectContext(
        3, 0, lambda: earlier, lambda **named: logged.update(named), np.random.default_rng(seed)
    )
    return [each.id for each in replay(**options).select(new, context)], logged


def test_a_score_by_hand() -> None:
    """Rewards 0 and 1: mean 1/2, std 1/sqrt(2), |advantages| 1/2 / (std + 1e-4) each; times the
    std.
    """
    std = np.sqrt(0.5)
    assert alignkit_replay.score(group("a", 0, 1)) == pytest.approx(2 * 0.5 / (std + 1e-4) * std)
    assert (
        alignkit_replay.score(group("a", 0, 0)) == 0.0
        and alignkit_replay.score(group("a", 1)) == 0.0
    )
    assert alignkit_replay.score(group("a", 0, 10)) > alignkit_replay.score(group("a", 0, 1))


def test_groups_without_spread_are_replaced() -> None:
    earlier = [[group("old", 0, 3), group("flat", 1, 1)], [group("older", 0, 2)]]
    names, logged = select([group("new", 0, 1), group("dull", 0, 0)], earlier)
    assert names[0] == "new" and len(names) == 2 and names[1] in ("new", "old", "older")
    assert logged == {"replayed": 1, "buffer": 3}
    assert select([group("new", 0, 1)], earlier) == (["new"], {"replayed": 0, "buffer": 3})
    assert select([group("dull", 0, 0)], []) == ([], {"replayed": 0, "buffer": 0})
    # The buffer has the best: of size 1, only the one with the largest score.
    assert select([group("dull", 0, 0)] * 3, earlier, buffer_size=1)[0] == ["old"] * 3


def test_draws_are_in_proportion_to_the_scores() -> None:
    """Scores 1 : 3, one draw each; without replacement if there are enough."""
    earlier = [[group("small", 0, 1), group("large", 0, 3)]]
    drawn = [select([group("dull", 0, 0)], earlier, seed)[0][0] for seed in range(800)]
    assert drawn.count("large") / len(drawn) == pytest.approx(0.75, abs=0.05)
    assert sorted(select([group("dull", 0, 0)] * 2, earlier)[0]) == ["large", "small"]
    assert len(select([group("dull", 0, 0)] * 3, earlier)[0]) == 3


def test_the_ratio_is_to_the_policy_that_sampled() -> None:
    """Tokens have e^-1; one group was sampled at e^-1, the other at e^-1.5: its ratio e^0.5 is
    clipped at 1.2.
    """
    groups = [group("new", 1, 0), group("old", 1, 0, logprobs=(-1.5, -1.5))]
    batch = Batch(
        groups=groups,
        tokens=torch.zeros(4, 3, dtype=torch.int64),
        mask=torch.tensor([[True, True, False]]).repeat(4, 1),
        group_index=torch.tensor([0, 0, 1, 1]),
        pairs=Pairs(NONE, NONE, NONE, NONE, NONE),
        truncated=torch.zeros(4, dtype=torch.bool),
        old_logprobs=torch.full((4, 3), -1.0),
        reference_logprobs=torch.full((4, 3), -2.0),
    )
    out = Outputs(logprobs=torch.full((4, 3), -1.0, requires_grad=True))
    terms = replay(kl_coefficient=0.5).loss(batch, out)
    advantage = 0.5 / (np.sqrt(0.5) + 1e-4)
    expected = [-advantage, advantage, -1.2 * advantage, np.exp(0.5) * advantage]
    assert terms["policy_loss"].values.tolist() == pytest.approx(expected, rel=1e-5)
    assert terms["kl_loss"].values.tolist() == pytest.approx([np.exp(-1) - 1 + 1] * 4, rel=1e-5)
    terms["policy_loss"].values.sum().backward()
    gradient = out.logprobs.grad
    assert gradient is not None
    assert not gradient[2].any() and (gradient[3, :2] > 0).all() and not gradient[:, 2].any()


def test_it_conforms() -> None:
    check_algorithm(alignkit_replay.GRPOWithReplay, {"kl_coefficient": 0.1})


def test_a_run(tmp_path: Path) -> None:
    overrides = ["stages.align.iterations=4"]
    assert (
        main(["run", str(HERE / "replay.yaml"), *overrides, "--out", str(tmp_path), *PLUGIN]) == 0
    )
    rows = [
        json.loads(line) for line in (tmp_path / "align" / "metrics.jsonl").read_text().splitlines()
    ]
    assert sum(row["replayed"] for row in rows) > 0 and rows[-1]["buffer"] >= rows[0]["buffer"]
    assert all(row["grad_norm"] > 0 for row in rows[1:])
