"""All weights of a network learn, and each process holds a part of them: the same results as those of one process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LOSS, metrics_of, offline, write_recipe
from forked import together
from safetensors.torch import load_file

from alignkit import cli

pytestmark = pytest.mark.usefixtures("one_thread")

WHOLE = ("model.lora=none", "stages.*.learning_rate=0.001")
ONE = ("launcher.processes=1", "launcher.shard=false")
WEIGHTS = 1e-5
FULL = {"base": "tiny", "dtype": "float32", "lora": "none"}


def write(stages: Mapping[str, Any], processes: int = 2, **keys: Any) -> Path:
    recipe = write_recipe(stages, launcher={"processes": processes, "shard": True}, **keys)
    text = recipe.read_text().replace("  lora:\n    r: 4\n    lora_alpha: 8\n", "  lora: none\n")
    recipe.write_text(text)
    return recipe


def run_together(work: Path, recipe: Path, out: str, *overrides: str, processes: int = 2) -> None:
    ended = together(work, ["run", recipe, *overrides, "--out", out], processes)
    assert [process.code for process in ended] == [0] * processes, ended[0].err + "\n" + ended[1].err


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: weight for file in sorted(folder.glob("*.safetensors")) for name, weight in load_file(file).items()}


def assert_alike(found: Path, expected: Path) -> None:
    for row, other in zip(metrics_of(found), metrics_of(expected), strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            near = value if isinstance(value, str) else pytest.approx(value, abs=LOSS, rel=LOSS)
            assert row[name] == near, f"{row['stage']}, step {row.get('step')}: {name}"
    for stage in {row["stage"] for row in metrics_of(expected)}:
        ours, theirs = (next(folder.glob(f"{stage}/*/config.json")).parent for folder in (found, expected))
        assert (ours / "config.json").read_text() == (theirs / "config.json").read_text()
        assert weights_of(ours).keys() == weights_of(theirs).keys()
        for name, weight in weights_of(theirs).items():
            assert (weights_of(ours)[name] - weight).abs().max() <= WEIGHTS, f"{stage}: {name}"


def test_sft(work: Path) -> None:
    recipe = write({"sft": offline("sft", "demos", epochs=2, validation={"path": "demos.jsonl"})})
    assert cli.main(["run", str(recipe), *ONE, "--out", "one"]) == 0
    run_together(work, recipe, "several")
    assert_alike(Path("several"), Path("one"))
