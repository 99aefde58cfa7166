"""Repeated blocks of stages: the stages they become, the meaning of names in them, and their
mistakes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from alignkit.data.group import read_groups
from alignkit.errors import Problem, RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.runs.run import run_recipe

HEAD = "model: {base: tiny}\nstages:\n  sft: {algorithm: sft, data: d.jsonl}\n"
BLOCK = """\
  rlhf:
    repeat: 3
    start: {align: sft}
    stages:
      more: {algorithm: sft, from: align, data: d.jsonl}
      scores: {algorithm: reward_model, from: sft, data: p.jsonl}
      align:
        algorithm: rejection_sampling
        from: align
        prompts: d.jsonl
        reward: scores
        replay_from: [align@all]
        rollout: {samples_per_prompt: 2, max_new_tokens: 4}
        iterations: 1
        prompts_per_iteration: 1
  report: {step: evaluate, policies: [sft, more, align@all], rewards: [scores], prompts: d.jsonl,
    sampling: {max_new_tokens: 4}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "d.jsonl").write_text('{"prompt": "how are you", "completion": "I am well"}\n')
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "how are you", "chosen": "I am well", "rejected": "go"}\n'
    )
    return tmp_path


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    (folder / "r.yaml").write_text(text)
    return load_recipe(folder / "r.yaml", overrides)


def problems(folder: Path, text: str, *overrides: str) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        load(folder, text, *overrides)
    return caught.value.problems


def test_a_block_becomes_a_stage_per_round_and_names_mean_the_nearest_one_before(
    folder: Path,
) -> None:
    recipe = load(folder, HEAD + BLOCK)
    assert list(recipe.stages) == [
        "sft", *(f"{name}_{k}" for k in (1, 2, 3) for name in ("more", "scores", "align")), "report"
    ]  # fmt: skip
    for number in (1, 2, 3):
        more, align = (
            recipe.stages[f"more_{number}"].settings,
            recipe.stages[f"align_{number}"].settings,
        )
        before = "sft" if number == 1 else f"align_{number - 1}"
        assert more is not None and align is not None
        assert more.from_ == align.from_ == before  # below `more`, and the stage itself in `align`
        assert align.reward.name == f"scores_{number}"  # above `align`, so this round's
        assert align.replay_from == [f"align_{k}" for k in range(1, number)]
    report = recipe.stages["report"].component.options
    assert report.policies == ["sft", "more_3", "align_1", "align_2", "align_3"]
    assert report.rewards[0].name == "scores_3"


def test_data_of_all_rounds_so_far(folder: Path) -> None:
    block = """\
  rlhf:
    repeat: 2
    stages:
      labels: {step: judge_pairs, policy: sft, prompts: d.jsonl, judge: {local_judge: {role: base, criterion: helpful}}}
      scores: {algorithm: reward_model, from: sft, data: [p.jsonl, labels@all]}
      alone: {algorithm: reward_model, from: sft, data: labels@all}
"""
    recipe = load(folder, HEAD + block)
    for number in (1, 2):
        labels = [f"labels_{k}" for k in range(1, number + 1)]
        for name, others in (("scores", [None]), ("alone", [])):
            stage = recipe.stages[f"{name}_{number}"]
            assert stage.settings is not None
            assert [source.stage for source in stage.settings.data.sources] == [*others, *labels]
            assert set(labels) <= set(stage.upstream)


def test_overrides_reach_into_the_block(folder: Path) -> None:
    recipe = load(
        folder, HEAD + BLOCK, "stages.rlhf.repeat=2", "stages.rlhf.stages.align.iterations=7"
    )
    assert list(recipe.stages)[-3:] == ["scores_2", "align_2", "report"]
    assert (
        recipe.stages["align_2"].settings is not None
        and recipe.stages["align_2"].settings.iterations == 7
    )


MISTAKES = """\
repeat: 3            > repeat: 0            > 5   must be greater than or equal to 1, got 0
repeat: 3            > repeat: yes          > 5   must be a valid integer
start: {align: sft}  > start: sft           > 6   start: must be an object, got 'sft'
start: {align: sft}  > begin: {align: sft}  > 6   unknown key 'begin'
start: {align: sft}  > start: {more: sft}   > 8,12  'align' does not exist yet in round 1
report:              > align_2:             > 10  stage 'align_2' is defined twice
scores:              > sft:                 > 9   stage 'sft' is defined twice
reward: scores       > reward: score        > 14  no reward 'score'
iterations: 1        > iterations: x        > 17  must be a valid integer
iterations: 1        > iteration: 1         > 17  unknown key 'iteration'
"""


@pytest.mark.parametrize("row", MISTAKES.splitlines())
def test_a_mistake_is_reported_at_its_places(folder: Path, row: str) -> None:
    """`what the block says > what it says instead > lines and words`; a key of a stage is reported
    once, not in each round.
    """
    old, new, said = (part.strip() for part in row.split(" > "))
    lines, _, message = said.partition(" ")
    assert old in BLOCK
    found = problems(folder, HEAD + BLOCK.replace(old, new, 1))
    places = {str(problem.line) for problem in found if message.strip() in problem.message}
    assert places == set(lines.split(","))
    assert len(found) == 1 or "'iteration'" not in message


def test_what_a_run_finds_out_is_reported_at_the_option_in_the_block(folder: Path) -> None:
    sampled = (
        "      seen: {step: sample, policy: align, prompts: d.jsonl, sampling: {max_new_tokens: "
        "4}}\n"
    )
    (folder / "r.yaml").write_text(HEAD + BLOCK.replace("  report:", sampled + "  report:"))
    recipe = load_recipe(folder / "r.yaml")
    problem = recipe.problem("seen_2", "the file is empty", ("prompts",))
    line = (folder / "r.yaml").read_text().splitlines()[problem.line - 1]
    assert line[problem.column - 1 :].startswith("d.jsonl, sampling")


def test_rounds_run_and_resume_like_stages_and_another_round_reuses_them(folder: Path) -> None:
    recipe = load(folder, HEAD + BLOCK, "stages.rlhf.repeat=1")
    run_recipe(recipe, folder / "out")
    resolved = yaml.safe_load((folder / "out" / "recipe.resolved.yaml").read_text())
    assert list(resolved["stages"]) == ["sft", "more_1", "scores_1", "align_1", "report"]
    before = (
        (folder / "out" / "align_1" / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    )
    run_recipe(load(folder, HEAD + BLOCK, "stages.rlhf.repeat=2"), folder / "out")
    assert (
        folder / "out" / "align_1" / "adapter" / "adapter_model.safetensors"
    ).stat().st_mtime_ns == before
    assert (folder / "out" / "align_2" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_later_block_may_refer_to_stages_of_an_earlier_one(folder: Path) -> None:
    second = """\
  polish:
    repeat: 2
    start: {fine: align}
    stages:
      fine: {algorithm: rejection_sampling, from: fine, reference: align, prompts: d.jsonl, reward: scores,
             replay_from: [align@all], rollout: {samples_per_prompt: 2, max_new_tokens: 4}, iterations: 1}
"""
    recipe = load(folder, HEAD + BLOCK + second)
    one, two = (recipe.stages[f"fine_{k}"].settings for k in (1, 2))
    assert one is not None and two is not None
    assert (one.from_, one.reference, one.replay_from) == (
        "align_3",
        "align_3",
        ["align_1", "align_2", "align_3"],
    )
    assert (two.from_, two.reference) == ("fine_1", "align_3")
    assert one.reward is not None and one.reward.name == "scores_3"


def test_samples_of_an_earlier_round_are_scored_by_the_reward_of_this_round(folder: Path) -> None:
    """The first round's rewards are far higher, which must not make its samples win."""
    (folder / "reward.py").write_text(
        "def high(completions):\n    return [100.0 - len(text) for text in completions]\n"
        "def low(completions):\n    return [float(len(text)) for text in completions]\n"
    )
    stage = """\
  {name}:
    algorithm: {{rejection_sampling: {{replay_ratio: 1}}}}
    from: {start}
    prompts: d.jsonl
    reward: {{python: {{path: reward.py, function: {reward}}}}}
    {more}
    rollout: {{samples_per_prompt: 6, max_new_tokens: 12}}
    iterations: 1
    prompts_per_iteration: 1
"""
    text = HEAD + stage.format(name="one", start="sft", reward="high", more="epochs: 1")
    text += stage.format(name="two", start="one", reward="low", more="replay_from: [one]")
    run_recipe(load(folder, text), folder / "out")
    groups = [
        read_groups(folder / "out" / name / "rollouts" / "0001.jsonl")[0] for name in ("one", "two")
    ]
    longest = max(len(response.text) for group in groups for response in group.responses)
    logged = json.loads((folder / "out" / "two" / "metrics.jsonl").read_text().splitlines()[0])
    assert logged["best_reward"] == longest
