"""Every method trains the weights that it trained before the redesign, whatever the processor.

A token whose draw is at an edge may be another one on another processor, after which its stage, and
those that begin from it, have other weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.net.changes import NET
from tests.rows import run
from tests.sampled import noting

TOLERANCE = 1e-5  # per unit of the norm; processors differ by 3e-7, a changed loss by 0.1
LEAST = 0.8  # of the weights, which are the same on any processor
# Those of one processor are those of all
PINS = sorted((NET / "pins").glob("adapters-*.json"))[0]


def about(file: Path) -> list[float]:
    """The norm of what was learned, and its products with fixed random directions of length 1.

    LoRA's first matrices begin at random and hardly move, so they say little; its second ones begin
    at 0.
    """
    tensors = {name: tensor for name, tensor in load_file(file).items() if "lora_A" not in name}
    numbers = torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])
    found = [float(numbers.norm())]
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        direction = torch.randn(len(numbers), generator=draw, dtype=torch.float64)
        found.append(float(numbers @ direction / direction.norm()))
    return found


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "recipe",
    ["smoke", *(pytest.param(x, marks=pytest.mark.slow) for x in ("pairs", "rollouts", "rounds"))],
)
def test_the_weights_are_those_of_the_base_commit(recipe: str, tmp_path: Path) -> None:
    wanted = json.loads(PINS.read_text(encoding="utf-8"))
    wanted = {name: pin["about"] for name, pin in wanted.items() if name.startswith(f"{recipe}/")}
    found, different = {}, []
    # A stage on another base model has a recipe of its own
    for file in sorted((NET / "now").glob(f"{recipe}*.yaml")):
        with noting() as undecided:
            out = run(file, out=tmp_path / file.stem)
        for weights in sorted(out.glob("*/adapter/*.safetensors")):
            stage = weights.parts[-3]
            name = f"{recipe}/{stage}/{weights.name}"
            found[name], pin = about(weights), wanted[name]
            if found[name] != pytest.approx(pin, rel=0, abs=TOLERANCE * pin[0]):
                assert stage in undecided, (name, found[name], pin)
                different.append(name)
    assert wanted.keys() == found.keys()
    assert len(different) <= (1 - LEAST) * len(wanted), different
