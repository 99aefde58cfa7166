"""Operators and host waits on the simulated device, `python tests/simulated_cuda/counts.py
[training] [sampling]`.

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
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "models"))
sys.path.insert(0, str(Path(__file__).parent))

import device
import torch
from architectures import ARCHITECTURES, VOCABULARY, make

from alignkit.data.group import Group
from alignkit.models.generate import Generation, generate
from alignkit.models.packing import pack
from alignkit.models.shared_model import SharedModel
from alignkit.sampling import Sampling
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.tokens.encoder import Encoded, Encoder, ResponseTokens
from alignkit_plugins.gpu import flex_attention as gpu_attention

LAYERS = (2, 4)
GROUPS = (2, 32)
SHAPES: dict[str, dict[str, Any]] = {
    "Llama": {"hidden_size": 64, "num_attention_heads": 4},
    "Gemma2": {"hidden_size": 64, "head_dim": 16, "sliding_window": 24},
}


def load(name: str, layers: int, lora: bool = True) -> SharedModel:
    options = {**ARCHITECTURES[name], **SHAPES[name], "num_hidden_layers": layers}
    before, ARCHITECTURES[name] = ARCHITECTURES[name], options
    try:
        with tempfile.TemporaryDirectory() as folder:
            spec = ModelSpec(
                base="b", dtype="bfloat16", device="cuda", lora=LoraSpec(r=4) if lora else None
            )
            return SharedModel(spec, str(make(Path(folder), name)))
    finally:
        ARCHITECTURES[name] = before


def groups(count: int) -> list[Encoded]:
    """Groups of a prompt and two responses whose lengths differ."""
    prompt = [tuple(range(2, 12 + number % 3)) for number in range(count)]
    rows = [
        tuple(ResponseTokens((5,) * length, (True,) * length) for length in (9 + n % 4, 14))
        for n in range(count)
    ]
    return [Encoded(Group(()), *parts) for parts in zip(prompt, rows, strict=True)]


def step(model: SharedModel, count: int) -> int:
    """Operators of a forward pass and its backward pass over `count` groups."""
    row = pack(groups(count))
    for parameter in model.parameters_of("trained").values():
        parameter.grad = None  # adding to a gradient would be one more operator
    before = device.device.launches
    hidden = model.hidden("trained", row.layout, row.tokens)
    hidden.float().square().mean().backward()
    return device.device.launches - before


def training(name: str, triton: bool) -> dict[str, Any]:
    """Operators per layer: what two more layers add, without what a row needs once."""
    gpu_attention.has_triton = lambda: triton  # type: ignore[assignment]
    counted = []
    for layers in LAYERS:
        model = load(name, layers)
        assert model.packs, model.unpacked_because
        model.add_role("trained")
        model.make_trainable("trained")
        counted.append([step(model, count) for count in GROUPS])
    few, many = counted
    per_layer = [(b - a) / (LAYERS[1] - LAYERS[0]) for a, b in zip(few, many, strict=True)]
    numbers = {f"{count}_groups": number for count, number in zip(GROUPS, per_layer, strict=True)}
    return {
        "what": "operators per layer, forward and backward",
        "model": name,
        "triton": triton,
        **numbers,
    }


def so_far() -> dict[str, float]:
    found = device.device
    return {
        "operators": found.launches,
        "waits": sum(found.waits.values()),
        "copies": sum(found.copies.values()),
    }


def sampling(rows: int, tokens: int) -> dict[str, Any]:
    """Counts per token of a batch, from two lengths: reading the prompts is left out."""
    model = load("Llama", 2)
    model.add_role("policy")
    encoder = Encoder(model.tokenizer, None, frozenset())
    counted: list[dict[str, float]] = []
    for new in (tokens, 2 * tokens):
        before = so_far()
        streams: list[Sequence[int]] = [list(range(rows))]
        generate(
            Generation(
                model, "policy", encoder, [(2, 3, 4, 5)], streams, Sampling(max_new_tokens=new)
            )
        )
        counted.append({key: number - before[key] for key, number in so_far().items()})
    per_token = {key: (counted[1][key] - counted[0][key]) / tokens for key in counted[0]}
    return {
        "what": "sampling, per token of 2 layers",
        "rows": rows,
        "vocabulary": VOCABULARY,
        **per_token,
    }


def main() -> None:
    device.enable(80.0)
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or ["training", "sampling"]
    for name, triton in product(SHAPES, (False, True)) if "training" in wanted else ():
        print(json.dumps(training(name, triton)), flush=True)
    if "sampling" in wanted:
        print(json.dumps(sampling(16, 64)), flush=True)
    os._exit(0)  # the device's threads do not end by themselves


if __name__ == "__main__":
    main()
