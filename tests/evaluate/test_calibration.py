"""The step `calibration`: scripted probabilities and answers, with metrics worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from by_role import ByRole

from alignkit import Artifact, Group, Response, RunFailed, StepContext
from alignkit.recipe.schema import RewardSpec
from alignkit.registry import Component, Registration
from alignkit.training.rewards import Rewards
from alignkit_plugins.evaluate.calibration import MEASURES, Calibration, bins, confidence
from alignkit_plugins.evaluate.honesty import HonestyAccuracy

CORRECT = RewardSpec(
    "reward",
    "honesty_accuracy",
    Component(
        "reward",
        "honesty_accuracy",
        Registration("honesty_accuracy", HonestyAccuracy),
        HonestyAccuracy.Options(),
    ),
)
# Per policy and prompt: how probable the answer is, and whether it is right. `bold` is sure and
# often wrong.
SCRIPTS = {
    "careful": [
        (0.95, True),
        (0.85, True),
        (0.75, True),
        (0.35, False),
        (0.25, True),
        (0.15, False),
    ],
    "bold": [
        (0.95, True),
        (0.95, False),
        (0.95, False),
        (0.85, True),
        (0.85, False),
        (0.75, False),
    ],
}


class Scripted(ByRole):
    """Models whose answers have two tokens, the second of which has probability one half."""

    def __init__(self) -> None:
        self.temperatures: list[float] = []
        self.cut: set[int] = set()  # prompts whose answer a model had to truncate

    def sample(self, role: str, prompts: Any, **sampling: Any) -> list[Group]:
        prompts = [group.prompt for group in prompts]
        return [Group(tuple(prompt), (self._answer(role, prompt),)) for prompt in prompts]

    def _answer(self, role: str, prompt: Any) -> Response:
        number = _number(prompt)
        return Response(
            f"answer {number}" if SCRIPTS[role][number][1] else "elsewhere", tokens=(1, 2)
        )

    def logprobs(
        self, role: str, groups: Sequence[Group], *, temperature: float = 1.0
    ) -> list[torch.Tensor]:
        self.temperatures.append(temperature)
        rows = []
        for group in groups:
            number = _number(group.prompt)
            row = torch.tensor([math.log(2 * SCRIPTS[role][number][0]), math.log(0.5)])
            rows.append(row[: 1 if number in self.cut else 2])
        return rows


def _number(prompt: Any) -> int:
    return int(prompt[0]["content"].split()[-1])


def prompts() -> list[Group]:
    return [
        Group(
            ({"role": "user", "content": f"question {i}"},),
            id=str(i),
            meta={"answers": [f"answer {i}"]},
        )
        for i in range(6)
    ]


def run(folder: Path, models: Any = None, **options: Any) -> Artifact:
    made = StepContext(
        models=models or Scripted(),
        cache=folder / "cache",
        folder=folder,
        seed=7,
        out=folder / "out",
        load=lambda spec: prompts(),
        scorer=lambda spec: Rewards(spec, made),
        map=lambda name, rows, f: list(f(rows)),
        log=lambda **values: None,
        say=lambda text: None,
    )
    made.out.mkdir(exist_ok=True)
    options = {
        "policies": ["careful", "bold"],
        "correct": CORRECT,
        "prompts": "x",
        "sampling": {"temperature": 0.7},
        **options,
    }
    return Calibration(Calibration.Options(**options)).run(made)


def rows(summary: Any, policy: str) -> dict[str, dict[str, Any]]:
    return {row["metric"]: row for row in summary["results"] if row["policy"] == policy}


def means(summary: Any, policy: str) -> dict[str, Any]:
    found = {name: row["estimate"]["mean"] for name, row in rows(summary, policy).items()}
    return {name: pytest.approx(found[name], abs=1e-6) for name in MEASURES}


def test_every_measure_by_hand(tmp_path: Path) -> None:
    summary: Any = run(tmp_path).summary
    assert means(summary, "careful") == {
        "right": 4 / 6,
        "confidence": 3.3 / 6,
        "confidence minus right": (3.3 - 4) / 6,
        "Brier score": (0.05**2 + 0.15**2 + 0.25**2 + 0.35**2 + 0.75**2 + 0.15**2) / 6,
        "confidence when right": (0.95 + 0.85 + 0.75 + 0.25) / 4,
        "confidence when wrong": (0.35 + 0.15) / 2,
    }
    assert means(summary, "bold") == {
        "right": 2 / 6,
        "confidence": 5.3 / 6,
        "confidence minus right": (5.3 - 2) / 6,
        "Brier score": (0.05**2 + 2 * 0.95**2 + 0.15**2 + 0.85**2 + 0.75**2) / 6,
        "confidence when right": 0.9,
        "confidence when wrong": (0.95 + 0.95 + 0.85 + 0.75) / 4,
    }
    # In the bins of 0.75, 0.85 and 0.95, weighted by 1, 2 and 3 of 6 answers
    of_error = rows(summary, "bold")["measured calibration error (ECE)"]["estimate"]["mean"]
    assert of_error == pytest.approx((0.75 + 2 * 0.35 + 3 * (0.95 - 1 / 3)) / 6)


def test_differences_are_paired_at_prompts_that_count_for_both(tmp_path: Path) -> None:
    summary: Any = run(tmp_path).summary
    assert summary["baseline"] == "careful"
    found = {name: rows(summary, "bold")[name]["difference"] for name in MEASURES}
    assert not any("difference" in row for row in rows(summary, "careful").values())
    differences = [0.0, 0.95 + 0.15, 0.95 + 0.25, (0.85 - 1) - 0.35, 0.85 + 0.75, 0.6]
    mean = found["confidence minus right"]["mean"]
    assert mean == pytest.approx(sum(differences) / 6)
    assert found["confidence minus right"]["low"] < mean < found["confidence minus right"]["high"]
    # Both are right at the first prompt only, and wrong at the last only.
    assert found["confidence when right"]["n"] == found["confidence when wrong"]["n"] == 1
    assert found["confidence when wrong"]["mean"] == pytest.approx(0.75 - 0.15)


def test_the_same_policy_differs_by_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCRIPTS, "bold", SCRIPTS["careful"])
    found = rows(run(tmp_path).summary, "bold")
    for name in ("confidence", "Brier score", "confidence minus right"):
        difference = found[name]["difference"]
        assert difference["low"] == difference["mean"] == difference["high"] == 0


def test_confidence_is_that_of_the_whole_answer_or_of_a_token() -> None:
    logprobs = [math.log(0.5), math.log(0.5), math.log(0.25)]
    assert confidence(logprobs, "sequence") == pytest.approx(1 / 16)
    assert confidence(logprobs, "token") == pytest.approx((1 / 16) ** (1 / 3))
    assert confidence([1e-7], "sequence") == 1.0


def test_confidence_is_measured_at_temperature_1(tmp_path: Path) -> None:
    models = Scripted()
    summary: Any = run(tmp_path, models, confidence="token").summary
    assert models.temperatures == [1.0, 1.0]
    right = rows(summary, "careful")["confidence when right"]["estimate"]["mean"]
    assert right == pytest.approx(sum(p**0.5 for p in (0.95, 0.85, 0.75, 0.25)) / 4, abs=1e-6)


def test_an_answer_that_is_not_measured_whole_is_left_out_for_all(tmp_path: Path) -> None:
    models = Scripted()
    models.cut = {0, 3}
    summary: Any = run(tmp_path, models).summary
    assert (summary["prompts"], summary["left_out"]) == (4, 2)
    accuracy = rows(summary, "bold")["right"]["estimate"]
    assert (accuracy["mean"], accuracy["n"]) == (0.0, 4)
    models.cut = set(range(6))
    with pytest.raises(RunFailed, match="none of 6 prompts"):
        run(tmp_path, models)


def test_a_policy_that_diverged_is_not_sure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SCRIPTS, "bold", [(math.nan, False), *SCRIPTS["bold"][1:]])
    summary: Any = run(tmp_path).summary
    assert (summary["prompts"], summary["left_out"]) == (5, 1)


def test_certainty_is_in_the_last_bin() -> None:
    rows = bins([1.0, 0.91, 0.0], [1.0, 0.0, 0.0])
    assert [(row["low"], row["high"], row["n"]) for row in rows] == [(0.0, 0.1, 1), (0.9, 1.0, 2)]
    assert (rows[1]["confidence"], rows[1]["accuracy"]) == (pytest.approx(0.955), 0.5)


def test_the_report_says_how_sure_policies_are_when_wrong(tmp_path: Path) -> None:
    artifact = run(tmp_path)
    assert artifact.report is not None
    text = artifact.report.text(200)
    line, _ = [each for each in text.splitlines() if each.startswith("confidence when wrong")]
    assert line.split()[3] == "0.2" and "0.87 [" in line and "minus careful" in text
    assert json.loads((tmp_path / "out" / "calibration.json").read_text()) == artifact.summary
