"""Each process holds a part of the base model: the same results as those of one process, with less
memory.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Ended, run_together, together
from several import (
    MIX,
    PADDING,
    STAGES,
    answers,
    assert_alike,
    offline,
    online,
    reward,
    write_recipe,
)
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from alignkit import cli
from alignkit_plugins.processes.sharded_forward import LockstepPasses, ShardedNetwork

pytestmark = pytest.mark.usefixtures("one_thread")

# What the next test has no pass of; `make slow` has all stages.
FEW = {name: STAGES[name] for name in ("sft", "dpo", "grpo")}


@pytest.mark.parametrize(
    ("processes", "stages"),
    [
        (2, FEW),
        pytest.param(2, STAGES, marks=pytest.mark.slow),
        pytest.param(3, STAGES, marks=pytest.mark.slow),
    ],
)
def test_processes_with_a_part_each_learn_what_one_does(
    work: Path, processes: int, stages: Mapping[str, Any]
) -> None:
    """Of 13 rows in batches of 4, the last batch has one row: the others join its pass without a
    row of their own.
    """
    recipe = write_recipe(stages)
    assert cli.main(["run", str(recipe), "--out", "one"]) == 0
    run_together(work, recipe, "several", processes=processes, sharded=True)
    assert_alike(Path("several"), Path("one"))


def test_everything_that_passes_through_layers_is_in_step(work: Path) -> None:
    """Recomputed layers, two reward models, a second stream, gold scores, and a step that process 0
    runs alone.
    """
    stages = {
        "rm": offline("reward_model", "pairs"),
        "safe": offline("reward_model", "pairs", epochs=2),
        "ppo": online(
            "ppo",
            mix=MIX,
            reward={"llama2": {"helpful": "rm", "safety": "safe"}},
            monitors=[{"gold": {"reward": reward("safe")}}],
            iterations=2,
        ),
        "answers": answers("ppo"),
        "again": {**offline("sft", "demos"), "from": "ppo", "data": {"stage": "answers"}},
    }
    recipe = write_recipe(stages)
    recipe.write_text(
        recipe.read_text().replace(
            "dtype: float32", "dtype: float32\n  activation_checkpointing: true"
        )
    )
    run_together(work, recipe, "whole")
    run_together(work, recipe, "parts", sharded=True)
    assert_alike(Path("parts"), Path("whole"))


def test_parts_of_a_batch_of_one_row(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It leaves one process without a row."""
    init = ShardedNetwork.__init__

    def noted(self: Any, *args: Any) -> None:
        Path(f"cut-{os.environ['RANK']}").touch()
        init(self, *args)

    monkeypatch.setattr(ShardedNetwork, "__init__", noted)
    recipe = write_recipe({"sft": offline("sft", "demos", batch_size=1)})
    some = "model.lora.target_modules=[q_proj]"  # the other layers are torch's own
    run_together(work, recipe, "parts", some, sharded=True)
    assert Path("cut-0").exists() and Path("cut-1").exists()
    assert cli.main(["run", str(recipe), some, "--out", "one"]) == 0
    assert_alike(Path("parts"), Path("one"))


# Memory


def held(network: nn.Module) -> tuple[int, int]:
    """Bytes of the base's weights in this process, and of the whole base."""
    weights = [p for name, p in network.named_parameters() if "lora_" not in name]
    assert {p.dtype for p in weights} == {torch.float32}
    local = [p.to_local() if isinstance(p, DTensor) else p for p in weights]
    whole = sum(p.numel() * p.element_size() for p in weights)
    return sum(p.untyped_storage().nbytes() for p in local), whole


def test_a_process_holds_its_part_between_passes_and_only_samples_with_the_whole(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer_call, settle, gather = (
        GradientCheckpointingLayer.__call__,
        LockstepPasses.settle,
        LockstepPasses.gather,
    )
    networks: list[nn.Module] = []

    def note(what: str, network: nn.Module) -> None:
        with Path(f"notes-{os.environ.get('RANK')}").open("a") as file:
            file.write(json.dumps([what, *held(network)]) + "\n")

    def settled(self: LockstepPasses) -> None:
        settle(self)
        networks[:] = [self.model.model] if self.spread else []
        if networks:
            note("between", networks[0])

    def gathered(self: LockstepPasses, role: str) -> None:
        gather(self, role)
        note("sampling", self.model.model)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = layer_call(self, *args, **kwargs)
        if networks and sys._getframe(1).f_code.co_name != "generate":
            note("layer", network := networks[0])
            if result.requires_grad:
                result.register_hook(lambda gradient: note("backward", network))
        return result

    monkeypatch.setattr(LockstepPasses, "settle", settled)
    monkeypatch.setattr(LockstepPasses, "gather", gathered)
    monkeypatch.setattr(GradientCheckpointingLayer, "__call__", called)
    recipe = write_recipe({"sft": offline("sft", "demos"), "align": online("grpo", iterations=1)})
    run_together(work, recipe, "out", sharded=True)
    for rank in range(2):
        notes = [json.loads(line) for line in Path(f"notes-{rank}").read_text().splitlines()]
        shares = {
            what: [mine / whole for w, mine, whole in notes if w == what]
            for what in ("between", "layer", "backward", "sampling")
        }
        assert len(shares["between"]) > 20 and max(shares["between"]) <= PADDING / 2
        assert shares["layer"] and max(shares["layer"]) < 0.75, (
            "embeddings are whole during a pass, layers are not"
        )
        assert shares["backward"] and max(shares["backward"]) < 0.95, "one layer"
        assert shares["sampling"] and min(shares["sampling"]) >= 1.0


# Faults


def is_cut(layer: nn.Module) -> bool:
    return type(layer).__name__.startswith("FSDP")


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Process 1 meets a fault in the middle of a pass: the others wait for its part of the next
    layer.
    """
    layer_call, calls = GradientCheckpointingLayer.__call__, []

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (what := os.environ.get("FAULT")) and is_cut(self):
            calls.append(what)
            if len(calls) == 8:  # of two layers: the second one of the third pass behind the first
                if what == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                raise MemoryError("900 GiB")
        return layer_call(self, *args, **kwargs)

    monkeypatch.setattr(GradientCheckpointingLayer, "__call__", call)
    yield


def faulty(work: Path, what: str, stage: Mapping[str, Any]) -> list[Ended]:
    recipe = write_recipe({"align": stage})
    ended = together(work, ["run", recipe, "--out", "out"], 2, [{}, {"FAULT": what}], sharded=True)
    assert all(process.code and process.seconds < 60 for process in ended), ended
    assert not list(Path("out").rglob("*.tmp")), "nothing half-written"
    return ended


@pytest.mark.parametrize("what", ["kill", pytest.param("memory", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("fault")
def test_a_process_that_fails_in_the_middle_of_a_pass_ends_the_others(
    work: Path, what: str
) -> None:
    leader, other = faulty(work, what, offline("sft", "demos", epochs=3))
    assert "error: another process of the run has ended" in leader.err
    assert other.code == -9 if what == "kill" else "900 GiB" in other.err


def test_any_number_of_processes_continues_with_or_without_parts(work: Path) -> None:
    recipe = write_recipe({"align": online("rloo", checkpoint_every=1)})
    ended = together(
        work, ["run", recipe, "--out", "out"], 2, [{"FAULT": "SIGTERM"}, {}], sharded=True
    )
    assert ended[0].code == 75 and ended[1].code in (75, -15), ended
    assert list(Path("out/align/checkpoints").iterdir())
    assert cli.main(["run", str(recipe), "--out", "out"]) == 0
    assert cli.main(["run", str(recipe), "--out", "whole"]) == 0
    assert_alike(Path("out"), Path("whole"))


# What is refused


@pytest.mark.parametrize(
    "override, said",
    [
        ("stages.sft.optimizer=adamw_8bit", "'adamw_8bit' cannot train weights that are cut"),
        ("model.quantization=nf4", "a quantized base model cannot be cut into parts"),
    ],
)
def test_a_base_that_cannot_be_cut_is_refused_before_anything_is_written(
    work: Path, override: str, said: str
) -> None:
    recipe = write_recipe({"sft": offline("sft", "demos")})
    if "optimizer" in override:
        recipe.write_text(
            recipe.read_text().replace("lora:\n    r: 4\n    lora_alpha: 8\n", "lora: none\n")
        )
    leader, other = together(work, ["run", recipe, override, "--out", "out"], sharded=True)
    assert (
        leader.code and other.code and said in leader.err and f"override '{override}'" in leader.err
    )
    assert not Path("out").exists()
