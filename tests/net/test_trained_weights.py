"""Every method trains the weights that it trained before the redesign, whatever the processor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.net.changes import NET
from tests.rows import run

TOLERANCE = 1e-5  # per unit of the norm; processors differ by 3e-7, a changed loss by 0.1
(PINS,) = (NET / "pins").glob("adapters-*.json")


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
    found = {}
    # A stage on another base model has a recipe of its own
    for file in sorted((NET / "now").glob(f"{recipe}*.yaml")):
        out = run(file, out=tmp_path / file.stem)
        for weights in sorted(out.glob("*/adapter/*.safetensors")):
            found[f"{recipe}/{weights.parts[-3]}/{weights.name}"] = about(weights)
    assert wanted.keys() == found.keys()
    for name, pin in wanted.items():
        assert found[name] == pytest.approx(pin, rel=0, abs=TOLERANCE * pin[0]), name
