"""The step `evaluate_reward`: accuracy, margins, calibration, length, RewardBench's sections."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from scipy import stats

from alignkit import Group, Message, Pair, Response
from alignkit.cli import main
from alignkit.recipe.schema import RewardSpec
from alignkit_plugins.compare import calibration
from alignkit_plugins.compare import pair_metrics as metrics
from alignkit_plugins.compare.calibration import Cases
from alignkit_plugins.compare.pairs import Comparison, comparisons
from alignkit_plugins.evaluate import rewardbench
from alignkit_plugins.evaluate.learned_from import log_odds

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


def rows(gaps: Sequence[float], **pair: Any) -> list[Comparison]:
    return comparisons([group(gap, 0.0, pairs=[Pair(0, 1, **pair)]) for gap in gaps], "r")


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
    found = metrics.accuracy(comparisons(groups, "r"))
    assert (found["pairs"], found["correct"], found["ties"]) == (4, 2, 1)
    assert found["accuracy"]["mean"] == 0.5 and found["accuracy"]["n"] == 4
    turned = comparisons(groups[3:4], "r")[0]
    assert (turned.chosen, turned.rejected, turned.longer, turned.p) == (2.0, 1.0, 1, 0.9)


def test_a_prompt_is_the_unit_of_the_interval() -> None:
    """Ten pairs of one prompt are not ten prompts."""
    many = [Pair(0, worse) for worse in range(1, 11)]
    one = metrics.accuracy(comparisons([group(1.0, *[0.0] * 10, pairs=many), group(0.0, 1.0)], "r"))
    assert (one["pairs"], one["correct"]) == (11, 10)
    assert one["accuracy"]["mean"] == 0.5 and one["accuracy"]["n"] == 2


def test_rows_with_the_same_prompt_are_one_unit() -> None:
    """Data with a row per pair have the same interval as with a row per prompt. Raw texts have no
    prompt to share.
    """
    flat = comparisons([*(group(1.0, 0.0, prompt="same") for _ in range(10)), group(0.0, 1.0)], "r")
    found = metrics.accuracy(flat)
    assert (found["pairs"], found["correct"]) == (11, 10)
    assert found["accuracy"]["mean"] == 0.5 and found["accuracy"]["n"] == 2
    raw = [replace(group(1.0, 0.0), prompt=()) for _ in range(3)]
    assert metrics.accuracy(comparisons(raw, "r"))["accuracy"]["n"] == 3
    same = metrics.agreement({"a": flat, "b": flat})["a, b"]["same"]
    assert (same["mean"], same["n"]) == (1.0, 11)  # rows, of which none replaces another


def test_close_margins_have_rows_of_their_own() -> None:
    close = [1.0, 1.0000001, 1.0000002]
    found = metrics.by_margin(
        comparisons([group(1.0, 0.0, pairs=[Pair(0, 1, margin=m)]) for m in close], "r")
    )
    assert list(found) == ["1.0000002", "1.0000001", "1.0"]
    many = [1 + n * 1e-8 for n in range(12)]
    found = metrics.by_margin(
        comparisons([group(1.0, 0.0, pairs=[Pair(0, 1, margin=m)]) for m in many], "r")
    )
    assert [row["pairs"] for row in found.values()] == [3, 3, 3, 3]


def test_margins_by_level_and_by_quarter() -> None:
    named = [
        group(1.0, 0.0, pairs=[Pair(0, 1, margin=name)])
        for name in ("unsure", "significantly", "slightly")
    ]
    named += [group(0.0, 1.0, pairs=[Pair(0, 1, margin="unsure")]), group(1.0, 0.0)]
    found = metrics.by_margin(comparisons(named, "r"))
    assert list(found) == ["significantly", "slightly", "unsure", "(none)"]
    assert found["unsure"]["accuracy"]["mean"] == 0.5 and found["significantly"]["pairs"] == 1

    numbers = comparisons(
        [group(n - 5.5, 0.0, pairs=[Pair(0, 1, margin=n)]) for n in range(1, 13)], "r"
    )
    found = metrics.by_margin(numbers)
    assert list(found) == ["10 to 12", "7 to 9", "4 to 6", "1 to 3"]
    assert [row["correct"] for row in found.values()] == [3, 3, 1, 0]
    assert list(metrics.by_margin(rows([1.0, 1.0], margin=2))) == ["2"]
    assert metrics.by_margin(rows([1.0])) == {}


def test_scores_drawn_from_bradley_terry_are_calibrated() -> None:
    """And twice such scores are too sure, by the gap between sigmoid(2d) and sigmoid(d)."""
    drawn = random.Random(0)
    gaps = [drawn.gauss(0, 1.5) for _ in range(20_000)]
    right = [gap if drawn.random() < 1 / (1 + math.exp(-gap)) else -gap for gap in gaps]
    calibrated = metrics.calibration(rows(right))
    assert calibrated is not None and calibrated["error"]["mean"] < 0.01
    doubled = metrics.calibration(rows([2 * gap for gap in right]))
    expected = sum(
        1 / (1 + math.exp(-2 * abs(g))) - 1 / (1 + math.exp(-abs(g))) for g in right
    ) / len(right)
    assert doubled is not None and doubled["error"]["mean"] == pytest.approx(expected, abs=0.01)
    assert sum(row["n"] for row in doubled["bins"]) == 20_000


def test_calibration_by_hand() -> None:
    """Confidences 0.731 (twice, once right), 0.5 (a tie) and nearly 1."""
    found = metrics.calibration(rows([1.0, -1.0, 0.0, 50.0]))
    assert found is not None
    confidence = 1 / (1 + math.exp(-1))
    assert [(row["low"], row["n"], row["accuracy"]) for row in found["bins"]] == [
        (0.5, 1, 0.5),
        (0.7, 2, 0.5),
        (0.9, 1, 1.0),
    ]
    sure = [confidence, confidence, 0.5, 1 / (1 + math.exp(-50))]
    assert found["error"] == calibration.error(Cases.of(zip(sure, [1, 0, 0.5, 1], strict=True)), 0)
    losses = [-math.log(confidence), -math.log(1 - confidence), math.log(2), 0.0]
    assert found["log_loss"] == pytest.approx(sum(losses) / 4, abs=1e-12)
    soft = metrics.calibration(rows([1.0], p=0.8))
    assert soft is not None
    assert soft["log_loss"] == pytest.approx(
        -0.8 * math.log(confidence) - 0.2 * math.log(1 - confidence), abs=1e-12
    )


def test_labels_with_probabilities_are_calibrated_if_the_scores_say_the_same() -> None:
    gaps = [0.3, 1.0, 2.0]
    pairs = [row for gap in gaps for row in rows([gap], p=1 / (1 + math.exp(-gap)))]
    found = metrics.calibration(pairs)
    assert found is not None and found["error"]["mean"] == pytest.approx(0, abs=1e-12)
    turned = metrics.calibration(rows([-1.0], p=0.8))
    assert turned is not None and turned["bins"][0]["accuracy"] == pytest.approx(0.2)


def test_length() -> None:
    """The first response is the shorter one, and chosen unless the pair says otherwise."""
    groups = [
        group(float(n), 0.0, pairs=[Pair(*order)])
        for n, order in enumerate([(0, 1), (1, 0), (0, 1), (1, 0)])
    ]
    pairs = comparisons(groups, "r")
    found = metrics.length(pairs)
    assert found["chosen_longer"]["mean"] == 0.5
    assert found["shorter"]["pairs"] == 2 and found["shorter"]["correct"] == 1  # gaps 0 and 2
    assert found["longer"]["pairs"] == 2 and found["longer"]["correct"] == 0  # gaps -1 and -3
    expected = stats.spearmanr([0, -1, 2, -3], [-1, 1, -1, 1]).statistic
    assert found["correlation"] == pytest.approx(expected)
    assert metrics.length(rows([1.0, 1.0, 1.0]))["correlation"] is None


def test_rewardbench_weights_sections_by_its_rows() -> None:
    found = rewardbench.sections(
        {"alpacaeval-easy": 1.0, "mt-bench-med": 0.5, "math-prm": 0.25, "hep-go": 1.0, "x": 0}
    )
    assert found == {
        "Chat": pytest.approx((100 + 0.5 * 40) / 140),
        "Reasoning": pytest.approx((0.25 * 984 + 164) / (984 + 164)),
    }
    assert sum(rewardbench.ROWS.values()) - 984 + 447 == 2985  # the rows of the benchmark
    assert {
        name for names in rewardbench.SECTIONS.values() for name in names
    } == rewardbench.ROWS.keys()


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


def test_a_run_writes_the_numbers_and_rewardbench_sections(tmp_path: Path) -> None:
    folder = run(tmp_path, ROWS)
    found = json.loads((folder / "reward_evaluation.json").read_text(encoding="utf-8"))
    python = found["rewards"]["python"]
    assert (python["pairs"], python["correct"], python["calibration"]) == (3, 2, None)
    assert found["rewards"]["length"]["pairs"] == 4 and found["rewards"]["length"]["ties"] == 1
    assert python["sections"] == {"Reasoning": 0.5}
    shown = (folder / "report.txt").read_text()
    assert re.search(r"^python +67% \[2\d, 9\d\] +0 +1$", shown, re.MULTILINE)
    assert "accuracy by subset" in shown and "RewardBench's sections" in shown


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
    assert found["rewards"]["model"]["uncalibrated"] == ""
    assert sum(row["n"] for row in found["rewards"]["model"]["calibration"]["bins"]) == 4
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
    model = run_model(tmp_path, algorithm, data)["rewards"]["model"]
    assert (model["calibration"], model["uncalibrated"]) == (
        None,
        "its algorithm does not call them log-odds",
    )
    told = " ".join((tmp_path / "run" / "check" / "report.txt").read_text(encoding="utf-8").split())
    assert "not read as probabilities: model: its algorithm does not call them log-odds" in told


def test_a_reward_model_of_another_run_says_what_its_scores_are(tmp_path: Path) -> None:
    run_model(tmp_path, "reward_model", PAIRS)
    adapter = tmp_path / "run" / "model" / "adapter"
    assert log_odds(RewardSpec("folder", str(adapter)), tmp_path / "run") is True
    assert log_odds(RewardSpec("stage", "model"), tmp_path / "run") is True
    assert log_odds(RewardSpec("folder", str(tmp_path)), tmp_path / "run") is None


@pytest.mark.parametrize(
    ("keys", "code", "message"),
    [
        ({"by": ["subsets"]}, 4, "no pair has a column 'subsets'\n"),
        ({"by": ["subsets"]}, 4, "help: did you mean 'subset'?"),
        (
            {"rewards": [{"length": {}}, {"length": {"target": 3}}]},
            2,
            "rewards has duplicates: length",
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
    """The keys of reward_evaluation.json, with the names of a run replaced as in
    docs/plugins/api/files.md.
    """
    data = [{**row, "margin": "better"} for row in ROWS]
    found = json.loads((run(tmp_path, data) / "reward_evaluation.json").read_text(encoding="utf-8"))
    page = (Path(__file__).parents[2] / "docs/plugins/api/files.md").read_text(encoding="utf-8")
    keys = {key for key in _keys(found) if not key.endswith((".mean", ".low", ".high", ".n"))}
    same = ("accuracy", "pairs", "correct", "ties")
    for key in keys:
        parent, _, last = key.rpartition(".")
        grouped = last in same and parent.count(".") > 1
        assert f"`{parent if grouped else key}`" in page or key.endswith(".length"), key


def _keys(value: Any, path: str = "") -> set[str]:
    if not isinstance(value, dict):
        return set()
    found = set()
    names = {
        "rewards": "REWARD",
        "rewards.REWARD.by_margin": "LEVEL",
        "rewards.REWARD.by": "COLUMN",
    }
    names |= {
        "rewards.REWARD.by.COLUMN": "VALUE",
        "rewards.REWARD.sections": "SECTION",
        "agreement": "PAIR",
    }
    for key, below in value.items():
        here = f"{path}.{names.get(path, key)}".lstrip(".")
        found |= {here, *_keys(below, here)}
    return found
