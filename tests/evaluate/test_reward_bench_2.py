"""RewardBench 2: its rows, the best of four, and the score of Ties, by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from alignkit import BadRow, Pair
from alignkit.cli import main
from alignkit_plugins.evaluate.public_sets import RewardBench2


def test_rows_with_lists_of_texts_are_read() -> None:
    row = json.loads(RewardBench2.example) | {"num_correct": 1, "models": ["m"] * 4}
    assert RewardBench2.matches(row)
    found = RewardBench2(None).read(row)
    assert [response.text for response in found.responses] == ["4", "3", "5", "22"]
    assert found.pairs == (Pair(0, 1), Pair(0, 2), Pair(0, 3)) and found.meta["subset"] == "Math"
    for bad, text in (({"rejected": []}, "column 'rejected' must be a list of at least one text"),):
        with pytest.raises(BadRow, match=text):
            RewardBench2(None).read({**row, **bad})


def test_a_run_writes_the_benchmarks_numbers(tmp_path: Path) -> None:
    """The reward is the length: right at the first row, wrong at the second."""
    rows = [
        {
            "id": "1",
            "prompt": "q1",
            "chosen": ["long enough"],
            "rejected": ["a", "b", "c"],
            "subset": "Focus",
        },
        {
            "id": "2",
            "prompt": "q2",
            "chosen": ["no"],
            "rejected": ["a", "bbb", "c"],
            "subset": "Focus",
        },
        {
            "id": "tied:0",
            "prompt": "q3",
            "chosen": ["cccc", "dddd"],
            "rejected": ["a"],
            "subset": "Ties",
        },
        {"id": "ref:0", "prompt": "q4", "chosen": ["cccc"], "rejected": ["a"], "subset": "Ties"},
    ]
    text = "".join(json.dumps({**row, "num_correct": len(row["chosen"])}) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    step = {
        "step": "evaluate_reward",
        "rewards": [{"length": {"unit": "characters"}}],
        "pairs": "rows.jsonl",
        "by": ["subset"],
    }
    recipe = {"model": {"base": "tiny"}, "stages": {"check": step}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    folder = tmp_path / "run" / "check"
    rows = json.loads((folder / "reward_evaluation.json").read_text())["results"]
    found = {row.get("value"): row["estimate"] for row in rows if row["metric"] == "accuracy"}
    assert found["Focus"]["mean"] == pytest.approx((1 + 2 / 3) / 2)  # the pairs of a prompt first
    assert "by subset" in (folder / "report.txt").read_text()
