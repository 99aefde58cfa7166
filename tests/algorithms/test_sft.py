"""SFT and `lm`: the loss by hand, and what they learn from."""

from __future__ import annotations

import pytest
import torch

from alignkit import Algorithm, DataError, Group, Outputs, Response
from alignkit.contract.batch import Per
from alignkit.data.group import Origin
from alignkit_plugins.algorithms.sft import LM, SFT
from tests.by_hand import Looking, asked, batch, double, new
from tests.rows import assistant, user

ASK = asked("Why?")


@pytest.mark.parametrize("cls", [SFT, LM])
def test_the_loss_is_the_negative_log_likelihood_of_each_token(cls: type[Algorithm]) -> None:
    logprobs = double([[-1.0, -2.0], [-4.0, 0.0]])
    loss = new(cls).loss(batch([[1, 1], [1, 0]]), Outputs(logprobs=logprobs))
    assert list(loss) == ["nll"] and torch.equal(loss["nll"].values, -logprobs)
    assert (loss["nll"].per, loss["nll"].coefficient) == (Per.TOKEN, 1.0)


DEMONSTRATION, TEXT = Group(ASK, (Response("so"),)), Group((), (Response("so it is"),))
TWO = (Response("so"), Response("no"))


@pytest.mark.parametrize(
    ("cls", "right", "wrong", "named"),
    [
        (SFT, DEMONSTRATION, TEXT, "sft learns from demonstrations"),
        (SFT, DEMONSTRATION, Group(ASK, TWO), "demonstrations"),
        (SFT, DEMONSTRATION, Group(ASK, (Response("so", label=False),)), "demonstrations"),
        (SFT, DEMONSTRATION, Group(ASK, origin=Origin("a.jsonl", 7)), r"a\.jsonl:7: .*'Why\?'"),
        (LM, TEXT, DEMONSTRATION, "lm needs raw text"),
        (LM, TEXT, Group((), TWO), "raw text"),
        (LM, TEXT, Group(()), "raw text"),
    ],
)
def test_only_demonstrations_and_only_raw_text(
    cls: type[Algorithm], right: Group, wrong: Group, named: str
) -> None:
    assert new(cls).select([right], Looking()) == [right]
    with pytest.raises(DataError, match=named):
        new(cls).select([right, wrong], Looking())


def test_rows_that_are_no_demonstrations_may_be_left_out_with_a_count() -> None:
    looking, lenient = Looking(), Group(ASK, origin=Origin("a.jsonl", 8, skip=True))
    assert new(SFT).select([DEMONSTRATION, lenient], looking) == [DEMONSTRATION]
    assert looking.logged == {"not_demonstrations": 1}
    new(SFT).select([lenient], held_out := Looking(validation=True))
    assert held_out.logged == {"validation_not_demonstrations": 1} and held_out.said == []


def test_a_row_whose_last_turn_is_context_teaches_nothing_to_the_last_turns() -> None:
    last = {**assistant("it is"), "train": False}
    turns = (assistant("so"), user("Why?"), assistant("so"), user("Why?"), last)
    group = Group(ASK, (Response(messages=turns),))  # type: ignore[arg-type]
    assert new(SFT).select([group], Looking()) == [group]
    with pytest.raises(DataError, match="turns: last"):
        new(SFT, turns="last").select([group], Looking())
