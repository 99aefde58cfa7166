"""Answers that are heard while they are written are the answers that sampling gives."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from architectures import load, make
from tiny import encoder, tiny_model

from alignkit.contract.settings import Sampling
from alignkit.models.models import LoadedModel
from alignkit.models.shared_model import UNMODIFIED, SharedModel
from alignkit_plugins.serving import policy as policy_module
from alignkit_plugins.serving.policy import Answer, Policy, until_stop
from tests.rows import WORDS, prompts
from tests.sampled import sample


@pytest.fixture(scope="module")
def policy() -> SharedModel:
    return tiny_model()


def ask(
    policy: SharedModel, group: Any, sampling: Sampling, seed: int = 5, **more: Any
) -> tuple[Answer, list[str]]:
    """The answer to a question, and the pieces that were heard of it."""
    heard: list[str] = []
    answering = Policy("tiny", "tiny", LoadedModel(policy, Path)[UNMODIFIED], sampling)
    prompt = answering.prompt(group.prompt)
    return answering.answer(prompt, sampling, seed, heard.append, **more), heard


def check(policy: SharedModel, sampling: Sampling) -> str:
    """What is heard of answers, which are those that sampling gives."""
    texts, most = [], 0
    for group in prompts(WORDS):
        (expected,) = sample(policy, UNMODIFIED, policy.encoder(), [group], sampling, seed=5)
        found, heard = ask(policy, group, sampling)
        assert found.text == "".join(heard) == expected.responses[0].text
        texts.append(found.text)
        most = max(most, len(heard))
    assert most > 5
    return "".join(texts)


def test_pieces_are_what_sampling_gives(policy: SharedModel) -> None:
    """The tiny model writes bytes that are no characters, and characters of several tokens."""
    assert "\ufffd" in check(policy, Sampling(max_new_tokens=40))


def test_models_with_their_own_attention_are_heard(tmp_path: Path) -> None:
    check(load(make(tmp_path, "Bloom")), Sampling(max_new_tokens=8))


def test_a_stop_string_is_never_heard(policy: SharedModel) -> None:
    (group,) = prompts(WORDS[:1])
    plain, _ = ask(policy, group, Sampling(max_new_tokens=60))
    stop = plain.text[10:13]  # of several tokens
    assert len(stop) == 3 and "\ufffd" not in stop
    stopped = Sampling(max_new_tokens=60, stop=(stop, "never written"))
    found, heard = ask(policy, group, stopped)
    assert found.text == until_stop(plain.text, [stop]) == "".join(heard) and stop not in found.text
    assert not found.response.truncated and stop in found.response.text
    assert policy_module._before("xab", ["abc", "bx"]) == "x"
    assert until_stop("a.b+c", ["+", "b"]) == "a."


def test_an_answer_that_nobody_wants_ends(policy: SharedModel) -> None:
    (group,), count = prompts(["a"]), itertools.count()
    sampling = Sampling(max_new_tokens=100)
    found, _ = ask(policy, group, sampling, 1, wanted=lambda: next(count) < 3)
    assert len(found.response.tokens or ()) == 4 and found.response.truncated


def test_a_lead_in_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some templates write something before an answer. If the policy does so, too, `decode` leaves
    it out.
    """
    made = encoder("""\
{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }} A:\
{% else %} -> {{ m.content }}<|im_end|>{% endif %}{% endfor %}""")
    begun, whole = made.text(" -"), made.text(" -> yes")
    assert made.decode(begun) == " -" and made.lead.startswith(" -")
    assert made.decode(whole) == made.shown_text(whole) == "yes" and not made.lead.startswith("yes")

    def writes(request: Any) -> Any:
        assert request.wrote(begun, None) and request.wrote(whole, None)
        return MagicMock(result=lambda: [[SimpleNamespace(tokens=whole)]])

    monkeypatch.setattr(policy_module, "attach", lambda *given: prompts(["a"], responses=("",)))
    model, heard = SimpleNamespace(context_length=99), list[str]()
    role: Any = SimpleNamespace(encoder=made, model=model, loaded=MagicMock(), reference="")
    role.loaded.engine.request = writes
    Policy("t", "t", role, Sampling()).answer((1,), Sampling(), 0, heard.append)
    assert heard == ["yes"]
