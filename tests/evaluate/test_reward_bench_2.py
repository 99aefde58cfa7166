"""RewardBench 2: its rows, the best of four, and the score of Ties, by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from alignkit import BadRow, Group, Pair, Response
from alignkit.cli import main
from alignkit_plugins.evaluate import rewardbench


def group(
    correct: Sequence[float | None], others: Sequence[float], id: str = "1", subset: str = "Math"
) -> Group:
    scores = [*correct, *others]
    pairs = tuple(Pair(i, j) for i in range(len(correct)) for j in range(len(correct), len(scores)))
    responses = tuple(
        Response(f"answer {n}", scores={"r": score}) for n, score in enumerate(scores)
    )
    meta = {"id": id, "subset": subset, "num_correct": len(correct)}
    return Group(({"role": "user", "content": id},), responses, pairs, meta=meta)


def test_the_best_of_four_counts_and_a_shared_place_counts_in_part() -> None:
    groups = [
        group([2], [1, 0, 1]),
        group([2], [3, 0, 1]),
        group([2], [2, 2, 1]),
        group([None], [1, 0, 1]),
    ]
    groups.append(group([5, 4], [2], subset="Ties"))  # several are right, and none is best
    math, ties = rewardbench.rows_of(groups, ["r"])
    assert math.estimate["mean"] == pytest.approx((1 + 0 + 1 / 3) / 3) and math.estimate["n"] == 3
    assert (math.value, ties.value, ties.estimate["mean"]) == ("Math", "Ties", None)


def test_rows_with_lists_of_texts_are_read() -> None:
    row = json.loads(rewardbench.RewardBench2.example) | {"num_correct": 1, "models": ["m"] * 4}
    assert rewardbench.RewardBench2.matches(row)
    found = rewardbench.RewardBench2(None).read(row)
    assert [response.text for response in found.responses] == ["4", "3", "5", "22"]
    assert found.pairs == (Pair(0, 1), Pair(0, 2), Pair(0, 3)) and found.meta["subset"] == "Math"
    for bad, text in (
        ({"num_correct": 2}, "num_correct is 2, but chosen holds 1 texts"),
        ({"rejected": []}, "column 'rejected' must be a list of at least one text"),
    ):
        with pytest.raises(BadRow, match=text):
            rewardbench.RewardBench2(None).read({**row, **bad})


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
    }
    recipe = {"model": {"base": "tiny"}, "stages": {"check": step}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    folder = tmp_path / "run" / "check"
    rows = json.loads((folder / "reward_evaluation.json").read_text())["results"]
    found = {row.get("value"): row["estimate"] for row in rows if row["metric"] == "best of all"}
    assert found["Focus"]["mean"] == 0.5
    assert "best of all" in (folder / "report.txt").read_text()
