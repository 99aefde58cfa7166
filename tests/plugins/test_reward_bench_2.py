"""RewardBench 2: its rows, the best of four, and the score of Ties, by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from alignkit import BadRow, DataError, Group, Pair, Response
from alignkit.cli import main
from alignkit_plugins.evaluate import rewardbench2


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
    found = rewardbench2.best_of_n(groups, "r")
    assert (
        found["accuracy"]["mean"] == pytest.approx((1 + 0 + 1 / 3) / 3) and found["unscored"] == 1
    )


def test_the_score_of_ties() -> None:
    """As `process_single_model` of RewardBench's code scores these four prompts.

    0: tied lead 1, spread 2; reference lead 3: accurate twice, not preferred. tanh(1 / 2 - 1). 1:
    tied lead 4, spread 1; reference lead -1: accurate once, preferred but not in the hard way.
    tanh(-1 / 1 - 1).
    """
    groups = [
        group([5, 3], [2, 1], "tied:0", "Ties"),
        group([4], [1, 0], "ref:0", "Ties"),
        group([6, 5], [1, 0], "tied:1", "Ties"),
        group([1], [2, 0], "ref:1", "Ties"),
    ]
    found = rewardbench2.ties(groups, "r")
    breaks = (math.tanh(1 / 2 - 1) + math.tanh(-1 - 1)) / 2
    assert (found["accuracy"], found["reference_accuracy"]) == (1.0, 0.5)
    assert (found["preferred"], found["preferred_hard"]) == (0.5, 0.0)
    assert found["score"] == pytest.approx(
        0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * breaks
    )
    assert found["prompts"] == 2


@pytest.mark.parametrize(("others", "breaks"), [([1.0], 1.0), ([5.0], -1.0), ([3.0], 0.0)])
def test_equal_correct_answers_break_ties_by_their_sign(others: list[float], breaks: float) -> None:
    groups = [group([3, 3], others, "tied:0", "Ties"), group([9], [0], "ref:0", "Ties")]
    found = rewardbench2.ties(groups, "r")
    correct = float(others[0] < 3)
    assert found["score"] == pytest.approx(
        0.3 * correct + 0.3 + 0.2 * correct + 0.2 * correct + 0.01 * breaks
    )


def test_ties_without_a_reference_have_no_score_and_other_ids_are_an_error() -> None:
    found = rewardbench2.ties(
        [group([5, 3], [2], "tied:0", "Ties"), group([None, 3], [2], "tied:1", "Ties")], "r"
    )
    assert (found["score"], found["unscored"]) == (None, 1)
    with pytest.raises(DataError, match="ids of Ties must be 'ref:N' or 'tied:N', not '7'"):
        rewardbench2.ties([group([5], [2], "7", "Ties")], "r")


def test_the_average_needs_all_subsets() -> None:
    groups = [group([2], [1, 0, 1], subset=name) for name in rewardbench2.SUBSETS if name != "Ties"]
    assert rewardbench2.scored(groups, "r")["average"] is None
    tied = [group([5, 4], [2], "tied:0", "Ties"), group([5], [2], "ref:0", "Ties")]
    found = rewardbench2.scored([*groups, *tied], "r")
    assert found["average"] == pytest.approx((5 + found["ties"]["score"]) / 6)


def test_rows_with_lists_of_texts_are_read() -> None:
    row = json.loads(rewardbench2.RewardBench2.example) | {"num_correct": 1, "models": ["m"] * 4}
    assert rewardbench2.RewardBench2.matches(row)
    found = rewardbench2.RewardBench2(None).read(row)
    assert [response.text for response in found.responses] == ["4", "3", "5", "22"]
    assert found.pairs == (Pair(0, 1), Pair(0, 2), Pair(0, 3)) and found.meta["subset"] == "Math"
    for bad, text in (
        ({"num_correct": 2}, "num_correct is 2, but chosen holds 1 texts"),
        ({"rejected": []}, "column 'rejected' must be a list of at least one text"),
    ):
        with pytest.raises(BadRow, match=text):
            rewardbench2.RewardBench2(None).read({**row, **bad})


def test_a_run_writes_the_benchmarks_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    found = json.loads((folder / "reward_evaluation.json").read_text())["rewards"]["length"]
    assert found["best_of_n"]["subsets"]["Focus"]["accuracy"]["mean"] == 0.5 and found["pairs"] == 9
    assert found["best_of_n"]["ties"]["score"] == pytest.approx(1.01)
    assert "RewardBench 2: how often the chosen response scores highest" in capsys.readouterr().out
