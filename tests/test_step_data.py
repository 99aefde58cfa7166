"""Data that a later step cannot use are shown in the recipe, before the first stage runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_preflight import LATER, ONLINE, mistaken

from alignkit.cli import main

PICKY = """
from alignkit import DataError, Reward, hookimpl

class Picky(Reward):
    def check_prompts(self, groups):
        if any("answer" not in group.meta for group in groups):
            raise DataError("picky: a prompt has no column 'answer'")

    def score(self, groups):
        return {"": [0.0 for group in groups for _ in group.responses]}

@hookimpl
def register(add):
    add("reward", "picky", Picky)
"""
LENGTH: dict[str, Any] = {"length": {"unit": "characters"}}
EVALUATE: dict[str, Any] = {
    "step": "evaluate",
    "policies": ["base"],
    "rewards": [LENGTH],
    "prompts": "prompts.jsonl",
}
OF_PAIRS: dict[str, Any] = {"step": "evaluate_reward", "rewards": [LENGTH], "pairs": "pairs.jsonl"}
JUDGED: dict[str, Any] = {"step": "judge_pairs", "judge": {"local_judge": {}}}
SELECT: dict[str, Any] = {"step": "select_best", "policies": ["first", "base"], "reward": "picky"}
# name -> stage, message, help, the text at which the caret points
STEPS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "a column to break down by": (
        EVALUATE | {"by": ["question_id", "topic"]},
        "evaluate: no prompt has the column topic",
        "there are question_id",
        "topic",
    ),
    "a column that a reward needs": (
        EVALUATE | {"rewards": [LENGTH, "picky"]},
        "picky: a prompt has no column 'answer'",
        "",
        "picky",
    ),
    "raw text to answer": (
        EVALUATE | {"prompts": "text.txt"},
        "the rows are raw text",
        "",
        "text.txt",
    ),
    "pairs without pairs": (
        OF_PAIRS | {"pairs": "demos.jsonl"},
        "none of 1 rows has a preference pair",
        "",
        "demos.jsonl",
    ),
    "a column of pairs": (
        OF_PAIRS | {"by": ["topic"]},
        "no pair has a column 'topic'",
        "columns: none",
        "topic",
    ),
    "tokens of pairs": (
        OF_PAIRS | {"rewards": ["length"]},
        "reward 'length' counts tokens, but a response was not sampled in this run",
        "set `unit: words`",
        "length",
    ),
    "a column for the best of N": (
        {"step": "sample", "prompts": "prompts.jsonl", "reward": "picky"},
        "picky: a prompt has no column 'answer'",
        "",
        "picky",
    ),
    "a column to select by": (
        SELECT | {"prompts": "prompts.jsonl"},
        "picky: a prompt has",
        "",
        "picky",
    ),
    "text to sample from": (
        {"step": "sample", "prompts": "text.txt"},
        "the rows are raw text",
        "",
        "text.txt",
    ),
    "nothing to judge": (
        JUDGED | {"data": "demos.jsonl"},
        "no row has two different responses",
        "",
        "demos.jsonl",
    ),
    "nothing to answer": (
        JUDGED | {"prompts": "text.txt", "policy": "base"},
        "the rows are raw text",
        "",
        "text.txt",
    ),
    "nothing to instruct": (
        {"step": "instruct", "data": "text.txt", "instruction": "Be brief."},
        "the rows are raw text, without a prompt to instruct",
        "",
        "text.txt",
    ),
}


def picky(folder: Path, *later: dict[str, Any]) -> list[str]:
    (command,) = mistaken(folder, *later)
    (folder / "picky.py").write_text(PICKY, encoding="utf-8")
    recipe = json.loads(Path(command).read_text(encoding="utf-8"))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return [str(folder / "recipe.yaml"), "--plugin", str(folder / "picky.py")]


def pointed_at(err: str) -> str:
    """What a caret stands below, up to the end of the line."""
    above, carets = next(
        pair for pair in zip(err.splitlines(), err.splitlines()[1:], strict=False) if "^" in pair[1]
    )
    return above[carets.index("^") :]


@pytest.mark.parametrize("case", STEPS)
def test_data_that_a_step_cannot_use_are_shown_in_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    stage, message, help, place = STEPS[case]
    assert main(["check", *picky(tmp_path, stage)]) == 4
    err = capsys.readouterr().err
    assert (
        err.startswith("error: stage 'later_0': ")
        and message in err
        and f"{tmp_path / 'recipe.yaml'}:" in err
    )
    assert not help or f"\n  help: {help}" in err
    assert pointed_at(err).startswith(place), err


def test_a_run_says_it_before_its_first_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = [
        STEPS["a column to break down by"][0],
        STEPS["pairs without pairs"][0],
        LATER["margins"][0],
    ]
    assert main(["run", *picky(tmp_path, *stages), "--out", str(tmp_path / "run")]) == 4
    err = capsys.readouterr().err
    assert all(f"error: stage 'later_{number}': " in err for number in range(3)), err
    assert not (tmp_path / "run" / "first").exists()


def test_data_of_other_stages_are_not_here_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stage may make what a file lacks, also if it is one of several sources."""
    sampled = {"step": "sample", "prompts": "prompts.jsonl"}
    mixed = ["prompts.jsonl", "later_0"]
    waiting = EVALUATE | {"prompts": mixed, "by": ["topic"]}
    assert main(["check", *picky(tmp_path, sampled, waiting, OF_PAIRS | {"pairs": "later_0"})]) == 0


def test_training_data_point_at_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("KTO without labels", "margins", "prompts that are raw text")
    stages = [*(LATER[name][0] for name in names), ONLINE | {"reward": "picky"}]
    assert main(["check", *picky(tmp_path, *stages)]) == 4
    places = [pointed_at(each) for each in capsys.readouterr().err.split("\n\n")]
    assert places == ["demos.jsonl", "pairs.jsonl", "text.txt", "picky"]


def test_bad_rows_are_listed_by_their_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = picky(tmp_path, OF_PAIRS, LATER["margins"][0])
    with (tmp_path / "pairs.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"prompt": "is it?", "chosen": "yes"}\n')
    assert main(["check", *command]) == 4
    err = capsys.readouterr().err
    assert err.count("pairs.jsonl:2: ") == 1 and "^" not in err
