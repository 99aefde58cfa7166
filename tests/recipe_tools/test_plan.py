"""`alignkit check --plan`: about what a stage takes, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch.nn import Linear
from transformers import AutoModelForCausalLM

from alignkit import cli
from alignkit.contract.settings import ModelSpec
from alignkit.host.plugins import load_plugins
from alignkit.models.shared_model import SharedModel
from alignkit.recipe.yaml import shipped_folder
from alignkit_plugins.recipe_tools import gpu_plan
from alignkit_plugins.recipe_tools import plan as planning
from alignkit_plugins.recipe_tools.gpu_plan import GIB
from tests.rows import pairs, read_json, read_rows, write_recipe, write_rows

WITHIN = 0.25


def write(folder: Path, base: str, **stages: dict[str, Any]) -> Path:
    rows = [
        {"prompt": f"what is {n}?", "completion": "a number " * (1 + n % 5), "score": n}
        for n in range(24)
    ]
    write_rows(folder / "rows.jsonl", rows)
    model = {"base": base, "dtype": "float32", "lora": {"r": 8, "lora_alpha": 16}}
    return write_recipe(folder, stages, model, name="r")


def planned(capfd: pytest.CaptureFixture[str], path: Path, *overrides: str) -> list[dict[str, Any]]:
    assert cli.main(["check", "--plan", str(path), *overrides, "--json"]) == 0
    return json.loads(capfd.readouterr().out)["result"]["stages"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_it_counts_rows_and_tokens(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not that of all tests before
    used = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=400_000_000))
    monkeypatch.setattr("alignkit_plugins.recipe_tools.plan.psutil.Process", lambda: used)
    stages = """\
sft: {algorithm: sft, data: rows.jsonl, max_length: 40, epochs: 2, batch_size: 8}
sample: {step: sample, policy: sft, prompts: rows.jsonl, sampling: {max_new_tokens: 8}}
learn: {algorithm: sft, from: sft, data: sample}
align:
  algorithm: rloo
  from: sft
  prompts: rows.jsonl
  reward: length
  rollout: {samples_per_prompt: 4, max_new_tokens: 8}
  iterations: 3
  prompts_per_iteration: 2
  epochs: 2
rated: {algorithm: reward_regression, from: sft, data: rows.jsonl}
"""
    learned = yaml.safe_load(stages)
    learned["scored"] = {**learned["align"], "reward": "rated"}
    write_rows(here / "pairs.jsonl", pairs())
    learned["dpo"] = {"algorithm": "dpo", "data": "pairs.jsonl"}
    of_four = {"policy": "sft", "best_of": 4, "reward": "length"}
    learned["report"] = {**learned["sample"], "step": "evaluate", "policies": ["sft", of_four]}
    metrics = {name: {"reward": "length"} for name in ("long", "too")}
    learned["report"] |= {"metrics": metrics, "kl": False, "limit": 10}
    learned["report"].pop("policy")
    path = write(here, "tiny", **learned)
    first, second, third, fourth, _, scored, dpo, report = planned(capfd, path)
    with monkeypatch.context() as patch:  # more rows than are read
        patch.setattr(planning, "READ", 10)
        sampled = planned(capfd, path)[0]["work"]
    assert sampled["tokens"] == pytest.approx(first["work"]["tokens"], rel=0.1)
    assert not (here / "runs").exists()
    work = first["work"]
    assert work["rows"] == 24 and work["learned"] == 2 * work["tokens"] > 0
    # Once, by the reference
    assert work["measured"] == 0 and dpo["work"]["measured"] == dpo["work"]["tokens"] > 0
    assert second["work"]["written"] == 24 * 8 and second["memory"]["cache"] > 0
    # With the base model's answers
    assert report["work"]["written"] == (1 + 1 + 4) * 10 * 8
    assert report["work"]["together"] == 4 * 10
    assert third["work"]["rows"] == 0
    online, memory = fourth["work"], fourth["memory"]
    assert online["written"] == 3 * 2 * 4 * 8
    assert online["learned"] == round(2 * 3 * 2 * (online["tokens"] / 24 + 4 * 8))
    # By the policy and the reference, and by a reward model
    assert scored["work"]["measured"] == pytest.approx(1.5 * online["measured"], abs=1)
    # The policy's adapter, and the reference's; no sample is in the cache while it learns.
    assert memory["adapters"] == 2 * first["memory"]["adapters"]
    least = min(memory["cache"], memory["activations"])
    assert least > 0 and fourth["peak"] == pytest.approx(sum(memory.values()) - least)
    assert first["peak"] == pytest.approx(sum(first["memory"].values()))
    assert cli.main(["check", "--plan", str(path)]) == 0
    text = capfd.readouterr().out
    for said in ("about 0.", "s\n", "learn: without the rows that 'sample' makes"):
        assert said in text


def test_an_evaluation_is_of_so_many_different_prompts(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """`limit` of them, however many metrics there are."""
    metrics = {name: {"reward": "length"} for name in ("one", "two")}
    report = {"step": "evaluate", "policies": ["base"], "prompts": "rows.jsonl", "metrics": metrics}
    path = write(here, "tiny", report={**report, "sampling": {"max_new_tokens": 8}})
    rows = (here / "rows.jsonl").read_text("utf-8")
    (here / "rows.jsonl").write_text(rows * 2, "utf-8")
    for override, prompts in {"": 24, "stages.report.limit=20": 20}.items():
        work = planned(capfd, path, *override.split())[0]["work"]
        assert (work["rows"], work["written"]) == (prompts, prompts * 8)


def test_a_plan_is_told_in_times_and_gigabytes() -> None:
    """With two digits, also of a stage that takes seconds."""
    work = planning.Work(rows=3, learned=1500, written=20)
    taking = {4.23: "4.2s", 437.0: "7m20s", 5555.0: "1h33m"}
    plans = [planning.StagePlan("one", "sft", work, {}, 2e9, time, 16e9) for time in taking]
    columns, rows = planning.table(plans)
    told = ["one", "sft", "3", "1,500", "20", "about 2.0 of 16.0 GB"]
    assert rows == [[*told, f"about {time}"] for time in taking.values()]
    assert len(columns) == len(rows[0])
    assert planning._some(range(450)) == range(0, 450, 3)  # from everywhere


def test_memory_follows_the_shapes(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write(here, "tiny", sft={"algorithm": "sft", "data": "rows.jsonl", "max_steps": 2})
    (found,) = planned(capfd, path)
    base = load_plugins().get("model", "tiny").implementation(here / "cache")
    model = AutoModelForCausalLM.from_pretrained(base)
    assert found["memory"]["weights"] == 4 * model.num_parameters()
    layers = [layer for layer in model.model.modules() if isinstance(layer, Linear)]
    adapter = 4 * 8 * sum(layer.in_features + layer.out_features for layer in layers)
    assert found["memory"]["adapters"] == adapter
    assert found["memory"]["optimizer"] == 3 * adapter
    (full,) = planned(capfd, path, "model.lora=none")
    assert full["memory"]["optimizer"] == 3 * full["memory"]["weights"]
    (nf4,) = planned(capfd, path, "model.quantization=nf4")
    # 4 bits, and a scale of 32 bits per 64 weights, of each matrix but the head
    saved = (4 - 4.5 / 8) * sum(layer.weight.numel() for layer in layers)
    assert nf4["memory"]["weights"] == found["memory"]["weights"] - saved
    (few,) = planned(capfd, path, "stages.sft.batch_size=3")
    assert few["work"]["learned"] == round(few["work"]["tokens"] * 2 * 3 / 24)
    words = ["stages.sft.optimizer=adamw_8bit", "model.activation_checkpointing=true"]
    (small,) = planned(capfd, path, *words)
    assert small["memory"]["optimizer"] == 1.5 * adapter  # moments of 8 bits each
    stored = found["memory"]["activations"] / len(model.model.layers)
    assert small["memory"]["activations"] == pytest.approx(stored)


def test_checkpointing_costs_a_pass_and_so_do_whole_weights(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning._Planner, "products", lambda self, tokens: 1.0)
    path = write(here, "tiny", sft={"algorithm": "sft", "data": "rows.jsonl"})
    words: list[list[str]] = [[], ["model.activation_checkpointing=true"], ["model.lora=none"]]
    stages = [planned(capfd, path, *each)[0] for each in words]
    usual, again, whole = (stage["seconds"] - planning.STARTUP for stage in stages)
    assert again == whole == pytest.approx(1.5 * usual)


def test_a_stage_that_is_too_large_is_told(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(here, "tiny", sft={"algorithm": "sft", "data": "rows.jsonl"})
    monkeypatch.setattr(planning, "total", lambda device: 1e8)
    ways = {"model.lora.r=8": "set model.quantization=nf4", "model.lora=none": "set model.lora={r"}
    for override, way in ways.items():
        assert cli.main(["check", "--plan", str(path), override]) == 0
        out = capfd.readouterr().out
        assert "of 0.1 GB" in out and "sft does not fit: lower max_length" in out and way in out


def test_the_shapes_of_common_models_make_their_sizes() -> None:
    table = yaml.safe_load(Path(gpu_plan.__file__).with_name("shapes.yaml").read_text("utf-8"))
    for name, shapes in table.items():
        card = gpu_plan.Card(ModelSpec(base=f"lab/{name.lower()}-Instruct"), 24 * GIB)
        assert card.parameters / 1e9 == pytest.approx(shapes["billions"], rel=0.004), name


FIRST = """\
model.quantization=none;    model.quantization=nf4
model.lora.r=1024;          model.lora.r=512
stages.dpo.max_length=9999; stages.dpo.max_length
model.quantization=none model.lora=none; model.lora={r: 16}
"""


NEAREST = {"Qwen/Qwen3-14B": "Qwen3-4B, Qwen3-8B", "tiiuae/falcon-7b": "OLMo-2-7B"}


def test_a_gpu_is_planned_from_shapes_alone(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Without data, tokenizer or hub; and what to lower first where it does not fit."""
    stages = """
sft: {algorithm: sft, data: &data rows.jsonl, max_length: 1024}
dpo: {algorithm: dpo, data: *data, max_length: 1024}
ppo: {algorithm: ppo, prompts: *data, max_length: 1024, reward: length, rollout: {max_new_tokens: 256}}
"""
    path = write(here, "Qwen/Qwen3-8B", **yaml.safe_load(stages))
    words = ["--gpu", "24", "model.quantization=nf4", "model.dtype=auto"]
    sft, dpo, ppo = planned(capfd, path, *words)
    assert sft["memory"]["weights"] / GIB == pytest.approx(5.96, abs=0.01)
    assert sft["memory"]["cache"] == 0 < ppo["memory"]["cache"] and sft["seconds"] is None
    assert dpo["work"]["tokens"] == 2048 and ppo["work"]["tokens"] == 768 + 256 * 2
    assert dpo["work"]["slots"] == 0 < ppo["work"]["slots"] < ppo["work"]["together"]
    assert cli.main(["check", str(path), *words]) == 0
    table = capfd.readouterr().out
    assert "decodes" in table and f" {ppo['work']['slots']} " in table.replace("\n", " ")
    # 8.2 billion weights: forward, back, and forward again, where 24 GiB hold no layer's inside
    assert "about 49.1 trillion operations" in " ".join(table.split())
    assert cli.main(["check", str(path), "--gpu", "900", *words[2:]]) == 0
    assert "about 32.8 trillion operations" in " ".join(capfd.readouterr().out.split())
    words[1] = "7"
    for line in FIRST.splitlines():
        override, first = line.split("; ")
        assert cli.main(["check", str(path), *words, *override.split()]) == 0
        assert f"dpo does not fit: lower first {first.strip()}\n" in capfd.readouterr().out
    long = planned(capfd, path, *words, "stages.sft.max_length=99999")
    assert long[0]["work"]["tokens"] == 32768  # what the model reads
    assert long[0]["work"]["note"].startswith("the model reads 32,768 tokens, less than max_length")
    many = "stages.ppo.rollout.samples_per_prompt=200"
    assert cli.main(["check", str(path), *words, many]) == 0
    text = capfd.readouterr().out
    assert "ppo does not fit: lower first stages.ppo.rollout.samples_per_prompt" in text
    for base, near in NEAREST.items():
        assert cli.main(["check", str(path), *words, f"model.base={base}"]) == 2
        assert f"of about its size, such as {near}, " in capfd.readouterr().err


@pytest.mark.slow
def test_qlora_8b_learns_in_two_layers_whose_weights_take_what_is_planned(here: Path) -> None:
    """Of Qwen3 8B's shape, with random weights and the words of `tiny`."""
    tiny = load_plugins().get("model", "tiny").implementation(here)
    config, words = gpu_plan.config_of("Qwen3-8B"), read_json(tiny / "config.json")["vocab_size"]
    shape = config.to_dict() | {"num_hidden_layers": 2, "layer_types": None, "vocab_size": words}
    model = AutoModelForCausalLM.from_config(type(config)(**shape), dtype=torch.bfloat16)
    model.save_pretrained(tiny)
    words = [f"model.base={tiny}", "model.dtype=bfloat16", "--until", "align"]
    for stage, file in {"sft": "demos.jsonl", "align": "helpful.jsonl.gz"}.items():
        data = f"{{path: {shipped_folder() / 'data' / file}, limit: 1}}"
        words += [f"stages.{stage}.data={data}", f"stages.{stage}.validation=null"]
    assert cli.main(["run", "qlora_8b", "--out", "run", *words]) == 0
    assert read_rows(here / "run" / "align" / "metrics.jsonl")[-1]["grad_norm"] > 0
    spec = ModelSpec(base=str(tiny), quantization="nf4", dtype="bfloat16")
    weights = [*SharedModel(spec, str(tiny)).model.parameters()]
    scales = [one.quant_state.absmax for one in weights if hasattr(one, "quant_state")]
    measured = sum(one.nbytes for one in [*weights, *scales])
    assert gpu_plan.Card(spec, 24 * GIB).weights == pytest.approx(measured, rel=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(
    "ALIGNKIT_SMOLLM2_WHEEL" not in os.environ, reason="needs the weights of SmolLM2-135M"
)
def test_memory_and_time_of_smollm2(here: Path) -> None:
    """Of fresh processes: a process of tests has imported more. The run prints its peak and seconds."""
    data = str(shipped_folder() / "data" / "demos.jsonl")
    sft = {"algorithm": "sft", "data": data, "max_length": 512, "max_steps": 6}
    path = write(here, "smollm2-135m-instruct", sft=sft)

    def command(*words: str) -> Any:
        done = [sys.executable, "-m", "alignkit", *words, str(path)]
        return subprocess.run(done, capture_output=True, text=True, check=True)

    (plan,) = json.loads(command("check", "--plan", "--json").stdout)["result"]["stages"]
    peak = float(command("run").stderr.rpartition("peak memory ")[2].split()[0]) * 2**30
    record = read_json(here / "runs" / "r" / "sft" / "stage.json")
    assert plan["peak"] == pytest.approx(peak, rel=WITHIN)
    assert plan["seconds"] == pytest.approx(record["seconds"], rel=WITHIN)
