"""Answers that are heard while they are written are the answers that sampling gives."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tiny import encoder as tiny_encoder
from tiny import tiny_model

from alignkit.data.group import Group, Message
from alignkit.models.models import LoadedBase
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.sampling import Sampling
from alignkit_plugins.policies.policy import Answer, Policy, until_stop
from tests.sampled import sample


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


QUESTIONS = ("bread is good", "my old friend", "a")


def ask(
    policy: SharedModel, text: str, sampling: Sampling, seed: int, **more: Any
) -> tuple[Answer, list[str]]:
    """The answer to a question, and the pieces that were heard of it."""
    heard: list[str] = []
    role = LoadedBase(policy, Path)[BASE]
    answering = Policy("tiny", "tiny", role, sampling)
    prompt = answering.prompt([Message(role="user", content=text)])
    return answering.answer(prompt, sampling, seed, heard.append, **more), heard


def check(policy: SharedModel, sampling: Sampling) -> list[str]:
    """The texts of answers, which are those that sampling gives, and what was heard of them."""
    texts, most = [], 0
    for text in QUESTIONS:
        group = Group((Message(role="user", content=text),))
        (expected,) = sample(policy, BASE, policy.encoder(), [group], sampling, seed=5)
        found, heard = ask(policy, text, sampling, 5)
        assert found.text == "".join(heard) == expected.responses[0].text
        texts.append(found.text)
        most = max(most, len(heard))
    assert most > 5
    return texts


def test_pieces_are_what_sampling_gives(policy: SharedModel) -> None:
    """The tiny model writes bytes that are no characters, and characters of several tokens."""
    assert any("\ufffd" in text for text in check(policy, Sampling(max_new_tokens=40)))


def test_models_with_their_own_attention_are_heard(unpacked: SharedModel) -> None:
    check(unpacked, Sampling(max_new_tokens=8))


def test_a_stop_string_is_never_heard(policy: SharedModel) -> None:
    plain, _ = ask(policy, QUESTIONS[0], Sampling(max_new_tokens=60), 5)
    stop = plain.text[10:13]  # of several tokens
    assert len(stop) == 3 and "\ufffd" not in stop
    found, heard = ask(
        policy, QUESTIONS[0], Sampling(max_new_tokens=60, stop=(stop, "never written")), 5
    )
    assert found.text == until_stop(plain.text, [stop]) == "".join(heard) and stop not in found.text
    assert not found.response.truncated and stop in found.response.text


def test_an_answer_that_nobody_wants_ends(policy: SharedModel) -> None:
    count = itertools.count()
    found, _ = ask(policy, "a", Sampling(max_new_tokens=100), 1, wanted=lambda: next(count) < 3)
    assert len(found.response.tokens or ()) == 4 and found.response.truncated


def test_a_lead_in_is_not_heard() -> None:
    """Some templates write something before an answer. If the policy does so, too, `decode` leaves
    it out.
    """
    turn = (
        "{% if m.role == 'user' %}Q: {{ m.content }} A:{% else %} -> {{ m.content }}<|im_end|>{% "
        "endif %}"
    )
    encoder = tiny_encoder("{% for m in messages %}" + turn + "{% endfor %}")
    begun, whole = encoder.text(" -"), encoder.text(" -> yes")
    assert encoder.decode(begun) == " -" and encoder.lead.startswith(" -")
    assert encoder.decode(whole) == "yes" and not encoder.lead.startswith("yes")
