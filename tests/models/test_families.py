"""The matrix: what is trained, scored and sampled are the tokens of the model's own template, for
every family.

`families` has the families, `matrix` judges by plain transformers. `python docs/generate.py` writes
the results into docs/models.md. One family of each kind is in `make test`, all are in `make slow`;
tests/net has the ids and masks of all of them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import families
import matrix
import pytest
import torch
from families import FAMILIES, TABLE
from matrix import Judge, Outcome

from alignkit.data.group import Group, Response
from alignkit.errors import DataError, RunFailed
from alignkit.models.models import LoadedBase
from alignkit.tokens.check import check_chat
from alignkit.tokens.encoder import Encoder
from tests.models.tiny import encoded, shared
from tests.same import same

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


@cache
def texts(family: str, conversation: str) -> dict[Any, Any]:
    """What the family's tokenizers share."""
    return {}


def judge(family: str, conversation: str, kind: str | None = None, **kwargs: Any) -> Judge:
    known = {} if kwargs else texts(family, conversation)
    return Judge(FAMILIES[family], kind or FAMILIES[family].kinds[0], conversation, kwargs, known)


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
        example = judge(family, "single", kind)
        assert not matrix.follows(example), f"refused without need: {error}"
        return
    own = kind == FAMILIES[family].kinds[0]
    wrong = []
    for name in families.CONVERSATIONS if own else families.OTHERS:
        found = judge(family, name, kind)
        for turns, scoring in matrix.modes(found, own):
            outcome = matrix.outcome(found, made, turns, scoring)
            if outcome.state == "wrong":
                wrong.append(f"{name}, turns {turns}, scoring {scoring}: {outcome.why}")
    assert wrong == []


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
        first = found.answers[0]
        assert found.text(first) != judge(family, name).text(first)
        for mode in matrix.modes(found, own=True):
            assert matrix.outcome(found, made, *mode) == Outcome("same"), (name, mode)


@pytest.mark.parametrize(
    "family",
    ["Llama 3", "Qwen 2.5", "Phi 3", "Gemma 1, 2", "Zephyr, TinyLlama", "Mistral 7B v0.3"],
)
@torch.no_grad()
def test_scores_and_logprobs_are_those_of_plain_transformers(family: str, tmp_path: Path) -> None:
    """A random Llama of two layers with the family's tokenizer."""
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
    )

    tokenizer = encoder(family).tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, pad_token_id=None, **sizes)
    )
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        weight.normal_(0.0, 0.2, generator=generator)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    base = shared(tmp_path)
    base.add_role("judge", head="scalar")
    (head,) = (p for name, p in base.parameters_of("judge").items() if "lora" not in name)
    head.normal_(0.0, 0.2, generator=generator)
    models = LoadedBase(base, lambda reference: tmp_path)
    models.role = lambda reference: reference  # type: ignore[method-assign]

    names = ("single", "two turns", "three turns", "leading space", "unicode")
    found = [judge(family, name) for name in names]
    groups = [matrix.group(one) for one in found]
    plain: Any = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, num_labels=1, dtype=torch.float32
    ).eval()
    plain.score.weight.copy_(head)
    wanted = torch.stack([plain(torch.tensor([one.ids()])).logits[0, 0] for one in found])
    assert float(wanted.max() - wanted.min()) > 0.1
    same(torch.tensor(models["judge"].scores(groups)), wanted, atol=1e-5, rtol=1e-5)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    for one, logprobs in zip(found, models["base"].logprobs(groups), strict=True):
        ids, first = torch.tensor(one.wanted(scoring=False)), len(one.ids(one.answers[0]))
        all_logprobs = torch.log_softmax(plain(ids[None]).logits[0, first - 1 : -1], -1)
        own = all_logprobs.gather(1, ids[first:, None])[:, 0]
        counts = torch.tensor(one.mask()[first:])
        assert counts.any() and (logprobs[~counts] == 0).all()
        same(logprobs[counts], own[counts], atol=1e-5, rtol=1e-5)
