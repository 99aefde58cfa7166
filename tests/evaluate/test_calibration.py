"""The step `calibration`: scripted probabilities and answers, with metrics worked out by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import Artifact, Group, Message, Response, RunFailed
from alignkit_plugins.evaluate.calibration import MEASURES, Calibration, bins, confidence
from tests.evaluate.scripted import CORRECT, Answering, context, number, row

# Per policy and prompt: how probable the answer is, and whether it is right. `bold` is sure and
# often wrong.
CAREFUL = [(0.95, True), (0.85, True), (0.75, True), (0.35, False), (0.25, True), (0.15, False)]
BOLD = [(0.95, True), (0.95, False), (0.95, False), (0.85, True), (0.85, False), (0.75, False)]
PROMPTS = [
    Group(
        (Message(role="user", content=f"question {i}"),), id=str(i), meta={"answers": [f"is {i}"]}
    )
    for i in range(6)
]


class Sure(Answering):
    """Models whose answers have two tokens, the second of which has probability one half. cut:
    prompts whose answer a model had to truncate.
    """

    def __init__(self, bold: Sequence[tuple[float, bool]] = BOLD, cut: Sequence[int] = ()):
        super().__init__(self._answer)
        self.scripts, self.cut = {"careful": CAREFUL, "bold": bold}, cut
        self.temperatures: list[float] = []

    def _answer(self, role: str, prompt: Sequence[Message], k: int) -> Response:
        i = number(prompt)
        return Response(f"is {i}" if self.scripts[role][i][1] else "elsewhere", tokens=(1, 2))

    def logprobs(
        self, role: str, groups: Sequence[Group], *, temperature: float = 1.0
    ) -> list[torch.Tensor]:
        self.temperatures.append(temperature)
        rows = []
        for i in map(number, [group.prompt for group in groups]):
            both = [math.log(2 * self.scripts[role][i][0]), math.log(0.5)]
            rows.append(torch.tensor(both[: 1 if i in self.cut else 2]))
        return rows


def run(folder: Path, models: Any = None, **options: Any) -> Artifact:
    own = {"policies": ["careful", "bold"], "correct": CORRECT, "prompts": "x"}
    made = Calibration(Calibration.Options(**{**own, "sampling": {"temperature": 0.7}, **options}))
    return made.run(context(models or Sure(), folder, PROMPTS))


def test_every_measure_by_hand(tmp_path: Path) -> None:
    """In the order of MEASURES: right, confidence, confidence minus right, Brier score, confidence
    when right, and when wrong.
    """
    found: Any = run(tmp_path).summary
    brier = (0.05**2 + 0.15**2 + 0.25**2 + 0.35**2 + 0.75**2 + 0.15**2) / 6
    careful = 4 / 6, 3.3 / 6, (3.3 - 4) / 6, brier, 2.8 / 4, 0.5 / 2
    brier = (0.05**2 + 2 * 0.95**2 + 0.15**2 + 0.85**2 + 0.75**2) / 6
    bold = 2 / 6, 5.3 / 6, (5.3 - 2) / 6, brier, 0.9, 3.5 / 4
    for policy, by_hand in (("careful", careful), ("bold", bold)):
        means = [row(found, policy, name).estimate["mean"] for name in MEASURES]
        assert means == pytest.approx(by_hand, abs=1e-6)
    # In the bins of 0.75, 0.85 and 0.95, weighted by 1, 2 and 3 of 6 answers
    error = row(found, "bold", "measured calibration error (ECE)").estimate["mean"]
    assert error == pytest.approx((0.75 + 2 * 0.35 + 3 * (0.95 - 1 / 3)) / 6)


def test_differences_are_paired_at_prompts_that_count_for_both(tmp_path: Path) -> None:
    found: Any = run(tmp_path).summary
    assert found["baseline"] == "careful" and row(found, "careful", "right").difference == {}
    gap = row(found, "bold", "confidence minus right").difference
    assert gap["mean"] == pytest.approx((0.95 + 0.15 + 0.95 + 0.25 - 0.15 - 0.35 + 1.6 + 0.6) / 6)
    assert gap["low"] < gap["mean"] < gap["high"]
    # Both are right at the first prompt only, and wrong at the last only.
    wrong = row(found, "bold", "confidence when wrong").difference
    assert (wrong["n"], wrong["mean"]) == (1, pytest.approx(0.75 - 0.15))


def test_the_same_policy_differs_by_nothing(tmp_path: Path) -> None:
    found: Any = run(tmp_path, Sure(CAREFUL)).summary
    for name in ("confidence", "Brier score", "confidence minus right"):
        difference = row(found, "bold", name).difference
        assert difference["low"] == difference["mean"] == difference["high"] == 0


def test_confidence_is_that_of_the_whole_answer_or_of_a_token(tmp_path: Path) -> None:
    """At temperature 1, whatever the temperature of the samples."""
    logprobs = [math.log(0.5), math.log(0.5), math.log(0.25)]
    assert confidence(logprobs, "sequence") == pytest.approx(1 / 16)
    assert confidence(logprobs, "token") == pytest.approx((1 / 16) ** (1 / 3))
    assert confidence([1e-7], "sequence") == 1.0
    models = Sure()
    found: Any = run(tmp_path, models, confidence="token").summary
    by_token = sum(p**0.5 for p in (0.95, 0.85, 0.75, 0.25)) / 4
    mean = row(found, "careful", "confidence when right").estimate["mean"]
    assert mean == pytest.approx(by_token, abs=1e-6) and models.temperatures == [1.0, 1.0]


def test_an_answer_that_is_not_measured_whole_is_left_out_for_all(tmp_path: Path) -> None:
    """And so is that of a policy that diverged, which is not sure."""
    found: Any = run(tmp_path, Sure([(math.nan, False), *BOLD[1:]], cut=[3])).summary
    right = row(found, "bold", "right").estimate
    assert (found["prompts"], found["left_out"], right["mean"], right["n"]) == (4, 2, 0.0, 4)
    with pytest.raises(RunFailed, match="none of 6 prompts"):
        run(tmp_path, Sure(cut=range(6)))


def test_certainty_is_in_the_last_bin() -> None:
    rows = bins([1.0, 0.91, 0.0], [1.0, 0.0, 0.0])
    assert [(row["low"], row["high"], row["n"]) for row in rows] == [(0.0, 0.1, 1), (0.9, 1.0, 2)]
    assert (rows[1]["confidence"], rows[1]["accuracy"]) == (pytest.approx(0.955), 0.5)


def test_the_report_says_how_sure_policies_are_when_wrong(tmp_path: Path) -> None:
    artifact = run(tmp_path)
    text = artifact.report.text(200) if artifact.report else ""
    line, _ = [each for each in text.splitlines() if each.startswith("confidence when wrong")]
    assert line.split()[3] == "0.2" and "0.87 [" in line and "minus careful" in text
    assert json.loads((tmp_path / "out" / "calibration.json").read_text()) == artifact.summary
