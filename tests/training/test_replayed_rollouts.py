"""Rollouts that `select` may learn again: those of earlier iterations, and those of the stages in
`replay_from`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from watched import Watched, online, prompts, texts, tokens

from alignkit import Group, RunFailed
from alignkit.data.group import responses_of
from alignkit.training.replay import RolloutFiles

HALF = """
def reward(completions):
    sums = [sum(completion.encode()) for completion in completions]
    return [float(x) if x % 2 else None for x in sums]
"""


pytestmark = pytest.mark.usefixtures("one_thread")


def test_earlier_iterations_are_offered_as_they_were_selected_from(tmp_path: Path) -> None:
    """Not the current one, and nothing that the algorithm rejected or that has no score."""
    watched = Watched(keep=lambda group: texts([group]) != texts(prompts(1)))
    rollout = {"samples_per_prompt": 4, "max_new_tokens": 3}
    keys: dict[str, Any] = {"count": 3, "prompts_per_iteration": 3, "iterations": 4}
    found = online(tmp_path, watched, scores=HALF, rollout=rollout, **keys)
    assert sum(metrics["unscored"] for metrics in found.metrics) > 4
    assert sum(metrics.get("groups_without_signal", 0) for metrics in found.metrics[:3]) > 0
    selected = [(texts(seen.groups), tokens(seen.groups)) for seen in watched.seen]
    for number, seen in enumerate(watched.seen):
        earlier = [(texts(groups), tokens(groups)) for groups in seen.earlier]
        assert earlier == selected[:number]


def test_a_file_that_has_changed_is_not_learned_from(tmp_path: Path) -> None:
    """A flipped bit in a text would change what is learned, and nobody would see it."""

    def flip(groups: Sequence[Group]) -> Sequence[Group]:
        if len(watched.seen) == 2:
            (file,) = tmp_path.rglob("rollouts/0001.jsonl")
            file.write_bytes(file.read_bytes().replace(b"0", b"1", 1))
        return groups

    watched = Watched(choose=flip)
    with pytest.raises(RunFailed, match=r"0001\.jsonl has changed since stage 'align' wrote it"):
        online(tmp_path, watched, iterations=3)
    assert len(watched.seen) == 2


EARLIER = """
algorithm: {expert_iteration: {threshold: -1.0}}
prompts: prompts.jsonl
reward: {python: {path: reward.py, function: reward}}
prompts_per_iteration: 2
iterations: 2
learning_rate: 1.0e-12
rollout: {samples_per_prompt: 4, max_new_tokens: 4, stop: [a, e, i, o, t]}
"""


def test_replayed_rollouts_pay_the_penalty_of_this_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The earlier stage has no penalty, so its files hold rewards without one. They are in the order
    of their iterations: from 10,000 on, names are longer than before.
    """

    def file(self: RolloutFiles, number: int) -> Path:
        return self.folder / f"{number + 9998:04d}.jsonl"

    monkeypatch.setattr(RolloutFiles, "_file", file)
    watched, earlier = Watched(), yaml.safe_load(EARLIER)
    rollout = {**earlier["rollout"], "missing_eos_penalty": 5000.0}
    keys = {"before": {"earlier": earlier}, "replay_from": ["earlier"], "iterations": 2}
    ran = online(tmp_path, watched, rollout=rollout, **keys)
    carried = [response for groups in watched.seen[0].earlier for response in responses_of(groups)]
    own = [tokens(groups) for groups in watched.seen[1].earlier[2:]]  # at the end
    assert own == [tokens(ran.rollouts()[1])]  # by name
    second, first = ran.rollouts("earlier")
    plain = responses_of([*first, *second])
    assert {response.truncated for response in plain} == {True, False}
    paid = [(r.tokens, r.reward - 5000 * r.truncated) for r in plain]
    assert [(response.tokens, response.reward) for response in carried] == paid
