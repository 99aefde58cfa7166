"""Measuring without gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import encoded_groups, tiny_model

from alignkit.data.group import Group, Response
from alignkit.models.packing import Wants, indivisible, measure
from alignkit.models.shared_model import SharedModel
from alignkit.sampling import Sampling
from alignkit.tokens.encoder import Encoder
from tests.sampled import sample


@pytest.mark.silent_bug(
    "models: reference",
    "Measured log-probabilities belong to other rows.",
    "They keep the order of the groups.",
    "huggingface/trl#2423",
)
def test_measurements_keep_the_order_of_the_groups(tmp_path: Path) -> None:
    """A bundle's groups are packed together, but results keep the order of the groups."""
    model = tiny_model(tmp_path)
    words = ("yes", "no, never", "perhaps, who knows?", "well", "it is late, and I am tired")
    encoder = Encoder(model.tokenizer)
    groups = [
        Group(
            ({"role": "user", "content": f"is it {n}?"},),
            (Response(text=w), Response(text=w + "!")),
            bundle=bundle,
        )
        for n, (w, bundle) in enumerate(zip(words, ("a", "b", "a", None, "b"), strict=True))
    ]
    whole = [e for group in groups if (e := encoder.encode(group, 200)) is not None]
    assert [len(unit) for unit in indivisible([e.group.bundle for e in whole])] == [2, 2, 1]
    model.add_role("rm", head="scalar")
    wanted = {
        "logprobs": Wants(),
        "values": Wants(False, values="rm"),
        "scores": Wants(False, scores=True),
    }
    for role, what in (("base", "logprobs"), ("rm", "values"), ("rm", "scores")):
        alone = [row for e in whole for row in measure(model, role, [e], wanted[what])[what]]
        found = measure(model, role, whole, wanted[what])[what]
        assert len(found) == len(alone) == 10
        for a, b in zip(found, alone, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


class Enough(Exception):
    pass


@pytest.mark.parametrize("what", ["measured", "sampled"])
def test_a_long_pass_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Before the next micro-batch or token."""
    model = tiny_model(tmp_path)
    monkeypatch.setattr(SharedModel, "token_budget", 1)
    groups, seen = encoded_groups(model, 9).groups, list[int]()

    def stop() -> None:
        seen.append(1)
        if len(seen) == 4:
            raise Enough

    model.should_stop = stop
    with pytest.raises(Enough):
        if what == "measured":
            measure(model, "base", groups)["logprobs"]
        else:
            sampling = Sampling(max_new_tokens=50, min_new_tokens=40)
            sample(
                model, "base", Encoder(model.tokenizer), [e.group for e in groups], sampling, seed=0
            )
    assert len(seen) == 4
