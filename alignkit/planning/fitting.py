"""What to do about a stage that does not fit: the nearest setting that does, found with the same arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from alignkit.errors import AlignkitError, Problem
from alignkit.planning.cards import Machine, larger_cards
from alignkit.planning.memory import USABLE, Memory
from alignkit.recipe.schema import Recipe, Stage

LEAST = 64  # tokens that a stage is cut down to at most
Planner = Callable[[Sequence[str], str], tuple[Recipe, Memory]]


def candidates(recipe: Recipe, stage: Stage) -> Iterator[list[str]]:
    """Overrides that make a stage smaller, those that change least first."""
    name, spec, settings = stage.name, recipe.base(stage.base), stage.settings
    quantized = ["model.quantization=nf4"] if stage.base == "base" else [f"bases.{stage.base}.quantization=nf4"]
    smaller = [] if spec.lora is not None else [f"{quantized[0].partition('.quantization')[0]}.lora={{r: 16}}"]
    if smaller:
        yield smaller
    if spec.quantization == "none":
        yield [*smaller, *quantized]
    shorter: list[list[str]] = []
    if settings is not None:
        shorter += [[f"stages.{name}.max_length={length}"] for length in _halved(settings.max_length)]
        if settings.prompts is not None:
            new = settings.rollout.max_new_tokens or 1
            shorter += [[f"stages.{name}.rollout.max_new_tokens={length}"] for length in _halved(new)]
    yield from shorter
    if spec.quantization == "none":
        yield from ([*smaller, *quantized, *setting] for setting in shorter)


def _halved(tokens: int) -> Iterator[int]:
    while (tokens := tokens // 2) >= LEAST:
        yield tokens


def nearest(recipe: Recipe, stage: Stage, machine: Machine, plan: Planner) -> list[str]:
    """The overrides that change least of those with which a stage fits; empty if none of them is enough."""
    for overrides in candidates(recipe, stage):
        try:
            _, memory = plan(overrides, stage.name)
        except AlignkitError:  # such as prompts that no longer leave room for a response
            continue
        if memory.fits(machine):
            return overrides
    return []


def too_large(recipe: Recipe, stage: Stage, memory: Memory, machine: Machine, plan: Planner) -> Problem:
    """Why a stage does not fit, and what to do."""
    parts = {
        "weights": memory.weights,
        "adapters": memory.adapters,
        "optimizer": memory.optimizer,
        "activations": memory.activations,
        "cache": memory.cache,
    }
    largest = max(parts, key=lambda name: parts[name])
    where = "has" if machine.count == 1 else "have, each,"
    message = (
        f"stage '{stage.name}' needs {memory.peak / 1e9:.1f} GB, most of it for {largest} "
        f"({parts[largest] / 1e9:.1f} GB), but {machine.name} {where} {machine.memory / 1e9:.1f} GB"
    )
    ways = [" ".join(found)] if (found := nearest(recipe, stage, machine, plan)) else []
    cards = [card.name for card in larger_cards(memory.peak / USABLE)][:1]
    ways += [f"--gpus {f'{machine.count}x' if machine.count > 1 else ''}{cards[0]}"] if cards else []
    help = f"it fits with {' or with '.join(ways)}" if ways else "use a smaller base model"
    return recipe.problem(("stages", stage.name), message, at_key=True, help=help)


def world_problem(recipe: Recipe, stage: Stage, machine: Machine) -> Problem | None:
    """Why a stage cannot keep all cards busy: every process needs a part of each step."""
    settings, count = stage.settings, machine.count
    if settings is None or count == 1:
        return None
    for key, value in (("batch_size", settings.batch_size), ("prompts_per_iteration", settings.prompts_per_iteration)):
        if key == "prompts_per_iteration" and settings.prompts is None:
            continue
        if value < count:
            message = f"stage '{stage.name}': {key} {value} is less than {count} cards: some would have nothing to do"
            fewer = f"--gpus {value}x{machine.name}" if value > 1 else f"--gpus {machine.name}"
            help = f"write {key}: {count} or more in the stage, or plan with {fewer}"
            return recipe.problem(recipe.option(stage.name, (key,)), message, at_key=True, help=help)
    return None
