"""Diagnosis: each cause is named by what it does to the curves, and a healthy stage has none."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import yaml

import alignkit
from alignkit_plugins.report.diagnosis import diagnosis
from alignkit_plugins.report.facts import facts_of
from tests.report.made_to_fail import made
from tests.rows import write_rows

HEALTHY = """
reward: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
reward_se: [0.05, 0.05, 0.05, 0.05, 0.05, 0.05]
reward_std: [0.2, 0.2, 0.2, 0.2, 0.2, 0.2]
reward_std_within: [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
response_tokens: [20, 19, 21, 20, 19, 21]
truncated: [0.3, 0.2, 0.1, 0.2, 0.1, 0.1]
kl: [0, 0.5, 1, 1.5, 2, 2.5]
clip_fraction: [0.1, 0.1, 0.05, 0.02, 0, 0]
approx_kl: [0.02, 0.01, 0.01, 0.01, 0, 0]
learning_rate: [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
kind/a/reward: [0, 0.2, 0.4, 0.6, 0.8, 1]
kind/a/reward_se: [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
kind/a/prompts: [9, 9, 9, 9, 9, 9]
kind/b/reward: [0.4, 0.1, 0.3, 0.2, 0.2, 0.2]
kind/b/reward_se: [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]
kind/b/prompts: [9, 9, 9, 9, 9, 9]
"""
# Curves that differ from healthy ones, options, and the beginning of what is said; `-`: nothing
RULES = """
{}                                            | {} | -
{learning_rate: [1, 1, 1, 0.01, 0, 0]}        | {} | Clip fraction and KL of the updates are near 0 from iteration 4
{learning_rate: [1, 1, 1, 1, 1, 0]}           | {} | -
{approx_kl: [0.4, 0, 0, 0, 0, 0]}             | {} | The learning rate is too high: an iteration moved
{kl: [0, 8, 8, 8, 8, 8]}                      | {} | The learning rate is too high: an iteration moved
{reward_std_within: [0, 0, 0, 0, 0, 0]}       | {} | All answers to a prompt have the same reward
{reward_std_within: [0, 0, 0, 0, 0, 0.1]}     | {} | -
{truncated: [0.1, 0.2, 0.4, 0.6, 0.6, 0.6]}   | {} | 60% of the answers are truncated at the end (15% at the start)
{response_tokens: [10, 11, 12, 13, 14, 15]}   | {} | The reward rises with the length of answers, from 10.5 to 14.5
{response_tokens: [10, 20, 12, 19, 9, 21]}    | {} | -
{response_tokens: [15, 14, 13, 12, 11, 10]}   | {} | -
{kl: [0, 3, 6, 9, 12, 14]}                    | {kl_coefficient: 0} | Nothing holds the policy near its reference
{kl: [0, 3, 6, 9, 12, 14]}                    | {kl_coefficient: 0.1} | -
{kl: [0, 3, 6, 9, 12, 14], kl_coefficient: [0, 0, 0, 0, 0, 0]} | {} | Nothing holds the policy near its reference
{kl: [0, 3, 6, 9, 12, 14]}                    | {} | -
{kl: [3, 3.1, 3.2, 3.3, 3.4, 3.5]}            | {} | It began 3 nats per response from its reference
{kind/b/reward: [0.8, 0.8, 0.5, 0.4, 0.1, 0.1]} | {} | The reward of 'b' fell from 0.8 to 0.1
{kind/b/reward: [0.8, 0.8, 0.5, 0.4, 0.7, 0.7]} | {} | -
{kind/b/reward: [0.8, 0.8, 0.5, 0.4, 0.1, 0.1], kind/b/prompts: [3, 3, 3, 3, 3, 3]} | {} | 6 prompts of 'b' are too
{kind/b/reward: [0.8, 0.8, 0.5, 0.4, 0.6, 0.6], kind/b/prompts: [3, 3, 3, 3, 3, 3]} | {} | -
{reward: [0.1, 0.15, 0.1, 0.12, 0.1, 0.13]}   | {} | The samples are too few to say that it learned
{reward: [0.6, 0.5, 0.4, 0.3, 0.2, 0.1]}      | {} | The reward fell by 0.4
{reward: [0.1, 0.15, 0.1, 0.12, 0.1, 0.13]}   | {kl_coefficient: 2} | The penalty of the KL outweighs the reward
{reward: [0.1, 0.15, 0.1, 0.12, 0.1, 0.13]}   | {kl_coefficient: 0.9} | The samples are too few to say that it learned
{}                                            | {kl_coefficient: 2} | -
{kl: [0, 0.001, 0.01, 0.01, 0.01, 0.01]}      | {} | The policy moved only 0.01 nats
{self_bleu: [0.9, 0.1, 0.1, 0.1, 0.1, 0.1]}   | {} | The answers to a prompt are nearly the same
{self_bleu: [0.1, 0.9, 0.1, 0.1, 0.1, 0.1]}   | {} | -
{clip_fraction: [0.9, 0.9, 0.9, 0.9, 0.1, 0.1]} | {} | 63% of the tokens are clipped
{value_grad_norm: [0, 0, 0, 0, 0, 0]}         | {} | The value function learns nothing
"""
OFFLINE = """
{loss: [2, 2, 1, 1]}                           | -
{loss: [2, 2, 2, 2]}                           | The loss did not fall, from 2 to 2
{loss: [2, 2, 9, 9]}                           | The loss did not fall, from 2 to 9
{loss: [2, 2, 1, 1], validation/loss: [2, 1, 1.1, 1.05]} | -
{loss: [2, 2, 1, 1], validation/loss: [2, 1, 1.1, 1.2]} | The held-out loss was lowest at step 6 (1)
{loss: [2, 2, 1, 1], validation/loss: [1, 1, 1.004, 1.008]} | -
{loss: [2, 2, 1, 1], validation/loss: [1, 1, 1.01, 1.02]} | The held-out loss was lowest at step 1 (1)
{loss: [2, 2, 1, 1], learning_rate: [1, 1, 0, 0]}       | Learning is near 0 from step 11 of 20 on
{sigmoid: [0.6931, 0.6, 0.5, 0.4]}                      | -
{sigmoid: [0.6, 0.6, 0.5, 0.4]}                         | It began with a loss of 0.6
{rewards/margins: [0, 1, 2, 3], validation/rewards/margins: [0, -1, -2, -2]} | The held-out pairs say the opposite
{rewards/margins: [0, 1, 2, 3], validation/rewards/margins: [0, -1, -2, -0.1]} | -
"""


def lines(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in table.strip().splitlines()]


def matches(found: list[str], wanted: str) -> bool:
    return [text[: len(wanted)] for text in found] == [wanted] * (wanted != "-")


def right(found: list[str], wanted: str) -> bool:
    return not found if wanted == "-" else any(wanted in text for text in found)


@pytest.mark.parametrize(("changes", "options", "wanted"), lines(RULES))
def test_each_cause_is_named_by_what_it_does(changes: str, options: str, wanted: str) -> None:
    curves = {**yaml.safe_load(HEALTHY), **yaml.safe_load(changes)}
    rows = [{"step": at + 1, **{name: y[at] for name, y in curves.items()}} for at in range(6)]
    found = diagnosis(rows, yaml.safe_load(options))
    assert matches(found, wanted), found


@pytest.mark.parametrize(("changes", "wanted"), lines(OFFLINE))
def test_so_are_those_of_stages_that_sample_nothing(changes: str, wanted: str) -> None:
    rows = list[dict[str, Any]]()
    for at in range(20):
        row = {name: y[at // 5] for name, y in yaml.safe_load(changes).items()}
        rows.append({"step": at + 1, **row})
    found = diagnosis(rows, {})
    assert matches(found, wanted), found


# What tiny models learn

PARTS = "abcdefghijklmnop"
RECIPE = """
name: planted
model: {base: tiny, dtype: float32, lora: {r: 8, lora_alpha: 16}}
stages:
  sft: {algorithm: sft, data: demos.jsonl, validation: held_out.jsonl, learning_rate: 1e-2, epochs: 2, batch_size: 4}
  align:
    algorithm: grpo
    from: base
    prompts: prompts.jsonl
    reward: &reward {python: {path: FILE, function: vowels}}
    rollout: {samples_per_prompt: 8, max_new_tokens: 16, stop: [e, s]}
    iterations: 10
    prompts_per_iteration: 8
    batch_size: 16
    learning_rate: 3e-3
"""


def vowels(completions: list[str], **columns: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / max(1, len(text)) for text in completions]


def same(completions: list[str], **columns: Any) -> list[float]:
    return [1.0 for _ in completions]


def long(completions: list[str], **columns: Any) -> list[float]:
    return [len(text) / 20 for text in completions]


# What goes wrong, in words of the diagnosis, or `-`, and how: overrides of the recipe, `a.` for `stages.align.`
PLANTED = """
too high              | a.learning_rate=0.1
too high              | a.learning_rate=0.1 a.algorithm=ppo seed=1
too high              | a.learning_rate=0.1 a.algorithm=rloo
ran out               | a.lr_scheduler_type={polynomial:{power:6}}
ran out               | a.lr_scheduler_type={polynomial:{power:8}} a.algorithm=ppo seed=1
rises with the length | a.reward.python.function=long a.rollout.max_new_tokens=64
rises with the length | a.reward.python.function=long a.rollout.max_new_tokens=64 a.learning_rate=0.005 seed=1
same reward           | a.reward.python.function=same
same reward           | a.reward.python.function=same a.algorithm=ppo seed=1
too few               | a.prompts_per_iteration=2 a.rollout.samples_per_prompt=2
too few               | a.prompts_per_iteration=2 a.rollout.samples_per_prompt=2 a.algorithm=rloo
moved only            | a.learning_rate=0.000001
Nothing holds         | a.algorithm={grpo:{kl_coefficient:0}} a.learning_rate=0.01 a.iterations=16
truncated             | a.rollout.stop=[]
truncated             | a.rollout.stop=[] a.algorithm=rejection_sampling seed=1
reference             | a.from=sft a.reference=base
reference             | a.from=sft a.reference=base a.algorithm=ppo seed=1
did not fall          | stages.sft.learning_rate=0.00000001 stages.sft.epochs=4 a.iterations=1
-                     |
-                     | seed=1
-                     | seed=2
-                     | a.algorithm=rloo
-                     | a.algorithm=rloo a.learning_rate=0.01 seed=1
-                     | a.algorithm={ppo:{group_baseline:true}}
-                     | a.algorithm={ppo:{group_baseline:true}} seed=1
-                     | a.algorithm=rejection_sampling
-                     | a.algorithm=rejection_sampling seed=1
-                     | a.algorithm={reinforce_pp:{group_baseline:true}}
"""


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "overrides"), lines(PLANTED))
def test_planted_causes_are_named_and_healthy_stages_have_none(
    wanted: str, overrides: str, tmp_path: Path
) -> None:
    demos = [{"prompt": f"say {a} {b}", "completion": f"{b} {a}s"} for a in PARTS for b in "abc"]
    write_rows(tmp_path / "demos.jsonl", demos[::2])
    write_rows(tmp_path / "held_out.jsonl", demos[1::2])
    kinds = (("one", "bread"), ("two", "friend"))
    rows = [{"prompt": f"{word} {a}", "kind": kind} for kind, word in kinds for a in PARTS]
    write_rows(tmp_path / "prompts.jsonl", rows)
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("FILE", __file__), encoding="utf-8")
    changes = dict[str, Any]()
    for change in overrides.split():
        key, _, value = change.replace("a.", "stages.align.", 1).partition("=")
        changes[key] = yaml.safe_load(value.replace(":", ": "))
    with contextlib.suppress(alignkit.RunFailed):  # with the same reward everywhere
        alignkit.run(tmp_path / "recipe.yaml", changes, tmp_path / "run")
    found = [text for stage in facts_of(tmp_path / "run")["stages"] for text in stage["diagnosis"]]
    assert right(found, wanted), found


# Two more lists with other data, rewards, sizes and seeds: whether the diagnosis was right (y) with the
# rules as they were when the lists were written, and with those of now; what it must say; the stage
# of `made_to_fail`, and its overrides. After the first try of the first list, rules changed in kind.
# Of its causes, 6, 7 and 18 (two by length, one by kind) did not come about: rewards hardly rose.
# FRESH: 8 of 20 causes were named and 3 of 10 healthy stages blamed, then 15 and 2.
# FINAL: 3 of 8 were named and none of 5 blamed, then 7 and none.
FRESH = """
y | y | too high       | online | algorithm=ppo learning_rate=0.3 seed=11
n | n | learning_rate  | sft    | learning_rate=1 seed=12
y | y | ran out        | online | algorithm=reinforce_pp lr_scheduler_type={polynomial:{power:10}} seed=13
y | y | ran out        | dpo    | lr_scheduler_type={polynomial:{power:9}} epochs=6 seed=14
n | y | kl_coefficient | online | algorithm={ppo:{kl_coefficient:20}} seed=15
n | y | kl_coefficient | online | algorithm={grpo:{kl_coefficient:20}} seed=16
n | n | the length     | online | algorithm={rloo:{kl_coefficient:0.01}} reward=length rollout.max_new_tokens=24 seed=17
n | n | the length     | online | reward.python.function=letters rollout.max_new_tokens=24 seed=18
y | y | too few        | online | algorithm=reinforce_pp prompts_per_iteration=2 rollout.samples_per_prompt=2 seed=19
y | y | truncated      | online | rollout.max_new_tokens=3 seed=20
y | y | truncated      | online | algorithm=rloo rollout.stop=[zzz] seed=21
y | y | same reward    | online | algorithm=rloo reward.python.function=never seed=22
n | y | reference      | dpo    | from=start reference=base seed=23
y | y | reference      | online | algorithm=rloo from=start reference=base seed=24
n | y | clip_range     | online | algorithm={ppo:{clip_range:0.00001}} epochs=4 seed=25
n | y | value          | online | algorithm={ppo:{value_coefficient:0}} seed=26
n | n | by heart       | sft    | data=few epochs=40 seed=27
n | y | labels         | judge  | data=flipped seed=28
n | n | the mean rose  | online | reward.python.function=opposed prompts_per_iteration=20 seed=29
n | y | temperature    | online | rollout.temperature=0.05 seed=30
y | y | -              | sft    | seed=31
y | y | -              | dpo    | seed=32
y | y | -              | dpo    | learning_rate=0.0005 epochs=3 seed=33
n | y | -              | judge  | seed=34
y | y | -              | online | seed=35
y | y | -              | online | rollout.samples_per_prompt=8 seed=36
y | y | -              | online | algorithm={rloo:{kl_coefficient:0.01}} learning_rate=0.02 seed=37
n | n | -              | online | algorithm=rejection_sampling seed=38
y | y | -              | online | algorithm={ppo:{group_baseline:true,kl_coefficient:0.01}} seed=39
n | n | -              | online | model.lora.r=16 seed=40
"""
FINAL = """
y | y | too high       | online | algorithm=rloo learning_rate=0.5 rollout.max_new_tokens=20 seed=51
n | y | kl_coefficient | online | algorithm={reinforce_pp:{kl_coefficient:50}} seed=52
n | y | reference      | dpo    | from=start reference=base learning_rate=0.0005 epochs=3 seed=53
n | y | temperature    | online | algorithm=ppo rollout.temperature=0.02 seed=54
n | n | clip_range     | online | algorithm={grpo:{clip_range:0.000001}} epochs=3 seed=55
n | y | labels         | dpo    | data=flipped epochs=4 seed=56
y | y | by heart       | judge  | data=few epochs=40 learning_rate=0.01 seed=57
y | y | same reward    | online | algorithm=ppo reward.python.function=never seed=58
y | y | -              | sft    | learning_rate=0.005 epochs=4 seed=61
y | y | -              | dpo    | model.lora.r=8 seed=62
y | y | -              | judge  | model.lora.r=8 seed=63
y | y | -              | online | prompts_per_iteration=14 seed=64
y | y | -              | online | learning_rate=0.02 seed=65
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "now", "wanted", "stage", "changes"), lines(FRESH) + lines(FINAL)
)
def test_causes_of_the_later_lists_are_named(
    before: str, now: str, wanted: str, stage: str, changes: str, tmp_path: Path
) -> None:
    if now == "y":
        stages = facts_of(made(stage, changes, tmp_path))["stages"]
        (found,) = [one["diagnosis"] for one in stages if one["name"] == stage]
        assert right(found, wanted), found
