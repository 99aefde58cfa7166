"""The start of `alignkit run`, as the only process or as one of several, and of `alignkit.run` in
Python.

The first line comes before torch.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from alignkit.contract.commands import Result
from alignkit.contract.kinds import World
from alignkit.errors import Stopped, message_of, refuse
from alignkit.host.plugins import launcher, load_plugins
from alignkit.host.plugins import plugins as registered
from alignkit.io.console import Reporter
from alignkit.io.results import CELLS, FACTS, PAGE, RECIPE, json_lines, read_record
from alignkit.io.text import Say, exists
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe
from alignkit.recipe.yaml import find_recipe
from alignkit.runs.services import begin, folder_of
from alignkit.runs.signals import should_stop
from alignkit.training.collectives import ONE_PROCESS

RANK = "RANK"  # the variable in which launchers say which process this is
SAME_ERROR = 5.0  # seconds in which process 0 meets an error that this one meets, too


def start(load: Callable[[Say], Recipe], out: Path | None) -> dict[str, Any] | int:
    """Run a recipe; returns what it left, or the exit code. load: reads the recipe, and passes on
    its warnings.
    """
    world = world_of()
    if world.process == 0:
        return _run(load, out, world)
    try:
        _run(load, out, world)
    except KeyboardInterrupt:  # as all processes of a terminal
        return 130
    except Exception as error:  # process 0 prints an error that all have
        # Whoever started this process ends it with this signal now.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SAME_ERROR)
        with suppress(Stopped):  # or has asked it to end already
            should_stop()
            Reporter().say(f"process {world.process}: {message_of(error)}")
        return int(getattr(error, "exit_code", 1))
    return 0


def _run(load: Callable[[Say], Recipe], out: Path | None, world: World) -> dict[str, Any]:
    """Run a recipe as one of its processes. Only the first one prints."""
    began, warnings = time.monotonic(), list[str]()
    recipe = load(warnings.append)
    folder = folder_of(recipe, out)
    if world.process == 0:
        reporter = begin(recipe, folder)
    else:
        reporter = Reporter(Console(quiet=True), Console(quiet=True))
    reporter.began = began
    for warning in warnings:
        reporter.say(warning)
    reporter.say("loading torch and transformers")
    # Here, because whoever interrupts it leaves half of torch, and no run to end
    importlib.import_module("torch")
    from alignkit.runs.run import run_recipe

    collectives = ONE_PROCESS
    if world.processes > 1:
        collectives = launcher().join(recipe, folder, world)
    run_recipe(recipe, folder, reporter, collectives)
    collectives.close()
    return result_of(recipe, folder)


@dataclass(frozen=True)
class StageResult:
    """What a stage made. folder: its files; `adapter` in it has the trained weights in peft's
    format.

    summary: as in stage.json. metrics: one mapping per step or iteration.
    """

    folder: Path
    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]] = field(repr=False)


def run(
    recipe: str | Path,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    each: Mapping[str, Sequence[Any]] | None = None,
    jobs: int = 1,
) -> dict[str, StageResult]:
    """Run a recipe, and resume or reuse what is in its folder; returns what each stage made, by its
    name, or by `CELL/STAGE` with `each`.

    Raises an AlignkitError that says what is wrong. Signals stop the run only in the main thread.

    Args:
        recipe: A file, or the name of one that comes with alignkit.
        overrides: `{"stages.sft.epochs": 1}`.
        out: Default `runs/NAME`.
        plugins: Files to load, as with `--plugin`.
        each: `{"seed": [3, 4], "stages.align.algorithm": ["ppo", "grpo"]}`: a run for each
            combination, as with `--each`; also `{"seed": "3..7"}`. `alignkit show` has their table.
        jobs: Runs at once.
    """
    load_plugins(list(map(Path, plugins)))
    texts = [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
    path, where = find_recipe(recipe), Path(out) if out else None
    if each:
        return _cells_of(path, texts, where, plugins, each, jobs)
    checked = load_recipe(path, texts)
    folder = where or folder_of(checked, None)
    from alignkit.runs.run import run_recipe

    run_recipe(checked, folder)
    return _results(checked, folder)


def _cells_of(
    path: Path,
    texts: Sequence[str],
    out: Path | None,
    plugins: Sequence[str | Path],
    each: Mapping[str, Sequence[Any]],
    jobs: int,
) -> dict[str, StageResult]:
    """What each stage of each cell made, by `CELL/STAGE`."""
    command, words, found = [str(path), *texts], list[str](), dict[str, StageResult]()
    for file in plugins:
        command += ["--plugin", str(file)]
    for key, values in each.items():
        every = [values] if isinstance(values, str) else values
        plain = (value if isinstance(value, str) else json.dumps(value) for value in every)
        words.append(f"{key}={','.join(plain)}")
    made = run_cells(
        lambda more: load_recipe(path, [*texts, *more]), command, words, out, jobs, "", False
    )
    for row in sorted(Path(made.facts["folder"], CELLS).glob("*=*.json")):
        cell = row.with_name(row.name.removesuffix(".json"))
        for name, result in _results(load_recipe(cell / RECIPE), cell).items():
            found[f"{cell.name}/{name}"] = result
    return found


def run_cells(load: Any, command: Sequence[str], each: Sequence[str], *options: Any) -> Result:
    """What a plugin finds in many runs of a recipe."""
    load_plugins()
    for found in registered().ask("cells", load, command, each, *options):
        return found
    refuse("--each: no plugin runs cells", "`alignkit plugins` lists what is installed")


def _results(recipe: Recipe, folder: Path) -> dict[str, StageResult]:
    results = {}
    for name in recipe.chosen or recipe.stages:
        made = folder / name
        results[name] = StageResult(
            made, read_record(made)["summary"], json_lines(made / "metrics.jsonl")
        )
    return results


def result_of(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """What a run that is complete has left, which is printed already."""
    stages = {}
    for name, made in _results(recipe, folder).items():
        stages[name] = {
            "folder": made.folder,
            "summary": made.summary,
            "metrics": [{}, *made.metrics][-1],
        }
    written = {
        name: folder / name for name in ("run.log", RECIPE, PAGE, FACTS) if exists(folder / name)
    }
    return {"recipe": recipe.name, "folder": folder, "files": written, "stages": stages}


# Processes


def world_of(environment: Mapping[str, str] = os.environ) -> World:
    """What a launcher has set, as torch's does; one process if none has started this one."""
    if environment.keys() >= {RANK, "WORLD_SIZE", "MASTER_PORT"}:
        return World(int(environment[RANK]), int(environment["WORLD_SIZE"]))
    return World()
