"""A template that cannot be followed is refused before any weights are loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from alignkit.contract.settings import ModelSpec
from alignkit.errors import RunFailed
from alignkit.models import shared_model
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.check import check_chat
from alignkit.tokens.encoder import Encoder
from alignkit_plugins.bases import tiny
from alignkit_plugins.bases.templates import CHATML
from tests.models.tiny import encoder

THINKS = CHATML.replace("assistant\n' }}{% end", "assistant\n<think>\n' }}{% end")
SWITCHED = THINKS.replace(
    "<think>\n' }}", "' + ('' if enable_thinking is false else '<think>\n') }}"
)
SPACED = CHATML.replace("assistant\n' }}{% end", "assistant: ' }}{% end").replace(
    "m['role'] + '\n'", "m['role'] + ': '"
)
NO_END = """\
{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
REFUSES = "{{ raise_exception('not today') }}"


@pytest.mark.parametrize(
    ("template", "kwargs", "facts"),
    [
        (CHATML, {}, []),
        (SWITCHED, {}, ["without reasoning after its own prompt"]),
        (SWITCHED, {"enable_thinking": False}, []),
        (
            SWITCHED,
            {"enable_thinking": False, "enable": 1},
            ["'enable' of model.chat_template_kwargs"],
        ),
        (NO_END, {}, ["no end of turn, so responses end with EOS"]),
        (NO_END.replace(":{% end", "><{% end"), {}, ["without reasoning", "no end of turn"]),
        ("{{ strftime_now('%Y') }}" + CHATML, {}, ["always 2024-07-26"]),
    ],
)
def test_what_a_user_should_know_of_a_template_is_told(
    template: str, kwargs: dict[str, Any], facts: list[str]
) -> None:
    told = check_chat(encoder(template, **kwargs), "a/model")
    assert len(told) == len(facts) and all(map(str.__contains__, told, facts)), told


@pytest.mark.parametrize(
    ("template", "eos", "message"),
    [
        (CHATML.replace("m['content']", "'...'"), "<|im_end|>", "drops or changes words"),
        (REFUSES, "<|im_end|>", "refuses the conversation: TemplateError: not today"),
        (SPACED, "<|im_end|>", r"changes when an answer follows it, .*: it ends with '.*: '"),
        (NO_END, None, "no EOS token and the chat template writes no end of turn"),
    ],
)
def test_templates_that_cannot_be_followed(template: str, eos: str | None, message: str) -> None:
    tokenizer = encoder(template).tokenizer
    tokenizer.add_tokens([" It"])  # as in real vocabularies, one token with its space
    tokenizer.eos_token = eos
    with pytest.raises(RunFailed, match=f"{message}(.|\n)*\nhelp: .*model.chat_template"):
        check_chat(Encoder(tokenizer), "a/model")


def test_a_control_token_of_the_template_ends_responses_without_eos() -> None:
    tokenizer = encoder(CHATML).tokenizer
    tokenizer.eos_token = None
    made = Encoder(tokenizer)
    check_chat(made, "a/model")
    assert made.eos == made.end_of_turn[-1] and made.end_ids == {made.eos}
    tokenizer = encoder(NO_END).tokenizer
    tokenizer.eos_token = "<|pad|>"  # 0
    made = Encoder(tokenizer)
    assert check_chat(made, "a/model") and made.end_ids == {0} and made.end_of_turn == (0,)


def test_weights_are_not_read_for_a_template_that_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_model, "load_network", lambda *_: pytest.fail("weights were read"))
    path = tmp_path / "refuses.jinja"
    path.write_text(REFUSES, encoding="utf-8")
    spec = ModelSpec(base="tiny", chat_template=str(path), device="cpu")
    with pytest.raises(RunFailed, match="not today"):
        SharedModel(spec, str(tiny.source(tmp_path)))


def test_the_models_own_end_tokens_end_responses(tmp_path: Path) -> None:
    """Several models end at more tokens than the template's (`generation_config.json`)."""
    folder = Path(shutil.copytree(tiny.source(tmp_path), tmp_path / "model"))
    spec = ModelSpec(base=str(folder), device="cpu", dtype="float32", lora=None)
    assert SharedModel(spec, str(folder)).encoder().end_ids == {2}
    ends = folder / "generation_config.json"
    ends.write_text('{"eos_token_id": [2, 77, 99]}', encoding="utf-8")
    made = SharedModel(spec, str(folder)).encoder()
    assert made.end_ids == {2, 77, 99} and made.end_of_turn == (2,)
    assert made.decode([*made.text("done"), 99]) == "done"
