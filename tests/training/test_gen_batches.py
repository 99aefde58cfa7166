"""Dynamic sampling: more batches of prompts until enough groups are left to learn from, within the
recipe's bound.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from played import roll_out, rollouts, run_of
from scripted import END, follow
from watched import PYTHON, Watched, online, texts, tokens

from alignkit import Environment, Group, Message, RecipeError
from alignkit.data.group import responses_of
from tests.rows import Said, user

pytestmark = pytest.mark.usefixtures("one_thread")

ROLLOUT = {"samples_per_prompt": 2, "max_new_tokens": 5}
# Keeps all; without one, more batches would have no use
EVERY = {"filters": [{"reward_range": {"low": -99}}]}
FILLED = {**ROLLOUT, **EVERY, "max_num_gen_batches": 12}
KEYS: dict[str, Any] = {"count": 12, "prompts_per_iteration": 4, "rollout": FILLED}


def even(group: Group) -> bool:
    """True of about half of the groups."""
    return sum(group.responses[0].text.encode()) % 2 == 0


def test_the_batch_is_filled_with_groups_that_are_kept(tmp_path: Path) -> None:
    watched = Watched(keep=even)
    ran = online(tmp_path, watched, iterations=6, **KEYS)
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


def test_the_bound_ends_it(tmp_path: Path) -> None:
    """Every eighth group at most is kept, and two batches do not find four."""

    def rare(group: Group) -> bool:
        return sum(group.responses[0].text.encode()) % 8 == 0

    watched = Watched(keep=rare)
    bounded = {**FILLED, "max_num_gen_batches": 2}
    ran = online(tmp_path, watched, iterations=5, **KEYS | {"rollout": bounded})
    assert all(row["gen_batches"] <= 2 for row in ran.metrics)
    rare_ones = [sum(map(rare, groups)) for groups in ran.rollouts()]
    assert [len(seen.groups) for seen in watched.seen] == [min(4, n) for n in rare_ones if n]
    assert any(rare_ones) and min(rare_ones) < 4
    assert max(map(len, ran.rollouts())) <= 8


@pytest.mark.usefixtures("combinations")
def test_combinations_see_every_sample_once(tmp_path: Path) -> None:
    reward = {"running_normalization": {"reward": PYTHON}}
    ran = online(tmp_path, Watched(keep=even), iterations=3, reward=reward, **KEYS)
    scores = np.array([r.scores["raw"] for groups in ran.rollouts() for r in responses_of(groups)])
    (state,) = ran.summary["combinations"].values()
    moments = {"count": len(scores), "mean": scores.mean(), "variance": scores.var()}
    assert state == pytest.approx(moments) and len(scores) > 24


class Dice(Environment):
    """Random in both of its parts."""

    def reset(self, row: Any) -> str:
        return f" {self.random.integers(1000)}"

    def respond(self, turn: Message) -> list[Message] | None:
        return [user(str(self.random.integers(1000)))] if len(self.turns) < 2 else None

    def get_reward(self) -> float:
        return 1.0


def test_each_prompt_and_each_episode_has_random_numbers_of_its_own_also_in_later_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, [[f"yes{END}", f"no{END}"]] * 2)
    rollout = {"samples_per_prompt": 2, "max_new_tokens": 20}
    none_is_kept = {"filters": [{"reward_range": {"low": 999}}], "max_num_gen_batches": 2}
    played = []
    for prompts, more in ((2, {}), (1, none_is_kept)):
        keys = {"algorithm": "expert_iteration", "prompts_per_iteration": prompts}
        run = run_of(tmp_path / str(prompts), Dice, rollout=rollout | more, **keys)
        roll_out(run)
        played.append(rollouts(run))
    once, batches = ([(group.prompt, tokens([group])) for group in groups] for groups in played)
    assert batches == once
    assert len({group.prompt[-1]["content"] for group in played[0]}) == 2
    turns = [response.messages or () for response in responses_of(played[0])]
    assert len({each[1]["content"] for each in turns}) == 4


@pytest.mark.parametrize(
    ("filtered", "chosen"), [(False, False), (True, False), (False, True)], ids=str
)
def test_it_is_told_where_nothing_leaves_out_a_group(
    filtered: bool, chosen: bool, tmp_path: Path, said: Said
) -> None:
    """As without the filter `spread`: no batch is ever too small. chosen: one later is."""
    rollout = {**FILLED, "filters": EVERY["filters"] if filtered else None}
    watched = Watched(keep=lambda group: not (chosen and watched.seen) or even(group))
    ran = online(tmp_path, watched, iterations=2, **KEYS | {"rollout": rollout})
    batches = [row["gen_batches"] for row in ran.metrics]
    assert batches[0] == 1 and (batches[1] > 1) == chosen
    assert said().count("max_num_gen_batches had no effect") == (not (filtered or chosen))


def test_it_is_refused_with_samples_that_are_ahead(tmp_path: Path) -> None:
    rollout = {**FILLED, "async_level": 1}
    with pytest.raises(RecipeError, match="max_num_gen_batches"):
        online(tmp_path, Watched(), rollout=rollout)
