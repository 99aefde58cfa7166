"""All weights of a network learn, and each process holds a part of them: the same results as those
of one process.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import run_together, together
from safetensors.torch import load_file
from several import (
    LOSS,
    MIX,
    PADDING,
    STAGES,
    WEIGHTS,
    answers,
    metrics_of,
    offline,
    online,
    reward,
    write_recipe,
)
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from alignkit import cli
from alignkit.runs.bases import base_source
from alignkit.training.learner import Learner
from alignkit_plugins.processes.sharded_forward import LockstepPasses, can_learn

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not can_learn(), reason="this version of torch cannot cut weights that learn"
    ),
]

FULL = {"base": "tiny", "dtype": "float32", "lora": "none"}
RATE = 1e-3


def write(stages: Mapping[str, Any], **keys: Any) -> Path:
    learning = {
        name: {"learning_rate": RATE, **stage} if "algorithm" in stage else stage
        for name, stage in stages.items()
    }
    return write_recipe(learning, **{"model": FULL, **keys})


def model_of(folder: Path, stage: str) -> Path:
    (config,) = (folder / stage).glob("*/config.json")
    return config.parent


def assert_alike(found: Path, expected: Path) -> None:
    """The same metrics, and model folders with the same files and weights, up to rounding
    errors.
    """
    for row, other in zip(metrics_of(found), metrics_of(expected), strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            near = value if isinstance(value, str) else pytest.approx(value, abs=LOSS, rel=LOSS)
            assert row[name] == near, f"{row['stage']}, step {row.get('step')}: {name}"
    for stage in sorted({row["stage"] for row in metrics_of(expected)}):
        ours, theirs = model_of(found, stage), model_of(expected, stage)
        assert {file.name for file in ours.iterdir()} == {file.name for file in theirs.iterdir()}
        assert (ours / "config.json").read_bytes() == (theirs / "config.json").read_bytes()
        weights = load_file(ours / "model.safetensors")
        for name, weight in load_file(theirs / "model.safetensors").items():
            assert (weights.pop(name) - weight).abs().max() <= WEIGHTS, f"{stage}: {name}"
        assert not weights


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_with_a_part_each_learn_what_one_does(work: Path, processes: int) -> None:
    recipe = write(STAGES)
    assert cli.main(["run", str(recipe), "--out", "one"]) == 0
    run_together(work, recipe, "several", processes=processes, sharded=True)
    assert_alike(Path("several"), Path("one"))
    sft, grpo = (
        AutoModelForCausalLM.from_pretrained(model_of(Path("several"), stage))
        for stage in ("sft", "grpo")
    )
    moved = [(p - q).abs().max() for p, q in zip(sft.parameters(), grpo.parameters(), strict=True)]
    assert min(moved) > RATE / 10, "every weight learns"


def untied() -> str:
    """A folder of the model with a language head of its own, which a reward model does not use."""
    source = base_source("tiny")
    shutil.copytree(source, "untied")
    model = AutoModelForCausalLM.from_pretrained(source)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained("untied")
    return "untied"


@pytest.mark.slow
def test_everything_that_passes_through_layers_is_in_step(work: Path) -> None:
    """Recomputed layers, decayed weights, an untied head, a second stream, gold, a step of process
    0, and a rollback.

    One prompt an iteration leaves a process without a row for the reward model, which it has not
    loaded.
    """
    stages = {
        "rm": offline("reward_model", "pairs"),
        "ppo": online(
            "ppo",
            mix=MIX,
            reward="rm",
            monitors=[{"gold": {"reward": reward("safe")}}],
            iterations=2,
            prompts_per_iteration=1,
            optimizer={"adamw": {"eps": 1e-4, "weight_decay": 0.1}},
            stop={"kl": 1000.0},
        ),
        "answers": answers("ppo"),
        "again": {
            **offline("sft", "demos", keep_versions=True),
            "from": "ppo",
            "data": {"stage": "answers"},
        },
    }
    recipe = write(stages, model={**FULL, "base": untied(), "activation_checkpointing": True})
    assert cli.main(["run", str(recipe), "--out", "one"]) == 0
    run_together(work, recipe, "parts", sharded=True)
    assert_alike(Path("parts"), Path("one"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "before, after", [(1, 2), (2, 1), pytest.param(2, 3, marks=pytest.mark.slow)]
)
def test_any_number_of_processes_continues(work: Path, before: int, after: int) -> None:
    recipe = write({"align": online("ppo", checkpoint_every=1)})

    def run(out: str, processes: int, **variables: str) -> list[int]:
        own = [variables, *[{}] * (processes - 1)]
        return [
            p.code
            for p in together(
                work, ["run", recipe, "--out", out], processes, own, sharded=processes > 1
            )
        ]

    assert run("out", before, FAULT="SIGTERM")[0] == 75
    assert list(Path("out/align/checkpoints").iterdir())
    assert run("out", after) == [0] * after
    assert "continuing after" in Path("out/run.log").read_text()
    assert run("whole", 1) == [0]
    assert_alike(Path("out"), Path("whole"))


def test_a_process_holds_its_part_of_weights_gradients_and_moments(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, step = LockstepPasses.settle, Learner.step
    notes: list[tuple[str, int, int]] = []

    def note(what: str, tensors: list[torch.Tensor]) -> None:
        storages = [
            (t.to_local() if isinstance(t, DTensor) else t).untyped_storage() for t in tensors
        ]
        # Gradients of a layer share one
        held = {storage.data_ptr(): storage.nbytes() for storage in storages}
        notes.append((what, sum(held.values()), sum(t.numel() * t.element_size() for t in tensors)))
        Path(f"notes-{os.environ.get('RANK')}").write_text(json.dumps(notes))

    def settled(self: LockstepPasses) -> None:
        settle(self)
        if self.spread:
            note(
                "weights",
                [p for role in self.model.roles.values() for p in role.model.parameters()],
            )

    def stepped(self: Learner, *args: Any) -> Any:
        metrics = step(self, *args)
        note("gradients", [p.grad for p in self.parameters.values() if p.grad is not None])
        note(
            "moments",
            [
                value
                for state in self.optimizer.state.values()
                for value in state.values()
                if value.dim()
            ],
        )
        return metrics

    monkeypatch.setattr(LockstepPasses, "settle", settled)
    monkeypatch.setattr(Learner, "step", stepped)
    stages = {"sft": offline("sft", "demos"), "dpo": {**offline("dpo", "pairs"), "from": "sft"}}
    run_together(work, write(stages), "out", sharded=True)
    for rank in range(2):
        found = json.loads(Path(f"notes-{rank}").read_text())
        shares = {
            kind: [mine / whole for what, mine, whole in found if what == kind]
            for kind, _, _ in found
        }
        assert shares.keys() == {"weights", "gradients", "moments"}
        assert all(max(each) <= PADDING / 2 for each in shares.values()), shares
