"""The step `evaluate_reward`: accuracy, margins, calibration, length, RewardBench's sections."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Group, Message, Pair, Response
from alignkit.cli import main
from alignkit.recipe.schema import RewardSpec
from alignkit_plugins.compare.pairs import Choice, accuracy, choices, gaps
from alignkit_plugins.compare.rows import Row
from alignkit_plugins.evaluate.learned_from import log_odds
from alignkit_plugins.evaluate.reward_step import breakdown, calibration

SCORE = """
def score(completions):
    return [None if c == "unknown" else float(c.split()[0]) for c in completions]
"""


PROMPTS = itertools.count()


def group(
    *scores: float | None, pairs: Sequence[Pair] = (Pair(0, 1),), prompt: str = "", **meta: Any
) -> Group:
    """Responses with these scores, whose texts get longer. prompt: by default, one that no other
    group has.
    """
    responses = tuple(
        Response(text="x" * (n + 1), scores={"r": score}) for n, score in enumerate(scores)
    )
    asked = (Message(role="user", content=prompt or f"q{next(PROMPTS)}"),)
    return Group(asked, responses, tuple(pairs), meta=meta)


def found(groups: Sequence[Group]) -> tuple[list[Choice], list[float | None]]:
    pairs = choices(groups)
    return pairs, gaps(pairs, "r")


def right(groups: Sequence[Group], **more: Any) -> Row:
    pairs, known = found(groups)
    (row,) = accuracy(pairs, {"r": known}, **more)
    return row


def groups_of(scores: Sequence[float], **pair: Any) -> list[Group]:
    return [group(score, 0.0, pairs=[Pair(0, 1, **pair)]) for score in scores]


def test_a_pair_is_right_if_the_chosen_response_scores_higher() -> None:
    """A tie is wrong. A pair that is more likely the other way around is turned; one without a
    score is left out.
    """
    groups = [
        group(2.0, 1.0),
        group(1.0, 2.0),
        group(1.0, 1.0),
        group(1.0, 2.0, pairs=[Pair(0, 1, p=0.1)]),
        group(5.0, 1.0, pairs=[Pair(0, 1, p=0.5)]),
        group(None, 1.0),
    ]
    row = right(groups)
    assert (row.counts, row.missing) == ("2/1/1", 1)
    assert (row.estimate["mean"], row.estimate["n"]) == (0.5, 4)
    (turned,), (gap,) = found(groups[3:4])
    assert (turned.better, turned.longer, turned.p, gap) == (groups[3].responses[1], 1, 0.9, 1.0)


def test_a_prompt_is_the_unit_of_the_interval() -> None:
    """Ten pairs of one prompt are not ten prompts."""
    many = [Pair(0, worse) for worse in range(1, 11)]
    one = right([group(1.0, *[0.0] * 10, pairs=many), group(0.0, 1.0)])
    assert one.counts == "10/1/0"
    assert (one.estimate["mean"], one.estimate["n"]) == (0.5, 2)


def test_rows_with_the_same_prompt_are_one_unit() -> None:
    """Data with a row per pair have the same interval as with a row per prompt. Raw texts have no
    prompt to share.
    """
    flat = [*(group(1.0, 0.0, prompt="same") for _ in range(10)), group(0.0, 1.0)]
    row = right(flat)
    assert row.counts == "10/1/0" and (row.estimate["mean"], row.estimate["n"]) == (0.5, 2)
    assert right([replace(group(1.0, 0.0), prompt=()) for _ in range(3)]).estimate["n"] == 3


def test_pairs_by_margin_by_length_and_by_column() -> None:
    margins = ["slightly", None, 2.0]
    groups = [group(1.0, 0.0, pairs=[Pair(0, 1, margin=margin)]) for margin in margins]
    groups.append(group(0.0, 1.0, pairs=[Pair(1, 0, margin="slightly")], kind="a"))
    pairs, known = found(groups)
    by_margin = breakdown(pairs, "margin")
    assert by_margin == {"slightly": [0, 3]}
    (row,) = accuracy(pairs, {"r": known}, by_margin["slightly"], column="margin")
    assert (row.estimate["mean"], row.column) == (1.0, "margin")
    assert breakdown(pairs, "kind") == {"a": [3]}
    assert breakdown(pairs, "the chosen response") == {"longer": [3], "shorter": [0, 1, 2]}


def test_calibration_by_hand() -> None:
    """Confidences 0.731 (twice, once right), 0.5 (a tie) and nearly 1."""
    rows, bins = calibration(*found(groups_of([1.0, -1.0, 0.0, 50.0])), "r")
    confidence = 1 / (1 + math.exp(-1))
    assert [(row["low"], row["n"], row["accuracy"]) for row in bins["r"]] == [
        (0.5, 1, 0.5),
        (0.7, 2, 0.5),
        (0.9, 1, 1.0),
    ]
    means = {row.metric: row.estimate["mean"] for row in rows}
    assert means["confidence minus right"] == pytest.approx((2 * confidence - 1) / 4)
    squares = (1 - confidence) ** 2 + confidence**2
    assert means["Brier score"] == pytest.approx(squares / 4)
    assert means["measured calibration error (ECE)"] == pytest.approx((confidence - 0.5) / 2)
    _, soft = calibration(*found(groups_of([-1.0], p=0.8)), "r")
    assert soft["r"][0]["accuracy"] == pytest.approx(0.2)


def run(folder: Path, data: Sequence[dict[str, Any]], expected: int = 0, **keys: Any) -> Path:
    (folder / "pairs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in data), encoding="utf-8"
    )
    (folder / "score.py").write_text(SCORE, encoding="utf-8")
    rewards = [
        {"python": {"path": "score.py", "function": "score"}},
        {"length": {"unit": "characters"}},
    ]
    step = {"step": "evaluate_reward", "rewards": rewards, "pairs": "pairs.jsonl", **keys}
    recipe = {"model": {"base": "tiny"}, "stages": {"check": step}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == expected
    return folder / "run" / "check"


ROWS = [
    {"prompt": "q1", "chosen": "2 yes", "rejected": "1 no", "subset": "hep-go", "id": 7},
    {"prompt": "q2", "chosen": "1 no", "rejected": "3 yes, at length", "subset": "hep-go", "id": 8},
    {"prompt": "q3", "chosen": "5 a", "rejected": "4 b", "subset": "mine", "id": 9},
    {"prompt": "q4", "chosen": "unknown", "rejected": "4 b", "subset": "mine", "id": 10},
]
PAIRS = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in ROWS]


def test_a_run_writes_the_numbers(tmp_path: Path) -> None:
    folder = run(tmp_path, ROWS, by=["subset"])
    summary = json.loads((folder / "reward_evaluation.json").read_text(encoding="utf-8"))
    rows = [row for row in summary["results"] if row["metric"] == "accuracy"]
    whole = {row["policy"]: row for row in rows if "column" not in row}
    assert (whole["python"]["counts"], whole["python"]["missing"]) == ("2/1/0", 1)
    assert whole["length"]["counts"].endswith("/1") and summary["bins"] == {}
    subsets = [(row["policy"], row["value"]) for row in rows if row.get("column") == "subset"]
    assert subsets[::2] == [("python", "hep-go"), ("python", "mine")]
    shown = (folder / "report.txt").read_text()
    assert re.search(r"^accuracy +67% \[2\d, 9\d\]", shown, re.MULTILINE)
    assert "by subset" in shown and "by the chosen response" in shown


def run_model(folder: Path, algorithm: Any, data: Sequence[dict[str, Any]]) -> Any:
    """Train a reward model, and evaluate it. Returns reward_evaluation.json."""
    (folder / "pairs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in PAIRS), encoding="utf-8"
    )
    (folder / "data.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in data), encoding="utf-8"
    )
    model = {"algorithm": algorithm, "data": "data.jsonl", "max_steps": 2}
    step = {"step": "evaluate_reward", "rewards": ["model"], "pairs": "pairs.jsonl"}
    recipe = {"model": {"base": "tiny"}, "stages": {"model": model, "check": step}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]) == 0
    return json.loads(
        (folder / "run" / "check" / "reward_evaluation.json").read_text(encoding="utf-8")
    )


def test_a_reward_model_has_a_calibration_and_its_training_pairs_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_model(tmp_path, "reward_model", PAIRS)
    assert sum(row["n"] for row in found["bins"]["model"]) == 4
    assert found["notes"] == ["warning: 4 of 4 rows are training data (4 by model)"]
    assert found["notes"][0] in capsys.readouterr().err


SCORED = [{"prompt": f"q{n}", "completion": "a", "score": n} for n in range(4)]
LEVELED = [{**row, "margin": "better"} for row in PAIRS]


@pytest.mark.parametrize(
    ("algorithm", "data"),
    [("reward_regression", SCORED), ({"reward_model": {"margin": "llama2-small"}}, LEVELED)],
)
def test_scores_that_are_no_log_odds_have_no_calibration(
    algorithm: Any, data: Sequence[dict[str, Any]], tmp_path: Path
) -> None:
    """Ratings are on the data's scale, and a margin pushes pairs further apart than their odds."""
    assert run_model(tmp_path, algorithm, data)["bins"] == {}


def test_a_reward_model_of_another_run_says_what_its_scores_are(tmp_path: Path) -> None:
    run_model(tmp_path, "reward_model", PAIRS)
    adapter = tmp_path / "run" / "model" / "adapter"
    assert log_odds(RewardSpec("folder", str(adapter)), tmp_path / "run") is True
    assert log_odds(RewardSpec("stage", "model"), tmp_path / "run") is True
    assert log_odds(RewardSpec("folder", str(tmp_path)), tmp_path / "run") is False


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        ({"by": ["subsets"]}, 4, "no pair has a column 'subsets'\n"),
        ({"by": ["subsets"]}, 4, "help: did you mean 'subset'?"),
        (
            {"rewards": [{"length": {}}, {"length": {"target": 3}}]},
            2,
            "rewards and judges has duplicates: length",
        ),
        ({"rewards": []}, 2, "stages.check: name at least one reward or judge"),
    ],
)
def test_mistakes_are_named(
    keys: dict[str, Any],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(tmp_path, ROWS, code, **keys)
    assert message in capsys.readouterr().err


def test_rows_without_pairs_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, [{"prompt": "q", "completion": "a"}], 4)
    assert "stage 'check': none of 1 rows has a preference pair" in capsys.readouterr().err


def test_every_key_is_documented(tmp_path: Path) -> None:
    """The keys of reward_evaluation.json."""
    found = json.loads((run(tmp_path, ROWS) / "reward_evaluation.json").read_text(encoding="utf-8"))
    page = (Path(__file__).parents[2] / "docs/plugins/api/files.md").read_text(encoding="utf-8")
    part = page.split("## reward_evaluation.json")[1].split("\n## ")[0]
    assert [key for key in found if f"`{key}`" not in part] == []
