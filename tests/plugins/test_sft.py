"""SFT and `lm`: the loss by hand, and what they learn from."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignkit import Algorithm, Batch, DataError, Group, Message, Outputs, Pairs, Response, SelectContext
from alignkit.loss import Per
from alignkit_sft import LM, SFT

NOTHING = torch.zeros(0, dtype=torch.int64)
NO_PAIRS = Pairs(NOTHING, NOTHING, NOTHING.float(), NOTHING.float(), NOTHING)
ASK: tuple[Message, ...] = ({"role": "user", "content": "Why?"},)


@pytest.mark.parametrize("cls", [SFT, LM])
def test_the_loss_is_the_negative_log_likelihood_of_each_token(cls: type[Algorithm]) -> None:
    mask = torch.tensor([[True, True], [True, False]])
    count = torch.zeros(2, dtype=torch.int64)
    batch = Batch([Group(()), Group(())], count[:, None].expand(2, 2), mask, torch.arange(2), NO_PAIRS, count.bool())
    out = Outputs(logprobs=torch.tensor([[-1.0, -2.0], [-4.0, 0.0]]))
    (name, term), *others = cls(cls.Options()).loss(batch, out).items()
    assert not others and (name, term.per, term.coefficient) == ("nll", Per.TOKEN, 1.0)
    assert term.values[mask].tolist() == [1.0, 2.0, 4.0]


def test_only_demonstrations_and_only_raw_text() -> None:
    context = SelectContext(0, 0, lambda: [], lambda **m: None, np.random.default_rng(0))
    demonstration, text = Group(ASK, (Response("so"),)), Group((), (Response("so it is"),))
    two, down = Group(ASK, (Response("so"), Response("no"))), Group(ASK, (Response("so", label=False),))
    sft, lm = SFT(SFT.Options()), LM(LM.Options())
    assert sft.select([demonstration], context) == [demonstration] and lm.select([text], context) == [text]
    for wrong in (text, two, down, Group(ASK)):
        with pytest.raises(DataError, match="sft learns demonstrations, but the row"):
            sft.select([demonstration, wrong], context)
    for wrong in (demonstration, two, Group((), (Response("a"), Response("b"))), Group(())):
        with pytest.raises(DataError, match="lm needs raw text, but row"):
            lm.select([text, wrong], context)
