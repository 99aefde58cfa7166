"""What `alignkit check` finds out about a recipe's data: how they are read, and all mistakes in one round."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from alignkit.data.describe import source_lines
from alignkit.data.sources import DataSpec, Loaded
from alignkit.errors import AlignkitError, DataError, Problem, RecipeError
from alignkit.recipe.schema import Recipe, Stage, specs
from alignkit.runs.data import RunData
from alignkit.runs.preflight import check_components, check_data, check_trackers
from alignkit.runs.reference_check import check_local_references


def with_data_mistakes(error: RecipeError) -> RecipeError:
    """A recipe's error with the mistakes in its data, as far as they can be read."""
    data = RunData(_no_stage, 0)
    files = [DataSpec((source,)) for spec in error.sources for source in spec.sources if source.path is not None]
    checks: list[Callable[[], object]] = [partial(data.read, file) for file in files]
    checks += [partial(data_lines, error.partial)] if error.partial is not None else []
    try:
        _all(checks)
    except (RecipeError, DataError) as more:
        return RecipeError(dict.fromkeys([*error.problems, *_problems(more)]))
    except AlignkitError:  # of a plugin that got a value that is wrong, as the recipe's own problems say
        pass
    return error


def _all(checks: Iterable[Callable[[], object]]) -> None:
    """Make all checks. Raises the error of one, or one with all that they find."""
    errors: list[RecipeError | DataError] = []
    for check in checks:
        try:
            check()
        except (RecipeError, DataError) as error:
            errors.append(error)
    if len(errors) > 1:
        raise RecipeError(dict.fromkeys(one for error in errors for one in _problems(error)))
    if errors:
        raise errors[0]


def _problems(error: RecipeError | DataError) -> list[Problem]:
    if isinstance(error, RecipeError):
        return error.problems
    return [Problem(text.removeprefix("error: ")) for text in str(error).split("\n\n")]


def data_lines(recipe: Recipe) -> list[str]:
    """What a run would understand of its data files. Raises the errors with which it would stop before a stage."""
    stages = list(recipe.stages.values())
    data = RunData(_no_stage, recipe.seed)
    shown: dict[str, None] = {}  # an ordered set: stages share files

    def load(stage: Stage, spec: DataSpec) -> Loaded:
        loaded = data.read(spec)
        for header, *sample in map(source_lines, loaded.sources):
            rows = "\n".join(sample)
            known = any(text.endswith(rows) for text in shown)
            shown[header if known else f"{header}\n{rows}".strip()] = None
        return loaded

    said: list[str] = []
    _all(
        [
            partial(check_trackers, recipe),
            partial(check_components, recipe, stages, run_code=False),
            partial(check_local_references, recipe),
            partial(check_data, recipe, stages, load, lambda stage: None, say=said.append, run_code=False),
        ]
    )
    entries = (spec for stage in stages for spec in specs([stage.settings, stage.component.options], DataSpec))
    hub = {source.name: None for spec in entries for source in spec.sources if source.hub}
    return [*shown, *said, *(f"not read yet: {name}, which the run downloads" for name in hub)]


def _no_stage(name: str) -> Path:
    raise DataError(f"the data of stage '{name}' do not exist yet")
