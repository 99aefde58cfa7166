"""Exported folders in plain transformers, peft and TRL: the same numbers as in the run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import WORDS, check_logprobs, check_scores, export, models_of, train
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from alignkit.errors import RunFailed
from alignkit.io.text import cache_folder
from alignkit_plugins.models import tiny
from alignkit_plugins.policies import export_folder as folders

FP32: dict[str, Any] = {"dtype": torch.float32}


def test_an_adapter_in_peft(lora_run: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    assert export(lora_run / "sft", tmp_path / "out") == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny"
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny.source(cache_folder()), **FP32), tmp_path / "out"
    )
    check_logprobs(model.eval(), AutoTokenizer.from_pretrained(tmp_path / "out"), lora_run, "sft")


def test_a_kept_version(lora_run: Path, tmp_path: Path) -> None:
    assert export(f"{lora_run / 'sft'}@1", tmp_path / "out", "--merge") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    check_logprobs(model, AutoTokenizer.from_pretrained(tmp_path / "out"), lora_run, "sft@1")


def test_a_merged_policy(lora_run: Path, tmp_path: Path) -> None:
    assert export(lora_run / "sft", tmp_path / "out", "--merge") == 0
    assert not list((tmp_path / "out").glob("adapter*"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert model.dtype == torch.float32
    check_logprobs(model, AutoTokenizer.from_pretrained(tmp_path / "out"), lora_run, "sft")


@pytest.mark.silent_bug(
    "export: sampling",
    "A server samples with settings of the base that training did not have.",
    "The export names them.",
    "vllm-project/vllm#15241",
    "vllm-project/vllm#15281",
)
def test_how_others_sample_by_themselves(tmp_path: Path) -> None:
    """vLLM applies a base's settings to requests that say nothing; the run sampled without them."""
    assert folders._sampling_notes(tmp_path) == []
    GenerationConfig(eos_token_id=[2, 7]).save_pretrained(tmp_path)
    assert folders._sampling_notes(tmp_path) == []
    GenerationConfig(do_sample=True, temperature=0.6, repetition_penalty=1.05).save_pretrained(
        tmp_path
    )
    (note,) = folders._sampling_notes(tmp_path)
    assert "(temperature 0.6, repetition_penalty 1.05)" in note


def test_a_merged_reward_model(lora_run: Path, tmp_path: Path) -> None:
    """In transformers, and after TRL's trainer has set its padding."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    assert export(lora_run / "liked", tmp_path / "out", "--merge") == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.num_labels == 1
    check_scores(model, tokenizer, lora_run)
    # Without it vLLM puts scores through a sigmoid.
    assert model.config.problem_type == "regression"

    rows = [
        {
            "chosen": [{"role": "user", "content": word}],
            "rejected": [{"role": "user", "content": "no"}],
        }
        for word in WORDS
    ]
    arguments = RewardConfig(
        output_dir=str(tmp_path / "trl"), report_to="none", use_cpu=True, max_steps=1
    )
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    check_scores(trainer.model.eval(), tokenizer, lora_run)


@pytest.mark.parametrize("form", [[], ["--merge"]])
def test_weights_trained_without_an_adapter(
    whole_run: Path, form: list[str], tmp_path: Path
) -> None:
    assert export(whole_run / "sft", tmp_path / "policy", *form) == 0
    assert export(whole_run / "liked", tmp_path / "reward", *form) == 0
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    check_logprobs(policy, AutoTokenizer.from_pretrained(tmp_path / "policy"), whole_run, "sft")
    reward = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    check_scores(reward, AutoTokenizer.from_pretrained(tmp_path / "reward"), whole_run)


@pytest.mark.silent_bug(
    "export: end tokens",
    "Only the end token of the configuration ends a response, not the tokenizer's.",
    "An export names all ends of the run.",
    "Blaizzy/mlx-vlm#2112",
)
def test_responses_end_where_the_run_ended_them(tmp_path: Path) -> None:
    """The template of the run ends turns with a token that the base does not end with."""
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|pad|>' }}{% endfor %}"
    )
    template += "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    (tmp_path / "own.jinja").write_text(template, encoding="utf-8")
    stages = {"sft": {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 1}}
    run = train(tmp_path, {"chat_template": "own.jinja", "lora": {"r": 2}}, stages)
    ends = models_of(run).of("base").encoder.end_ids
    assert ends == {0, 2}
    for form in ([], ["--merge"]):
        out = tmp_path / f"out{len(form)}"
        assert export(run / "sft", out, *form) == 0
        assert set(GenerationConfig.from_pretrained(out).eos_token_id) == ends
        assert AutoTokenizer.from_pretrained(out).chat_template == template


@pytest.mark.silent_bug(
    "export: merged weights",
    "The sum of base and adapter is rounded to 4 bits a second time.",
    "An adapter is merged in fp32 into the values that it was trained on.",
    "huggingface/peft#2321",
    "ARahim3/mlx-tune#15",
)
def test_a_quantized_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The adapter as it is; merged, into whole weights with the values of the quantized ones."""
    stages = {"sft": {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 1}}
    run = train(tmp_path, {"quantization": "nf4", "lora": {"r": 2}}, stages)
    assert export(run / "sft", tmp_path / "adapter") == 0
    assert "it was trained on the nf4 base" in capsys.readouterr().out
    assert export(run / "sft", tmp_path / "merged", "--merge") == 0
    assert "merged into the values that nf4 rounds the weights to" in capsys.readouterr().out
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"


def test_int8_weights_are_those_of_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not those of the unquantized base; the inputs, which int8 rounds as well, cannot be
    merged.
    """
    stages = {
        "sft": {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 3, "learning_rate": 0.02}
    }
    run = train(tmp_path, {"quantization": "int8", "lora": {"r": 4, "lora_alpha": 8}}, stages)
    assert export(run / "sft", tmp_path / "out", "--merge") == 0
    assert "int8 also rounds the inputs of every layer" in capsys.readouterr().out
    name = "model.layers.1.mlp.down_proj"
    adapter = load_file(run / "sft" / "adapter" / "adapter_model.safetensors")
    down, up = (adapter[f"base_model.model.{name}.{part}.weight"] for part in ("lora_A", "lora_B"))
    layer = models_of(run).of("base").model.model.get_submodule(name)
    rounded = layer.weight.data.float() * layer.weight.SCB[:, None] / 127
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out").get_submodule(name).weight
    torch.testing.assert_close(plain.detach(), rounded + 2.0 * up @ down, atol=1e-6, rtol=0)


def test_another_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the base only the adapter can be exported."""
    other = tmp_path / "small"
    shutil.copytree(tiny.source(cache_folder()), other)
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(2)
    model.save_pretrained(other)
    stage = {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 3, "learning_rate": 0.02}
    run = train(tmp_path, {"base": str(other), "lora": {"r": 2}}, {"sft": stage})
    assert export(run / "sft", tmp_path / "out", "--merge") == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    check_logprobs(merged, AutoTokenizer.from_pretrained(tmp_path / "out"), run, "sft")
    assert "`small`, which is not on the hub" in (tmp_path / "out" / "README.md").read_text()
    shutil.rmtree(other)
    assert export(run / "sft", tmp_path / "gone", "--merge") == 1
    assert f"the base model of 'sft' is not at {other} any more" in capsys.readouterr().err
    assert export(run / "sft", tmp_path / "kept") == 0


def test_nothing_is_overwritten(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert export(lora_run / "sft", tmp_path / "mine") == 2
    assert "mine exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_a_failure_leaves_nothing(
    lora_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "card", fail)
    assert export(lora_run / "sft", tmp_path / "out") == 5
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_appears_meanwhile(
    lora_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def meanwhile(*arguments: Any) -> str:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("years of work")
        return "a card"

    monkeypatch.setattr(folders, "card", meanwhile)
    assert export(lora_run / "sft", tmp_path / "out") == 2
    assert "out appeared while it was being written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out", "thesis.txt"]


def test_an_export_with_a_private_text_is_not_kept(
    lora_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(lora_run / "sft", tmp_path / "out", "--license", f"see {lora_run}/LICENSE") == 1
    assert f"README.md would tell others of {lora_run}/" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_nothing_private(lora_run: Path, tmp_path: Path) -> None:
    """No text of an export names a folder of this machine."""
    for form in ([], ["--merge"]):
        out = tmp_path / f"out{len(form)}{'-'.join(form)}"
        assert export(lora_run / "sft", out, *form) == 0
        for file in out.iterdir():
            content = file.read_bytes()
            for folder in (lora_run, tmp_path, Path.home(), cache_folder(), Path.cwd()):
                assert f"{folder}{os.sep}".encode() not in content, (file, folder)


@pytest.mark.parametrize(
    ("text", "what"), [("/home/me/run/sft", "/home/me/run/"), ("hf_" + "Ab1" * 12, "a key")]
)
def test_private_texts_are_refused(text: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"note": text}))
    with pytest.raises(RunFailed, match=f"config.json would tell others of {what}"):
        folders._check_private(tmp_path, [Path("/home/me/run")])
