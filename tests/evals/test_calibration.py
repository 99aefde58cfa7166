"""The step `calibration`: scripted probabilities and answers, with metrics worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alignkit import Artifact, Group, Message, Response, RunFailed
from alignkit_plugins.evals.calibration import Calibration, bins, confidence
from alignkit_plugins.evals.measured import is_right
from tests.evals.scripted import CORRECT, Answering, context, lines, number, said
from tests.rows import read_json

# Per policy and prompt: how probable the answer is, and whether it is right. `bold` is sure and
# often wrong.
CAREFUL, BOLD = yaml.safe_load("""
- [[0.95, true], [0.85, true], [0.75, true], [0.35, false], [0.25, true], [0.15, false]]
- [[0.95, true], [0.95, false], [0.95, false], [0.85, true], [0.85, false], [0.75, false]]
""")
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

    def __init__(self, bold: Any = BOLD, cut: Sequence[int] = ()):
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


# Means by hand, intervals and p values by scipy. In the bins of 0.75, 0.85 and 0.95, weighted by 1,
# 2 and 3 of 6 answers, the error of `bold` is (0.75 + 2 * 0.35 + 3 * (0.95 - 1 / 3)) / 6. Both are
# right at the first prompt only, and wrong at the last only.
NUMBERS = """
careful right |  | 0.6667 0.2957 0.9075 6 |  |  | 0
bold right | careful | 0.3333 0.09252 0.7043 6 | -0.3333 -0.8246 0.3246 6 0.3632 | 0.04559 | 1/3/2 0
careful confidence |  | 0.55 0.1926 0.9074 6 |  |  | 0
bold confidence | careful | 0.8833 0.7976 0.969 6 | 0.3333 0.05436 0.6123 6 0.02774 | 0.5655 | 5/0/1 0
careful confidence minus right |  | -0.1167 -0.5131 0.2797 6 |  |  | 0
bold confidence minus right | careful | 0.55 0.01489 1.085 6 | 0.6667 -0.1667 1.5 6 0.09488 | 0.3755 | 4/1/1 0
careful Brier score |  | 0.1325 -0.09307 0.3581 6 |  |  | 0
bold Brier score | careful | 0.5192 0.08629 0.952 6 | 0.3867 -0.06107 0.8344 6 0.07713 | 0.03622 | 1/4/1 0
careful confidence when right |  | 0.7 0.2053 1.195 4 |  |  | 0
bold confidence when right | careful | 0.9 0.2647 1.535 2 | 0 - - 1 1 |  | 0/0/1 0
careful confidence when wrong |  | 0.25 -1.021 1.521 2 |  |  | 0
bold confidence when wrong | careful | 0.875 0.7227 1.027 4 | 0.6 - - 1 1 | 0.2065 | 1/0/0 0
careful measured calibration error (ECE) |  | 0.2833 - - 6 |  |  | 0
bold measured calibration error (ECE) |  | 0.55 - - 6 |  |  | 0
"""


def test_every_measure_by_hand(tmp_path: Path) -> None:
    artifact = run(tmp_path)
    found: Any = artifact.summary
    assert found["baseline"] == "careful" and lines(found) == NUMBERS.strip().splitlines()
    text = said(artifact)
    assert "0.2 [-1.0, 1.5]  0.87 [0.72, 1.03]" in text
    assert "Brier score*" in text and "calibration error (ECE)*" in text
    assert read_json(tmp_path / "out" / "calibration.json") == found
    assert text.startswith("sampled with ")
    other: Any = run(tmp_path, baseline="bold").summary
    assert other["baseline"] == "bold"


def test_the_same_policy_differs_by_nothing(tmp_path: Path) -> None:
    found = lines(run(tmp_path, Sure(CAREFUL)).summary or {})
    names = "confidence", "Brier score", "confidence minus right"
    assert (
        sum(
            "| 0 0 0 6 1 |" in line and line.startswith(f"bold {name} |")
            for name in names
            for line in found
        )
        == 3
    )


def test_confidence_is_that_of_the_whole_answer_or_of_a_token(tmp_path: Path) -> None:
    """At temperature 1, whatever the temperature of the samples."""
    logprobs = [math.log(0.5), math.log(0.5), math.log(0.25)]
    assert confidence(logprobs, "sequence") == pytest.approx(1 / 16)
    assert confidence(logprobs, "token") == pytest.approx((1 / 16) ** (1 / 3))
    assert confidence([1e-7], "sequence") == 1.0
    models = Sure()
    found = lines(run(tmp_path, models, confidence="token").summary or {})
    by_token = sum(p**0.5 for p in (0.95, 0.85, 0.75, 0.25)) / 4
    (line,) = (line for line in found if line.startswith("careful confidence when right"))
    assert f"| {by_token:.4g} " in line and models.temperatures == [1.0, 1.0]


def test_an_answer_that_is_not_measured_whole_is_left_out_for_all(tmp_path: Path) -> None:
    """And so is that of a policy that diverged, which is not sure."""
    found: Any = run(tmp_path, Sure([(math.nan, False), *BOLD[1:]], cut=[3])).summary
    assert (found["prompts"], found["left_out"]) == (4, 2)
    with pytest.raises(RunFailed, match="none of 6 prompts"):
        run(tmp_path, Sure(cut=range(6)))


def test_certainty_is_in_the_last_bin() -> None:
    rows = bins([1.0, 0.91, 0.0], [1.0, 0.0, 0.0])
    found = [(row["low"], row["high"], row["n"], row["accuracy"]) for row in rows]
    assert found == [(0.0, 0.1, 1, 0.0), (0.9, 1.0, 2, 0.5)]
    assert rows[1]["confidence"] == pytest.approx(0.955)
    assert [*map(is_right, (0.5, 0.51, None))] == [False, True, None]


def test_a_bin_holds_what_is_between_its_edges() -> None:
    rows = bins([0.16, 0.19, 0.25], [1.0, 0.0, 1.0])
    assert [(row["low"], row["n"]) for row in rows] == [(0.1, 2), (0.2, 1)]
