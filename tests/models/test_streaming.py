"""Answers that are heard while they are written are the answers that sampling gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny import encoder as tiny_encoder
from tiny import tiny_model

from alignkit import seeds
from alignkit.data.group import Group, Message
from alignkit.models import decoder
from alignkit.models.next_token import Sampling
from alignkit.models.packing import pack
from alignkit.models.sampling import sample
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.tokens.encoding import Encoded
from alignkit_apps.policies.streaming import Piece, Question, answer, until_stop


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> SharedModel:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


QUESTIONS = ("bread is good", "my old friend", "a")


def ask(
    policy: SharedModel, sampling: Sampling, seed: int, **more: object
) -> tuple[list[list[str]], list[list[Piece]]]:
    """The texts of the answers to all questions, and the pieces that were heard of each question."""
    encoder = policy.encoder()
    heard: list[list[Piece]] = [[] for _ in QUESTIONS]
    questions = [
        Question(
            encoder.prompt([Message(role="user", content=text)]),
            [seeds.number(seed, number, k) for k in range(sampling.samples_per_prompt)],
            heard[number].append,
            **more,  # type: ignore[arg-type]
        )
        for number, text in enumerate(QUESTIONS)
    ]
    answers = answer(policy, BASE, encoder, questions, sampling)
    return [[one.text for one in each] for each in answers], heard


def sampled(policy: SharedModel, sampling: Sampling, seed: int) -> list[list[str]]:
    groups = [Group((Message(role="user", content=text),)) for text in QUESTIONS]
    found = sample(policy, BASE, policy.encoder(), groups, sampling, seed=seed)
    return [[response.text for response in group.responses] for group in found]


def joined(pieces: list[Piece], number: int) -> str:
    return "".join(piece.text for piece in pieces if piece.number == number)


@pytest.mark.parametrize("rows", [128, 2])
def test_pieces_are_what_sampling_gives(policy: SharedModel, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model writes bytes that are no characters, and characters of several tokens."""
    monkeypatch.setattr(decoder, "ROWS", rows)
    sampling = Sampling(samples_per_prompt=3, max_new_tokens=40)
    texts, heard = ask(policy, sampling, 5)
    assert texts == sampled(policy, sampling, 5)
    assert [[joined(pieces, k) for k in range(3)] for pieces in heard] == texts
    assert any("\ufffd" in text for each in texts for text in each)
    for pieces, k in itertools.product(heard, range(3)):
        own = [piece for piece in pieces if piece.number == k]
        assert [piece.answer is not None for piece in own] == [False] * (len(own) - 1) + [True]
    assert max(map(len, heard)) > 30


def test_a_stop_string_is_never_heard(policy: SharedModel) -> None:
    plain, _ = ask(policy, Sampling(max_new_tokens=60), 5)
    stop = plain[0][0][10:13]  # of several tokens
    assert len(stop) == 3 and "\ufffd" not in stop
    texts, heard = ask(policy, Sampling(max_new_tokens=60, stop=(stop, "never written")), 5)
    assert texts[0][0] == until_stop(plain[0][0], [stop]) and stop not in texts[0][0]
    assert joined(heard[0], 0) == texts[0][0]
    last = heard[0][-1].answer
    assert last is not None and last.ended and stop in policy.encoder().decode(last.tokens)


def test_models_with_their_own_attention_are_heard(unpacked: SharedModel) -> None:
    sampling = Sampling(samples_per_prompt=2, max_new_tokens=8)
    texts, heard = ask(unpacked, sampling, 5)
    assert texts == sampled(unpacked, sampling, 5)
    assert [[joined(pieces, k) for k in range(2)] for pieces in heard] == texts


def test_one_piece_is_enough(policy: SharedModel) -> None:
    sampling = Sampling(samples_per_prompt=2, max_new_tokens=12)
    texts, heard = ask(policy, sampling, 1, in_pieces=False)
    assert [[piece.text for piece in sorted(pieces, key=lambda piece: piece.number)] for pieces in heard] == texts


def test_answers_that_nobody_wants_end(policy: SharedModel) -> None:
    count = itertools.count()
    _, heard = ask(policy, Sampling(max_new_tokens=100), 1, wanted=lambda: next(count) < 9)
    answers = [pieces[-1].answer for pieces in heard]
    assert [len(each.tokens) for each in answers if each is not None] == [4, 4, 4]  # all rows get a token per step


@pytest.mark.parametrize("temperature", [0, 0.5])
def test_logprobs_are_at_the_temperature(policy: SharedModel, temperature: float) -> None:
    _, heard = ask(policy, Sampling(max_new_tokens=9, temperature=temperature), 3, logprobs=2)
    encoder = policy.encoder()
    for text, pieces in zip(QUESTIONS, heard, strict=True):
        listed = [each for piece in pieces for each in piece.logprobs]
        last = pieces[-1].answer
        assert last is not None and tuple(listed) == last.logprobs and len(listed) == len(last.tokens)
        prompt = encoder.prompt([Message(role="user", content=text)])
        for place, one in enumerate(listed):
            packed = pack([Encoded(Group(()), (*prompt, *last.tokens[:place]), ())])
            with torch.no_grad():
                logits = policy.next_logits(BASE, policy.hidden(BASE, packed.layout, packed.tokens)[-1:])[0]
            expected = torch.log_softmax(logits / (temperature or 1), -1)
            assert one.logprob == pytest.approx(float(expected[last.tokens[place]]), abs=1e-4)
            top = expected.topk(2)
            assert [text for text, _ in one.top] == [encoder.token_text(token) for token in top.indices.tolist()]
            assert [value for _, value in one.top] == pytest.approx(top.values.tolist(), abs=1e-4)


def test_a_lead_in_is_not_heard() -> None:
    """Some templates write something before an answer. If the policy does so, too, `decode` leaves it out."""
    turn = "{% if m.role == 'user' %}Q: {{ m.content }} A:{% else %} -> {{ m.content }}<|im_end|>{% endif %}"
    encoder = tiny_encoder("{% for m in messages %}" + turn + "{% endfor %}")
    begun, whole = encoder.text(" -"), encoder.text(" -> yes")
    assert encoder.decode(begun) == " -" and encoder.may_be_lead(" -")
    assert encoder.decode(whole) == "yes" and not encoder.may_be_lead("yes")
