"""A template that cannot be followed is refused before any weights are loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import RunFailed
from alignkit.models import shared_model
from alignkit.models.shared_model import SharedModel
from alignkit.settings import ModelSpec
from alignkit.tokens.check import check_chat
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.models import tiny
from alignkit_plugins.models.templates import CHATML
from tests.models.tiny import encoder

THINKS = CHATML.replace("assistant\n' }}{% end", "assistant\n<think>\n' }}{% end")
SWITCHED = THINKS.replace(
    "<think>\n' }}", "' + ('' if enable_thinking is false else '<think>\n') }}"
)

SPACED = CHATML.replace("assistant\n' }}{% end", "assistant: ' }}{% end").replace(
    "m['role'] + '\n'", "m['role'] + ': '"
)
PLAIN = (  # without an end of turn
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def checked(code: str, **kwargs: Any) -> list[str]:
    return check_chat(Encoder(encoder(code).tokenizer, kwargs), "a/model")


NOT_AFTER = (
    "the chat template does not write an answer without reasoning after its own prompt, so rows "
    "with such answers are refused"
)


def test_a_template_that_thinks_is_told_and_an_argument_helps() -> None:
    assert checked(THINKS) == checked(SWITCHED) == [NOT_AFTER]
    assert checked(SWITCHED, enable_thinking=False) == []


def test_the_error_shows_where_prompt_and_answer_share_a_token() -> None:
    made = encoder(SPACED)
    made.tokenizer.add_tokens([" It"])
    with pytest.raises(
        RunFailed, match=r"changes when an answer follows it, .*: it ends with '.*: '"
    ) as raised:
        check_chat(Encoder(made.tokenizer), "a/model")
    assert str(raised.value).split("\n")[1].startswith("help: in model.chat_template")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (CHATML.replace("m['content']", "'...'"), "drops or changes words of a question"),
        ((
            "{{ raise_exception('not today') }}"
        ), (
            "refuses the conversation: TemplateError: not today"
        )),
        (SPACED, "the prompt's last token changes when an answer follows it"),
    ],
)  # fmt: skip
def test_templates_that_cannot_be_followed(code: str, message: str) -> None:
    made = encoder(code)
    made.tokenizer.add_tokens([" It"])  # as in real vocabularies, one token with its space
    with pytest.raises(RunFailed, match=message):
        check_chat(Encoder(made.tokenizer), "a/model")


def test_responses_must_be_able_to_end() -> None:
    assert [fact[:43] for fact in checked(PLAIN)] == ["the chat template writes no end of turn, so"]
    made = encoder(PLAIN)
    made.tokenizer.eos_token = None
    with pytest.raises(RunFailed, match="no EOS token and the chat template writes no end of turn"):
        check_chat(Encoder(made.tokenizer), "a/model")
    made.tokenizer.chat_template = CHATML  # its end of turn is a control token
    fresh = Encoder(made.tokenizer)
    check_chat(fresh, "a/model")
    assert fresh.eos == fresh.end_of_turn[-1] and fresh.end_ids == {fresh.eos}


def test_an_argument_that_the_template_does_not_use_is_reported() -> None:
    kwargs = {"enable_thinking": False, "enable_thinkin": False}
    (fact,) = checked(SWITCHED, **kwargs)
    assert fact == "the chat template does not use 'enable_thinkin' of model.chat_template_kwargs"


def test_the_date_is_reported() -> None:
    dated = "{{ strftime_now('%Y') + '\n' }}" + CHATML
    assert checked(dated) == ["the chat template writes a date, which is always 2024-07-26"]


def test_weights_are_not_read_for_a_template_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_weights(*_: Any) -> Any:
        raise AssertionError("the weights were read")

    monkeypatch.setattr(shared_model, "load_base", no_weights)
    path = tmp_path / "refuses.jinja"
    path.write_text("{{ raise_exception('not today') }}", encoding="utf-8")
    spec = ModelSpec(base="tiny", chat_template=str(path), device="cpu")
    with pytest.raises(RunFailed, match="refuses the conversation: TemplateError: not today"):
        SharedModel(spec, str(tiny.source(tmp_path)))


def test_the_models_own_end_tokens_end_responses(tmp_path: Path) -> None:
    """Several models end at more tokens than the template's (`generation_config.json`)."""
    source = tiny.source(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(source, folder)
    spec = ModelSpec(base=str(folder), device="cpu", dtype="float32", lora=None)
    assert SharedModel(spec, str(folder)).encoder().end_ids == {2}
    (folder / "generation_config.json").write_text(
        '{"eos_token_id": [2, 77, 99]}', encoding="utf-8"
    )
    made = SharedModel(spec, str(folder)).encoder()
    assert made.end_ids == {2, 77, 99} and made.end_of_turn == (2,)
    assert made.decode([*made.text("done"), 99]) == "done"
