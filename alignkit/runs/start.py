"""The start of `alignkit run`: as the only process, or as one of several."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from alignkit.errors import message_of
from alignkit.io.console import Reporter
from alignkit.launcher import launcher
from alignkit.outcome import Result
from alignkit.recipe.schema import Recipe
from alignkit.runs.startup import begin, folder_of, result_of
from alignkit.runs.world import NOT_BY_ACCELERATE, World, world_of

SAME_ERROR = 5.0  # seconds in which process 0 meets an error that this one meets, too


def start(load: Callable[[Callable[[str], None]], Recipe], out: Path | None) -> Result | int:
    """Run a recipe; returns its result, or the exit code. load: reads the recipe, and passes on its warnings."""
    world = world_of()
    if not world.leads:
        return _follower(load, out, world)
    warnings: list[str] = []
    began = time.monotonic()
    recipe = load(warnings.append)
    folder, reporter = begin(recipe, out)
    reporter.began = began
    if world.processes == 1 and world.shard:
        os.environ |= NOT_BY_ACCELERATE
        warnings.append("warning: base models are not cut in one process; start several with --num_processes N")
    for warning in warnings:
        reporter.say(warning)
    reporter.loading_torch()
    if world.processes > 1:
        launcher().run(recipe, folder, reporter, world)
    else:
        from alignkit.runs.run import run_recipe  # imports torch

        run_recipe(recipe, folder, reporter)
    return result_of(recipe, folder)


def _follower(load: Callable[[Callable[[str], None]], Recipe], out: Path | None, world: World) -> int:
    """Run a recipe as a process that does not lead. Process 0 prints an error that both meet."""
    try:
        recipe = load(lambda warning: None)
        launcher().run(recipe, folder_of(recipe, out), Reporter(), world)
    except Exception as error:
        time.sleep(SAME_ERROR)  # whoever started this process ends it if process 0 has ended
        Reporter().say(f"process {world.process}: {message_of(error)}")
        return int(getattr(error, "exit_code", 1))
    return 0
