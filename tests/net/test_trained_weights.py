"""Every method trains the weights that it trained before the work began, to the byte."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.net import recipes
from tests.net.changes import differences, expected
from tests.net.recipes import NET, RECIPES, ROOT

# Of the fingerprints of two processors, per unit of the norm. AVX-512 and AVX2 differ by 3e-7; a
# changed loss by 0.1.
TOLERANCE = 1e-3
METHODS = [
    "sft",
    "lm",
    "reward_model",
    "reward_regression",
    "reward_ordinal",
    "dpo",
    "cpl",
    "hir",
    "hir_offline",
    "kto",
    "simpo",
    "orpo",
    "cpo",
    "online_dpo",
    "ppo",
    "grpo",
    "rloo",
    "reinforce_pp",
    "rejection_sampling",
    "rest",
    "expert_iteration",
    "distillation",
]


def pins() -> tuple[dict[str, Any], bool]:
    """The pins, and whether they are this processor's own. They are made once where the base commit
    is at hand.
    """
    name = f"adapters-{recipes.processor()}.json"
    kept = ROOT / ".net" / name
    for file in (NET / "pins" / name, kept):
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8")), True
    kept.parent.mkdir(exist_ok=True)
    with FileLock(str(kept) + ".lock"):
        if not kept.exists() and recipes.base_python() is not None:
            subprocess.run(
                [sys.executable, "-m", "tests.net.recipes", str(kept)], cwd=ROOT, check=True
            )
    if kept.exists():
        return json.loads(kept.read_text(encoding="utf-8")), True
    other = min((NET / "pins").glob("adapters-*.json"))
    return json.loads(other.read_text(encoding="utf-8")), False


def apart(one: list[float], other: list[float]) -> float:
    """The largest difference of two fingerprints, per unit of the norm."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True)) / one[0]


def test_the_recipes_have_every_method() -> None:
    for folder in ("old", "now"):
        text = "".join(
            (NET / folder / f"{name}.yaml").read_text(encoding="utf-8") for name in RECIPES
        )
        assert [
            name
            for name in METHODS
            if f"algorithm: {name}" not in text and f"{{{name}: " not in text
        ] == []


@pytest.mark.parametrize(
    "recipe", ["smoke", *(pytest.param(x, marks=pytest.mark.slow) for x in RECIPES if x != "smoke")]
)
def test_the_weights_are_those_of_the_base_commit(recipe: str, tmp_path: Path) -> None:
    known, own = pins()
    wanted = {
        name: pin
        for name, pin in expected("adapters", known).items()
        if name.startswith(f"{recipe}/")
    }
    found = recipes.trained(sys.executable, NET / "now", recipe, tmp_path)
    assert wanted.keys() == found.keys()
    if own:
        wrong = differences("adapters", wanted, found)
    else:
        distances = {name: apart(wanted[name]["about"], found[name]["about"]) for name in wanted}
        wrong = [
            f"{name}: apart by {far:.2g}" for name, far in distances.items() if far > TOLERANCE
        ]
    assert not wrong, "\n".join(wrong)
