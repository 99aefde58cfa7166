"""Samples as plain data."""

from __future__ import annotations

import pytest

from alignkit import Group, Response
from alignkit_monitors.snapshot import look_at


def test_a_look_at_scored_samples() -> None:
    sampled = [
        Response(
            "a b", tokens=(1, 2, 3), logprobs=(-1.0, -2.0, 0.0), written=(True, True, False), scores={"reward": 2.0}
        ),
        Response("c", tokens=(4,), logprobs=(-3.0,), scores={"reward": None, "gold": 0.5}),
    ]
    groups = [Group(({"role": "user", "content": "q"},), (response,), id="same") for response in sampled]
    look = look_at(groups)
    (answers,) = look.prompts.values()  # equal prompts are one unit
    assert [(a.text, a.tokens, a.reward, a.gold, a.surprise) for a in answers] == [
        ("a b", 2, 2.0, None, 1.5),
        ("c", 1, None, 0.5, 3.0),
    ]
    assert look.means("reward") == {"same": 2.0} and look.means("gold") == {"same": 0.5}
    assert look.means("length") == {"same": 1.5}


def test_turns_of_an_episode_are_read_together() -> None:
    turns = (
        {"role": "assistant", "content": "one"},
        {"role": "tool", "content": "no"},
        {"role": "assistant", "content": "two"},
    )
    group = Group(({"role": "user", "content": "q"},), (Response("two", messages=turns, tokens=(1, 2)),), id="p")
    assert look_at([group]).answers[0].words == ["one", "two"]


def test_a_prompt_without_a_score_is_missing() -> None:
    group = Group(({"role": "user", "content": "q"},), (Response("x", tokens=(1,)),), id="p")
    assert look_at([group]).means("reward") == {} and look_at([group]).means("surprise") == {}


def test_an_unknown_value_is_an_error() -> None:
    with pytest.raises(AttributeError):
        look_at([Group((), (Response("x"),), id="p")]).means("rewards")
