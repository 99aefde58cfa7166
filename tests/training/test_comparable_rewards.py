"""What an online stage says about its prompts, and which earlier samples it may learn again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from watched import STILL, online

from alignkit_plugins.algorithms.rejection_sampling import RejectionSampling
from alignkit_plugins.rewards.python import Python

KEYS = {"count": 6, "iterations": 3, "learning_rate": STILL, "plugin": "rejection_sampling"}


def replayed(folder: Path, told: str, capfd: pytest.CaptureFixture[str], **more: Any) -> bool:
    """Whether the best of N learns earlier samples again; if not, the run must tell it."""
    best_of = RejectionSampling(RejectionSampling.Options())
    found = online(folder, best_of, **KEYS, **more)
    again = any(metrics["replayed"] for metrics in found.metrics)
    warning = f"earlier samples are not replayed: scores of '{told}'"
    assert (warning in "".join(capfd.readouterr())) != again
    return again


def test_scores_within_a_group_are_not_carried_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A win rate of 0.4 against weak samples is not better than one of 0.3 against strong ones."""
    assert replayed(tmp_path / "each", "python", capfd)
    monkeypatch.setattr(Python, "within_group", True)
    assert not replayed(tmp_path / "within", "python", capfd)


@pytest.mark.usefixtures("combinations")
def test_scores_that_change_during_a_run_are_not_carried_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As lambda rises, earlier samples would only look better."""
    length, tokens = ({"length": {"unit": unit}} for unit in ("characters", "tokens"))
    rising = {"lagrangian": {"reward": length, "cost": tokens, "limit": 2.0}}
    assert not replayed(tmp_path, "lagrangian", capfd, reward=rising)
