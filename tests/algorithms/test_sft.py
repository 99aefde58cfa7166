"""SFT and `lm`: the loss by hand, and what they learn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignkit import (
    Algorithm,
    Batch,
    DataError,
    Group,
    Message,
    Outputs,
    Pairs,
    Response,
    SelectContext,
)
from alignkit.batch import Per
from alignkit.data.group import Origin
from alignkit_plugins.algorithms.sft import LM, SFT

NOTHING = torch.zeros(0, dtype=torch.int64)
NO_PAIRS = Pairs(NOTHING, NOTHING, NOTHING.float(), NOTHING.float(), NOTHING)
ASK: tuple[Message, ...] = ({"role": "user", "content": "Why?"},)


@pytest.mark.parametrize("cls", [SFT, LM])
def test_the_loss_is_the_negative_log_likelihood_of_each_token(cls: type[Algorithm]) -> None:
    mask = torch.tensor([[True, True], [True, False]])
    count = torch.zeros(2, dtype=torch.int64)
    batch = Batch(
        [Group(()), Group(())],
        count[:, None].expand(2, 2),
        mask,
        torch.arange(2),
        NO_PAIRS,
        count.bool(),
    )
    out = Outputs(logprobs=torch.tensor([[-1.0, -2.0], [-4.0, 0.0]]))
    (name, term), *others = cls(cls.Options()).loss(batch, out).items()
    assert not others and (name, term.per, term.coefficient) == ("nll", Per.TOKEN, 1.0)
    assert term.values[mask].tolist() == [1.0, 2.0, 4.0]


def test_only_demonstrations_and_only_raw_text() -> None:
    context = SelectContext(0, 0, lambda: [], lambda **m: None, np.random.default_rng(0))
    demonstration, text = Group(ASK, (Response("so"),)), Group((), (Response("so it is"),))
    two, down = (
        Group(ASK, (Response("so"), Response("no"))),
        Group(ASK, (Response("so", label=False),)),
    )
    sft, lm = SFT(SFT.Options()), LM(LM.Options())
    assert sft.select([demonstration], context) == [demonstration] and lm.select(
        [text], context
    ) == [text]
    for wrong in (text, two, down, Group(ASK)):
        with pytest.raises(DataError, match="sft learns from demonstrations, but the row"):
            sft.select([demonstration, wrong], context)
    for wrong in (demonstration, two, Group((), (Response("a"), Response("b"))), Group(())):
        with pytest.raises(DataError, match="lm needs raw text, but row"):
            lm.select([text, wrong], context)


def test_rows_that_are_no_demonstrations_are_named_or_left_out_with_a_count() -> None:
    logged: dict[str, int] = {}
    context = SelectContext(0, 0, lambda: [], logged.update, np.random.default_rng(0))
    good = Group(ASK, (Response("so"),))
    strict, lenient = Origin("a.jsonl", 7), Origin("a.jsonl", 8, skip=True)
    with pytest.raises(
        DataError,
        match=r"a\.jsonl:7: sft learns from demonstrations, but the row 'Why\?' ends with the user",
    ):
        SFT(SFT.Options()).select([good, Group(ASK, origin=strict)], context)
    assert SFT(SFT.Options()).select([good, Group(ASK, origin=lenient)], context) == [good]
    assert logged == {"not_demonstrations": 1}


def test_a_row_whose_last_turn_is_context_teaches_nothing_to_the_last_turns() -> None:
    context = SelectContext(0, 0, lambda: [], lambda **m: None, np.random.default_rng(0))
    turns: tuple[Message, ...] = (
        {"role": "assistant", "content": "so"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "it is", "train": False},
    )
    group = Group(ASK, (Response(messages=turns),))
    assert SFT(SFT.Options()).select([group], context) == [group]
    with pytest.raises(DataError, match="`turns: last` learns no other"):
        SFT(SFT.Options(turns="last")).select([group], context)
