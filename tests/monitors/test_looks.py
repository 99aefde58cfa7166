"""What is measured of samples."""

from __future__ import annotations

import pytest

from alignkit import Group, Response
from alignkit_plugins.monitors.reward_hacking import measured


def test_equal_prompts_are_one_unit() -> None:
    sampled = [
        Response("a b", tokens=(1, 2, 3), logprobs=(-1.0, -2.0, 0.0), written=(True, True, False)),
        Response("c", tokens=(4,), logprobs=(-3.0,)),
    ]
    groups = [
        Group(({"role": "user", "content": "q"},), (response,), id="same") for response in sampled
    ]
    values, texts = measured(groups)
    assert texts == [["a", "b"], ["c"]] and values["length"] == {"same": 1.5}
    assert values["sampled_entropy"] == {"same": pytest.approx((1.5 + 3.0) / 2)}


def test_turns_of_an_episode_are_read_together() -> None:
    turns = (
        {"role": "assistant", "content": "one"},
        {"role": "tool", "content": "no"},
        {"role": "assistant", "content": "two"},
    )
    group = Group(
        ({"role": "user", "content": "q"},),
        (Response("two", messages=turns, tokens=(1, 2)),),
        id="p",
    )
    values, texts = measured([group])
    assert texts == [["one", "two"]] and values["sampled_entropy"] == {}
