"""The matrix: what is trained, scored and sampled are the tokens of the model's own template, for
every family.

`families` has the families, `matrix` judges by plain transformers. `python docs/generate.py` writes
the results into docs/models.md.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import families
import matrix
import pytest
import torch
from families import FAMILIES
from matrix import Judge, Unrenderable

from alignkit.data.group import Group, Response
from alignkit.errors import DataError, RunFailed
from alignkit.models.models import LoadedBase
from alignkit.models.shared_model import SharedModel
from alignkit.settings import ModelSpec
from alignkit.tokens.check import check_chat
from alignkit.tokens.encoder import Encoded, Encoder

CELLS = [(name, kind) for name, family in FAMILIES.items() for kind in family.kinds]
MARKED = [name for name, family in FAMILIES.items() if family.training]
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


def judge(family: str, kind: str, conversation: str) -> Judge:
    return Judge(FAMILIES[family], kind, conversation, texts=texts(family, conversation))


def encoder(family: str, kind: str, **kwargs: Any) -> Encoder:
    found = FAMILIES[family]
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
    example = judge(family, kind, "single")
    try:
        check_chat(made, "base")
    except RunFailed as error:
        assert not matrix.follows(example), f"refused without need: {error}"
        return
    own = kind == FAMILIES[family].kinds[0]
    wrong = []
    for name in families.CONVERSATIONS if own else families.OTHERS:
        found = judge(family, kind, name)
        for turns, scoring in matrix.modes(found, own):
            outcome = matrix.outcome(found, made, turns, scoring)
            if outcome.state == "wrong":
                wrong.append(f"{name}, turns {turns}, scoring {scoring}: {outcome.why}")
    assert wrong == []


@pytest.mark.parametrize("family", MARKED)
def test_the_judge_agrees_with_trls_marks(family: str) -> None:
    """Some marks include the turn's generation prompt, the line break after the turn, or the EOS
    token at the end.
    """
    for name in families.CONVERSATIONS.keys() - {"tools"}:  # the marks differ in what ends a call
        found = judge(family, FAMILIES[family].kinds[0], name)
        try:
            own = {place for start, end in found.spans for place in range(start, end)}
        except Unrenderable:
            continue
        if found.types_control_tokens or found.marks is None:
            continue
        marked = {place for start, end in found.marks for place in range(start, end)}
        missing = "".join(found.whole[place] for place in sorted(own - marked))
        assert missing.strip() == "", (name, missing)
        more = "".join(found.whole[place] for place in sorted(marked - own))
        opened = found.after_header(found.answers[-1]).strip()
        for text in (FAMILIES[family].header, FAMILIES[family].eos, opened, "<think>"):
            more = more.replace(text, "") if text else more
        assert more.strip() == "", (name, more)


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_tokens_are_kept(family: str) -> None:
    kind = FAMILIES[family].kinds[0]
    made, found = encoder(family, kind), judge(family, kind, "single")
    try:
        prompt = found.ids(1)
    except Exception as error:  # whatever a template raises
        with pytest.raises(DataError):
            made.prompt(found.messages[:1])
        assert "has no attribute" in str(error)
        return
    assert list(made.prompt(found.messages[:1])) == prompt
    sampled = tuple(range(300, 340))
    response = Response(text="", tokens=sampled, written=(True,) * 39 + (False,))
    row = encoded(made.encode(Group(tuple(found.messages[:1]), (response,)), 10_000)).rows[0]
    assert row.tokens == sampled and row.mask == response.written


def encoded(found: Encoded | None) -> Encoded:
    assert found is not None
    return found


# --- reasoning


@pytest.mark.parametrize("family", REASONERS)
def test_an_answer_without_the_prompts_reasoning_is_refused(family: str) -> None:
    kind = FAMILIES[family].kinds[0]
    made = encoder(family, kind)
    assert (
        "does not write an answer without reasoning after its own prompt"
        in check_chat(made, "the base")[0]
    )
    with pytest.raises(DataError, match="does not write the answer after its own prompt; set"):
        made.encode(matrix.group(judge(family, kind, "single")), matrix.MAX_LENGTH)


@pytest.mark.parametrize("family", SWITCHED)
def test_template_arguments_turn_reasoning_off(family: str) -> None:
    """With `enable_thinking: false` the prompt ends in an empty block, as the template writes
    it.
    """
    kind, switch = FAMILIES[family].kinds[0], {"enable_thinking": False}
    made = encoder(family, kind, **switch)
    check_chat(made, "base")
    for name in ("single", "two turns", "system", "unicode"):
        found = Judge(FAMILIES[family], kind, name, kwargs=switch)
        first = found.answers[0]
        assert found.text(first) != judge(family, kind, name).text(first)
        for turns, scoring in matrix.modes(found, own=True):
            assert matrix.outcome(found, made, turns, scoring) == matrix.Outcome("same"), (
                name,
                turns,
                scoring,
            )


# --- what models compute on these tokens

COMPUTED = ["Llama 3", "Qwen 2.5", "Phi 3", "Gemma 1, 2", "Zephyr, TinyLlama", "Mistral 7B v0.3"]


@pytest.fixture(scope="module", params=COMPUTED)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    """A random Llama of two layers with the family's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    family = FAMILIES[request.param]
    folder = tmp_path_factory.mktemp("base")
    tokenizer = family.tokenizer(family.kinds[0])
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        pad_token_id=None,
        eos_token_id=family.end_ids(family.kinds[0]),
        **sizes,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for weight in model.parameters():
            if weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.2)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        shared = SharedModel(
            ModelSpec(base=str(folder), dtype="float32", device="cpu"), str(folder)
        )
        shared.add_role("judge", head="scalar")
        for name, weight in shared.parameters_of("judge").items():
            torch.nn.init.normal_(weight, std=0.2 if "lora" not in name else 0.0)
    shared.family = request.param  # type: ignore[attr-defined]
    made = LoadedBase(shared, lambda reference: folder)
    made.role = lambda reference: reference  # type: ignore[method-assign]
    return made


def conversations(service: LoadedBase) -> list[Judge]:
    family: str = service.model.family  # type: ignore[attr-defined]
    names = ("single", "two turns", "three turns", "leading space", "unicode")
    return [judge(family, FAMILIES[family].kinds[0], name) for name in names]


@torch.no_grad()
def test_scores_are_those_of_plain_transformers(service: LoadedBase) -> None:
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(
        service.model.source, num_labels=1, dtype=torch.float32
    ).eval()
    (head,) = (
        weight
        for name, weight in service.model.parameters_of("judge").items()
        if "lora" not in name
    )
    plain.score.weight.copy_(head)
    found = conversations(service)
    scores = service["judge"].scores([matrix.group(one) for one in found])
    wanted = [float(plain(torch.tensor([one.ids()])).logits) for one in found]
    assert max(wanted) - min(wanted) > 0.1
    torch.testing.assert_close(torch.tensor(scores), torch.tensor(wanted), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_logprobs_are_those_of_plain_transformers(service: LoadedBase) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(service.model.source, dtype=torch.float32).eval()
    found = conversations(service)
    measured = service["base"].logprobs([matrix.group(one) for one in found])
    for one, logprobs in zip(found, measured, strict=True):
        tokens, first = one.wanted(scoring=False), len(one.ids(one.answers[0]))
        logits = plain(torch.tensor([tokens])).logits[0, first - 1 : -1]
        wanted = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens[first:])[:, None])[
            :, 0
        ]
        counts = torch.tensor(one.mask()[first:])
        assert counts.any() and (logprobs[~counts] == 0).all()
        torch.testing.assert_close(logprobs[counts], wanted[counts], atol=1e-5, rtol=1e-5)
