"""The advantages against numbers computed by hand, and a run of two iterations through the command
line.
"""

import json
from importlib.metadata import entry_points
from pathlib import Path

import alignkit_reinforce
import pytest
import torch

from alignkit import Batch, Group, Pairs
from alignkit.cli import main
from alignkit.testing import check_algorithm

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_reinforce" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_reinforce.py")]


def batch(rewards: list[float], group: list[int]) -> Batch:
    """Responses of two tokens; the second counts only in the first response. KL is 0.5 nats per
    counted token.
    """
    count, none = len(rewards), torch.zeros(0)
    mask = torch.ones(count, 2, dtype=torch.bool)
    mask[1:, 1] = False
    return Batch(
        groups=[Group(()) for _ in set(group)],
        tokens=torch.zeros(count, 2, dtype=torch.int64),
        mask=mask,
        group_index=torch.tensor(group),
        pairs=Pairs(none, none, none, none, none),
        truncated=torch.zeros(count, dtype=torch.bool),
        old_logprobs=torch.full((count, 2), -1.0),
        reference_logprobs=torch.full((count, 2), -1.5),
        rewards=torch.tensor(rewards),
    )


def reinforce(**options: object) -> alignkit_reinforce.Reinforce:
    return alignkit_reinforce.Reinforce(alignkit_reinforce.Reinforce.Options(**options))


def test_leave_one_out() -> None:
    # returns: 3 - 0.2 * 1.0 = 2.8, 1 - 0.2 * 0.5 = 0.9, and 5 - 0.1, 5 - 0.1
    advantages = reinforce(kl_coefficient=0.2).signal(batch([3.0, 1.0, 5.0, 5.0], [0, 0, 1, 1]))[
        "advantages"
    ]
    assert torch.allclose(advantages, torch.tensor([1.9, -1.9, 0.0, 0.0]), atol=1e-6)


def test_the_running_mean_covers_only_earlier_iterations() -> None:
    algorithm = reinforce(kl_coefficient=0.0, baseline="running_mean", decay=0.5)
    first = algorithm.signal(batch([1.0, 3.0], [0, 1]))["advantages"]
    assert torch.allclose(first, torch.tensor([-1.0, 1.0]))
    second = algorithm.signal(batch([4.0, 6.0], [0, 1]))["advantages"]
    assert torch.allclose(second, torch.tensor([2.0, 4.0]))  # the baseline is 2, not 5
    assert algorithm.state == {"baseline": 3.5}


def test_leave_one_out_needs_two_responses() -> None:
    assert reinforce().needs.min_samples == 2
    assert reinforce(baseline="running_mean").needs.min_samples == 1


@pytest.mark.parametrize("baseline", ["leave_one_out", "running_mean"])
def test_it_conforms(baseline: str) -> None:
    check_algorithm(alignkit_reinforce.Reinforce, {"baseline": baseline})


@pytest.mark.parametrize("baseline", ["leave_one_out", "running_mean"])
def test_a_run(tmp_path: Path, baseline: str) -> None:
    overrides = [
        "stages.align.iterations=2",
        f"stages.align.algorithm.reinforce.baseline={baseline}",
    ]
    assert (
        main(["run", str(HERE / "recipe.yaml"), *overrides, "--out", str(tmp_path), *PLUGIN]) == 0
    )
    rows = [
        json.loads(line) for line in (tmp_path / "align" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(rows) == 2
    assert rows[0]["kl"] == 0.0
    assert rows[0]["grad_norm"] > 0
    assert rows[1]["kl"] != 0.0
