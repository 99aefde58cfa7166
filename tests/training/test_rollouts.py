"""The prompts of an online stage: every row with its own columns, drawn as often as its source's
weight says.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from alignkit.data.group import Group
from alignkit.io.results import read_record
from tests.rows import rollouts_of, run, write_recipe, write_rows


def asked(folder: Path, stages: str, **files: list[dict[str, Any]]) -> list[list[Group]]:
    """The rollouts of each iteration of the stage `align`, with its prompts in files."""
    for name, rows in files.items():
        write_rows(folder / f"{name}.jsonl", rows)
    return rollouts_of(run(write_recipe(folder, ALIGN + stages)) / "align")


ALIGN = """
align:
  algorithm: expert_iteration
  reward: {length: {unit: characters}}
  rollout: {samples_per_prompt: 1, max_new_tokens: 8}
  batch_size: 64
  epochs: 1
  learning_rate: 0.0001
"""


def test_rows_with_equal_words_are_sampled_apart_and_keep_their_columns(tmp_path: Path) -> None:
    rows = [{"prompt": "which?", "answer": n} for n in (1, 2, 3)]
    rows = [*rows, {"prompt": "why?", "answer": 1}, rows[0]]
    keys = """
  prompts: p.jsonl
  prompts_per_iteration: 5
  iterations: 1
"""
    [groups] = asked(tmp_path, keys, p=rows)
    said = sorted((group.prompt[0]["content"], group.meta["answer"]) for group in groups)
    assert said == [("which?", 1), ("which?", 1), ("which?", 2), ("which?", 3), ("why?", 1)]


def test_prompts_are_drawn_by_the_weights_of_their_sources(tmp_path: Path) -> None:
    """80 to 20 between 6 and 9 prompts: in three iterations of 5, each rare prompt comes before any
    returns.
    """
    iterations = asked(
        tmp_path,
        """
  prompts: [{path: often.jsonl, weight: 0.8}, {path: rare.jsonl, weight: 0.2}]
  prompts_per_iteration: 5
  iterations: 3
""",
        rare=[{"prompt": f"rare {n}"} for n in range(9)],
        often=[{"prompt": f"often {n}"} for n in range(6)],
    )
    drawn = Counter(group.prompt[0]["content"] for groups in iterations for group in groups)
    often = {f"often {n}": 2 for n in range(6)}
    assert drawn.items() >= often.items() and len(drawn) == 9 and drawn.total() == 15
    # The prompts, without what was sampled
    summary = read_record(tmp_path / "run" / "align")["summary"]
    assert summary["encoded"] == {"rows": 15, "responses": 0}
