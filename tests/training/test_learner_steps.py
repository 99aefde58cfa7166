"""Steps that fail: a gradient that is not finite changes nothing, and only several in a row end the
stage.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from watched import Watched, online

from alignkit import Loss, Needs, Outputs, RunFailed, per_token
from tests.rows import Said

pytestmark = pytest.mark.usefixtures("one_thread")


def failing(step: int, out: Outputs) -> Loss:
    """Every fifth step succeeds."""
    return Loss(nll=per_token(-out.logprobs if step % 5 == 4 else -out.logprobs * math.nan))


def test_a_step_that_succeeds_ends_a_row_of_failures(tmp_path: Path, said: Said) -> None:
    found = online(tmp_path, Watched(loss_of=failing), iterations=2, epochs=7)
    assert [metrics["skipped"] for metrics in found.metrics] == [6, 6]
    assert found.summary["skipped_steps"] == 12 and said().count("a step was skipped") == 1
    with pytest.raises(RunFailed, match=r"nll, loss, grad_norm .* not finite in 5 steps in a row"):
        online(
            tmp_path / "again",
            Watched(loss_of=lambda step, out: failing(min(step, 5), out)),
            iterations=1,
            epochs=14,
        )


def test_a_gradient_of_the_values_that_is_not_finite_changes_no_weight(tmp_path: Path) -> None:
    """The loss and the policy's gradient are finite. Weights that are not would fail every later
    step.
    """

    def loss(step: int, out: Outputs) -> Loss:
        # 0, where the square root has no derivative
        distance = (out.values - out.values.detach()).abs()
        return Loss(
            nll=per_token(-out.logprobs),
            values=per_token(distance.sqrt() if step == 0 else out.values**2),
        )

    watched = Watched(Needs(values=True), loss_of=loss)
    found = online(tmp_path, watched, plugin="ppo", iterations=1, prompts_per_iteration=1, epochs=3)
    assert found.metrics[0]["skipped"] == 1 and math.isfinite(found.metrics[0]["value_grad_norm"])
    first, second, third = watched.seen[0].logprobs
    assert torch.equal(first, second) and not torch.equal(second, third)
