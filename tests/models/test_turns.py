"""Several turns in one response: what the template writes between them, and how they are sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import encoder_with_ends, questions

from alignkit.data.chat_templates import PLAIN
from alignkit.data.group import Group, Message
from alignkit.errors import DataError
from alignkit.models import generate as decoder
from alignkit.models.generate import Partner, sample
from alignkit.models.packing import measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.sampling import Sampling
from alignkit.testing.examples import encode_all
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.environments.turns import Turns
from alignkit_plugins.models.templates import CHATML, HERMES
from alignkit_plugins.models.tiny import _tokenizer

ANSWERS = {0: (51, 52, 53), 1: (54,), 2: (55, 56, 57, 58, 59, 60, 61)}
LIMIT = 60


def reply(prompt: int, sample: int, turn: Sequence[int], room: int) -> tuple[int, ...] | None:
    """Depends on the response and on its turn only; some responses have a single turn."""
    ids = ANSWERS[(prompt + sample + len(turn)) % 3]
    return ids if (prompt + sample) % 4 and len(ids) <= room else None


def play(model: SharedModel, **sampling: Any) -> tuple[list[Group], Counter[str]]:
    counts: Counter[str] = Counter()
    encoder = encoder_with_ends(model, range(1, 40))
    groups = sample(
        model,
        BASE,
        encoder,
        questions(6),
        Sampling(max_new_tokens=14, **sampling),
        samples_per_prompt=3,
        seed=1,
        partner=Partner(reply, LIMIT, counts),
    )
    return groups, counts


def turns(written: Sequence[bool]) -> list[tuple[bool, int]]:
    """(own, length) of each piece."""
    pieces: list[tuple[bool, int]] = []
    for own in written:
        last = pieces[-1] if pieces and pieces[-1][0] == own else None
        pieces = [*(pieces[:-1] if last else pieces), (own, (last[1] if last else 0) + 1)]
    return pieces


def test_logprobs_of_all_turns_are_those_of_the_training_path(policy: SharedModel) -> None:
    """Under every kind of attention; tokens of others have none."""
    groups, counts = play(policy, temperature=0.8)
    encoded = encode_all(Encoder(policy.tokenizer), groups, 2 * LIMIT)
    measured = torch.cat(measure(policy, BASE, encoded, "logprobs", temperature=0.8))
    responses = [response for group in groups for response in group.responses]
    sampled = torch.tensor([x for response in responses for x in response.logprobs or ()])
    written = torch.tensor([x for r in responses for x in r.written or (True,) * len(r.tokens or ())])
    torch.testing.assert_close(sampled, measured, atol=1e-4, rtol=0)
    assert not sampled[~written].any() and sampled[written].all()
    assert max(len(turns(r.written)) for r in responses if r.written) >= 5, "three turns of the policy"
    assert any(r.written is None for r in responses), "and some with a single one"
    assert counts["saved"] > 0


def test_what_has_been_read_is_not_read_again(llama: SharedModel) -> None:
    """Only each prompt, once for its samples, and each answer with the token before it."""
    groups, counts = play(llama)
    encoder = Encoder(llama.tokenizer)
    prompts = [len(encoder.prompt(group.prompt)) for group in groups]
    answers = again = 0
    for group, prompt in zip(groups, prompts, strict=True):
        for response in group.responses:
            place = prompt
            for own, count in turns(response.written or ()):
                answers += 0 if own else count + 1
                again += 0 if own else place - 1
                place += count
    assert counts["read"] == sum(prompts) + answers and counts["saved"] == again > counts["read"]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_turns_do_not_depend_on_the_batch(llama: SharedModel, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    expected, _ = play(llama)
    monkeypatch.setattr(decoder, "ROWS", rows)
    found, counts = play(llama)
    assert [r.tokens for g in found for r in g.responses] == [r.tokens for g in expected for r in g.responses]
    assert [r.written for g in found for r in g.responses] == [r.written for g in expected for r in g.responses]
    assert counts["saved"] > 0


def test_answers_of_many_rows_are_read_in_parts(llama: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = play(llama)
    monkeypatch.setattr(SharedModel, "inference_budget", property(lambda self: 10))
    found, _ = play(llama)
    assert [r.tokens for g in found for r in g.responses] == [r.tokens for g in expected for r in g.responses]


def test_a_turn_starts_over_where_memory_ran_out(llama: SharedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Complete turns, and what others answered, are kept: nobody answers twice."""
    expected, _ = play(llama)
    asked: Counter[Any] = Counter()
    original, passes = SharedModel.next_logits, [0]

    def runs_out(self: SharedModel, *arguments: Any) -> torch.Tensor:
        passes[0] += 1
        if passes[0] in (9, 17):
            raise MemoryError
        return original(self, *arguments)

    def once(prompt: int, number: int, turn: Sequence[int], room: int) -> tuple[int, ...] | None:
        asked[prompt, number, room] += 1
        return reply(prompt, number, turn, room)

    monkeypatch.setattr(SharedModel, "next_logits", runs_out)
    try:
        encoder = encoder_with_ends(llama, range(1, 40))
        found = sample(
            llama,
            BASE,
            encoder,
            questions(6),
            Sampling(max_new_tokens=14),
            samples_per_prompt=3,
            seed=1,
            partner=Partner(once, LIMIT),
        )
    finally:
        llama.memory.sampling_halvings = 0
    assert [r.tokens for g in found for r in g.responses] == [r.tokens for g in expected for r in g.responses]
    assert set(asked.values()) == {1}


def test_models_without_packed_rows_have_turns_too(unpacked: SharedModel) -> None:
    """They read the conversation again for each turn."""
    groups, counts = play(unpacked)
    encoded = encode_all(Encoder(unpacked.tokenizer), groups, 2 * LIMIT)
    measured = torch.cat(measure(unpacked, BASE, encoded, "logprobs"))
    sampled = torch.tensor([x for g in groups for r in g.responses for x in r.logprobs or ()])
    torch.testing.assert_close(sampled, measured, atol=1e-4, rtol=0)
    assert counts["saved"] == 0 and any(r.written for g in groups for r in g.responses)


def test_limits_are_those_of_the_policy_and_of_the_whole(llama: SharedModel) -> None:
    groups, _ = play(llama)
    encoder = Encoder(llama.tokenizer)
    for group in groups:
        for response in group.responses:
            own = sum(response.written or (True,) * len(response.tokens or ()))
            assert 0 < own <= 14 and len(encoder.prompt(group.prompt)) + len(response.tokens or ()) <= LIMIT
            assert response.written is None or response.written[-1]


# What the template writes

TOOL = {"type": "function", "function": {"name": "add", "description": "adds", "parameters": {}}}
QUESTION: Message = {"role": "user", "content": "2 and 2?"}
CALL = {"type": "function", "id": "call00000", "function": {"name": "add", "arguments": {"a": 1}}}
STRIPS = HERMES.replace("{{ m['content'] }}", "{{ m['content'].split('</think>')[-1] }}")
LAST_TOOLS = CHATML.replace("{{ '<|im_start|>' + m", "{% if loop.last %}{{ tools }}{% endif %}{{ '<|im_start|>' + m")


def with_template(template: str) -> Encoder:
    tokenizer = _tokenizer()
    tokenizer.chat_template = template
    return Encoder(tokenizer)


@pytest.mark.silent_bug(
    "sampling: turns",
    "A sample is tokenized again, and its log-probabilities belong to other tokens.",
    "The sampled tokens are kept over all turns.",
    "rllm-org/rllm#816",
    "stanford-cs336/assignment5-alignment#15",
)
def test_the_pieces_make_the_rendered_conversation() -> None:
    """The policy's own tokens, even if they are not those of its words, and the template's text between them."""
    encoder = with_template(HERMES)
    written = encoder.text('<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>')
    odd = tuple(token for letter in "It is 4." for token in encoder.text(letter))
    assert odd != encoder.text("It is 4.")
    end = encoder.end_of_turn
    turns_ = Turns(encoder, [TOOL])
    first = turns_.read((*written, *end))
    answers: list[Message] = [
        {"role": "tool", "name": "add", "content": "4 <|im_end|>", "tool_call_id": "call00000"},
        {"role": "user", "content": "Well?"},
    ]
    piece = turns_.between([QUESTION], first, answers, end[-1], 1000)
    assert piece is not None
    ids = [*encoder.prompt([QUESTION], [TOOL]), *written, *end, *piece, *odd, *end]
    last: Message = {"role": "assistant", "content": "It is 4."}
    whole = encoder.chat.whole([QUESTION], [first, *answers, last], [TOOL])
    assert encoder.tokenizer.decode(ids) == whole.replace("\ufdd0", "").removesuffix("\n")
    assert list(piece).count(end[-1]) == 2, "a control token in an answer is only text"


def test_a_turn_that_a_stop_string_ended_gets_its_end_of_turn() -> None:
    encoder = with_template(HERMES)
    turn: Message = {"role": "assistant", "content": "STOP"}
    answers: list[Message] = [{"role": "user", "content": "Go on."}]
    ended = Turns(encoder).between([QUESTION], turn, answers, encoder.end_of_turn[-1], 1000)
    stopped = Turns(encoder).between([QUESTION], turn, answers, encoder.text("P")[-1], 1000)
    assert ended is not None and stopped == (*encoder.end_of_turn, *ended)


def test_an_answer_that_does_not_fit_is_none() -> None:
    encoder = with_template(HERMES)
    turn: Message = {"role": "assistant", "content": "4"}
    end = encoder.end_of_turn[-1]
    piece = Turns(encoder).between([QUESTION], turn, [QUESTION], end, 1000)
    assert piece is not None
    assert Turns(encoder).between([QUESTION], turn, [QUESTION], end, len(piece)) == piece
    assert Turns(encoder).between([QUESTION], turn, [QUESTION], end, len(piece) - 1) is None
    long: list[Message] = [{"role": "user", "content": "a" * 900_000}]
    assert Turns(encoder).between([QUESTION], turn, long, end, 1000) is None


def test_a_malformed_call_is_answered_under_a_template_that_wants_a_call() -> None:
    strict = HERMES.replace(
        "{% if m['role'] == 'tool' %}",
        "{% if m['role'] == 'tool' %}{% if not ns.called %}{{ raise_exception('no call') }}{% endif %}",
    ).replace("{% for m in (mess", "{% set ns = namespace(called=false) %}{% for m in (mess")
    strict = strict.replace("{{ '<|im_start|>' + m", "{% if m['tool_calls'] %}{% set ns.called = true %}{% endif %}"
                            "{{ '<|im_start|>' + m", 1)  # fmt: skip
    turns_ = Turns(with_template(strict), [TOOL])
    turn = turns_.read(turns_.encoder.text("<tool_call>{"))
    assert turns_.between([QUESTION], turn, [{"role": "tool", "content": "no"}], 5, 1000)


@pytest.mark.parametrize("template", [HERMES, CHATML, HERMES.replace("'<tool_response>\n'", "''")])
def test_templates_that_append_are_accepted(template: str) -> None:
    encoder = with_template(template)
    Turns(encoder, [TOOL] if template != CHATML else []).check("tool")
    Turns(encoder).check("user")


@pytest.mark.parametrize(
    ("template", "tools", "message"),
    [
        (STRIPS, [], "changes earlier turns .* such as earlier reasoning; .* set model.chat_template"),
        (CHATML, [TOOL], "does not write the tools that the policy may call"),
        (HERMES.replace("call['function']['name']", "'call'"), [TOOL], "does not write calls of tools"),
        (HERMES.replace("' + m['content'] + '\n</tool_resp", "' + '\n</tool_resp"), [TOOL], "changes earlier turns"),
        (LAST_TOOLS, [TOOL], "changes earlier turns"),
        (PLAIN.replace("+ eos_token", ""), [], "writes no end of turn"),
    ],
)
def test_templates_that_do_not_append_are_refused(template: str, tools: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Turns(with_template(template), tools).check("tool")


def test_the_template_hermes_needs_its_tokens(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    from alignkit.data.chat_templates import set_chat_template
    from alignkit.errors import RunFailed

    tokenizer = _tokenizer()
    set_chat_template(tokenizer, "hermes")
    assert tokenizer.chat_template == HERMES
    from tokenizers import Tokenizer, models

    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    with pytest.raises(RunFailed, match="lacks tokens that hermes needs"):
        set_chat_template(bare, "hermes")
