"""Decision models: the loss against numpy, order of options, rows that are wrong, and a recipe on the tiny model."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from alignkit import BadRow, Batch, Context, DataError, Group, Message, Outputs, Pair, Pairs, Response, SelectContext
from alignkit.data.group import group_from_json
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from alignkit.step import StepData
from alignkit.testing import check_algorithm, check_judge, check_reward, check_step
from alignkit.training.averages import Averages
from alignkit_plugins.algorithms.decision.learning import LETTERS, Decision, DecisionFormat, about, asked
from alignkit_plugins.algorithms.decision.use import Decide, DecisionJudge, DecisionReward, decide, measure

NOTHING = torch.zeros(0, dtype=torch.int64)
NO_PAIRS = Pairs(NOTHING, NOTHING, NOTHING.double(), NOTHING.double(), NOTHING)
ROW: dict[str, Any] = {"prompt": "Is it a fruit? Tomato", "options": ["yes", "no", "both"], "counts": [5, 3, 2]}
RECIPE = """
model: {base: tiny, dtype: float32, lora: {r: 4}}
stages:
  decide:
    algorithm: {decision: {brier: 0.5}}
    data: {decision: rows.jsonl}
    validation: {decision: rows.jsonl}
    learning_rate: 5e-3
    batch_size: 4
    epochs: 12
  measured:
    step: decide
    policies: [base, decide]
    data: {decision: rows.jsonl}
  routed:
    step: decide
    policies: [decide]
    data: prompts.jsonl
    question: Is it a fruit?
    options: ["yes", "no"]
  answers:
    step: sample
    prompts: routed
    sampling: {max_new_tokens: 4}
    reward: {weighted: {rewards: {long: length}, by: decision, weights: {"yes": {long: 3}, "no": {long: -2}}}}
"""
USER = (Message(role="user", content="Hi"),)
FRUIT = {**ROW, "options": ["yes", "no"], "counts": [7, 3]}


def read(**columns: Any) -> Group:
    return DecisionFormat().read({name: value for name, value in {**ROW, **columns}.items() if value is not None})


def new(**options: Any) -> Decision:
    return Decision(Decision.Options(**options))


def context(**known: Any) -> SelectContext:
    return SelectContext(0, 0, lambda: [], lambda **facts: None, np.random.default_rng(0), **known)


def batch(groups: Sequence[Group], tokens: Sequence[int] | None = None) -> Batch:
    """Letters with an end of turn; the first place of each row is no part of the response."""
    letters = [LETTERS.index(r.text) for group in groups for r in group.responses] if tokens is None else tokens
    rows = torch.tensor([[0, 100 + letter, 99] for letter in letters])
    owner = torch.tensor([place for place, group in enumerate(groups) for _ in group.responses])
    return Batch(groups, rows, rows > 0, owner, NO_PAIRS, rows[:, 0] > 0)


def outputs(logits: torch.Tensor) -> Outputs:
    """Log-probabilities whose other tokens must not count."""
    return Outputs(logprobs=torch.stack([logits * 0 + 7, logits, logits * 0 - 9], dim=1))


def total(algorithm: Decision, given: Batch, logits: torch.Tensor) -> torch.Tensor:
    terms = algorithm.loss(given, outputs(logits))
    return sum((term.coefficient * term.values.mean() for term in terms.values()), torch.zeros(()))


GROUPS = [read(), read(options=["tea", "coffee"], counts=[1, 3])]
Q = [np.array([0.5, 0.3, 0.2]), np.array([0.25, 0.75])]
LOGITS = [-1.0, -2.5, -0.3, -3.0, -1.5]


def softmax(x: Any) -> Any:
    return np.exp(x) / np.exp(x).sum()


def test_the_loss_is_cross_entropy_brier_and_mass_in_numpy() -> None:
    cut = np.split(np.array(LOGITS), [3])
    p = [softmax(x) for x in cut]
    found = new(brier=0.5).loss(batch(GROUPS), outputs(torch.tensor(LOGITS, dtype=torch.float64)))
    assert {name: (term.per.value, term.coefficient) for name, term in found.items()} == {
        "cross_entropy": ("group", 1.0),
        "brier": ("group", 0.5),
        "mass": ("group", 0.1),
    }
    ce, brier = ([f(q, x) for q, x in zip(Q, p, strict=True)] for f in (lambda q, x: -(q * np.log(x)).sum(),
                                                                        lambda q, x: ((x - q) ** 2).sum()))  # fmt: skip
    assert found["cross_entropy"].values.tolist() == pytest.approx(ce)
    assert found["brier"].values.tolist() == pytest.approx(brier)
    assert found["mass"].values.tolist() == pytest.approx([-np.log(np.exp(x).sum()) for x in cut])


def test_the_gradient_is_p_minus_q() -> None:
    """Of cross-entropy with soft targets by the logits, over the questions: Bishop 2006, equation 4.109."""
    logits = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    total(new(mass=0.0), batch(GROUPS), logits).backward()
    cut = np.split(np.array(LOGITS), [3])
    want = np.concatenate([(softmax(x) - q) / 2 for x, q in zip(cut, Q, strict=True)])
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx(want)


def test_gradients_vanish_at_peoples_shares() -> None:
    logits = torch.tensor(np.log(np.concatenate(Q)), requires_grad=True)
    total(new(mass=0.0, brier=1.0), batch(GROUPS), logits).backward()
    assert logits.grad is not None
    assert logits.grad.abs().max() < 1e-12


def test_a_permutation_of_the_options_permutes_the_gradient() -> None:
    order = [2, 0, 1]
    turned = read(options=[ROW["options"][i] for i in order], counts=[ROW["counts"][i] for i in order])
    gradients = []
    for group, places in ((read(), [0, 1, 2]), (turned, order)):
        logits = torch.tensor([LOGITS[i] for i in places], dtype=torch.float64, requires_grad=True)
        total(new(brier=1.0), batch([group]), logits).backward()
        assert logits.grad is not None
        gradients.append(logits.grad)
    assert torch.allclose(gradients[0][order], gradients[1])


def test_metrics_say_how_far_from_people() -> None:
    averages, given = Averages(), batch(GROUPS)
    averages.add(new().report_metrics(given, outputs(torch.tensor(np.log(np.concatenate(Q))))), given)
    assert averages.means() == pytest.approx({"brier_score": 0.0, "divergence": 0.0}, abs=1e-12)


def test_letters_of_one_token_are_told() -> None:
    with pytest.raises(DataError, match="one token"):
        new().loss(batch(GROUPS, [1, 1, 2, 1, 2]), outputs(torch.tensor(LOGITS)))


def test_pairs_become_the_questions_of_the_judge_in_both_orders() -> None:
    group = Group(USER, (Response("Hello"), Response("Go")), (Pair(1, 0, p=0.8),))
    one, two = new().select([group], context())
    assert [r.scores["share"] for r in one.responses] == pytest.approx([0.8, 0.2])
    assert [r.scores["share"] for r in two.responses] == pytest.approx([0.2, 0.8])
    models = Biased()
    judge = DecisionJudge(DecisionJudge.Options(role="x"))
    judge.prepare(Context(models, Path(), Path(), 0, lambda option: []))  # type: ignore[arg-type]
    verdict, swapped = judge.compare([(USER, "Go", "Hello"), (USER, "Hello", "Go")])
    assert models.asked == [one.prompt, two.prompt, two.prompt, one.prompt]
    p = _mean_of_orders(2, 5)
    assert [verdict.p_first, swapped.p_first] == pytest.approx([p, 1 - p])


def _mean_of_orders(one: int, two: int) -> float:
    """What `Biased` says of texts of these lengths: shown first, and shown second."""
    first, second = (softmax(np.array([0.5 * a, 0.5 * b - 1])) for a, b in ((one, two), (two, one)))
    return float((first[0] + second[1]) / 2)


def test_rows_without_shares_are_left_out_and_told() -> None:
    said: list[str] = []
    assert new().select([read(), read(counts=None)], context(say=said.append)) == [read()]
    assert "1 left out (without_shares)" in said[0]
    with pytest.raises(DataError, match="needs questions"):
        new().select([read(counts=None)], context())


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"counts": None, "probabilities": [0.5, 0.3, 0.3]}, "sum to 1.1, not to 1; use 'counts'"),
        ({"counts": None, "probabilities": [0.9, 0.3, -0.2]}, "numbers of 0 or more"),
        ({"counts": [1, 2]}, "a list of 3 numbers"),
        ({"counts": [0, 0, 0]}, "nobody chose"),
        ({"counts": [1, True, 0]}, "numbers of 0 or more"),
        ({"options": ["yes"], "counts": [1]}, "2 to 26 options, not 1"),
        ({"options": ["yes", "no", "yes "]}, "two options are the same"),
        ({"options": ["yes", "no", ""]}, "a list of texts"),
        ({"label": "yes"}, "counts and label; one of them"),
        ({"counts": None, "label": "maybe"}, "'maybe' is not among the options: yes, no, both"),
        ({"prompt": []}, "there is no prompt"),
    ],
)
def test_wrong_rows_are_told(columns: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRow, match=reason):
        read(**columns)


def test_what_people_chose_becomes_shares() -> None:
    assert [r.scores["share"] for r in read().responses] == [0.5, 0.3, 0.2]
    assert [r.scores["share"] for r in read(counts=None, label="no").responses] == [0, 1, 0]
    assert [r.text for r in read().responses] == ["A", "B", "C"]
    assert [r.scores for r in read(counts=None).responses] == [{}] * 3
    about_it = read(response="A tomato is red.", question="Is it true?").prompt
    assert about_it == asked(about([{"role": "user", "content": ROW["prompt"]}], "A tomato is red.", "Is it true?"),
                             ROW["options"])  # fmt: skip


class Biased:
    """Models that like an option by its length and by its place."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def next_token_logprobs(self, role: str, prompts: Any, answers: Any, *, prefill: str = "") -> torch.Tensor:
        rows = []
        self.asked += [tuple(prompt) for prompt in prompts]
        for prompt in prompts:
            lines = [line[3:] for line in prompt[-1]["content"].split("\n") if line[1:3] == ". "]
            row = [0.5 * len(text) - place for place, text in enumerate(lines)]
            rows.append(row + [50.0] * (len(answers) - len(lines)))  # letters without an option must not count
        return torch.tensor(rows)


def test_probabilities_are_those_of_the_questions_own_letters() -> None:
    models: Any = Biased()
    questions = [(USER, ["a", "bb"]), (USER, ["a", "bb", "ccc"])]
    for (_, options), found in zip(questions, decide(models, "x", questions), strict=True):
        want = softmax(np.array([0.5 * len(text) - place for place, text in enumerate(options)]))
        assert found == pytest.approx(want)


@pytest.mark.parametrize("options", [["a", "bb"], ["a", "bb", "ccc"]])
def test_all_orders_take_the_places_bias_away(options: list[str]) -> None:
    models: Any = Biased()
    turned = [*options[1:], *options[:1]]
    one, two = decide(models, "x", [(USER, options), (USER, turned)], orders=len(options))
    assert one is not None and two is not None
    assert [*one[1:], one[0]] == pytest.approx(two)
    once, again = decide(models, "x", [(USER, options), (USER, turned)])
    assert once is not None and again is not None
    assert [*once[1:], once[0]] != pytest.approx(again)


def test_the_reward_is_the_expected_value() -> None:
    reward = DecisionReward(DecisionReward.Options(role="x", options={"a": 1.0, "bb": -3.0}))
    reward.prepare(Context(Biased(), Path(), Path(), 0, lambda option: []))  # type: ignore[arg-type]
    p = softmax(np.array([0.5, 1.0 - 1]))
    assert reward.score([Group(USER, (Response("Hello"),))])[""] == pytest.approx([p[0] - 3 * p[1]])


def test_measures_by_hand() -> None:
    found = measure([[0.9, 0.1], [0.6, 0.4]], [[1.0, 0.0], [0.2, 0.8]], 0)
    assert found["accuracy"]["mean"] == 0.5
    assert found["brier"]["mean"] == pytest.approx((0.02 + 0.32) / 2)
    assert found["cross_entropy"]["mean"] == pytest.approx(
        (-math.log(0.9) - 0.2 * math.log(0.6) - 0.8 * math.log(0.4)) / 2
    )
    assert found["error"]["mean"] == pytest.approx((0.1 + 0.4) / 2)


def test_they_conform() -> None:
    questions = [read(), read(counts=None), read(**FRUIT), read(counts=None, label="no")]
    check_algorithm(Decision, {"brier": 0.5}, groups=questions)
    check_algorithm(Decision)
    check_judge(DecisionJudge, {"role": "sft"})
    check_reward(DecisionReward, {"role": "sft", "options": {"good": 1, "bad": 0}})
    check_step(Decide, {"policies": ["base", "sft"], "data": "rows.jsonl", "orders": 2}, groups=questions)


def test_a_policy_learns_what_is_measured(tmp_path: Path) -> None:
    """On the tiny model, shares of one question, whatever its words: what training reads is what `decide` asks."""
    rows = [{**FRUIT, "prompt": f"Is it a fruit? {name}"} for name in "abcdefgh"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": name}) + "\n" for name in "ab"))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    Run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "out").execute()
    found = json.loads((tmp_path / "out" / "measured" / "decisions.json").read_text())["policies"]
    assert found["decide"]["brier"]["mean"] < 0.01 < found["base"]["brier"]["mean"]
    trained = json.loads((tmp_path / "out" / "decide" / "stage.json").read_text())["summary"]["validation"]
    assert trained["brier_score"] == pytest.approx(found["decide"]["brier"]["mean"], abs=1e-4)
    first = json.loads((tmp_path / "out" / "measured" / "data.jsonl").read_text().splitlines()[0])
    assert first["meta"]["decision"] == "yes"
    assert first["meta"]["probabilities"]["yes"] == pytest.approx(0.7, abs=0.07)
    answers = map(group_from_json, (tmp_path / "out" / "answers" / "data.jsonl").read_text().splitlines())
    for group, name in zip(answers, "ab", strict=True):
        weight = {"yes": 3, "no": -2}[group.meta["decision"]]
        assert group.prompt[0]["content"] == name
        assert group.responses[0].scores["reward"] == weight * len(group.responses[0].tokens or ())


def test_a_router_asks_about_prompts_and_keeps_them(tmp_path: Path) -> None:
    """Also those with a column `options`; what it asks is what the format reads from a row with a question."""
    options: dict[str, Any] = {"policies": ["x"], "data": "d", "question": "Which?", "options": ["law", "medicine"]}
    step, models = Decide(Decide.Options(**options)), Biased()
    prompts = [Group(USER, (Response("Hello"),), meta={"options": ["a", "b"]}), Group(USER)]
    around = SimpleNamespace(
        load=lambda spec: prompts, models=models, seed=0, map=lambda name, rows, work: work(rows),
        write_json=lambda name, value: None,
    )  # fmt: skip
    routed = step.run(around).groups  # type: ignore[arg-type]
    p = softmax(np.array([0.5 * 3, 0.5 * 8 - 1]))
    for before, after in zip(prompts, routed or (), strict=True):
        assert replace(after, meta=before.meta) == before and after.meta["decision"] == "medicine"
        assert list(after.meta["probabilities"].values()) == pytest.approx(p)
    row = {"prompt": "Hi", "question": "Which?", "options": ["law", "medicine"], "label": "law"}
    assert models.asked == [DecisionFormat().read(row).prompt] * 2
    mistakes: list[dict[str, Any]] = [
        {"options": ["law"]},
        {"options": ["law", "law "]},
        {"options": []},
        {"question": ""},
    ]
    for wrong in mistakes:
        with pytest.raises(ValidationError):
            Decide.Options(**{**options, **wrong})
    with pytest.raises(DataError, match="has no prompt to ask about"):
        step.check_data(StepData(lambda spec: [Group((), (Response("text"),))], lambda reward, groups: None))
