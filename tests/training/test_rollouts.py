"""The prompts of an online stage: every row with its own columns, drawn as often as its source's
weight says.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from alignkit.data.group import Group, read_groups
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe


def asked(folder: Path, prompts: Any, report: Any = None, **settings: Any) -> list[list[Group]]:
    """The rollouts of each iteration of a stage with these prompts. report: a second stage."""
    stage: dict[str, Any] = {
        "algorithm": "expert_iteration",
        "prompts": prompts,
        "reward": {"python": {"path": "letters.py", "function": "letters"}},
        "rollout": {"samples_per_prompt": 1, "max_new_tokens": 8},
        "batch_size": 64,
        "epochs": 1,
        "learning_rate": 0.0001,
        **settings,
    }
    recipe = {
        "model": {"base": "tiny", "dtype": "float32"},
        "stages": {"align": stage, **({"report": report} if report else {})},
    }
    code = (
        "def letters(completions, **columns):\n"
        "    return [float(len(set(text))) for text in completions]\n"
    )
    (folder / "letters.py").write_text(code, encoding="utf-8")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run_recipe(load_recipe(folder / "recipe.yaml"), folder / "out")
    return [
        read_groups(path)
        for path in sorted((folder / "out" / "align" / "rollouts").glob("*.jsonl"))
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_rows_with_equal_words_are_sampled_apart_and_keep_their_columns(tmp_path: Path) -> None:
    rows = [{"prompt": "which?", "answer": n} for n in (1, 2, 3)]
    write(tmp_path / "p.jsonl", [*rows, {"prompt": "why?", "answer": 1}, rows[0]])
    [groups] = asked(tmp_path, "p.jsonl", prompts_per_iteration=5, iterations=1)
    said = sorted((group.prompt[0]["content"], group.meta["answer"]) for group in groups)
    assert said == [("which?", 1), ("which?", 1), ("which?", 2), ("which?", 3), ("why?", 1)]


def test_prompts_are_drawn_by_the_weights_of_their_sources(tmp_path: Path) -> None:
    """80 to 20 between 6 and 9 prompts: in three iterations of 5, each rare prompt comes before any
    returns.
    """
    write(tmp_path / "rare.jsonl", [{"prompt": f"rare {n}"} for n in range(9)])
    write(tmp_path / "often.jsonl", [{"prompt": f"often {n}"} for n in range(6)])
    entry = [{"path": "often.jsonl", "weight": 0.8}, {"path": "rare.jsonl", "weight": 0.2}]
    iterations = asked(tmp_path, entry, prompts_per_iteration=5, iterations=3)
    said = [group.prompt[0]["content"] for groups in iterations for group in groups]
    assert sum(words.startswith("often") for words in said) == 12
    assert {said.count(f"often {n}") for n in range(6)} == {2}
    assert len({words for words in said if words.startswith("rare")}) == 3
    summary = json.loads((tmp_path / "out" / "align" / "stage.json").read_text(encoding="utf-8"))[
        "summary"
    ]
    # The prompts, without what was sampled
    assert summary["encoded"] == {"rows": 15, "responses": 0}


def test_evaluate_reads_prompts_that_the_stage_held_out(tmp_path: Path) -> None:
    """They have no prompt in common, and both parts are used."""
    write(tmp_path / "p.jsonl", [{"prompt": f"why {n}?", "answer": n} for n in range(20)])
    held_out, rest = ({"path": "p.jsonl", "part": part} for part in ([0, 0.3], [0.3, 1]))
    report = {"step": "evaluate", "policies": ["base"], "prompts": held_out}
    report |= {
        "rewards": [{"python": {"path": "letters.py", "function": "letters"}}],
        "sampling": {"max_new_tokens": 2},
    }
    groups = asked(
        tmp_path,
        rest,
        prompts_per_iteration=20,
        iterations=1,
        report=report,
    )
    trained = {group.prompt[0]["content"] for group in groups[0]}
    measured = {
        group.prompt[0]["content"]
        for group in read_groups(tmp_path / "out" / "report" / "samples.jsonl")
    }
    assert measured and trained and not measured & trained and len(measured | trained) == 20
