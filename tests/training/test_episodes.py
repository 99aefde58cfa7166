"""Stages with environments: rewards, masks, files, replay, and limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml
from played import STAGE, TURNS, metrics, roll_out, rollouts, run_of
from scripted import END, call, follow
from watched import tokens

from alignkit import Environment, Message, RunFailed, Source
from alignkit.contract.algorithm import ExternalTrainer
from alignkit.data.group import Group, responses_of
from alignkit.host.plugins import plugins
from alignkit.models import generate as generate_module
from alignkit_plugins.environments.calculator import Calculator
from tests.models.tiny import encoded
from tests.rows import Said
from tests.sampled import assert_same_tokens, noting

pytestmark = pytest.mark.usefixtures("one_thread")

ON_POLICY = sorted(
    each.name
    for each in plugins().registrations("algorithm")
    if each.distribution == "alignkit"
    and each.implementation.source is Source.ROLLOUTS
    and not issubclass(each.implementation, ExternalTrainer)
)
DISTILLATION = {
    "algorithm": {"distillation": {"context": [{"role": "user", "content": "Add."}]}},
    "reward": None,
}
ROUNDING = 1e-5  # of log-probabilities, in nats
# One of each kind of signal, and the one without a reward; `make slow` has the others.
OFTEN = ("ppo", "rejection_sampling", "online_dpo", "distillation")


@pytest.mark.parametrize(
    "algorithm",
    [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in ON_POLICY],
)
def test_algorithms_learn_from_episodes_unchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
    follow(monkeypatch, TURNS)
    keys = DISTILLATION if algorithm == "distillation" else {"algorithm": algorithm}
    rollout = {"samples_per_prompt": 4, "max_new_tokens": 90}
    run = run_of(tmp_path, **keys, rollout=rollout, prompts_per_iteration=1)
    run.execute()
    (found,) = metrics(run)
    counts = [found[f"environment/{count}"] for count in ("turns", "calls", "cut")]
    assert counts == [2.0, 1.0, 0.0]
    assert found.get("engine_mismatch", 0.0) < ROUNDING
    (group,) = rollouts(run)
    for response in group.responses:
        answer = str(group.meta["answer"])
        assert response.scores["episode"] == float(response.text.endswith(answer))
        assert "reward" not in response.scores or response.reward == response.scores["episode"]
        turns = [(turn["role"], turn.get("tool_call_id")) for turn in response.messages or ()]
        assert turns == [("assistant", None), ("tool", "call00000"), ("assistant", None)]


# What is stored and learned


def test_rollouts_are_the_rendered_conversation_and_only_the_policys_tokens_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, TURNS)
    run = run_of(tmp_path)
    run.execute()
    encoder = run.models.of("base").encoder
    for group in rollouts(run):
        found = encoded(encoder.encode(group, 1024))
        for response, one in zip(group.responses, found.responses, strict=True):
            said = encoder.chat.prepare([*group.prompt, *(response.messages or ())])
            whole = encoder.chat.render(said, False, group.tools)
            assert encoder.tokenizer.decode([*found.prompt, *one.tokens]) + "\n" == whole
            written = [token for token, own in zip(one.tokens, one.mask, strict=True) if own]
            assert encoder.tokenizer.decode(written) == call("2 + 3") + response.text + END
            assert sum(one.mask) <= 90 < len(one.tokens) + 30


def test_episodes_do_not_depend_on_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a user in place of tools. The log-probabilities of all turns are those of the training
    path; tokens of others have none. Each turn has random numbers of its own.
    """
    streams, begin = set[int](), generate_module.Decoder.__init__

    def began(self: Any, request: Any, *rest: Any) -> None:
        streams.update(*request.streams)
        begin(self, request, *rest)

    monkeypatch.setattr(generate_module.Decoder, "__init__", began)
    asked = [[f"one word{END}", f"a second word{END}"], [f"{a}{END}" for a in "xyz"]]
    follow(monkeypatch, asked * 2)
    found: list[list[Group]] = []
    for slots in (1, 3, 128):
        monkeypatch.setattr(generate_module, "SLOTS", slots)
        rollout = {"samples_per_prompt": 4, "max_new_tokens": 40, "min_new_tokens": 3}
        run = run_of(tmp_path / str(slots), Asks, algorithm="rejection_sampling", rollout=rollout)
        with noting():
            roll_out(run)
        found.append(rollouts(run))
        assert metrics(run)[0]["engine_mismatch"] < ROUNDING
    assert len(streams) == 2 * 4 * 3  # prompts, samples, turns
    one, *others = map(tokens, found)
    for other in others:
        assert_same_tokens(other, one)
    assert len(set(one)) > 4
    assert [turn["role"] for turn in found[0][0].prompt] == ["user", "system"]
    for response in responses_of(found[0]):
        roles = [turn["role"] for turn in response.messages or ()]
        assert roles == ["assistant", "user"] * 2 + ["assistant"] and response.reward == 5.0
        pairs = zip(response.logprobs or (), response.action_mask or (), strict=True)
        assert all((logprob == 0.0) != own for logprob, own in pairs)
        assert sum(response.action_mask or ()) <= 40


def test_rollouts_of_episodes_are_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a later stage with another reward, which is a combination that uses the episodes' rewards,
    too.
    """
    follow(monkeypatch, TURNS)
    first = {**STAGE, "algorithm": "rejection_sampling"}
    keys = """
    algorithm: rejection_sampling
    reward:
      weighted_sum:
        rewards: {right: environment, short: {length: {}}}
        weights: {right: 100.0, short: 1.0}
    replay_from: [first]
    from: first
    """
    run = run_of(tmp_path, before={"first": first}, **yaml.safe_load(keys))
    run.execute()
    for group in rollouts(run):
        for response in group.responses:
            own = sum(response.action_mask or ())
            assert response.reward == pytest.approx(100.0 * response.scores["right"] + own)
            assert response.scores["right"] == response.scores["episode"]


# Episodes


class Asks(Environment):
    """Asks again until the policy has said something three times."""

    def reset(self, row: Mapping[str, Any]) -> Sequence[Message]:
        assert row["answer"] and row["prompt"][0]["role"] == "user"
        return [Message(role="system", content="Answer in full.")]

    def respond(self, turn: Message) -> Sequence[Message] | None:
        spoken = sum(each["role"] == "assistant" for each in self.turns)
        return [Message(role="user", content="And?")] if spoken < 3 else None

    def get_reward(self) -> float:
        return float(len(self.turns))


def test_an_episode_without_a_reward_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    nothing = cycle([None, {}])  # {}: there are no parts

    class Sometimes(Calculator):
        def get_reward(self) -> Any:
            return next(nothing) if self.turns[-1]["content"] == "5" else 0.5

    follow(monkeypatch, TURNS)
    rollout = {"samples_per_prompt": 6, "max_new_tokens": 90}
    run = run_of(tmp_path, Sometimes, algorithm="rejection_sampling", rollout=rollout)
    roll_out(run)
    scores = [response.scores for response in responses_of(rollouts(run))]
    missing = [each["reward"] for each in scores].count(None)
    assert 0 < missing < len(scores) == 12 and metrics(run)[0]["unscored"] == missing
    assert f"{missing} response" in said()
    assert all(each["episode"] != 0 for each in scores)


def test_a_reward_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one of them there is no sum. What the environment does to its turns changes nothing."""

    class Parts(Calculator):
        def get_reward(self) -> Mapping[str, float | None]:  # type: ignore[override]
            right = super().get_reward() or None
            self.turns[-1]["content"] = "no"
            return {"right": right, "polite": 0.25}

    follow(monkeypatch, TURNS)
    keys = {"reward": {"environment": {"part": "polite"}}, "algorithm": "rejection_sampling"}
    run = run_of(tmp_path, Parts, **keys)
    roll_out(run)
    sums = set[float | None]()
    for response in responses_of(rollouts(run)):
        scores = response.scores
        assert scores["reward"] == scores["environment"] == scores["episode/polite"] == 0.25
        assert scores["episode"] == (1.25 if scores["episode/right"] else None)
        assert (response.messages or ())[-1]["content"] != "no"
        sums.add(scores["episode"])
    assert sums == {1.25, None}
    with pytest.raises(RunFailed, match="episode/polite"):
        roll_out(run_of(tmp_path / "none", **keys))


def test_malformed_and_refused_calls_are_answered_and_counted_and_turns_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three turns, after which the episode is cut; it was not truncated."""
    bad = [f"<tool_call>{{{END}", call("2 + 3", name="calculat"), call("2 + 3")]
    follow(monkeypatch, [[text] for text in bad])
    rollout = {"samples_per_prompt": 2, "max_new_tokens": 400, "max_turns": 3}
    run = run_of(tmp_path, rollout=rollout, algorithm="rejection_sampling")
    roll_out(run)
    counts = {"turns": 3.0, "cut": 1.0, "malformed_calls": 1.0, "refused_calls": 1.0}
    wanted = {f"environment/{name}": count for name, count in counts.items()}
    assert metrics(run)[0].items() >= {**wanted, "truncated": 0.0}.items()
    turns = rollouts(run)[0].responses[0].messages or ()
    roles = [turn["role"] for turn in turns]
    assert roles == ["assistant", "tool", "assistant", "tool", "assistant"]
    malformed, refused = (json.loads(turn["content"])["error"] for turn in turns[1::2])
    assert "does not end with </tool_call>" in malformed
    assert "did you mean 'calculate'?" in refused
