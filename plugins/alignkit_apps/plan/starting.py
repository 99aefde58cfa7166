"""How many processes a planned run has, and what they refuse before anything is planned."""

from __future__ import annotations

from alignkit.errors import Problem, RecipeError
from alignkit.plugins import launcher
from alignkit.recipe.schema import Stage
from alignkit.runs.world import World, counted_processes
from alignkit_apps.plan.planned_run import PlannedRun


def check_processes(run: PlannedRun) -> None:
    """Raise RecipeError where the run would, or if a recipe starts another number of processes than there are cards."""
    recipe, machine, sized = run.recipe, run.machine, run.recipe.sized_launcher
    if machine is not None and sized is not None and (wanted := sized.processes) != machine.count:
        text = f"the recipe starts {counted_processes(wanted)}, but --gpus names {machine.count} x {machine.name}"
        fewer = f"{wanted}x" if wanted > 1 else ""
        help = f"write --gpus {fewer}{machine.name}, or override the recipe with launcher.processes={machine.count}"
        raise RecipeError([recipe.problem(("launcher", "processes"), text, help=help)])
    if machine is None:
        run.bases.check_devices(recipe.stages.values())
        _check_cards(run)
    if run.processes > 1:
        launcher().check(recipe, World())


def _check_cards(run: PlannedRun) -> None:
    """Raise RecipeError if this machine has fewer GPUs than the run has processes."""
    from torch import cuda

    gpus = [base for stage in run.recipe.stages.values() for base in run.needs(stage) if run.machine_of(base).gpu]
    if gpus and run.processes > cuda.device_count():
        text = f"{run.processes} processes need {run.processes} GPUs, but this machine has {cuda.device_count()}"
        help = f"plan for others, such as --gpus {run.processes}xH100, or override launcher.processes"
        raise RecipeError([Problem(text, help=help)])


def remarks(run: PlannedRun, stage: Stage) -> list[str]:
    """What a user may not expect of several processes."""
    recipe, count, settings = run.recipe, run.processes, stage.settings
    if count == 1:
        return ["'shard' cuts nothing in one process"] if recipe.shard else []
    if settings is None:
        return ["only process 0 runs it"]
    found = []
    if recipe.shard and recipe.base(stage.base).lora is None:
        found.append("weights that learn are counted whole, although 'shard' cuts them, too: this is an upper bound")
    for key, value in (("batch_size", settings.batch_size), ("prompts_per_iteration", settings.prompts_per_iteration)):
        if value < count and (key == "batch_size" or settings.prompts is not None):
            found.append(f"{key} {value} gives only {value} of {count} processes something to do")
    return found
