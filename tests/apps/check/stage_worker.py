"""What training stages take, in a fresh process: `python stage_worker.py RECIPE OUT OVERRIDE...`.

tensors: bytes that a step made, at its peak. growth: of the process, from after the imports and a run of the tiny
model, to its peak.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import torch

from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit.training.learner import Learner
from alignkit_apps.check.memory import LiveBytes, bytes_of

WARM_UP = {
    "model": {"base": "tiny", "dtype": "float32"},
    "stages": {"sft": {"algorithm": "sft", "data": "rows.jsonl", "max_steps": 2}},
}


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """The most bytes that the process has had since `forget_peak`."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def warm_up() -> None:
    """Import what a stage imports, and let the allocator grow by what every run takes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.json"
        path.write_text(json.dumps(WARM_UP), encoding="utf-8")
        row = {"prompt": "is it?", "completion": "yes"}
        (Path(folder) / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        run_recipe(load_recipe(path), Path(folder) / "out")


def measured(recipe: str, out: str, *overrides: str) -> dict[str, Any]:
    """Run the recipe, and count the bytes of its last training stage."""
    found: dict[str, Any] = {"tensors": 0, "optimizer": 0, "adapters": 0, "weights": 0}
    step = Learner.step

    def counted(self: Learner, *arguments: Any) -> dict[str, float]:
        own = [tensor for role in self.model.roles for tensor in self.model.parameters_of(role).values()]
        with LiveBytes([*self.model.model.parameters(), *self.model.model.buffers(), *own]) as tensors:
            metrics = step(self, *arguments)
        found["tensors"] = max(found["tensors"], tensors.peak)
        found["adapters"] = bytes_of(own)
        found["weights"] = bytes_of(p for p in self.model.model.parameters() if all(p is not other for other in own))
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        found["optimizer"] = bytes_of(value for value in kept if isinstance(value, torch.Tensor) and value.dim())
        return metrics

    Learner.step = counted  # type: ignore[method-assign]
    try:
        run_recipe(load_recipe(Path(recipe), overrides), Path(out))
    finally:
        Learner.step = step  # type: ignore[method-assign]
    return found


def main(recipe: str, out: str, *overrides: str) -> None:
    warm_up()
    before = resident()
    forget_peak()
    found = measured(recipe, out, *overrides)
    print(json.dumps({**found, "growth": peak() - before}))


if __name__ == "__main__":
    main(*sys.argv[1:])
