"""The plan of a recipe: what each of its stages will take, and the stages that cannot fit."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.algorithm import Algorithm
from alignkit.author import made
from alignkit.errors import RecipeError
from alignkit.recipe.schema import Recipe, Stage
from alignkit.runs.plan import plan as reuse
from alignkit.runs.run import Run
from alignkit.training.learning_rate import with_learning_rate
from alignkit_apps.plan.cards import Machine
from alignkit_apps.plan.fitting import too_large
from alignkit_apps.plan.memory import Memory, stage_memory
from alignkit_apps.plan.planned_run import PlannedRun
from alignkit_apps.plan.starting import check_processes
from alignkit_apps.plan.starting import remarks as of_processes
from alignkit_apps.plan.timing import Pace, Seconds, pace_of, probed, seconds_of
from alignkit_apps.plan.tokens import Workload, of_the_busiest, workload


@dataclass(frozen=True)
class StagePlan:
    """What is known of a stage before it runs.

    reuse: what a run would do with it, as `alignkit validate --out` says. own: the work of the busiest of `processes`,
    which work on it. seconds: None if nothing is known of the machine's speed. learning_rate: None for a step. remarks:
    on its processes. start: the processes that the command must start, because the recipe does not say how many.
    """

    name: str
    plugin: str
    machine: Machine
    reuse: str
    work: Workload
    own: Workload
    processes: int
    memory: Memory
    seconds: Seconds | None
    learning_rate: float | None = None
    remarks: Sequence[str] = ()
    start: int = 1


Load = Callable[[Sequence[str]], Recipe]


def plan_recipe(
    recipe: Recipe,
    out: Path,
    load: Load,
    machine: Machine | None = None,
    *,
    probe: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> list[StagePlan]:
    """Plan all stages. Raises RecipeError if one cannot fit, with the nearest setting that fits.

    out: the folder of the run, for what it would reuse. load: the recipe with more overrides. machine: None: this one.
    probe: measure the time here.
    """
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*FakeTensor.*")  # of copies of models without numbers
        run = _planned(recipe, out, machine, stack)
        check_processes(run)
        reused = dict(line.split(": ", 1) for line in reuse(Run(recipe, run.folder)))
        paces: Callable[[str], Pace | None] = cache(lambda base: _probed(run, base, say) if probe else None)
        done: dict[str, Workload] = {}
        plans, problems = [], []
        for stage in recipe.stages.values():
            found = _stage(run, stage, done, reused[stage.name], paces)
            plans.append(found)
            if not found.memory.fits(found.machine):
                again = planner(load, out, machine)
                problems.append(too_large(recipe, stage, found.memory, found.machine, found.processes, again))
        if problems:
            raise RecipeError(problems)
        return plans


def _planned(recipe: Recipe, out: Path, machine: Machine | None, stack: ExitStack) -> PlannedRun:
    """A run in its folder or, if there is none yet, in a temporary one: a plan leaves nothing behind."""
    folder = out if out.is_dir() else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alignkit-plan-")))
    return PlannedRun(recipe, folder, machine, layers=1)


def _probed(run: PlannedRun, base: str, say: Callable[[str], None]) -> Pace | None:
    say(f"measuring how fast {run.recipe.base(base).base} is here, on a few layers")
    return probed(run, base)


def _stage(
    run: PlannedRun, stage: Stage, done: dict[str, Workload], reused: str, probe: Callable[[str], Pace | None]
) -> StagePlan:
    base = run.needs(stage)[0]
    machine = run.machine_of(base)
    work = done[stage.name] = workload(run, stage, done)
    processes, memory = run.working(stage), stage_memory(run, stage, work)
    own = of_the_busiest(work, processes)
    busy = work.learned or work.measured or work.sampled
    pace = pace_of(run, base, memory, work, probe) if busy and reused != "reused" else None
    return StagePlan(
        name=stage.name,
        plugin=stage.component.name,
        machine=machine,
        reuse=reused,
        work=work,
        own=own,
        processes=processes,
        memory=memory,
        seconds=seconds_of(own, pace) if pace else None,
        learning_rate=learning_rate(run, stage),
        remarks=of_processes(run, stage),
        start=run.processes if run.recipe.sized_launcher is None else 1,
    )


def learning_rate(run: PlannedRun, stage: Stage) -> float | None:
    """The rate that a stage learns at: as written, or the algorithm's for this model."""
    if stage.settings is None:
        return None
    algorithm, _ = made(stage.component, stage.name)
    if not isinstance(algorithm, Algorithm):
        return stage.settings.learning_rate
    context = with_learning_rate(run.stage_context(stage, run.folder / stage.name), algorithm.defaults)
    return context.settings.learning_rate


def planner(load: Load, out: Path, machine: Machine | None) -> Callable[[Sequence[str], str], tuple[Recipe, Memory]]:
    """Plans one stage of the recipe with more overrides."""

    def plan(overrides: Sequence[str], name: str) -> tuple[Recipe, Memory]:
        recipe = load(overrides)
        with ExitStack() as stack:
            run = _planned(recipe, out, machine, stack)
            check_processes(run)
            done: dict[str, Workload] = {}
            for stage in recipe.stages.values():
                done[stage.name] = workload(run, stage, done)
                if stage.name == name:
                    break
            return recipe, stage_memory(run, recipe.stages[name], done[name])

    return plan


def as_json(recipe: Recipe, plans: Sequence[StagePlan]) -> dict[str, Any]:
    """The plan as plain data: bytes, seconds and tokens."""
    stages = []
    for found in plans:
        work, memory = found.work, found.memory
        stages.append(
            {
                "name": found.name,
                "plugin": found.plugin,
                "run": found.reuse,
                "learning_rate": found.learning_rate,
                **{key: value for key, value in vars(work).items() if key != "batches"},
                "processes": found.processes,
                "own": {key: getattr(found.own, key) for key in ("learned", "measured", "sampled")},
                "memory": {**vars(memory), "peak": memory.peak},
                "seconds": {**vars(found.seconds), "total": found.seconds.total} if found.seconds else None,
            }
        )
    machine = plans[0].machine
    facts = {"name": machine.name, "count": machine.count, "bytes": machine.memory, "source": machine.source}
    return {"recipe": recipe.name, "machine": facts, "stages": stages}
