"""The plan of a recipe: what each of its stages will take, and the stages that cannot fit."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from alignkit.algorithm import Algorithm
from alignkit.errors import AlignkitError, Problem, RecipeError
from alignkit.plugin_errors import made
from alignkit.recipe.schema import BASE, Recipe, Stage
from alignkit.runs.run import Run
from alignkit.training.learning_rate import with_learning_rate
from alignkit_apps.check.cards import Machine, larger_cards
from alignkit_apps.check.memory import USABLE, Memory, stage_memory
from alignkit_apps.check.reuse import planned as reuse
from alignkit_apps.check.shape_model import PlannedRun
from alignkit_apps.check.timing import Pace, Seconds, pace_of, probed, seconds_of
from alignkit_apps.check.tokens import Workload, of_the_busiest, workload


@dataclass(frozen=True)
class StagePlan:
    """What is known of a stage before it runs.

    reuse: what a run would do with it, as `alignkit check --out` says. own: the work of the busiest of `processes`,
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


AHEAD = (
    "sampled while it learns: an iteration takes as long as the longer of both, if the engine is as fast as alignkit"
)

Load = Callable[[Sequence[str]], Recipe]  # with more overrides
Planner = Callable[[Sequence[str], str], Memory]  # of a stage with more overrides


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
        if machine is None:
            run.bases.check_devices(recipe.stages.values())
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
    base = run.bases.needed(stage)[0]
    machine = run.machine_of(base)
    work = done[stage.name] = workload(run, stage, done)
    processes, memory = run.working(stage), stage_memory(run, stage, work)
    own = of_the_busiest(work, processes)
    busy = work.learned or work.measured or work.sampled
    ahead = (stage.settings.iterations or 1) if stage.settings and stage.settings.rollout.ahead else 0
    pace = pace_of(run, base, memory, probe) if busy and reused != "reused" else None
    return StagePlan(
        name=stage.name,
        plugin=stage.component.name,
        machine=machine,
        reuse=reused,
        work=work,
        own=own,
        processes=processes,
        memory=memory,
        seconds=seconds_of(own, pace, ahead) if pace else None,
        learning_rate=learning_rate(run, stage),
        remarks=[*of_processes(run, stage), *([AHEAD] if ahead else [])],
        start=run.processes,
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


def planner(load: Load, out: Path, machine: Machine | None) -> Planner:
    """Plans one stage of the recipe with more overrides."""

    def plan(overrides: Sequence[str], name: str) -> Memory:
        recipe = load(overrides)
        with ExitStack() as stack:
            run = _planned(recipe, out, machine, stack)
            done: dict[str, Workload] = {}
            for stage in recipe.stages.values():
                done[stage.name] = workload(run, stage, done)
                if stage.name == name:
                    break
            return stage_memory(run, recipe.stages[name], done[name])

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


# Processes


def of_processes(run: PlannedRun, stage: Stage) -> list[str]:
    """What a user may not expect of several processes, or of an engine."""
    count, settings = run.processes, stage.settings
    found = []
    if stage.engine is not None:
        found.append(f"the engine '{stage.engine.name}' samples: what it needs is not counted")
    if count == 1:
        return found
    if settings is None:
        return [*found, "only process 0 runs it"]
    for key, value in (("batch_size", settings.batch_size), ("prompts_per_iteration", settings.prompts_per_iteration)):
        if value < count and (key == "batch_size" or settings.prompts is not None):
            found.append(f"{key} {value} gives only {value} of {count} processes something to do")
    return found


# The nearest setting with which a stage fits

LEAST = 64  # tokens that a stage is cut down to at most


def candidates(recipe: Recipe, stage: Stage) -> Iterator[list[str]]:
    """Overrides that make a stage smaller, those that change least first."""
    name, spec, settings = stage.name, recipe.base(stage.base), stage.settings
    key = "model" if stage.base == BASE else f"bases.{stage.base}"
    smaller = [] if spec.lora is not None else [f"{key}.lora={{r: 16}}"]
    quantized = [*smaller, f"{key}.quantization=nf4"]
    if smaller:
        yield smaller
    if spec.quantization == "none":
        yield quantized
    shorter: list[list[str]] = []
    if settings is not None:
        shorter += [[f"stages.{name}.max_length={length}"] for length in _halved(settings.max_length)]
        if settings.prompts is not None:
            new = settings.rollout.max_new_tokens or 1
            shorter += [[f"stages.{name}.rollout.max_new_tokens={length}"] for length in _halved(new)]
    yield from shorter
    if spec.quantization == "none":
        yield from ([*quantized, *setting] for setting in shorter)


def _halved(tokens: int) -> Iterator[int]:
    while (tokens := tokens // 2) >= LEAST:
        yield tokens


def nearest(recipe: Recipe, stage: Stage, machine: Machine, plan: Planner) -> list[str]:
    """The overrides that change least of those with which a stage fits; empty if none of them is enough."""
    for overrides in candidates(recipe, stage):
        try:
            memory = plan(overrides, stage.name)
        except AlignkitError:  # such as prompts that no longer leave room for a response
            continue
        if memory.fits(machine):
            return overrides
    return []


def too_large(recipe: Recipe, stage: Stage, memory: Memory, machine: Machine, processes: int, plan: Planner) -> Problem:
    """Why a stage does not fit, and what to do. processes: that work on it."""
    parts = memory.fullest
    largest = max(parts, key=lambda name: parts[name])
    shared = not machine.gpu and machine.count > 1  # process 0 runs a step, but the others are there, too
    where = f"each of {machine.count if shared else processes} processes" if shared or processes > 1 else machine.name
    message = (
        f"stage '{stage.name}' needs {memory.peak / 1e9:.1f} GB, most of it for {largest} "
        f"({parts[largest] / 1e9:.1f} GB), but {where} has {machine.room / 1e9:.1f} GB"
    )
    ways = [" ".join(found)] if (found := nearest(recipe, stage, machine, plan)) else []
    cards = [card.name for card in larger_cards(memory.peak / USABLE)][:1]
    ways += [f"--gpus {f'{machine.count}x' if machine.count > 1 else ''}{cards[0]}"] if cards else []
    help = f"it fits with {' or with '.join(ways)}" if ways else "use a smaller base model"
    return recipe.problem(("stages", stage.name), message, at_key=True, help=help)
