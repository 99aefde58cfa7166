"""The loop of an online stage: what each iteration samples, selects, learns and keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from scripted import END, follow
from watched import SFT, STILL, Watched, online, texts, tokens

from alignkit import Group
from alignkit.contract.algorithm import Phase
from alignkit.data.group import responses_of
from alignkit.errors import PluginError
from tests.rows import Said

pytestmark = pytest.mark.usefixtures("one_thread")


# Rolling out


def test_iterations_walk_through_the_prompts(tmp_path: Path) -> None:
    """Six prompts, two at a time: each comes once before any comes again, and then in another
    order.
    """
    found = online(tmp_path, Watched(), count=6, iterations=6, learning_rate=STILL)
    drawn = [text for groups in found.rollouts() for text in texts(groups)]
    assert len(set(drawn[:6])) == 6 and sorted(drawn[:6]) == sorted(drawn[6:])
    assert drawn[:6] != drawn[6:]
    assert {r.source for groups in found.rollouts() for r in responses_of(groups)} == {"align"}


def test_every_iteration_draws_other_samples(tmp_path: Path) -> None:
    """Of the same prompt, from a policy that has not changed; and `select` draws other numbers."""
    watched = Watched()
    found = online(
        tmp_path, watched, count=1, iterations=3, prompts_per_iteration=1, learning_rate=STILL
    )
    drawn = [tokens(groups) for groups in found.rollouts()]
    assert len({sample for samples in drawn for sample in samples}) == 6
    assert len({seen.draw for seen in watched.seen}) == 3


def test_the_policy_samples_and_not_its_reference(tmp_path: Path) -> None:
    """Sampler and training path agree on the samples' log-probabilities although policy and
    reference differ.
    """
    keys: dict[str, Any] = {"from": "sft", "reference": "base", "learning_rate": 0.05}
    found = online(tmp_path, Watched(), before={"sft": SFT}, **keys)
    for metrics in found.metrics:
        assert abs(metrics["kl"]) > 0.1 and metrics["engine_mismatch"] < 1e-4


# Selecting and learning


def test_kept_groups_keep_their_rewards(tmp_path: Path) -> None:
    """The algorithm leaves out the first of three groups."""
    kept = iter([False, True, True])
    watched = Watched(keep=lambda group: next(kept))
    online(tmp_path, watched, count=3, prompts_per_iteration=3, iterations=1)
    measured = watched.measured
    assert measured is not None and len(measured.groups) == 2
    own = [response.reward for group in measured.groups for response in group.responses]
    assert measured.rewards.tolist() == own and len(set(own)) == 4


def test_a_phase_has_its_own_epochs_and_learning_rate(tmp_path: Path) -> None:
    """The logged learning rate is the mean over the steps of all phases."""

    def phases(groups: Sequence[Group]) -> list[Phase]:
        return [Phase(groups, epochs=3), Phase(groups[:1], lr_scale=0.25)]

    watched = Watched(choose=phases)
    found = online(tmp_path, watched, iterations=1, epochs=2, learning_rate=0.01)
    assert [len(batch.groups) for batch in watched.seen[0].learned] == [2, 2, 2, 1, 1]
    assert found.metrics[0]["learning_rate"] == pytest.approx((3 * 0.01 + 2 * 0.0025) / 5)


def test_the_rate_rises_from_the_first_step_on(tmp_path: Path) -> None:
    """Half of the steps of three iterations, each with two minibatches in two epochs: eight."""
    keys = {"batch_size": 1, "epochs": 2, "learning_rate": 0.01, "iterations": 3}
    found = online(tmp_path, Watched(), warmup_ratio=0.5, **keys)
    rates = [metrics["learning_rate"] for metrics in found.metrics]
    assert rates == pytest.approx([0.01 * 2.5 / 8, 0.01 * 6.5 / 8, 0.01])


def test_selected_groups_are_learned_as_often_as_they_are_selected(tmp_path: Path) -> None:
    """In any order, each with its own tokens and rewards."""

    def last_twice(groups: Sequence[Group]) -> list[Group]:
        return [groups[2], groups[0], groups[2]]

    watched = Watched(choose=last_twice)
    online(tmp_path, watched, count=3, prompts_per_iteration=3, iterations=1, batch_size=1)
    learned, (first, _, last) = watched.seen[0].learned, watched.seen[0].groups
    assert sorted(batch.groups[0].id for batch in learned) == sorted([first.id, last.id, last.id])
    for batch in learned:
        (group,) = batch.groups
        assert batch.rewards.tolist() == [response.reward for response in group.responses]
        for row, mask, response in zip(batch.tokens, batch.mask, group.responses, strict=True):
            assert tuple(row[mask].tolist()) == response.tokens


# Keeping


def test_a_kept_version_is_the_policy_after_its_iteration(tmp_path: Path) -> None:
    found = online(tmp_path, Watched(), keep_versions=True)
    kept = found.folder / "align" / "kept"
    assert sorted(path.name for path in kept.iterdir()) == ["1", "2"]
    # Before the first step all of LoRA's B are zero.
    first = load_file(kept / "1" / "adapter_model.safetensors")
    assert all(bool(weight.any()) for weight in first.values())
    assert found.kept(2) == found.weights != found.kept(1)
    assert found.run.artifact("align@1") == kept / "1"


def test_rollouts_of_an_iteration_that_was_not_completed_are_removed(tmp_path: Path) -> None:
    """The first run ends in its third iteration, without a checkpoint; the second one starts
    over.
    """
    folder = tmp_path / "run" / "align" / "rollouts"
    files: list[list[str]] = []

    def broken(groups: Sequence[Group]) -> Sequence[Group]:
        files.append(sorted(path.name for path in folder.iterdir()))
        return groups if len(files) != 3 else 1 / 0  # type: ignore[return-value]

    keys: dict[str, Any] = {"iterations": 4, "checkpoint_every": 4}
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        online(tmp_path, Watched(choose=broken), **keys)
    online(tmp_path, Watched(choose=broken), **keys)
    names = [f"{number:04d}.jsonl" for number in range(1, 5)]
    assert files == [names[:1], names[:2], names[:3], names[:1], names[:2], names[:3], names]


@pytest.mark.silent_bug(
    "generation: truncated samples",
    "A policy learns from samples most of which were cut off, and only a metric says so.",
    "The first iteration warns, with the share and what to change.",
)
@pytest.mark.parametrize(
    ("text", "warnings"), [(f"yes{END}", 0), ("no no no no no no no no no no", 1)]
)
def test_samples_that_are_mostly_cut_off_are_told_in_the_first_iteration(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
    text: str,
    warnings: int,
) -> None:
    follow(monkeypatch, [[text]])
    online(tmp_path, Watched(), iterations=2)
    warning = "warning: 100% of the samples have no end after max_new_tokens 5"
    assert said().count(warning) == warnings
