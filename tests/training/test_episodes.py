"""Stages with environments: rewards, masks, files, replay, and limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from played import STAGE, TURNS, metrics, roll_out, rollouts, run_of
from scripted import END, call, follow
from watched import tokens

import alignkit
from alignkit import Environment, Message, RunFailed, Source
from alignkit.algorithm import ExternalTrainer
from alignkit.data.group import Group, responses_of
from alignkit.kernels.attention import TreeLayout
from alignkit.kernels.layout import GroupSpan
from alignkit.models import generate as generate_module
from alignkit.models.packing import Examples, Wants
from alignkit.models.packing import forward as run_forward
from alignkit.plugins import plugins
from alignkit.runs.run import Run
from alignkit.testing.tiny import tiny_model
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.environments.calculator import Calculator
from alignkit_plugins.models.templates import HERMES
from alignkit_plugins.models.tiny import _tokenizer
from tests.rows import Said

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
    run = run_of(
        tmp_path,
        **keys,
        rollout={"samples_per_prompt": 4, "max_new_tokens": 90},
        prompts_per_iteration=1,
    )
    run.execute()
    (found,) = metrics(run)
    counts = [found[f"environment/{count}"] for count in ("turns", "calls", "cut")]
    assert counts == [2.0, 1.0, 0.0]
    assert found.get("sampler_gap", 0.0) < 2e-6
    (group,) = rollouts(run)
    for response in group.responses:
        answer = str(group.meta["answer"])
        assert response.scores["episode"] == float(response.text.endswith(answer))
        assert "reward" not in response.scores or response.reward == response.scores["episode"]
        roles = [turn["role"] for turn in response.messages or ()]
        assert roles == ["assistant", "tool", "assistant"]


# What is stored and learned


def test_rollouts_are_the_rendered_conversation_and_only_the_policys_tokens_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, TURNS)
    run = run_of(tmp_path)
    run.execute()
    tokenizer = _tokenizer()
    tokenizer.chat_template = HERMES
    encoder = Encoder(tokenizer)
    for group in rollouts(run):
        encoded = encoder.encode(group, 1024)
        assert encoded is not None
        for response, row in zip(group.responses, encoded.rows, strict=True):
            whole = encoder.chat.render(
                encoder.chat.prepare([*group.prompt, *(response.messages or ())]),
                False,
                group.tools,
            )
            assert tokenizer.decode([*encoded.prompt, *row.tokens]) + "\n" == whole
            written = [token for token, own in zip(row.tokens, row.mask, strict=True) if own]
            assert tokenizer.decode(written) == call("2 + 3") + response.text + END
            assert sum(row.mask) <= 90 < len(row.tokens) + 30


@pytest.mark.silent_bug(
    "masks: tools",
    "Tokens that tools wrote count in the loss, or the mask is inverted.",
    "Only the policy's tokens have a gradient.",
    "PeterGriffinJin/Search-R1#21",
    "mll-lab-nu/RAGEN#71",
)
def test_tokens_of_the_environment_get_no_gradient(tmp_path: Path) -> None:
    """The gradient is that of the policy's tokens alone: by plain transformers, of the same
    conversation.
    """
    model = tiny_model()
    encoder = Encoder(model.tokenizer)
    prompt = ({"role": "user", "content": "2 and 2?"},)
    own, answer = encoder.text("hmm") + encoder.end_of_turn, encoder.text("\ngo on\n")
    tokens = (*own, *answer, *own)
    written = (*(True for _ in own), *(False for _ in answer), *(True for _ in own))
    response = alignkit.Response(text="hmm", tokens=tokens, written=written)
    encoded = encoder.encode(Group(prompt, (response,)), 512)
    assert encoded is not None
    role = model.add_role("masked")
    parameters = list(model.make_trainable("masked").values())
    try:
        with torch.enable_grad():
            out = run_forward(model, "masked", Examples([encoded]), Wants())
            ours = torch.autograd.grad(out.logprobs.sum(), parameters)
            ids = torch.tensor([[*encoded.prompt, *tokens]])
            with model.using_role("masked") as network:
                hidden = model.hidden("masked", *_row(ids))
                logits = model.next_logits("masked", hidden)
            logprobs = torch.log_softmax(logits[:-1], dim=-1).gather(1, ids[0, 1:, None])[:, 0]
            counted = torch.tensor([False] * (len(encoded.prompt) - 1) + list(written))
            theirs = torch.autograd.grad(logprobs[counted].sum(), parameters)
        assert network is role.model and int((out.logprobs != 0).sum()) == sum(written)
        for mine, plain in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, plain, atol=1e-5, rtol=1e-4)
        assert any(bool(gradient.any()) for gradient in ours)
    finally:
        model.drop_role("masked")


def _row(ids: torch.Tensor) -> tuple[Any, torch.Tensor]:
    return TreeLayout([GroupSpan(0, ids.shape[1], ())]), ids[0]


class Dice(Calculator):
    """Random in both of its parts."""

    def reset(self, row: Mapping[str, Any]) -> Any:
        super().reset(row)
        return f" (hint {self.random.integers(1000)})"

    def respond(self, turn: Message) -> Sequence[Message] | None:
        thrown = Message(role="user", content=str(self.random.integers(1000)))
        answers = super().respond(turn)
        return [*answers, thrown] if answers else None


def test_each_prompt_and_each_response_has_random_numbers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, TURNS)
    run = run_of(tmp_path, Dice, iterations=3)
    run.execute()
    groups = [group for number in (1, 2, 3) for group in rollouts(run, number)]
    assert len({group.prompt[0]["content"] for group in groups}) == 6
    played = [response.messages or () for group in groups for response in group.responses]
    assert len({turns[2]["content"] for turns in played}) == 12


def test_episodes_do_not_depend_on_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a user in place of tools. The log-probabilities of all turns are those of the training
    path; tokens of others have none.
    """
    follow(
        monkeypatch,
        [[f"one{END}", f"a second word{END}"], [f"{a}{END}" for a in ("x", "y", "z")]] * 2,
    )
    found: list[list[Group]] = []
    for rows in (1, 3, 128):
        monkeypatch.setattr(generate_module, "ROWS", rows)
        rollout = {"samples_per_prompt": 4, "max_new_tokens": 40}
        run = run_of(tmp_path / str(rows), Asks, algorithm="rejection_sampling", rollout=rollout)
        roll_out(run)
        found.append(rollouts(run))
        assert metrics(run)[0]["sampler_gap"] < 2e-6
    one, *others = map(tokens, found)
    assert [one] * 2 == others and len(set(one)) > 4
    assert [turn["role"] for turn in found[0][0].prompt] == ["user", "system"]
    for response in responses_of(found[0]):
        roles = [turn["role"] for turn in response.messages or ()]
        assert roles == ["assistant", "user"] * 2 + ["assistant"] and response.reward == 5.0
        pairs = zip(response.logprobs or (), response.written or (), strict=True)
        assert all((logprob == 0.0) != own for logprob, own in pairs)
        assert sum(response.written or ()) <= 40


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
            own = sum(response.written or ())
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


def played(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cls: type[Environment], **keys: Any
) -> Run:
    follow(monkeypatch, TURNS)
    run = run_of(folder, cls, **keys)
    roll_out(run)
    return run


def test_an_episode_without_a_reward_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    class Sometimes(Calculator):
        def get_reward(self) -> float | None:  # type: ignore[override]
            return None if self.turns[-1]["content"] == "5" else 0.5

    rollout = {"samples_per_prompt": 6, "max_new_tokens": 90}
    run = played(tmp_path, monkeypatch, Sometimes, algorithm="rejection_sampling", rollout=rollout)
    responses = responses_of(rollouts(run))
    missing = sum(response.scores["reward"] is None for response in responses)
    assert 0 < missing < len(responses) == 12
    assert metrics(run)[0]["unscored"] == missing
    assert f"{missing} response" in said()
    assert all(response.scores["episode"] != 0 for response in responses)


def test_a_reward_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Parts(Calculator):
        def get_reward(self) -> Mapping[str, float | None]:  # type: ignore[override]
            return {"right": super().get_reward(), "polite": 0.25}

    run = played(
        tmp_path,
        monkeypatch,
        Parts,
        reward={"environment": {"part": "polite"}},
        algorithm="rejection_sampling",
    )
    for response in rollouts(run)[0].responses:
        scores = response.scores
        assert scores["reward"] == scores["environment"] == scores["episode/polite"] == 0.25
        assert scores["episode"] == 0.25 + (scores["episode/right"] or 0.0)
    with pytest.raises(RunFailed, match="episode/x"):
        played(tmp_path, monkeypatch, Calculator, reward={"environment": {"part": "x"}})


def test_max_turns_and_max_length_cut_an_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    follow(monkeypatch, [[call("2 + 3")]] * 5)
    rollout = {"samples_per_prompt": 2, "max_new_tokens": 300, "max_turns": 2}
    run = run_of(tmp_path, rollout=rollout, algorithm="rejection_sampling")
    roll_out(run)
    found = metrics(run)[0]
    counts = [found[name] for name in ("environment/turns", "environment/cut", "truncated")]
    assert counts == [2.0, 1.0, 0.0]
    assert [turn["role"] for turn in rollouts(run)[0].responses[0].messages or ()] == [
        "assistant",
        "tool",
        "assistant",
    ]


def test_malformed_and_refused_calls_are_answered_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = [f"<tool_call>{{{END}", call("2 + 3", name="calculat"), call("1 / 0"), f"5{END}"]
    follow(monkeypatch, [[text] for text in bad])
    rollout = {"samples_per_prompt": 2, "max_new_tokens": 400}
    run = run_of(tmp_path, rollout=rollout, algorithm="rejection_sampling")
    roll_out(run)
    found = metrics(run)[0]
    assert (found["environment/malformed_calls"], found["environment/refused_calls"]) == (1.0, 2.0)
    turns = rollouts(run)[0].responses[0].messages or ()
    answers = [json.loads(turn["content"])["error"] for turn in turns if turn["role"] == "tool"]
    expected = ("does not end with </tool_call>", "did you mean 'calculate'?", "division by zero")
    assert all(part in answer for part, answer in zip(expected, answers, strict=True))
