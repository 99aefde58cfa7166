"""One process and several, each with the whole base or with a part of it: the same losses, the same
weights, the same choices.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from forked import run_together
from several import STAGES, assert_same_as_one, write_recipe
from transformers import AutoModelForCausalLM

from alignkit.io.results import read_record
from alignkit.runs.model_source import locate_model
from alignkit_plugins.processes.sharded_forward import can_learn

pytestmark = pytest.mark.usefixtures("one_thread")

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
RATE = 1e-3
# A plugin that writes down who opens a file of the run's folder for writing, makes a folder there,
# or moves one.
AUDIT = """
import os, sys
from alignkit import hookimpl

HERE = os.path.join(os.getcwd(), "several") + os.sep
EVENTS = {"open": 0, "os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.truncate": 0}

def audit(event, arguments):
    if event not in EVENTS or (event == "open" and not _writes(arguments)):
        return
    path = arguments[EVENTS[event]]
    if isinstance(path, (str, bytes, os.PathLike)) and os.path.abspath(os.fsdecode(path)).startswith(HERE):
        with open("writes-" + os.environ["RANK"], "a") as file:
            file.write(f"{event} {os.fsdecode(path)}\\n")

def _writes(arguments):
    mode, flags = arguments[1], arguments[2]
    return bool(flags & (os.O_WRONLY | os.O_RDWR)) if mode is None else bool(set(mode) & set("wax+"))

@hookimpl
def run_started(run): ...

sys.addaudithook(audit)
"""
# What is not in the other recipe that every day runs.
FEW = """
sft: {algorithm: sft, data: demos.jsonl, epochs: 2, validation: demos.jsonl, keep_versions: true}
ppo:
  algorithm: {ppo: {kl_target: 0.01, kl_horizon: 100}}
  monitors: [{gold: {reward: {python: {path: scores.py, function: safe}}}}]
  iterations: 2
grpo:
  algorithm: grpo
  rollout: {samples_per_prompt: 3, max_new_tokens: 6, filters: [spread]}
  reward: {python: {path: scores.py, function: some}}
  iterations: 2
"""
WRITTEN = ("metrics.jsonl", "checkpoints", "adapter", "rollouts", "gold", "kept")


@pytest.mark.silent_bug(
    "losses: accumulation",
    "Each process divides by its own number of tokens.",
    "Several processes learn what one does.",
    "huggingface/transformers#40610",
)
def test_several_processes_learn_what_one_does_and_one_writes(work: Path) -> None:
    """Of 13 rows in batches of 4, the last batch has one row, and leaves every other process with
    none. Every file of the run that is opened for writing, made or moved is so by process 0.
    """
    (work / "audited.py").write_text(AUDIT, encoding="utf-8")
    recipe = write_recipe(FEW)
    said = run_together(recipe, "several", "--plugin", "audited.py")
    assert "results: several" in said
    assert_same_as_one(recipe, "several")
    assert read_record(Path("several/sft"))["summary"]["best_epoch"] == 2
    assert [path.name for path in work.glob("writes-*")] == ["writes-0"]
    written = (work / "writes-0").read_text()
    assert all(name in written for name in WRITTEN)


# Recomputed layers, two reward models, a second stream, gold scores, and a step that process 0 runs
# alone.
EVERYTHING = """
rm: {algorithm: reward_model, data: pairs.jsonl}
safe: {algorithm: reward_model, data: pairs.jsonl, learning_rate: 0.001}
ppo:
  algorithm: {ppo: {whiten_rewards: true}}
  reward: {llama2: {helpful: rm, safety: safe}}
  mix: {data: demos.jsonl, objective: sft, weight: 0.3, batch_size: 3}
  monitors: [{gold: {reward: {python: {path: scores.py, function: safe}}}}]
  iterations: 1
answers:
  step: sample
  policy: ppo
  prompts: prompts.jsonl
  samples_per_prompt: 1
  sampling: {max_new_tokens: 4}
again: {algorithm: dpo, data: pairs.jsonl, from: ppo, reference: base}
last: {algorithm: sft, data: {stage: answers}, from: again}
"""


@pytest.mark.slow
def test_everything_that_passes_through_layers_is_in_step(work: Path) -> None:
    recipe = write_recipe(EVERYTHING, "activation_checkpointing: true")
    run_together(recipe, "several", sharded=True)
    assert_same_as_one(recipe, "several")


# One prompt an iteration leaves a process without a row for the reward model, which it has not
# loaded; decayed weights, and a rollback.
WHOLE = """
rm: {algorithm: reward_model, data: pairs.jsonl}
ppo:
  algorithm: ppo
  reward: rm
  mix: {data: demos.jsonl, objective: sft, weight: 0.3, batch_size: 3}
  monitors: [{gold: {reward: {python: {path: scores.py, function: safe}}}}, {kl_budget: {max: 1000.0}}]
  iterations: 2
  prompts_per_iteration: 1
  optimizer: {adamw: {eps: 1e-4, weight_decay: 0.1}}
answers:
  step: sample
  policy: ppo
  prompts: prompts.jsonl
  samples_per_prompt: 1
  sampling: {max_new_tokens: 4}
again: {algorithm: sft, data: {stage: answers}, from: ppo, keep_versions: true}
"""


@pytest.mark.slow
@pytest.mark.skipif(not can_learn(), reason="this torch cannot cut weights that learn")
def test_all_weights_learn_in_step(work: Path) -> None:
    """With a language head of its own, which a reward model does not use."""
    source = locate_model("tiny")
    shutil.copytree(source, "untied")
    model = AutoModelForCausalLM.from_pretrained(source)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = type(model.lm_head.weight)(model.lm_head.weight.detach().clone())
    model.save_pretrained("untied")
    keys = "lora: none, base: untied, activation_checkpointing: true"
    recipe = write_recipe(WHOLE, keys, learning_rate=RATE)
    run_together(recipe, "several", sharded=True)
    assert_same_as_one(recipe, "several")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("how", ["whole", "parts", "all weights"])
def test_every_stage_learns_what_one_process_does(work: Path, how: str, processes: int) -> None:
    full = {"learning_rate": RATE} if how == "all weights" else {}
    recipe = write_recipe(STAGES, "lora: none" if full else "", **full)
    run_together(recipe, "several", processes=processes, sharded=how != "whole")
    assert_same_as_one(recipe, "several")
    if full:
        (learned,) = Path("several/grpo").glob("*/config.json")
        base, grpo = map(
            AutoModelForCausalLM.from_pretrained, (locate_model("tiny"), learned.parent)
        )
        for before, after in zip(base.parameters(), grpo.parameters(), strict=True):
            assert (before - after).abs().max() > RATE / 10, "every weight learns"


# Stages of plugins that know nothing of processes
STRANGERS = """
reinforce: {algorithm: {reinforce: {baseline: running_mean}}, iterations: 2}
bco: {algorithm: {bco: {beta: 0.1}}, data: labels.jsonl}
nash: {algorithm: {nash_md: {preference: score}}, iterations: 2}
answers:
  step: reference_responses
  prompts: prompts.jsonl
  reward: {python: {path: scores.py, function: letters}}
xpo:
  algorithm: {xpo: {alpha: 1.0e-5}}
  prompts: answers
  from: bco
  reference: base
  iterations: 2
"""
PACKAGES = ("reinforce", "bco", "nash_md", "xpo")


@pytest.mark.slow
def test_strangers_plugins_learn_the_same_without_a_line_for_it(work: Path) -> None:
    words = []
    for name in PACKAGES:
        (file,) = EXAMPLES.glob(f"*/alignkit_{name}.py")
        words += ["--plugin", Path(shutil.copy(file, work)).name]
    recipe = write_recipe(STRANGERS)
    run_together(recipe, "several", *words)
    assert_same_as_one(recipe, "several", *words)
