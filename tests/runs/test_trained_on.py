"""An evaluation on prompts that a policy or a reward model was trained on says so, with their
number.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignkit.data.group import Group, Response, prompts_of
from alignkit.io.results import read_record, write_record
from alignkit.recipe.load import load_recipe
from alignkit.runs.fingerprint import RunData
from alignkit_plugins.command_line.words import data_of
from alignkit_plugins.evals.learned_from import trained_prompts
from tests.rows import assistant, demos, pairs, prompts, run, user, write_recipe, write_rows

RECIPE = """
model: {base: tiny, dtype: float32, lora: {r: 2, lora_alpha: 4}}
stages:
  warm: {algorithm: sft, data: rows/warm.jsonl}
  sft: {algorithm: sft, from: warm, data: rows/sft.jsonl, validation: rows/held.jsonl, keep_versions: true}
  other: {algorithm: sft, data: rows/other.jsonl}
  best: {step: select_best, policies: [sft@1, other], reward: length, prompts: rows/held.jsonl}
  align:
    algorithm: grpo
    from: best
    prompts: rows/align.jsonl
    reward: length
    mix: {data: rows/mixed.jsonl, objective: sft, weight: 1}
"""
ROWS = {"warm": "ab", "sft": "bc", "other": "z", "align": "cd", "mixed": "e", "held": "h"}


def seen(folder: Path, policy: str, words: str, selected: str = "sft@1") -> dict[str, list[str]]:
    """The words that each stage of a policy learned from."""
    (folder / "rows").mkdir(exist_ok=True)
    for name, letters in ROWS.items():
        write_rows(folder / "rows" / f"{name}.jsonl", demos([f" {letter}\n" for letter in letters]))
    (folder / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(folder / "recipe.yaml")
    write_record(folder / "run" / "best", {"policy": selected})
    data, out = RunData(Path), folder / "run" / "report"
    context: Any = SimpleNamespace(recipe=recipe, out=out, read=lambda spec: data.read(spec).groups)
    found = trained_prompts(context, policy, prompts(words))
    return {stage: [words[place] for place in sorted(places)] for stage, places in found.items()}


def test_all_stages_that_a_policy_comes_from_count(tmp_path: Path) -> None:
    words = "abcdefghz"
    assert seen(tmp_path, "warm", words) == {"warm": ["a", "b"]}
    # Held-out data do not count
    assert seen(tmp_path, "sft@1", words) == {"sft": ["b", "c"], "warm": ["a", "b"]}
    align = {"align": ["c", "d", "e"], "best": ["h"], "sft": ["b", "c"], "warm": ["a", "b"]}
    assert seen(tmp_path, "align", words) == align  # through the policy that a step selected
    other = {"align": ["c", "d", "e"], "best": ["h"], "other": ["z"]}
    assert seen(tmp_path, "align", words, selected="other") == other
    # To choose by prompts is to learn from them
    assert seen(tmp_path, "best", words, selected="other") == {"best": ["h"], "other": ["z"]}


def test_a_row_in_the_words_of_another_template_is_seen(tmp_path: Path) -> None:
    rows = write_rows(
        tmp_path / "rows.jsonl",
        ({"prompt": text, "completion": "9"} for text in ("How much?", "Why?")),
    )
    read = (
        "{template: {path: rows.jsonl, prompt: 'Say: {{ prompt }}', response: '{{ completion }}'}}"
    )
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{base: tiny}}\nstages:\n  sft: {{algorithm: sft, data: {read}}}\n"
    )
    data = RunData(Path)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    context: Any = SimpleNamespace(
        recipe=recipe, out=tmp_path / "run" / "report", read=lambda spec: data.read(spec).groups
    )
    groups = data.read(data_of({"path": str(rows)}, "test")).groups
    assert trained_prompts(context, "sft", groups) == {"sft": {0, 1}}
    assert trained_prompts(context, "sft", prompts(["How much?"])) == {}


def test_repeated_prompts_count_each_and_fresh_ones_not(tmp_path: Path) -> None:
    assert seen(tmp_path, "warm", "aba") == {"warm": ["a", "b", "a"]}
    assert seen(tmp_path, "align", "fgi") == {}
    assert seen(tmp_path, "base", "abc") == {}


def notes(folder: Path, stages: str) -> list[str]:
    """What an evaluation says of its prompts, of which 2 of 4 are training data."""
    texts = [f"question {n}" for n in range(6)]
    write_rows(folder / "demos.jsonl", demos(texts[:4]))
    write_rows(folder / "pairs.jsonl", pairs(texts[:4]))
    write_rows(folder / "prompts.jsonl", prompts(texts[2:]))
    report = run(write_recipe(folder, stages)) / "report"
    found: list[str] = read_record(report)["summary"]["notes"]
    text = (report / "report.txt").read_text(encoding="utf-8")
    assert [note for note in found if note in text]
    return found


EVALUATE = """
report:
  step: evaluate
  policies: POLICIES
  rewards: [REWARD]
  prompts: prompts.jsonl
  sampling: {max_new_tokens: 2}
"""


def test_an_evaluation_on_training_data_warns(tmp_path: Path) -> None:
    report = EVALUATE.replace("POLICIES", "[base, sft]").replace("REWARD", "length")
    found = notes(tmp_path, "sft: {algorithm: sft, data: demos.jsonl}" + report)
    assert "warning: 2 of 4 prompts are training data (2 by sft)" in found


@pytest.mark.parametrize(
    "reward",
    [
        "{weighted_sum: {rewards: {liked: liked}, weights: {liked: 1}}}",  # a part of a combination
        "{normalized: {reward_model: liked, data: pairs.jsonl}}",  # an option of a reward
    ],
)
def test_an_evaluation_by_a_reward_model_that_knows_the_prompts_warns(
    reward: str, tmp_path: Path
) -> None:
    report = EVALUATE.replace("POLICIES", "[base]").replace("REWARD", reward)
    found = notes(tmp_path, "liked: {algorithm: reward_model, data: pairs.jsonl}" + report)
    assert "warning: 2 of 4 prompts are training data (2 by liked)" in found


def test_a_dialogue_is_recognized_by_its_last_question(tmp_path: Path) -> None:
    """Its prompt in an evaluation is the whole dialogue before the last answer."""
    seen(tmp_path, "warm", "a")  # writes the recipe
    turns = (assistant("two"), user("three"), assistant("four"))
    dialogue = Group((user("one"),), (Response(messages=turns),))
    recipe = load_recipe(tmp_path / "recipe.yaml")
    out = tmp_path / "run" / "report"
    context: Any = SimpleNamespace(recipe=recipe, out=out, read=lambda spec: [dialogue])
    asked = [*prompts_of([dialogue]), dialogue]  # the first answer is learned as well
    assert trained_prompts(context, "warm", asked) == {"warm": {0, 1}}


ENTRIES = """
model: {base: tiny}
stages:
  sft:
    algorithm: sft
    data: {path: demos.jsonl, part: [0.3, 1]}
    validation: {path: demos.jsonl, part: [0, 0.3]}
  dpo:
    algorithm: dpo
    from: sft
    data: {path: pairs.jsonl, part: [0.3, 1]}
    validation: {path: pairs.jsonl, part: [0, 0.3]}
"""


def test_a_prompt_is_on_one_side_in_all_files_of_a_recipe(tmp_path: Path) -> None:
    """Also if one file joins it with others, here by their answers."""
    asked = [f"Why is it {n}?" for n in range(90)]
    write_rows(tmp_path / "demos.jsonl", demos(asked))
    told = [f"Because of the {n // 2}th thing that has happened to us." for n in range(180)]
    rows = zip([*asked, *(f"Then tell me of {n}." for n in range(90))], sorted(told), strict=True)
    pairs_of = ({"prompt": ask, "chosen": tell, "rejected": "No."} for ask, tell in rows)
    write_rows(tmp_path / "pairs.jsonl", pairs_of)
    (tmp_path / "recipe.yaml").write_text(ENTRIES)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    data, sides = RunData(Path, recipe), list[set[str]]()
    for side in ("data", "validation"):
        read = [data.read(getattr(stage.settings, side)).groups for stage in recipe.stages.values()]
        sides.append({group.prompt[0]["content"] for groups in read for group in groups})
    assert sides[0] and sides[1] and not sides[0] & sides[1]
