"""Weights of rows and of turns: the loss is a weighted mean, whose denominator is the sum of the
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import Algorithm, Group, Message, Pair, Response, Trains
from alignkit.contract.settings import Settings
from alignkit.io.results import read_record
from alignkit.models.packing import Examples, flat
from alignkit.models.shared_model import SharedModel
from alignkit.testing.examples import encode_all
from alignkit.tokens.encoder import Encoder
from alignkit.training.encoding import compact
from alignkit.training.learner import Learner
from alignkit_plugins.algorithms.dpo import DPO
from alignkit_plugins.algorithms.kto import KTO
from alignkit_plugins.algorithms.reference_free import CPL, CPO, ORPO, SimPO
from alignkit_plugins.algorithms.reward_model import RewardModel
from alignkit_plugins.algorithms.sft import SFT
from tests.models.tiny import tiny_model
from tests.rows import Said, run, user, write_recipe, write_rows

SAID = {
    "Why?": ("Because it is so.", "I do not know", "no idea"),
    "A color": ("red", "no idea"),
    "Hm": ("a b c d e f", "x", "no idea"),
    "No": ("yes", "no idea"),
}
NUMBERS = count()  # of roles
LEARNERS = [
    (SFT, {}),
    (DPO, {"nll_coefficient": 0.5}),
    (SimPO, {"nll_coefficient": 0.5}),
    (ORPO, {}),
    (CPO, {}),
    (CPL, {"nll_coefficient": 0.5}),
    (RewardModel, {"center_coefficient": 0.1}),
    (KTO, {}),
]


@pytest.fixture(scope="module")
def model() -> SharedModel:
    return tiny_model()


def gradients(
    model: SharedModel, algorithm: Algorithm, groups: Sequence[Group]
) -> list[torch.Tensor]:
    """The loss, and the gradient of each parameter."""
    scoring, role = algorithm.trains is Trains.REWARD, f"role{next(NUMBERS)}"
    model.add_role(role, head="scalar" if scoring else "language")
    learner = Learner(model, algorithm, Settings(), role)
    for number, parameter in enumerate(learner.parameters.values()):
        torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(number))
    encoded = encode_all(Encoder(model.tokenizer), groups, 200, scoring=scoring)
    examples = Examples([*map(compact, encoded)])
    if algorithm.needs.reference_logprobs:
        columns = [torch.linspace(-2, -1, len(response.tokens)) for response in examples.responses]
        examples.token_columns["reference_logprobs"] = flat(columns)
    loss = torch.tensor(learner._gradients(examples)["loss"])
    return [loss, *(p.grad for p in learner.parameters.values() if p.grad is not None)]


def rows_of(algorithm: type[Algorithm]) -> list[Group]:
    """Four rows of the kind that an algorithm learns from."""
    rows = []
    for number, (question, answers) in enumerate(SAID.items()):
        first, *others = map(Response, answers)
        pairs: Any = (Pair(0, 1, p=0.8), Pair(1, 2))[: len(others)]
        if algorithm in (SFT, KTO):  # every second answer was bad, as only KTO reads
            first, others, pairs = replace(first, label=number % 2 == 0), [], None
        first = replace(first, label=None) if algorithm is SFT else first
        rows.append(Group((user(question),), (first, *others), pairs))
    return rows


@pytest.mark.silent_bug(
    "data: weights",
    "A trainer reads the weight of a row and does nothing with it, or takes 0.5 for 1.",
    "A row of weight 0.5 counts half as much as one of weight 1 in a loss and its mean, with "
    "every method that learns from data.",
    "huggingface/trl#5613",
    "modelscope/ms-swift#10188",
)
@pytest.mark.parametrize(
    ("cls", "options"), LEARNERS, ids=lambda value: getattr(value, "__name__", "")
)
def test_a_row_of_three_times_the_weight_is_a_row_that_comes_three_times(
    model: SharedModel,
    monkeypatch: pytest.MonkeyPatch,
    cls: type[Algorithm],
    options: dict[str, Any],
) -> None:
    """Weights of 0.1, 0.2, 0.3 and 0 are 1, 2, 3 and no copies, also in micro-batches of one
    row.
    """
    one, two, three, none = rows_of(cls)
    weights = (0.1, 0.2, 0.3, 0)
    weighted = [replace(r, weight=w) for r, w in zip((one, two, three, none), weights, strict=True)]
    algorithm = cls(cls.Options(**options))
    plain = gradients(model, algorithm, [one, two, three])
    wanted = gradients(model, algorithm, [one, two, two, three, three, three])
    monkeypatch.setattr(SharedModel, "token_budget", 20)
    found = gradients(model, algorithm, weighted)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    assert not torch.allclose(found[0], plain[0], rtol=1e-3)


def test_half_a_weight_of_a_turn_halves_its_tokens_in_the_mean(model: SharedModel) -> None:
    """By the mean of either turn alone: (0.5 n1 mean1 + n2 mean2) / (0.5 n1 + n2)."""

    def conversation(first: bool | float, second: bool | float) -> Group:
        turns: tuple[Message, ...] = (
            {"role": "assistant", "content": "Hello there, you.", "train": first},
            user("Bye"),
            {"role": "assistant", "content": "So long.", "train": second},
        )
        return Group((user("Hi"),), (Response(messages=turns),))

    def measured(first: bool | float, second: bool | float) -> tuple[float, int]:
        """The loss, and how many tokens count."""
        rows = [conversation(first, second)]
        (encoded,) = encode_all(Encoder(model.tokenizer), rows, 200)
        return float(gradients(model, SFT(SFT.Options()), rows)[0]), sum(encoded.responses[0].mask)

    (one, n1), (two, n2) = measured(True, False), measured(False, True)
    wanted = (0.5 * n1 * one + n2 * two) / (0.5 * n1 + n2)
    assert measured(0.5, True)[0] == pytest.approx(wanted, rel=1e-5)


def test_a_row_of_weight_0_is_told_and_left_out(tmp_path: Path, said: Said) -> None:
    """What it teaches is nothing, as above."""
    answer = {"chosen": "Apple.", "rejected": "Car."}
    rows = [{"prompt": f"A fruit, {n}", **answer, "weight": float(n > 0)} for n in range(4)]
    write_rows(tmp_path / "rows.jsonl", rows)
    stage = {"algorithm": "dpo", "data": "rows.jsonl", "epochs": 1, "batch_size": 2}
    out = run(write_recipe(tmp_path, {"learn": stage}))
    assert "4 groups: 1 row of weight 0 left out ('A fruit, 0')" in said()
    assert read_record(out / "learn")["summary"]["groups"] == 3
