"""Dynamic sampling: more batches of prompts until enough groups are left to learn from, within the
recipe's bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from played import roll_out, rollouts, run_of
from scripted import END, follow
from watched import STILL, Watched, online, texts, tokens

from alignkit import Environment, Group, RecipeError

pytestmark = pytest.mark.usefixtures("one_thread")

ROLLOUT = {"samples_per_prompt": 2, "max_new_tokens": 5}
# Keeps all; without one, more batches would have no use
EVERY = {"filters": [{"reward_range": {"low": -99}}]}
FILLED = {**ROLLOUT, **EVERY, "max_num_gen_batches": 12}


def even(group: Group) -> bool:
    """True of about half of the groups."""
    return sum(group.responses[0].text.encode()) % 2 == 0


def test_the_batch_is_filled_with_groups_that_are_kept(tmp_path: Path) -> None:
    watched = Watched(keep=even)
    ran = online(tmp_path, watched, count=12, prompts_per_iteration=4, iterations=6, rollout=FILLED)
    assert [len(seen.groups) for seen in watched.seen] == [4] * 6
    assert all(even(group) for seen in watched.seen for group in seen.groups)
    sampled = ran.rollouts()
    assert all(len(groups) > 4 for groups in sampled)
    assert all(row["gen_batches"] > 1 and row["groups_without_signal"] > 0 for row in ran.metrics)
    # What is left are the first ones that are kept, in the order in which they were sampled.
    assert [tokens(seen.groups) for seen in watched.seen] == [
        tokens([group for group in groups if even(group)][:4]) for groups in sampled
    ]
    # Prompts go on where the last batch ended: every one is drawn once before any is drawn twice.
    drawn = texts([group for groups in sampled for group in groups])
    epochs = [drawn[start : start + 12] for start in range(0, len(drawn) - 11, 12)]
    assert len(epochs) > 2 and all(len(set(epoch)) == 12 for epoch in epochs)


def test_a_sample_does_not_depend_on_the_batch_that_it_came_with(tmp_path: Path) -> None:
    """The n-th prompt of an iteration is answered as in an iteration that samples all of them at
    once.
    """
    keys: dict[str, Any] = {"count": 12, "iterations": 1, "learning_rate": STILL}
    batches = online(
        tmp_path / "batches", Watched(keep=even), prompts_per_iteration=3, rollout=FILLED, **keys
    )
    once = online(tmp_path / "once", Watched(), prompts_per_iteration=12, rollout=ROLLOUT, **keys)
    (some,), (every,) = batches.rollouts(), once.rollouts()
    assert 3 < len(some) <= 12
    assert texts(some) == texts(every[: len(some)]) and tokens(some) == tokens(every[: len(some)])


def test_the_bound_ends_it(tmp_path: Path) -> None:
    """Every eighth group at most is kept, and two batches do not find four."""

    def rare(group: Group) -> bool:
        return sum(group.responses[0].text.encode()) % 8 == 0

    watched = Watched(keep=rare)
    rollout = {**FILLED, "max_num_gen_batches": 2}
    ran = online(
        tmp_path, watched, count=12, prompts_per_iteration=4, iterations=5, rollout=rollout
    )
    assert all(row["gen_batches"] <= 2 for row in ran.metrics)
    learned = [sum(map(rare, groups)) for groups in ran.rollouts()]
    assert [len(seen.groups) for seen in watched.seen] == [
        min(4, count) for count in learned if count
    ]
    assert any(learned) and min(learned) < 4


@pytest.mark.usefixtures("combinations")
def test_combinations_see_an_iteration_once_and_whole(tmp_path: Path) -> None:
    """What a combination remembers takes in every sample once, and its rewards are those of all of
    them.
    """
    inner = {"python": {"path": "reward.py", "function": "reward"}}
    reward = {"running_normalization": {"reward": inner}}
    watched = Watched(keep=even)
    ran = online(
        tmp_path,
        watched,
        count=12,
        prompts_per_iteration=4,
        iterations=3,
        rollout=FILLED,
        reward=reward,
    )
    sampled = ran.rollouts()
    scores = np.array([r.reward for groups in sampled for group in groups for r in group.responses])
    (state,) = ran.summary["combinations"].values()
    moments = {"count": len(scores), "mean": scores.mean(), "variance": scores.var()}
    assert state == pytest.approx(moments) and len(scores) > 24
    first = np.array([r.reward for group in sampled[0] for r in group.responses])
    seen = watched.seen[0]
    assert seen.measured is not None
    learned = np.array([r.reward for group in seen.groups for r in group.responses])
    expected = torch.tensor((learned - first.mean()) / first.std(), dtype=torch.float32)
    torch.testing.assert_close(seen.measured.rewards.float(), expected, atol=1e-5, rtol=1e-5)


class Dice(Environment):
    def reset(self, row: Any) -> str:
        self.number = int(self.random.integers(10**9))
        return f" {self.number}"

    def get_reward(self) -> float:
        return self.number % 97


def test_episodes_of_later_batches_have_random_numbers_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, [[f"yes{END}", f"no{END}"]])
    rollout = {"samples_per_prompt": 2, "max_new_tokens": 9}
    none_is_kept = {"filters": [{"reward_range": {"low": 999}}], "max_num_gen_batches": 2}
    asked = []
    for prompts, more in ((2, {}), (1, none_is_kept)):
        run = run_of(
            tmp_path / str(prompts),
            Dice,
            rollout=rollout | more,
            algorithm="expert_iteration",
            prompts_per_iteration=prompts,
        )
        roll_out(run)
        asked.append([(group.prompt, tokens([group])) for group in rollouts(run)])
    once, batches = asked
    assert len(once) == 2 and batches == once
    assert once[0][0][-1]["content"] != once[1][0][-1]["content"]


def test_it_is_refused_with_samples_that_are_ahead(tmp_path: Path) -> None:
    rollout = {**FILLED, "ahead": 1}
    with pytest.raises(RecipeError, match="max_num_gen_batches"):
        online(tmp_path, Watched(), rollout=rollout)
