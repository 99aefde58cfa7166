"""Runs of one stage with an environment, on the tiny model with the template `hermes`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from scripted import END, call

from alignkit import Environment, RunFailed
from alignkit.data.group import Group, read_groups
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from tests.house_run import LORA
from tests.rows import TINY, read_rows, write_recipe, write_rows

STAGE: dict[str, Any] = yaml.safe_load("""
algorithm: grpo
prompts: prompts.jsonl
environment: calculator
reward: environment
rollout: {samples_per_prompt: 2, max_new_tokens: 90}
iterations: 1
prompts_per_iteration: 2
batch_size: 2
epochs: 1
""")
MODEL = {**TINY, "chat_template": "hermes", "lora": LORA}
TURNS = [[call("2 + 3")], [f"5{END}", f"It is 6{END}"]]


def run_of(folder: Path, cls: type[Environment] | None = None, **keys: Any) -> Run:
    """A run of one stage, `align`. cls: an environment in place of the calculator, under its
    name.
    """
    folder.mkdir(exist_ok=True)
    rows = [{"prompt": f"What is {a} + 3?", "answer": str(a + 3)} for a in (2, 3)]
    write_rows(folder / "prompts.jsonl", rows)
    before = keys.pop("before", {})
    loaded = load_recipe(write_recipe(folder, {**before, "align": {**STAGE, **keys}}, MODEL))
    (folder / "run").mkdir(exist_ok=True)
    if cls is not None:
        stage = loaded.stages["align"]
        assert stage.settings is not None
        component = stage.settings.environment
        registration = replace(component.registration, target=cls, kind="")
        component = replace(component, registration=registration, options=cls.Options())
        settings = stage.settings.model_copy(update={"environment": component})
        loaded.stages["align"] = replace(stage, settings=settings)
    return Run(loaded, folder / "run")


def rollouts(run: Run, number: int = 1) -> list[Group]:
    return read_groups(run.folder / "align" / "rollouts" / f"{number:04d}.jsonl")


def metrics(run: Run) -> list[dict[str, Any]]:
    return read_rows(run.folder / "align" / "metrics.jsonl")


def roll_out(run: Run) -> None:
    """Execute a run whose rewards may be equal: it then ends after its rollouts, because they teach
    nothing.
    """
    try:
        run.execute()
    except RunFailed as error:
        if "nothing to learn from" not in str(error):
            raise
