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
import yaml
from torch.nn import Linear
from transformers import AutoModelForCausalLM

from alignkit import cli
from alignkit.host.plugins import load_plugins
from alignkit.recipe.yaml import shipped_folder
from alignkit_plugins.recipe_tools import plan as planning
from tests.rows import pairs, read_json, write_recipe, write_rows

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
    path = write(here, "tiny", **learned)
    first, second, third, fourth, _, scored, dpo = planned(capfd, path)
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
    assert cli.main(["check", "--plan", str(path)]) == 0
    out = capfd.readouterr().out
    assert "of 0.1 GB" in out and "sft does not fit: lower max_length" in out


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
