"""The matrix: what is trained, scored and sampled are the tokens of the model's own template, for
every family.

`families` has the families, `matrix` judges by plain transformers. `python docs/generate.py` writes
the results into docs/models.md. One family of each kind is in `make test`, all are in `make slow`;
tests/net has the ids and masks of all of them.
"""

from __future__ import annotations

from typing import Any

import families
import matrix
import pytest
from families import FAMILIES, TABLE
from matrix import Judge

from alignkit.data.group import Group, Response
from alignkit.errors import DataError, RunFailed
from alignkit.tokens.check import check_chat
from alignkit.tokens.encoder import Encoder
from tests.models.tiny import encoded

FIRST = {
    line.split(" | ")[2]: line.split(" | ")[0] for line in reversed(TABLE.splitlines()) if line
}
QUICK = set(FIRST.values())


def slow(name: str, *more: str) -> Any:
    return pytest.param(name, *more, marks=() if name in QUICK else pytest.mark.slow)


EVERY = [slow(name) for name in FAMILIES]
CELLS = [slow(name, kind) for name, family in FAMILIES.items() for kind in family.kinds]
# Their prompt starts a block of reasoning that a finished turn does not begin with.
REASONERS = ["DeepSeek R1 distills", "DeepSeek V3", "QwQ", "Nemotron 3 Nano"]
# Their templates take `enable_thinking`.
SWITCHED = [
    "Qwen 3",
    "Qwen 3.5, thinking",
    "Qwen 3.6",
    "Qwen 3.8",
    "Nemotron 3 Nano",
    "GLM 4.5 to 4.6",
]


MODES = [("all", False), ("last", False), ("all", True)]  # turns, scoring


def judge(family: str, conversation: str, kind: str | None = None, **kwargs: Any) -> Judge:
    return Judge(FAMILIES[family], kind or FAMILIES[family].kinds[0], conversation, kwargs)


def encoder(family: str, kind: str | None = None, **kwargs: Any) -> Encoder:
    found = FAMILIES[family]
    kind = kind or found.kinds[0]
    return Encoder(found.tokenizer(kind), kwargs, found.end_ids(kind))


@pytest.mark.silent_bug(
    "masks: turns",
    "Without generation marks in the template, the mask is all zeros or all ones.",
    "No marks are needed.",
    "marin-community/marin#7237",
    "NVIDIA-NeMo/Megatron-Bridge#3359",
)
@pytest.mark.silent_bug(
    "templates: reasoning",
    "Training and inference differ in which reasoning of earlier turns they keep.",
    "The template's own rendering is learned.",
    "hiyouga/LlamaFactory#10336",
)
@pytest.mark.parametrize(("family", "kind"), CELLS)
def test_tokens_are_those_of_the_template(family: str, kind: str) -> None:
    made = encoder(family, kind)
    try:
        check_chat(made, "base")
    except RunFailed as error:
        assert "last token changes" in str(error) or not judge(family, "single", kind).follows(1)
        return
    own = kind == FAMILIES[family].kinds[0]
    wrong = {}
    for name in families.CONVERSATIONS if own else families.OTHERS:
        for mode in MODES if own else MODES[:1]:
            wrong[name, mode] = matrix.wrong(judge(family, name, kind), made, *mode)
    assert not {case: why for case, why in wrong.items() if why}


@pytest.mark.parametrize("family", EVERY)
def test_sampled_tokens_are_kept(family: str) -> None:
    made, found = encoder(family), judge(family, "single")
    question = tuple(found.messages[:1])
    try:
        prompt = found.ids(1)
    except Exception as error:  # whatever a template raises
        assert "has no attribute" in str(error)
        with pytest.raises(DataError):
            made.prompt(question)
        return
    assert list(made.prompt(question)) == prompt
    sampled = Response(tokens=tuple(range(300, 340)), written=(True,) * 39 + (False,))
    row = encoded(made.encode(Group(question, (sampled,)), 10_000)).rows[0]  # type: ignore[arg-type]
    assert row.tokens == sampled.tokens and row.mask == sampled.written


@pytest.mark.parametrize("family", REASONERS)
def test_an_answer_without_the_prompts_reasoning_is_refused(family: str) -> None:
    made = encoder(family)
    assert "without reasoning after its own prompt" in check_chat(made, "the base")[0]
    with pytest.raises(DataError, match="does not write the answer after its own prompt; set"):
        made.encode(matrix.group(judge(family, "single")), matrix.MAX_LENGTH)


@pytest.mark.parametrize("family", SWITCHED)
def test_template_arguments_turn_reasoning_off(family: str) -> None:
    """With `enable_thinking: false` the prompt ends in an empty block, as the template writes
    it.
    """
    made = encoder(family, enable_thinking=False)
    check_chat(made, "base")
    for name in ("single", "two turns", "system", "unicode"):
        found = judge(family, name, enable_thinking=False)
        first, *_, last = found.answers[0], *found.answers
        assert found.text(first) != judge(family, name).text(first)
        assert found.follows(last)
        for mode in MODES:
            assert matrix.wrong(found, made, *mode) == "", (name, mode)
