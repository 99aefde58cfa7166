"""What a user is told to type: Python that runs, and commands for vLLM and llama.cpp."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exported import WORDS, check_logprobs, export, groups, models_of, train
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignkit_apps.export.usage import Loading, llama_cpp, python, vllm

ADAPTER = Loading("out", "out", "mine", "adapter", is_reward=False, base="me/base", hub=True, rank=16)


def test_an_adapter_in_vllm() -> None:
    """With the run's template and ends of responses, which vLLM would take from the base."""
    words = shlex.split(vllm(ADAPTER))
    assert words[:3] == ["vllm", "serve", "me/base"] and "mine=out" in words
    assert words[words.index("--chat-template") + 1] == "out/chat_template.jinja"
    assert words[words.index("--generation-config") + 1] == "out"
    assert "--max-lora-rank" not in words
    assert "--chat-template" not in vllm(replace(ADAPTER, template=False))


@pytest.mark.parametrize(("rank", "expected"), [(17, "32"), (64, "64"), (300, "320")])
def test_vllm_knows_only_some_ranks(rank: int, expected: str) -> None:
    words = shlex.split(vllm(replace(ADAPTER, rank=rank)))
    assert words[words.index("--max-lora-rank") + 1] == expected


def test_whole_models_in_vllm() -> None:
    whole = replace(ADAPTER, form="whole")
    assert vllm(whole) == "vllm serve out"
    assert vllm(replace(whole, is_reward=True)).splitlines()[0] == "vllm serve out --runner pooling"
    assert vllm(replace(whole, trust_remote_code=True)).endswith("--trust-remote-code")


def test_vllm_computes_in_the_type_of_the_run(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By itself vLLM rounds float32 to bfloat16, and for reward models to float16."""
    for stage in ("sft", "liked"):
        assert export(lora_run / stage, tmp_path / stage, "--merge") == 0
        assert export(lora_run / stage, tmp_path / f"{stage}16", "--merge", "--dtype", "bfloat16") == 0
    assert export(lora_run / "sft", tmp_path / "adapter") == 0
    served = [line for line in capsys.readouterr().out.splitlines() if "vllm serve" in line]
    assert ["--dtype float32" in line for line in served] == [True, False, True, False, True]


def test_how_a_server_gives_a_score() -> None:
    words = shlex.split(vllm(replace(ADAPTER, form="whole", is_reward=True)).splitlines()[-1])
    assert words[:2] == ["curl", "http://localhost:8000/classify"]
    assert [turn["role"] for turn in json.loads(words[-1])["messages"]] == ["user", "assistant"]


def test_where_a_server_reads_the_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the last token, even if it is padding, which transformers skips: the text that is sent ends before it."""
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|pad|>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    (tmp_path / "own.jinja").write_text(template, encoding="utf-8")
    stages = {"liked": {"algorithm": "reward_model", "data": "pairs.jsonl", "max_steps": 2, "learning_rate": 0.02}}
    run = train(tmp_path, {"chat_template": "own.jinja", "lora": {"r": 2}}, stages)
    assert export(run / "liked", tmp_path / "out", "--merge") == 0
    (ask,) = (line for line in capsys.readouterr().out.splitlines() if "curl" in line)
    answer = groups()[0].responses[0].text
    body = json.loads(shlex.split(ask)[-1].replace("Hello!", WORDS[0]).replace("Hi.", answer))
    assert body == {"input": f"user: {WORDS[0]}<|pad|>assistant: {answer}", "add_special_tokens": False}
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", pad_token_id=None).eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")(body["input"], add_special_tokens=False, return_tensors="pt")
    score = model(**ids).logits.item()
    assert score == pytest.approx(models_of(run).scores("liked", groups()[:1])[0], abs=1e-5)


def test_arguments_of_the_template_in_vllm() -> None:
    """Servers of policies have a default for them; a request for a score names them."""
    given = replace(ADAPTER, form="whole", chat_template_kwargs={"enable_thinking": False})
    words = shlex.split(vllm(given))
    assert json.loads(words[words.index("--default-chat-template-kwargs") + 1]) == {"enable_thinking": False}
    serve, *_, ask = vllm(replace(given, is_reward=True)).splitlines()
    assert "kwargs" not in serve
    assert json.loads(shlex.split(ask)[-1])["chat_template_kwargs"] == {"enable_thinking": False}


def test_vllm_loads_no_adapter_of_a_reward_model() -> None:
    assert vllm(replace(ADAPTER, is_reward=True)).startswith("# ")
    assert "--merge" in vllm(replace(ADAPTER, is_reward=True))


def test_a_base_that_is_not_on_the_hub() -> None:
    private = replace(ADAPTER, base="tiny", hub=False)
    assert "'FOLDER OF tiny'" in vllm(private) and '"FOLDER OF tiny"' in python(private)
    assert "/models/tiny" in vllm(replace(private, base="/models/tiny"))


def test_a_repository_is_downloaded_for_commands() -> None:
    pushed = replace(ADAPTER, path="me/mine", folder="mine")
    assert vllm(pushed).splitlines()[0] == "hf download me/mine --local-dir mine"
    assert 'model="me/mine"' in python(pushed)


@pytest.mark.parametrize(
    ("stage", "kind"),
    [("sft", "nf4"), ("sft", {"type": "nf4", "double_quant": True}), ("liked", "nf4"), ("liked", "int8")],
    ids=str,
)
def test_an_adapter_is_loaded_onto_the_quantized_base(
    stage: str, kind: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed code computes what the run computed, up to the rounding of the quantized product."""
    run = train(tmp_path, {"quantization": kind, "lora": {"r": 4}})
    assert export(run / stage, tmp_path / "out") == 0
    names: dict[str, Any] = {}
    code = printed_code(capsys.readouterr().out)
    if stage == "sft":
        exec(code, names)
        check_logprobs(names["model"].eval(), names["tokenizer"], run, "sft", most=0.02)
        return
    exec(code.replace("Hello!", WORDS[0]).replace("Hi.", groups()[0].responses[0].text), names)
    printed = re.search(r"tensor\((-?[\d.]+)", capsys.readouterr().out)
    assert printed is not None
    (score,) = models_of(run).scores("liked", groups()[:1])
    assert float(printed[1]) == pytest.approx(score, abs=0.05)


def test_quantized_bases_in_vllm() -> None:
    """vLLM 0.32 has no quantization of bitsandbytes any more."""
    nf4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    assert vllm(replace(ADAPTER, quantization=nf4)).startswith("# vLLM does not load bases of bitsandbytes")
    assert vllm(replace(ADAPTER, form="whole", quantization=nf4)) == "vllm serve out"
    assert "BitsAndBytes" not in python(replace(ADAPTER, form="whole", quantization=nf4))


@pytest.mark.silent_bug(
    "export: templates",
    "A served model gets other template arguments than in training.",
    "The printed llama.cpp command passes them.",
    "ggml-org/llama.cpp#13160",
)
def test_llama_cpp() -> None:
    loading = replace(ADAPTER, form="gguf", gguf="m.gguf")
    assert llama_cpp(loading) == "llama-cli -m out/m.gguf --jinja -cnv"
    # Otherwise it writes other prompts than the run did.
    words = shlex.split(llama_cpp(replace(loading, chat_template_kwargs={"enable_thinking": False})))
    assert json.loads(words[words.index("--chat-template-kwargs") + 1]) == {"enable_thinking": False}


def printed_code(output: str) -> str:
    """The Python that the command shows."""
    _, _, code = output.partition("in Python:\n")
    return "\n".join(line.removeprefix("  ") for line in code.splitlines())


@pytest.mark.parametrize("form", [[], ["--merge"]])
def test_the_printed_code_scores(
    form: list[str], lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(lora_run / "liked", tmp_path / "out", *form) == 0
    code = printed_code(capsys.readouterr().out)
    asked, answered = WORDS[0], groups()[0].responses[0].text
    exec(code.replace("Hello!", asked).replace("Hi.", answered), {})
    printed = re.match(r"tensor\((-?[\d.]+)", capsys.readouterr().out)
    assert printed is not None
    assert float(printed[1]) == pytest.approx(
        models_of(lora_run).scores("liked", groups()[:1])[0], abs=1e-4
    )  # as it is printed


@pytest.mark.parametrize("form", [[], ["--merge"], ["--gguf"]])
def test_the_printed_code_loads_a_policy(
    form: list[str], lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(lora_run / "sft", tmp_path / "out", *form) == 0
    names: dict[str, object] = {}
    exec(printed_code(capsys.readouterr().out).replace("max_new_tokens=100", "max_new_tokens=4"), names)
    assert {"model", "generate"} & names.keys()
