"""The rows, the loss and the ranking by hand, the conformance kit, and a run that tells right steps
from wrong ones.
"""

import json
import math
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace

import alignkit_prm
import numpy as np
import pytest
import torch

from alignkit import BadRow, Batch, DataError, Group, Outputs, Pairs, Response
from alignkit.cli import main
from alignkit.data.group import read_groups
from alignkit.testing import check_algorithm, check_format, check_step

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_prm" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_prm.py")]
NONE = torch.zeros(0)
PRM800K = {
    "question": {"problem": "1 + 1 + 1?"},
    "label": {
        "steps": [
            {
                "completions": [{"text": "a", "rating": 1}, {"text": "b", "rating": -1}],
                "chosen_completion": 0,
            },
            {
                "completions": [{"text": "c", "rating": None}],
                "human_completion": {"text": "d"},
                "chosen_completion": None,
            },
            {
                "completions": [{"text": "e", "rating": 0}],
                "human_completion": None,
                "chosen_completion": None,
            },
        ]
    },
}


def read(row: object) -> list[tuple[str, bool | None]]:
    return [
        (response.text, response.label) for response in alignkit_prm.Steps().read(row).responses
    ]


def test_each_step_is_a_response_up_to_its_end() -> None:
    row = {"prompt": "Why?", "completions": ["x", "y"], "labels": [True, False]}
    assert read(row) == [("x", True), ("x\ny", False)]
    # A neutral step is right, one without a rating has no label, and what a person wrote goes on.
    assert read(PRM800K) == [("a", True), ("b", False), ("a\nd\ne", True)]
    for wrong in (
        {**row, "labels": [True]},
        {**row, "labels": [True, "no"]},
        {**row, "completions": [], "labels": []},
    ):
        with pytest.raises(BadRow):
            read(wrong)


def test_the_loss_is_the_cross_entropy_of_the_labels() -> None:
    """Of logits 0.7, -0.4 and 2 with labels right, wrong, wrong, by numpy."""
    logits, labels = np.array([0.7, -0.4, 2.0]), np.array([1.0, 0.0, 0.0])
    right = 1 / (1 + np.exp(-logits))
    expected = -(labels * np.log(right) + (1 - labels) * np.log(1 - right))
    responses = tuple(Response(text="step", label=bool(label)) for label in labels)
    batch = Batch(
        groups=[Group((), responses[:1]), Group((), responses[1:])],
        tokens=torch.zeros(3, 2, dtype=torch.int64),
        mask=torch.ones(3, 2, dtype=torch.bool),
        group_index=torch.tensor([0, 1, 1]),
        pairs=Pairs(NONE, NONE, NONE, NONE, NONE),
        truncated=torch.zeros(3, dtype=torch.bool),
    )
    out = Outputs(scores=torch.tensor(logits, dtype=torch.float32, requires_grad=True))
    algorithm = alignkit_prm.PRM(alignkit_prm.PRM.Options())
    values = algorithm.loss(batch, out)["cross_entropy"].values
    assert values.tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert algorithm.report_metrics(batch, out)["accuracy"].values.tolist() == [1, 1, 0]
    values.sum().backward()
    assert out.scores.grad is not None
    assert out.scores.grad.tolist() == pytest.approx((right - labels).tolist(), rel=1e-5)


def test_a_solution_is_as_good_as_its_steps() -> None:
    logits = [math.log(3), 0.0, math.log(9)]  # probabilities 3/4, 1/2, 9/10
    assert alignkit_prm.aggregated(logits, "product") == pytest.approx(0.3375)
    assert alignkit_prm.aggregated(logits, "min") == pytest.approx(0.5)
    assert alignkit_prm.aggregated(logits, "last") == pytest.approx(0.9)
    assert alignkit_prm.aggregated([1.0, None], "product") is None
    assert alignkit_prm._prefixes("a\n\nb\n", "\n") == ["a", "a\nb"] and alignkit_prm._prefixes(
        "", "\n"
    ) == [""]


def test_solutions_without_a_score_are_neither_the_best_nor_the_worst() -> None:
    responses = (Response("too long"), Response("good"), Response("bad"))
    group = Group(({"role": "user", "content": "?"},), responses)

    class Scorer:
        def score(self, groups: list[Group]) -> list[Group]:
            known = {"good": 1.0, "bad": -1.0}
            return [
                replace(
                    g,
                    responses=tuple(
                        replace(r, scores={"reward": known.get(r.text)}) for r in g.responses
                    ),
                )
                for g in groups
            ]

    none = replace(group, responses=responses[:1])
    context = SimpleNamespace(scorer=lambda reward: Scorer(), load=lambda data: [group, none])
    for best, texts in ((False, ["good", "bad"]), (True, ["good"])):
        step = alignkit_prm.RankBySteps(
            alignkit_prm.RankBySteps.Options(data="d", reward="prm", best=best)
        )
        artifact = step.run(context)
        assert [[response.text for response in ranked.responses] for ranked in artifact.groups] == [
            texts
        ]
        assert artifact.summary == {"prompts": 1, "steps": 4, "unscored": 2}


def test_data_without_wrong_steps_are_refused() -> None:
    with pytest.raises(DataError, match="steps that are wrong"):
        alignkit_prm.PRM(alignkit_prm.PRM.Options()).check_data(
            [Group((), (Response("x", label=True),))]
        )


def test_they_conform() -> None:
    check_format(alignkit_prm.Steps, rows=[PRM800K])
    prompt = ({"role": "user", "content": "Why?"},)
    labeled = [
        Group(prompt, (Response("yes", label=True), Response("yes\nno", label=False)), pairs=())
    ] * 2
    check_algorithm(alignkit_prm.PRM, groups=labeled)
    for options in ({"aggregate": "min"}, {"best": True}):
        check_step(
            alignkit_prm.RankBySteps,
            {"data": "data", "reward": {"length": {"unit": "words"}}, **options},
        )


def test_a_run(tmp_path: Path) -> None:
    """It learns which steps are right: those of 1 + 2 = 3 and not of 1 + 2 = 4. Samples are ranked
    by it.
    """
    assert main(["run", str(HERE / "recipe.yaml"), "--out", str(tmp_path), *PLUGIN]) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "prm" / "metrics.jsonl").read_text().splitlines()
    ]
    # Three quarters of the steps are right
    assert rows[0]["cross_entropy"] > 0.3 and rows[0]["accuracy"] < 1
    assert rows[-1]["cross_entropy"] < 0.1 and rows[-1]["accuracy"] == 1
    groups = read_groups(tmp_path / "ranked" / "data.jsonl")
    for group in groups:
        best = max(group.responses, key=lambda response: response.reward)
        assert best.rank == 1 and all(0 < response.reward < 1 for response in group.responses)
    assert len(groups) > 4
