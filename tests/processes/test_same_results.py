"""One process and several, which hold all weights or a part each: the same losses, weights and choices."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import together
from several import (
    GOLD,
    MIX,
    MOVED,
    STAGES,
    answers,
    assert_same,
    offline,
    online,
    reward,
    weights_of,
    write_recipe,
)
from transformers import AutoModelForCausalLM

from alignkit.runs.bases import base_source
from alignkit_plugins.processes.sharded_forward import can_learn

pytestmark = pytest.mark.usefixtures("one_thread")

FULL = {"base": "tiny", "dtype": "float32", "lora": "none"}
ADAPTER = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}
RATE = 1e-3
# Recomputed layers, two reward models, a second stream, gold scores, and a step of process 0 alone
PASSES = {
    "rm": offline("reward_model", "pairs"),
    "safe": offline("reward_model", "pairs", epochs=2),
    "ppo": online(
        "ppo",
        mix=MIX,
        reward={"llama2": {"helpful": "rm", "safety": "safe"}},
        monitors=GOLD,
        iterations=2,
    ),
    "answers": answers("ppo"),
    "again": {**offline("sft", "demos"), "from": "ppo", "data": {"stage": "answers"}},
}
# One prompt an iteration leaves a process without a row for the reward model.
ROLLBACK = {
    **PASSES,
    "ppo": online(
        "ppo",
        mix=MIX,
        reward="rm",
        monitors=GOLD,
        iterations=2,
        prompts_per_iteration=1,
        optimizer={"adamw": {"eps": 1e-4, "weight_decay": 0.1}},
        stop={"kl": 1000.0},
    ),
    "again": {**PASSES["again"], "keep_versions": True},
}
STRANGERS = {
    "reinforce": online({"reinforce": {"baseline": "running_mean"}}, iterations=2),
    "bco": offline({"bco": {"beta": 0.1}}, "labels"),
    "nash": online({"nash_md": {"preference": "score"}}, iterations=2),
    "answers": {
        "step": "reference_responses",
        "prompts": "prompts.jsonl",
        "reward": reward("letters"),
    },
    "xpo": online(
        {"xpo": {"alpha": 1e-5}}, prompts="answers", iterations=2, **{**MOVED, "from": "bco"}
    ),
}
PACKAGES = ("reinforce", "bco", "nash-md", "xpo")


@dataclass(frozen=True)
class Change:
    """What is run by several processes. sharded: each holds a part of the weights."""

    stages: Mapping[str, Any]
    sharded: bool = False
    model: Mapping[str, Any] = field(default_factory=lambda: ADAPTER)
    words: tuple[str, ...] = ()
    processes: int = 2


RECOMPUTED = {"activation_checkpointing": True}
QUICK = {
    # Of 13 rows in batches of 4, the last batch has one row, and leaves every other process with none.
    "all stages": Change(STAGES),
    "parts": Change({name: STAGES[name] for name in ("sft", "dpo", "grpo")}, True),
    "parts of all passes": Change(PASSES, True, {**ADAPTER, **RECOMPUTED}),
    # The other layers are torch's own.
    "parts of one row": Change(
        {"sft": offline("sft", "demos", batch_size=1)},
        True,
        words=("model.lora.target_modules=[q_proj]",),
    ),
}
SLOW = {
    "three": Change(STAGES, processes=3),
    "parts of all stages": Change(STAGES, True),
    "three parts": Change(STAGES, True, processes=3),
    "whole model": Change(STAGES, True, FULL),
    "whole model in three": Change(STAGES, True, FULL, processes=3),
    "whole model, all passes": Change(ROLLBACK, True, {**FULL, **RECOMPUTED, "base": "untied"}),
}


def untied() -> None:
    """A folder of the model with a language head of its own, which a reward model does not use."""
    source = base_source("tiny")
    shutil.copytree(source, "untied")
    model = AutoModelForCausalLM.from_pretrained(source)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained("untied")


@pytest.mark.silent_bug(
    "losses: accumulation",
    "Each process divides by its own number of tokens.",
    "Several processes learn what one does.",
    "huggingface/transformers#40610",
)
@pytest.mark.parametrize(
    "change",
    [*QUICK.values(), *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW.values())],
    ids=[*QUICK, *SLOW],
)
def test_several_processes_learn_what_one_does(work: Path, change: Change) -> None:
    stages, whole = change.stages, change.model["lora"] == "none"
    if whole and not can_learn():
        pytest.skip("this version of torch cannot cut weights that learn")
    if whole:
        learns = {"learning_rate": RATE}
        stages = {k: {**learns, **v} if "algorithm" in v else v for k, v in stages.items()}
    if change.model["base"] == "untied":
        untied()
    recipe = write_recipe(stages, change.model)
    assert_same(work, recipe, change.processes, change.sharded, *change.words)
    if change.stages is STAGES:
        record = json.loads(Path("several/sft/stage.json").read_text())
        assert record["summary"]["best_epoch"] == 2, record["summary"]
    if change.stages is STAGES and whole:
        folders = [weights_of(Path("several"), stage) for stage in ("sft", "grpo")]
        sft, grpo = map(AutoModelForCausalLM.from_pretrained, folders)
        both = zip(sft.parameters(), grpo.parameters(), strict=True)
        assert min((p - q).abs().max() for p, q in both) > RATE / 10, "every weight learns"


@pytest.mark.slow
def test_strangers_plugins_learn_the_same_without_a_line_for_it(work: Path) -> None:
    examples, words = Path(__file__).parents[2] / "docs" / "examples", list[str]()
    for name in PACKAGES:
        file = f"alignkit_{name.replace('-', '_')}.py"
        shutil.copy(examples / f"alignkit-{name}" / file, work)
        words += ["--plugin", file]
    assert_same(work, write_recipe(STRANGERS), 2, False, *words)


# A plugin that writes down who opens a file of the run's folder for writing, makes a folder there,
# or moves one.
AUDIT = """
import os, sys
from alignkit import hookimpl

HERE = os.path.join(os.getcwd(), "out") + os.sep
EVENTS = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0}

def audit(event, arguments):
    if event not in EVENTS or (event == "open" and not _writes(arguments)):
        return
    path = arguments[EVENTS[event]]
    if isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(HERE):
        with open(os.environ["WRITES"] + os.environ["RANK"], "a") as file:
            file.write(f"{event} {os.fsdecode(path)}\\n")

def _writes(arguments):
    mode, flags = arguments[1], arguments[2]
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) if mode is None else bool(set(mode) & set("wax+"))

@hookimpl
def run_started(run): ...

sys.addaudithook(audit)
"""


def test_only_process_0_writes(work: Path) -> None:
    """Every file of the run that is opened for writing, made or moved, with the process that does
    it.
    """
    (work / "audited.py").write_text(AUDIT, encoding="utf-8")
    budget = {"kl_budget": {"max": 1000.0}}
    sft = offline("sft", "demos", validation={"path": "demos.jsonl"}, keep_versions=True)
    stages = {"sft": sft, "align": online("ppo", monitors=[*GOLD, budget], iterations=1)}
    where = {"WRITES": str(work / "writes-")}
    words = ["run", write_recipe(stages), "--plugin", "audited.py", "--out", "out"]
    ended = together(work, words, 2, [where, where])
    assert [process.code for process in ended] == [0, 0], ended
    assert [path.name for path in work.glob("writes-*")] == ["writes-0"]
    written = (work / "writes-0").read_text()
    kinds = ("metrics.jsonl", "checkpoints", "adapter", "rollouts", "gold", "kept")
    assert all(name in written for name in kinds)
