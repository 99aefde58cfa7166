"""Exported folders in plain transformers, peft and TRL: the same numbers as in the run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import check_logprobs, check_scores, export, models_of, train
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from alignkit.contract.settings import ModelSpec
from alignkit.errors import RunFailed
from alignkit.io.text import cache_folder
from alignkit_plugins.bases import tiny
from alignkit_plugins.serving import export_folder as folders
from tests.rows import Said, pairs, user

FORMS = pytest.mark.parametrize("form", [[], ["--merge"]], ids=["as it is", "merged"])


def causal(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def classifier(folder: Path) -> Any:
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


# --- the same numbers


def test_an_adapter_in_peft(house_run: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    (out := tmp_path / "out").mkdir()
    export(house_run / "sft", out)
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    model = PeftModel.from_pretrained(causal(tiny.source(cache_folder())), out)
    check_logprobs(model.eval(), AutoTokenizer.from_pretrained(out), house_run, "sft")


@pytest.mark.parametrize("role", ["sft", "sft@1"])
def test_a_merged_policy(role: str, house_run: Path, tmp_path: Path) -> None:
    export(house_run / role, out := tmp_path / "out", "--merge")
    assert not list(out.glob("adapter*"))
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    check_logprobs(causal(out), AutoTokenizer.from_pretrained(out), house_run, role)


def test_a_merged_reward_model(house_run: Path, tmp_path: Path) -> None:
    """In transformers, and after TRL's trainer has set its padding."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    export(house_run / "liked", out := tmp_path / "out", "--merge")
    model, tokenizer = classifier(out), AutoTokenizer.from_pretrained(out)
    check_scores(model, tokenizer, house_run)
    # Without it vLLM puts scores through a sigmoid.
    assert (model.num_labels, model.config.problem_type) == (1, "regression")
    rows = [{"chosen": [*g.prompt], "rejected": [user("no")]} for g in pairs()]
    args = RewardConfig(str(tmp_path / "trl"), report_to="none", use_cpu=True, max_steps=1)
    data = Dataset.from_list(rows)
    trainer = RewardTrainer(model, args, train_dataset=data, processing_class=tokenizer)
    check_scores(trainer.model.eval(), tokenizer, house_run)


@FORMS
def test_weights_trained_without_an_adapter(
    whole_run: Path, form: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("sft", "liked"):
        export(whole_run / stage, tmp_path / stage, *form)
    assert capsys.readouterr().out.count("for llama.cpp: ") == 1  # it reads no reward model
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft")
    check_logprobs(causal(tmp_path / "sft"), tokenizer, whole_run, "sft")
    check_scores(classifier(tmp_path / "liked"), tokenizer, whole_run)


@pytest.mark.silent_bug(
    "export: merged weights",
    "The sum of base and adapter is rounded to 4 bits a second time.",
    "An adapter is merged in fp32 into the values that it was trained on.",
    "huggingface/peft#2321",
    "ARahim3/mlx-tune#15",
)
def test_a_quantized_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The adapter as it is; merged, into whole weights with the values of the quantized ones."""
    run = train(tmp_path, {"quantization": "nf4", "lora": {"r": 2}}, max_steps=1)
    export(run / "sft", tmp_path / "adapter")
    said = capsys.readouterr().out
    assert "it was trained on the nf4 base" in said and "llama.cpp" not in said
    export(run / "sft", tmp_path / "merged", "--merge")
    assert "merged into the values that nf4 rounds the weights to" in capsys.readouterr().out
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"


def test_int8_weights_are_those_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those of the unquantized base; the inputs, which int8 rounds as well, cannot be
    merged.
    """
    run = train(tmp_path, {"quantization": "int8", "lora": {"r": 4, "lora_alpha": 8}})
    export(run / "sft", tmp_path / "out", "--merge")
    assert "int8 also rounds the inputs of every layer" in capsys.readouterr().out
    name = "model.layers.1.mlp.down_proj"
    adapter = load_file(run / "sft" / "adapter" / "adapter_model.safetensors")
    down, up = (adapter[f"base_model.model.{name}.{part}.weight"] for part in ("lora_A", "lora_B"))
    layer = models_of(run).of("base").model.model.get_submodule(name)
    rounded = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    plain = causal(tmp_path / "out").get_submodule(name).weight
    torch.testing.assert_close(plain.detach(), rounded + 2.0 * up @ down, atol=1e-6, rtol=0)


def test_another_base(tmp_path: Path, said: Said) -> None:
    """Without the base only the adapter can be exported."""
    other, out = tmp_path / "small", tmp_path / "out"
    shutil.copytree(tiny.source(cache_folder()), other)
    model = causal(other)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
    model.save_pretrained(other)
    run = train(tmp_path, {"base": str(other), "lora": {"r": 2}})
    export(run / "sft", out, "--merge")
    check_logprobs(causal(out), AutoTokenizer.from_pretrained(out), run, "sft")
    assert (
        "Base model: not on the hub; `model.base` in `recipe.yaml` names it"
        in (out / "README.md").read_text()
    )
    shutil.rmtree(other)
    export(run / "sft", tmp_path / "gone", "--merge", code=1)
    assert f"the base model of 'sft' is not at {other} any more" in said()
    export(run / "sft", tmp_path / "kept")


# --- how others sample

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|pad|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.silent_bug(
    "export: end tokens",
    "Only the end token of the configuration ends a response, not the tokenizer's.",
    "An export names all ends of the run.",
    "Blaizzy/mlx-vlm#2112",
)
def test_responses_end_where_the_run_ended_them(tmp_path: Path) -> None:
    """The template of the run ends turns with a token that the base does not end with."""
    (tmp_path / "own.jinja").write_text(TEMPLATE, encoding="utf-8")
    run = train(tmp_path, {"chat_template": "own.jinja", "lora": {"r": 2}}, max_steps=1)
    ends = models_of(run).of("base").encoder.end_ids
    assert ends == {0, 2}
    for form in ([], ["--merge"]):
        export(run / "sft", out := tmp_path / f"out{len(form)}", *form)
        assert set(GenerationConfig.from_pretrained(out).eos_token_id) == ends
        assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE


@pytest.mark.silent_bug(
    "export: sampling",
    "A server samples with settings of the base that training did not have.",
    "The export names them.",
    "vllm-project/vllm#15241",
    "vllm-project/vllm#15281",
)
def test_how_others_sample_by_themselves(tmp_path: Path) -> None:
    """vLLM applies a base's settings to requests that say nothing; the run sampled without them."""
    told = {"temperature": 0.6, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.05}
    sampled = {"do_sample": True, **told}
    notes = [folders._sampling_notes(tmp_path)]
    for settings in ({"eos_token_id": [2, 7]}, sampled):
        GenerationConfig(**settings).save_pretrained(tmp_path)
        notes.append(folders._sampling_notes(tmp_path))
    words = ", ".join(f"{key} {value}" for key, value in told.items())
    assert notes[:2] == [[], []] and f"({words})" in notes[2][0]


# --- nothing is lost, and nothing told


def fail(*arguments: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_merged_weights_have_the_dtype_of_the_base_or_the_recipe(key: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({key: "float16"}))
    found = [folders._dtype(ModelSpec(base="x", dtype=d), tmp_path) for d in ("auto", "float32")]
    assert found == [torch.float16, torch.float32]


def test_a_failure_leaves_nothing(
    house_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
) -> None:
    """Neither does an export that would tell others of a folder of this machine."""
    words = house_run / "sft", tmp_path / "out"
    export(*words, "--license", f"see {house_run}/LICENSE", code=1)
    assert f"README.md would tell others of {house_run}/" in said()
    monkeypatch.setattr(folders, "model_card", fail)
    export(*words, code=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("meanwhile", "why"),
    [(False, "exists already"), (True, "appeared while it was being written")],
)
def test_nothing_is_overwritten(
    meanwhile: bool,
    why: str,
    house_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
) -> None:
    mine = tmp_path / "mine"

    def write(*arguments: Any) -> str:
        mine.mkdir()
        (mine / "thesis.txt").write_text("years of work")
        return "a card"

    if meanwhile:
        monkeypatch.setattr(folders, "model_card", write)
    else:
        write()
    export(house_run / "sft", mine, code=2)
    assert f"mine {why}" in said()
    assert sorted(tmp_path.rglob("*")) == [mine, mine / "thesis.txt"]


@pytest.mark.parametrize(
    ("text", "what"), [("/home/me/run/sft", "/home/me/run/"), ("hf_" + "Ab1" * 12, "a key")]
)
def test_private_texts_are_refused(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "config.json").write_text(json.dumps({"note": text}))
    with pytest.raises(RunFailed, match=f"config.json would tell others of {what}"):
        folders._check_private(tmp_path, [Path("/home/me/run")])
