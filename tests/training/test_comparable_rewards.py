"""What an online stage says about its prompts, and which earlier samples it may learn again."""

from __future__ import annotations

from pathlib import Path

import pytest
from watched import STILL, online

from alignkit_plugins.algorithms.rejection_sampling import RejectionSampling
from alignkit_plugins.rewards.python import Python

KEYS = {"count": 6, "iterations": 3, "learning_rate": STILL, "plugin": "rejection_sampling"}


def best_of() -> RejectionSampling:
    return RejectionSampling(RejectionSampling.Options())


def test_scores_within_a_group_are_not_carried_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A win rate of 0.4 against weak samples is not better than one of 0.3 against strong ones."""
    told = "earlier samples are not replayed: scores of 'python'"
    for within, replayed in ((False, [0, 1, 1]), (True, [0, 0, 0])):
        monkeypatch.setattr(Python, "within_group", within)
        folder = tmp_path / str(within)
        folder.mkdir()
        found = online(folder, best_of(), **KEYS)
        assert [metrics["replayed"] for metrics in found.metrics] == replayed
        assert (told in "".join(capfd.readouterr())) == within


@pytest.mark.usefixtures("combinations")
def test_scores_that_change_during_a_run_are_not_carried_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As lambda rises, earlier samples would only look better. Whitening leaves raw scores as they
    are.
    """
    told = "earlier samples are not replayed: scores of 'lagrangian'"
    length = {"length": {"unit": "characters"}}
    lagrangian = {
        "lagrangian": {"reward": length, "cost": {"length": {"unit": "tokens"}}, "limit": 2.0}
    }
    rewards = {
        "lagrangian": lagrangian,
        "running_normalization": {"running_normalization": {"reward": length}},
    }
    for name, reward in rewards.items():
        folder = tmp_path / name
        folder.mkdir()
        found = online(folder, best_of(), reward=reward, **KEYS)
        assert any(metrics["replayed"] for metrics in found.metrics) == (name != "lagrangian")
        assert (told in "".join(capfd.readouterr())) == (name == "lagrangian")
