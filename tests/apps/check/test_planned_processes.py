"""`alignkit check --plan` of several processes: what each holds and does, with and without parts of the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from random_models import without_weights
from test_plan_command import LARGE, recipe, run

from alignkit.data.group import Group
from alignkit.tokens.encoding import Encoded
from alignkit_apps.check.cards import Machine, machine_of
from alignkit_apps.check.memory import Memory
from alignkit_apps.check.tokens import Workload, dealt, of_the_busiest

# Llama 3.1 8B: a layer's queries and outputs, keys and values, three matrices, two norms; then embeddings, head, norm.
LAYER = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
ENDS = 2 * 128256 * 4096 + 4096
WEIGHTS = 8_030_261_248
ADAPTER = 41_943_040  # peft: r=16 on all linear layers
SHARD = "launcher.shard=true"


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    return without_weights(folder / "8b", folder / "cache", "llama", **LARGE)


def sft(folder: Path, base: Path | str, **settings: Any) -> Path:
    return recipe(folder, str(base), sft={"algorithm": "sft", "data": "rows.jsonl", "batch_size": 8, **settings})


def stages_of(capfd: pytest.CaptureFixture[str], path: Path, *arguments: str) -> list[dict[str, Any]]:
    code, text, err = run(capfd, str(path), *arguments, "--json", "--no-probe")
    assert code == 0, err
    found: list[dict[str, Any]] = json.loads(text)["result"]["stages"]
    return found


def test_each_process_holds_its_part_and_what_a_pass_brings_together(
    large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert 32 * LAYER + ENDS == WEIGHTS
    path = sft(tmp_path, large)
    (whole,) = stages_of(capfd, path, "--gpus", "2xH100")
    (cut,) = stages_of(capfd, path, "--gpus", "2xH100", SHARD)
    assert whole["memory"]["weights"] == 2 * WEIGHTS and whole["memory"]["parts"] == 1
    # bf16: half of all weights, and embeddings and head twice, which are more than three layers.
    assert cut["memory"]["weights"] == 2 * (WEIGHTS / 2 + 2 * ENDS)
    assert cut["memory"]["adapters"] == 4 * ADAPTER and cut["memory"]["optimizer"] == 8 * ADAPTER
    assert cut["memory"]["activations"] == whole["memory"]["activations"]
    (quarter,) = stages_of(capfd, path, "--gpus", "4xH100", SHARD)
    assert quarter["memory"]["weights"] == 2 * (WEIGHTS / 4 + 2 * ENDS)
    assert quarter["memory"]["peak"] >= 2 * WEIGHTS + 4 * ADAPTER, "the whole base is there when it is loaded"


def test_samples_need_the_whole_base_next_to_the_part(
    large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    align = {
        "algorithm": "grpo",
        "prompts": "rows.jsonl",
        "reward": "length",
        "rollout": {"samples_per_prompt": 2, "max_new_tokens": 16},
        "iterations": 1,
        "prompts_per_iteration": 24,
    }
    write = {"step": {"sample": {"policy": "align", "prompts": "rows.jsonl", "sampling": {"max_new_tokens": 8}}}}
    path = recipe(tmp_path, str(large), align=align, write=write)
    online, step = stages_of(capfd, path, "--gpus", "2xH100", SHARD)
    memory = online["memory"]
    sampling = 2 * (WEIGHTS * 1.5 + LAYER) + memory["adapters"] + memory["optimizer"] + memory["cache"]
    assert memory["peak"] == sampling and memory["rows"] == 24, "48 rows are sampled by 2 processes"
    assert step["memory"]["weights"] == 2 * WEIGHTS and step["memory"]["rows"] == 24, "process 0 samples all 24 rows"
    assert step["processes"] == 1 and online["own"]["sampled"] == online["sampled"] / 2
    _, text, _ = run(capfd, str(path), "--gpus", "2xH100", SHARD)
    assert "12.2 GB of weights in a pass, 16.1 GB when they are loaded, 24.5 GB while it samples" in text
    assert "write: only process 0 runs it" in text and "start the run with --processes 2" in text


def test_parts_are_the_nearest_setting_for_a_base_that_barely_fits(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """42 such layers take 20.4 GB of an L4's 24 GB: they can be loaded, but 512 tokens' activations do not fit."""
    base = without_weights(tmp_path / "10b", tmp_path / "cache", "llama", **{**LARGE, "num_hidden_layers": 42})
    path = recipe(tmp_path, str(base), sft={"algorithm": "sft", "data": "rows.jsonl", "batch_size": 24})
    code, _, err = run(capfd, str(path), "--gpus", "2xL4")
    assert code == 2 and "each of 2 processes has 24.0 GB" in err
    assert "it fits with launcher.processes=2 launcher.shard=true or with --gpus 2x" in err
    found = stages_of(capfd, path, "--gpus", "2xL4", "launcher.processes=2", SHARD)[0]["memory"]
    assert found["stored"] == 2 * (42 * LAYER + ENDS) and found["peak"] < 0.95 * 24e9
    assert found["weights"] == 2 * ((42 * LAYER + ENDS) / 2 + 2 * ENDS)


def test_the_time_of_parts_is_at_least_that_of_bringing_them_together(
    large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = sft(tmp_path, large)
    (whole,) = stages_of(capfd, path, "--gpus", "2xH100")
    (cut,) = stages_of(capfd, path, "--gpus", "2xH100", SHARD)
    products = 4 * (WEIGHTS - 128256 * 4096) / (0.35 * 989e12)
    assert whole["seconds"]["learning"] == pytest.approx(whole["own"]["learned"] * products)
    assert whole["learned"] / 2 <= whole["own"]["learned"] < whole["learned"] * 0.6
    # 2 bytes of the other half of the weights arrive forward and backward, at 450 GB/s, for every packed row.
    a_row = 2 * (2 * WEIGHTS / 2) / 450e9
    assert cut["seconds"]["learning"] == pytest.approx(cut["own"]["learned"] / cut["memory"]["tokens"] * a_row)
    assert cut["seconds"]["learning"] > whole["seconds"]["learning"]


def test_the_longest_rows_are_dealt_first() -> None:
    rows = [Encoded(Group(()), (1,) * length, ()) for length in (4, 10, 5, 7)]
    assert [[row.length for row in share] for share in dealt(rows, 2)] == [[4, 10], [5, 7]]
    work = Workload(rows=100, learned=52, measured=9, sampled=100, batches=[rows], asked=4, rows_sampled=8)
    own = of_the_busiest(work, 2)
    assert (own.learned, own.measured, own.sampled) == (28, 5, 50)  # 14 of 26 tokens
    assert of_the_busiest(work, 8).learned == 20 and of_the_busiest(work, 8).sampled == 25


@pytest.mark.parametrize(
    ("prompts", "processes", "rows", "tokens"), [(5, 4, 32, 512), (1, 4, 16, 256), (3, 2, 32, 512)]
)
def test_prompts_are_dealt_with_all_of_their_samples(prompts: int, processes: int, rows: int, tokens: int) -> None:
    work = Workload(asked=prompts, rows_sampled=16 * prompts, sampled=16 * prompts * 16)
    own = of_the_busiest(work, processes)
    assert (own.rows_sampled, own.sampled) == (rows, tokens)


def test_processes_on_one_processor_share_its_memory() -> None:
    memory = Memory(weights=45.0, stored=45.0)
    assert memory.fits(Machine("a processor", 100.0, gpu=False, count=2))
    assert not memory.fits(Machine("a processor", 90.0, gpu=False, count=2))
    assert memory.fits(Machine("a card", 50.0, count=2))
    assert Machine("a processor", 32e9, gpu=False, count=2).title == "2 processes on a processor (16 GB each)"
    assert machine_of("2xL4").title == "2 x L4 (24 GB each)"


def test_a_plan_refuses_processes_that_a_run_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = sft(tmp_path, "tiny")
    code, _, err = run(capfd, str(path), "--gpus", "2xL4", "launcher.processes=4")
    assert code == 2 and "the recipe starts 4 processes, but --gpus names 2 x L4" in err and "--gpus 4xL4" in err
    both = ("launcher.processes=2", SHARD)
    code, text, _ = run(capfd, str(path), "--no-probe", *both, "model.lora=none")
    assert code == 0 and "weights that learn are counted whole, although 'shard' cuts them, too" in text
    code, _, err = run(capfd, str(path), *both, "model.quantization=nf4")
    assert code == 2 and "a quantized base model cannot be cut into parts" in err


def test_what_processes_do_not_do_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = sft(tmp_path, "tiny", batch_size=4)
    code, text, _ = run(capfd, str(path), "--no-probe", "--processes", "8")
    assert code == 0 and "sft: batch_size 4 gives only 4 of 8 processes something to do" in text
    assert "8 processes on this machine's CPU" in text and "0.5 GB more in each process" in text
    assert "start the run" not in text
    code, text, _ = run(capfd, str(path), "--no-probe", SHARD)
    assert code == 0 and "sft: 'shard' cuts nothing in one process" in text


def test_what_an_engine_needs_is_not_counted(large: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    align = {"algorithm": "rloo", "prompts": "rows.jsonl", "reward": "length", "rollout": {"max_new_tokens": 64}}
    path = recipe(tmp_path, str(large), align=align)
    (local,) = stages_of(capfd, path, "--gpus", "2xH100")
    (served,) = stages_of(capfd, path, "--gpus", "2xH100", "engine=vllm")
    assert local["memory"]["cache"] > 0 == served["memory"]["cache"]
    assert {key: local["memory"][key] for key in ("weights", "activations")}.items() <= served["memory"].items()
    code, text, _ = run(capfd, str(path), "--no-probe", "--gpus", "2xH100", "engine=vllm")
    assert code == 0 and "align: the engine 'vllm' samples: what it needs is not counted" in text
