"""Run a recipe from Python: what `alignkit run` does, for notebooks and scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.io.results import Results
from alignkit.plugins import load_plugins
from alignkit.recipe.load import load_recipe
from alignkit.recipe.yaml import find_recipe


@dataclass(frozen=True)
class StageResult:
    """What a stage made. folder: its files. adapter: the trained weights in peft's format; None for a step.

    summary: as in stage.json. metrics: one mapping per step or iteration.
    """

    folder: Path
    adapter: Path | None
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class RunResult:
    """A complete run: `result["align"].adapter`. folder: its files. stages: by name, in their order."""

    folder: Path
    stages: Mapping[str, StageResult]

    def __getitem__(self, stage: str) -> StageResult:
        """A stage's result by its name."""
        return self.stages[stage]


def run(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
) -> RunResult:
    """Run a recipe, and resume or reuse what is in its folder. Raises an AlignkitError that says what is wrong.

    Signals stop the run only in the main thread.

    Args:
        recipe: A file, or the name of one that comes with alignkit.
        overrides: `{"stages.sft.epochs": 1}`.
        out: Default `runs/NAME`.
        plugins: Files to load, as with `--plugin`.
    """
    from alignkit.runs.services import begin, folder_of

    registry = load_plugins([Path(file) for file in plugins]).registry
    texts = [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
    checked = load_recipe(find_recipe(recipe), texts, registry)
    folder = Path(out or folder_of(checked, None))
    reporter = begin(checked, folder)
    from alignkit.runs.run import run_recipe  # imports torch

    run_recipe(checked, folder, reporter)
    store = Results(folder, checked.stages)
    return RunResult(folder, {name: _result(store, name) for name in checked.stages})


def _result(store: Results, stage: str) -> StageResult:
    folder = store.path(stage)
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    adapter = folder / "adapter"
    return StageResult(
        folder,
        adapter if adapter.is_dir() else None,
        store.record(stage)["summary"],
        [json.loads(line) for line in lines],
    )
