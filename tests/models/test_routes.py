"""Experts that are chosen as in an earlier pass."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import MIXTURES, make, tokens

from alignkit.models.moe_routing import recording, repeating


@pytest.mark.parametrize("name", [*MIXTURES, "Llama4Text"])
@torch.no_grad()
def test_the_routes_of_an_earlier_pass_are_repeated(name: str, tmp_path: Path) -> None:
    """Of the tokens that are named, and of no others."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make(tmp_path, name), dtype=torch.float32)
    first, second = torch.tensor([tokens(9, 1)]), torch.tensor([tokens(9, 2)])
    with recording(model) as routes:
        model(input_ids=first)
    assert routes
    which, sources = torch.arange(9) < 4, torch.arange(9).flip(0)
    with repeating(model, routes, which, sources), recording(model) as repeated:
        changed = model(input_ids=second).logits
    own = model(input_ids=second).logits
    for key, found in repeated.items():
        pairs = zip(found, routes[key], strict=True) if isinstance(found, tuple) else [(found, routes[key])]
        for one, earlier in pairs:
            assert torch.equal(one[which], earlier[sources][which])
    assert not torch.equal(changed, own)
    assert torch.equal(model(input_ids=second).logits, own), "no hook remains"
    with repeating(model, repeated, torch.zeros(9, dtype=torch.bool), sources):
        assert torch.equal(model(input_ids=second).logits, own)
