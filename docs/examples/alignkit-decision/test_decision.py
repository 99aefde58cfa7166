"""The loss by hand in numpy, the questions that pairs become, the conformance kits, and a short
run.
"""

import json
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
from alignkit_decision import (
    LETTERS,
    Decide,
    Decision,
    DecisionFormat,
    DecisionJudge,
    DecisionReward,
)

from alignkit import Batch, Group, Outputs, Pair, Pairs, Response, SelectContext
from alignkit.cli import main
from alignkit.testing import check_algorithm, check_format, check_judge, check_reward, check_step

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_decision" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_decision.py")]
NONE = torch.zeros(0)
ROW = {"prompt": "Which drink?", "options": ["tea", "coffee"], "counts": [1, 3]}


def new(**options: float) -> Decision:
    return Decision(Decision.Options(**options))


def test_the_loss_is_cross_entropy_brier_and_mass() -> None:
    groups = [
        DecisionFormat().read({**ROW, "options": ["a", "b", "c"], "counts": [5, 3, 2]}),
        DecisionFormat().read(ROW),
    ]
    z = torch.tensor([-1.0, -2.5, -0.3, -3.0, -1.5], requires_grad=True)
    rows = torch.tensor(
        [[0, 100 + LETTERS.index(r.text), 99] for group in groups for r in group.responses]
    )
    owner = torch.tensor([0, 0, 0, 1, 1])
    batch = Batch(
        groups, rows, rows > 0, owner, Pairs(NONE, NONE, NONE, NONE, NONE), rows[:, 0] > 0
    )
    # Tokens after the letter must not count.
    terms = new(brier=0.5, mass=0.1).loss(
        batch, Outputs(logprobs=torch.stack([z * 0 + 7, z, z * 0 - 9], dim=1))
    )
    for name, coefficient in (("cross_entropy", 1.0), ("brier", 0.5), ("mass", 0.1)):
        assert terms[name].coefficient == coefficient
    for place, (own, q) in enumerate(((slice(0, 3), [0.5, 0.3, 0.2]), (slice(3, 5), [0.25, 0.75]))):
        logits = z.detach().numpy()[own]
        p = np.exp(logits) / np.exp(logits).sum()
        assert float(terms["cross_entropy"].values[place]) == pytest.approx(
            -(np.array(q) * np.log(p)).sum(), rel=1e-5
        )
        assert float(terms["brier"].values[place]) == pytest.approx(
            ((p - np.array(q)) ** 2).sum(), rel=1e-5
        )
        assert float(terms["mass"].values[place]) == pytest.approx(
            -np.log(np.exp(logits).sum()), rel=1e-5
        )


def test_pairs_become_the_questions_of_the_judge_in_both_orders() -> None:
    group = Group(
        ({"role": "user", "content": "Hi"},),
        (Response("one"), Response("two")),
        (Pair(1, 0, p=0.8),),
    )
    context = SelectContext(0, 0, lambda: [], lambda **facts: None, np.random.default_rng(0))
    first, second = new().select([group], context)
    assert first.meta["options"] == ["two", "one"] and second.meta["options"] == ["one", "two"]
    shares = [[response.scores["share"] for response in each.responses] for each in (first, second)]
    assert shares == [pytest.approx([0.8, 0.2]), pytest.approx([0.2, 0.8])]


def test_they_conform() -> None:
    questions = [
        DecisionFormat().read(row) for row in (ROW, {**ROW, "counts": None, "label": "tea"})
    ]
    check_algorithm(Decision, {"brier": 0.5}, groups=questions)
    check_format(DecisionFormat)
    check_judge(DecisionJudge, {"role": "sft"})
    check_reward(DecisionReward, {"role": "sft", "options": {"yes": 1, "no": 0}})
    check_step(Decide, {"policies": ["base", "sft"], "data": "rows.jsonl"}, groups=questions)


def test_a_run_measures_what_it_learned(tmp_path: Path) -> None:
    overrides = ["model={base: tiny}", "stages.decide.max_steps=4"]
    assert (
        main(["run", str(HERE / "recipe.yaml"), *overrides, "--out", str(tmp_path), *PLUGIN]) == 0
    )
    found = json.loads((tmp_path / "measured" / "decisions.json").read_text(encoding="utf-8"))
    assert found["measured"] == 60
    losses = {name: policy["cross_entropy"]["mean"] for name, policy in found["policies"].items()}
    assert losses["decide"] < losses["base"]
