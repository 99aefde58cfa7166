"""Repeated blocks of stages: their mistakes, and that rounds run and resume like stages.

`test_load.py` has the stages that they become.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from alignkit.data.group import read_groups
from alignkit.errors import RecipeError
from alignkit.recipe.load import load_recipe
from tests.rows import Said, cells, demos, prompts, read_rows, run, write_recipe, write_rows

HEAD = "model: {base: tiny}\nstages:\n  sft: {algorithm: sft, data: demos.jsonl}\n"
BLOCK = """\
  rlhf:
    repeat: 3
    start: {align: sft}
    stages:
      more: {algorithm: sft, from: align, data: demos.jsonl}
      scores: {algorithm: reward_model, from: sft, data: pairs.jsonl}
      align:
        algorithm: rejection_sampling
        from: align
        prompts: prompts.jsonl
        reward: scores
        replay_from: [align@all]
        iterations: 1
      seen: {step: sample, policy: align, prompts: prompts.jsonl, sampling: {max_new_tokens: 4}}
  report: {step: evaluate, policies: [sft, more, align@all], rewards: [scores], prompts: prompts.jsonl}
"""


def written(folder: Path, block: str = BLOCK) -> Path:
    recipe = write_recipe(folder, {})
    recipe.write_text(HEAD + block, encoding="utf-8")
    return recipe


# What the block says, what it says instead, and lines and words of the mistake
MISTAKES = """\
repeat: 3            | repeat: 0            | 5    | must be greater than or equal to 1, got 0
repeat: 3            | repeat: 101          | 5    | must be less than or equal to 100, got 101
repeat: 3            | repeat: yes          | 5    | must be a valid integer
start: {align: sft}  | start: sft           | 6    | start: must be an object, got 'sft'
start: {align: sft}  | begin: {align: sft}  | 6    | unknown key 'begin'
start: {align: sft}  | start: {more: sft}   | 8 12 | 'align' does not exist yet in round 1
report:              | align_2:             | 10   | stage 'align_2' is defined twice
scores:              | sft:                 | 9    | stage 'sft' is defined twice
reward: scores       | reward: score        | 14   | no reward 'score'
iterations: 1        | iterations: x        | 16   | must be a valid integer
iterations: 1        | iteration: 1         | 16   | unknown key 'iteration'
"""


@pytest.mark.parametrize(("old", "new", "lines", "message"), cells(MISTAKES))
def test_a_mistake_is_reported_at_its_places(
    tmp_path: Path, old: str, new: str, lines: str, message: str
) -> None:
    """A key of a stage is reported once, not in each round."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(written(tmp_path, BLOCK.replace(old, new, 1)))
    found = caught.value.problems
    places = {str(problem.line) for problem in found if message in problem.message}
    assert places == {*lines.split()}
    assert len(found) == 1 or "'iteration'" not in message


def test_what_a_run_finds_out_is_reported_at_the_option_in_the_block(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path))
    problem = recipe.problem("seen_2", "the file is empty", ("prompts",))
    line = (HEAD + BLOCK).splitlines()[problem.line - 1]
    assert line[problem.column - 1 :].startswith("prompts.jsonl, sampling")


def test_another_round_reuses_those_before(tmp_path: Path, said: Said) -> None:
    more = "{algorithm: sft, from: more, data: demos.jsonl, max_steps: 1}"
    stages = f"rounds: {{repeat: 2, start: {{more: base}}, stages: {{more: {more}}}}}"
    recipe = write_recipe(tmp_path, stages)
    run(recipe, "stages.rounds.repeat=1")
    out = run(recipe)
    assert said().count("unchanged, reused") == 1
    assert sorted(path.parent.name for path in out.glob("*/adapter")) == ["more_1", "more_2"]


def test_samples_of_an_earlier_round_are_scored_by_the_reward_of_this_round(tmp_path: Path) -> None:
    """The first round's rewards are far higher, which must not make its samples win."""
    (tmp_path / "reward.py").write_text(
        "def high(completions):\n    return [100.0 - len(text) for text in completions]\n"
        "def low(completions):\n    return [float(len(text)) for text in completions]\n"
    )
    write_rows(tmp_path / "demos.jsonl", demos(["how are you"]))
    write_rows(tmp_path / "prompts.jsonl", prompts(["how are you"]))
    stage = """\
NAME:
  algorithm: {rejection_sampling: {replay_ratio: 1}}
  from: base
  prompts: prompts.jsonl
  reward: {python: {path: reward.py, function: NAME}}
  rollout: {samples_per_prompt: 6, max_new_tokens: 12}
  iterations: 1
  prompts_per_iteration: 1
"""
    stages = stage.replace("NAME", "high") + stage.replace("NAME", "low") + "  replay_from: [high]"
    out = run(write_recipe(tmp_path, stages))
    longest = 0
    for name in ("high", "low"):
        (group,) = read_groups(out / name / "rollouts" / "0001.jsonl")
        longest = max(longest, *(len(response.text) for response in group.responses))
    assert read_rows(out / "low" / "metrics.jsonl")[0]["best_reward"] == longest
