"""`alignkit check --plan`: what it shows, what it refuses, and that it leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from random_models import without_weights

from alignkit import cli

LARGE: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the shapes of Llama 3.1 8B, and no weights."""
    folder = tmp_path_factory.mktemp("large")
    return without_weights(folder / "8b", folder / "cache", "llama", **LARGE)


def recipe(folder: Path, base: str, **stages: dict[str, Any]) -> Path:
    rows = [{"prompt": f"what is {n}?", "completion": "a number " * (1 + n % 5)} for n in range(24)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    path = folder / "r.json"
    path.write_text(json.dumps({"model": {"base": base}, "stages": stages}), encoding="utf-8")
    return path


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["check", "--plan", *arguments])
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_a_plan_shows_rows_memory_and_time(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sft = {"algorithm": "sft", "data": "rows.jsonl", "max_length": 40, "epochs": 2, "batch_size": 8}
    sample = {"step": {"sample": {"policy": "sft", "prompts": "rows.jsonl", "sampling": {"max_new_tokens": 8}}}}
    learn = {"algorithm": "sft", "from": "sft", "data": "sample"}
    path = recipe(tmp_path, "tiny", sft=sft, sample=sample, learn=learn)
    out = tmp_path / "none"
    code, text, _ = run(capfd, str(path), "--out", str(out))
    assert code == 0 and not out.exists() and not (tmp_path / "runs").exists()
    assert "sft: runs" in text and "peak GB" in text and "truncated at max_length" in text
    assert "learn: estimated, from the options of 'sample'" in text and "probe of a few layers" in text
    code, text, _ = run(capfd, str(path), "--json", "--no-probe", "--out", str(out))
    first, second, third = json.loads(text)["result"]["stages"]
    assert first["rows"] == 24 and first["steps"] == 6 and first["seconds"] is None
    assert second["sampled"] == 24 * 8 and third["rows"] == 24 and third["estimated"]
    assert first["memory"]["peak"] > first["memory"]["activations"] > 0


@pytest.mark.parametrize(("more", "drafts"), [({}, 6), ({"base": False}, 5), ({"samples_per_prompt": 2}, 12)])
def test_a_best_of_n_writes_n_answers(
    more: dict[str, Any], drafts: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A policy, its best of 4, and the base model that is shown next to them."""
    policies = ["sft", {"policy": "sft", "best_of": 4, "reward": "length"}]
    options = {
        "policies": policies,
        "prompts": "rows.jsonl",
        "rewards": ["length"],
        "sampling": {"max_new_tokens": 8},
        **more,
    }
    sft = {"algorithm": "sft", "data": "rows.jsonl", "max_length": 40}
    path = recipe(tmp_path, "tiny", sft=sft, compare={"step": {"evaluate": options}})
    code, text, _ = run(capfd, str(path), "--json", "--no-probe", "--out", str(tmp_path / "none"))
    stage = json.loads(text)["result"]["stages"][1]
    assert code == 0 and stage["sampled"] == 24 * drafts * 8
    assert stage["rows_sampled"] == 24 * 4 * more.get("samples_per_prompt", 1)


def test_cards_are_planned_without_weights(large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, str(large), sft={"algorithm": "sft", "data": "rows.jsonl", "batch_size": 8})
    code, text, _ = run(capfd, str(path), "--gpus", "2xH100", "--json")
    found = json.loads(text)["result"]
    (stage,) = found["stages"]
    assert code == 0 and found["machine"]["count"] == 2
    weights = 2 * 8_030_261_248  # bf16; the number of weights on the model's card
    assert stage["memory"]["weights"] == pytest.approx(weights, rel=1e-4)
    assert stage["memory"]["adapters"] == 4 * 41_943_040  # peft: r=16 on all linear layers
    assert stage["learning_rate"] == 0.00014 and stage["seconds"]["source"] == "computed"
    _, text, _ = run(capfd, str(path), "--gpus", "2xH100", "--json", "model.activation_checkpointing=true")
    (again,) = json.loads(text)["result"]["stages"]
    assert again["memory"]["activations"] < stage["memory"]["activations"]
    assert again["seconds"]["learning"] == pytest.approx(1.5 * stage["seconds"]["learning"])  # three passes, not two


def test_an_iteration_that_is_sampled_ahead_takes_as_long_as_the_longer_part(
    large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit_vllm.engine.Vllm.check", lambda self, folder: None)  # no server is here
    rollout = {"samples_per_prompt": 2, "max_new_tokens": 64}
    keys = {"algorithm": "rloo", "prompts": "rows.jsonl", "reward": "length", "engine": "vllm", "iterations": 5}
    path = recipe(tmp_path, str(large), waits={**keys, "rollout": rollout})
    waits = json.loads(run(capfd, str(path), "--gpus", "H100", "--json")[1])["result"]["stages"][0]["seconds"]
    path = recipe(tmp_path, str(large), ahead={**keys, "rollout": {**rollout, "ahead": 1}})
    ahead = json.loads(run(capfd, str(path), "--gpus", "H100", "--json")[1])["result"]["stages"][0]["seconds"]
    learner, sampler = ahead["learning"] + ahead["measuring"], ahead["sampling"]
    assert waits["total"] == pytest.approx(learner + sampler)
    assert ahead["total"] == pytest.approx((learner + sampler + 4 * max(learner, sampler)) / 5)
    text = " ".join(run(capfd, str(path), "--gpus", "H100")[1].split())
    assert "ahead: sampled while it learns: an iteration takes as long as the longer of both" in text


def test_what_cannot_fit_is_refused_with_what_fits(
    large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, str(large), sft={"algorithm": "sft", "data": "rows.jsonl", "batch_size": 8})
    code, text, err = run(capfd, str(path), "--gpus", "T4")
    assert code == 2 and not text
    assert "stage 'sft' needs" in err and "most of it for weights" in err and "T4 has 16.0 GB" in err
    assert "it fits with model.quantization=nf4 or with --gpus" in err
    assert run(capfd, str(path), "--gpus", "T4", "model.quantization=nf4")[0] == 0
    code, _, err = run(capfd, str(path), "--gpus", "H100", "model.lora=none")
    assert code == 2 and "it fits with model.lora={r: 16}" in err


def test_bad_machines_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, "tiny", sft={"algorithm": "sft", "data": "rows.jsonl"})
    code, _, err = run(capfd, str(path), "--gpus", "8xH1000")
    assert code == 2 and "no card 'H1000' is known" in err
    both = ("model.lora=none", "model.mixed_precision=bf16")
    code, _, err = run(capfd, str(path), "--gpus", "T4", *both)
    assert code == 1 and "'mixed_precision: bf16': T4 has no instructions that multiply bf16" in err
    code, _, err = run(capfd, str(path), "model.device=cuda:7")
    assert code == 2 and "torch finds" in err and "'device: auto' takes what there is" in err
