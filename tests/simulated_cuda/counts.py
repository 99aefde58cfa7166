"""Operators and host waits on the simulated device, `python tests/simulated_cuda/counts.py`.

Prints one JSON object per line.

Training: the operators of one layer, forward and backward, for packed rows of 2 and of 32 groups,
with and without Triton. Sampling: operators, waits and copies per token. The model is random and
tiny, so only counts mean anything.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
sys.path.insert(0, str(Path(__file__).parent))

import device
import torch
from architectures import ARCHITECTURES, make

from alignkit.data.group import Group
from alignkit.models.generate import Generation, generate
from alignkit.models.packing import pack
from alignkit.models.shared_model import SharedModel
from alignkit.sampling import Sampling
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.tokens.encoder import Encoded, Encoder, ResponseTokens
from alignkit_plugins.gpu import flex_attention as gpu_attention

SHAPES: dict[str, dict[str, Any]] = {
    "Llama": {"hidden_size": 64, "num_attention_heads": 4},
    "Gemma2": {"hidden_size": 64, "head_dim": 16, "sliding_window": 24},
}


def load(name: str, layers: int) -> SharedModel:
    ARCHITECTURES[name] = {**ARCHITECTURES[name], **SHAPES[name], "num_hidden_layers": layers}
    with tempfile.TemporaryDirectory() as folder:
        spec = ModelSpec(base="b", dtype="bfloat16", device="cuda", lora=LoraSpec(r=4))
        model = SharedModel(spec, str(make(Path(folder), name)))
    assert model.packs, model.unpacked_because
    model.add_role("policy")
    return model


def groups(count: int) -> list[Encoded]:
    """Groups of a prompt and two responses whose lengths differ."""
    found = []
    for number in range(count):
        rows = [ResponseTokens((5,) * size, (True,) * size) for size in (9 + number % 4, 14)]
        found.append(Encoded(Group(()), tuple(range(2, 12 + number % 3)), tuple(rows)))
    return found


def step(model: SharedModel, count: int) -> int:
    """Operators of a forward pass and its backward pass over `count` groups."""
    row = pack(groups(count))
    for parameter in model.make_trainable("policy").values():
        parameter.grad = None  # adding to a gradient would be one more operator
    before = device.device.launches
    hidden = model.hidden("policy", row.layout, row.tokens)
    hidden.float().square().mean().backward()
    return device.device.launches - before


def training(name: str, triton: bool) -> dict[str, Any]:
    """Operators per layer: what two more layers add, without what a row needs once."""
    gpu_attention.has_triton = lambda: triton  # type: ignore[assignment]
    few, many = load(name, 2), load(name, 4)
    per_layer = {f"{n}_groups": (step(many, n) - step(few, n)) / 2 for n in (2, 32)}
    return {"what": "training", "model": name, "triton": triton, **per_layer}


def sampling(tokens: int) -> dict[str, Any]:
    """Counts per token of 16 rows, from two lengths: reading the prompts is left out."""
    model, counted = load("Llama", 2), device.device
    encoder = Encoder(model.tokenizer)
    seen = []
    for new in (tokens, 2 * tokens):
        counted.launches = counted.waits = counted.copies = 0
        streams: list[Sequence[int]] = [list(range(16))]
        limit = Sampling(max_new_tokens=new)
        generate(Generation(model, "policy", encoder, [(2, 3, 4, 5)], streams, limit))
        seen.append((counted.launches, counted.waits, counted.copies))
    per_token = [(long - short) / tokens for short, long in zip(*seen, strict=True)]
    return dict(
        zip(("what", "operators", "waits", "copies"), ("sampling", *per_token), strict=True)
    )


def main() -> None:
    device.enable(80.0)
    torch.set_num_threads(1)
    for name in SHAPES:
        for triton in (False, True):
            print(json.dumps(training(name, triton)), flush=True)
    print(json.dumps(sampling(64)), flush=True)
    os._exit(0)  # the device's threads do not end by themselves


if __name__ == "__main__":
    main()
