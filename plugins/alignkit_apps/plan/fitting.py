"""What to do about a stage that does not fit: the nearest setting that does, found with the same arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from alignkit.errors import AlignkitError, Problem
from alignkit.recipe.schema import BASE, Recipe, Stage
from alignkit_apps.plan.cards import Machine, larger_cards
from alignkit_apps.plan.memory import USABLE, Memory

LEAST = 64  # tokens that a stage is cut down to at most
Planner = Callable[[Sequence[str], str], tuple[Recipe, Memory]]


def candidates(recipe: Recipe, stage: Stage, processes: int) -> Iterator[list[str]]:
    """Overrides that make a stage smaller, those that change least first. processes: that work on it."""
    name, spec, settings = stage.name, recipe.base(stage.base), stage.settings
    key = "model" if stage.base == BASE else f"bases.{stage.base}"
    smaller = [] if spec.lora is not None else [f"{key}.lora={{r: 16}}"]
    quantized = [*smaller, f"{key}.quantization=nf4", *(["launcher.shard=false"] if recipe.shard else [])]
    if smaller:
        yield smaller
    if processes > 1 and not recipe.shard:
        start = [f"launcher.processes={processes}"] if recipe.sized_launcher is None else []
        yield [*smaller, *start, "launcher.shard=true"]
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


def nearest(recipe: Recipe, stage: Stage, machine: Machine, processes: int, plan: Planner) -> list[str]:
    """The overrides that change least of those with which a stage fits; empty if none of them is enough."""
    for overrides in candidates(recipe, stage, processes):
        try:
            _, memory = plan(overrides, stage.name)
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
    ways = [" ".join(found)] if (found := nearest(recipe, stage, machine, processes, plan)) else []
    cards = [card.name for card in larger_cards(memory.peak / USABLE)][:1]
    ways += [f"--gpus {f'{machine.count}x' if machine.count > 1 else ''}{cards[0]}"] if cards else []
    help = f"it fits with {' or with '.join(ways)}" if ways else "use a smaller base model"
    return recipe.problem(("stages", stage.name), message, at_key=True, help=help)
