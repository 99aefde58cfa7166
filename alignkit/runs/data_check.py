"""What is wrong with a recipe's data, found out without a run: all mistakes in one round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.data.sources import DataSpec, Loaded
from alignkit.errors import AlignkitError, DataError, Problem, RecipeError
from alignkit.recipe.schema import Recipe, Stage, specs
from alignkit.registry import Component
from alignkit.runs.data import RunData
from alignkit.runs.preflight import check_components, check_data, check_local_folders, check_trackers
from alignkit.runs.reference_check import check_local_references, local_encoder
from alignkit.runs.stage_check import FIRST_ROWS

if TYPE_CHECKING:
    from alignkit.tokens.encoder import Encoder

Look = Callable[[Loaded], object]
Say = Callable[[str], None]


def with_data_mistakes(error: RecipeError) -> RecipeError:
    """A recipe's error with the mistakes in its data, as far as they can be read."""
    data = RunData(_no_stage, 0)
    files = [DataSpec((source,)) for spec in error.sources for source in spec.sources if source.path is not None]
    checks: list[Callable[[], object]] = [partial(data.read, file) for file in files]
    checks += [partial(check_data_files, error.partial)] if error.partial is not None else []
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
        except AlignkitError:  # such as of code that cannot be imported, as an earlier check said
            if not errors:
                raise
    if len(errors) > 1:
        raise RecipeError(dict.fromkeys(one for error in errors for one in _problems(error)))
    if errors:
        raise errors[0]


def _problems(error: RecipeError | DataError) -> list[Problem]:
    if isinstance(error, RecipeError):
        return error.problems
    return [Problem(text.removeprefix("error: ")) for text in str(error).split("\n\n")]


def check_data_files(
    recipe: Recipe,
    look: Look = lambda loaded: None,
    say: Say = lambda text: None,
    *,
    thorough: bool = False,
    rows: int | None = FIRST_ROWS,
) -> None:
    """Raise the errors of a recipe's data files with which a run would stop before a stage.

    look: is given what is read. say: prints a line. thorough: whether chat templates of models that are here render
    the first `rows` of each source (None: all), and code that the recipe names is imported, which takes seconds.
    """
    encoders: dict[str, Encoder | None] = {}
    stages = list(recipe.stages.values())
    data = RunData(_no_stage, recipe.seed)

    def load(stage: Stage, spec: DataSpec) -> Loaded:
        look(loaded := data.read(spec))
        return loaded

    def encoder(stage: Stage) -> Encoder | None:
        if thorough and stage.base not in encoders:
            encoders[stage.base] = local_encoder(recipe, stage.base)
            looked = "all rows" if rows is None else f"the first {rows} rows of each source"
            here = f"looked at {looked} as its chat template writes them"
            missing = "not looked at: rows as its chat template writes them, because the model is not here yet"
            say(f"{recipe.base(stage.base).base}: {here if encoders[stage.base] is not None else missing}")
        return encoders.get(stage.base)

    _all(
        [
            partial(check_trackers, recipe),
            partial(check_components, recipe, stages, run_code=thorough, machine=False),
            partial(check_local_references, recipe),
            partial(check_local_folders, recipe),
            partial(check_data, recipe, stages, load, encoder, say=say, run_code=thorough, rows=rows),
        ]
    )
    for line in dict.fromkeys(_imported(stages) if thorough else ()):
        say(line)


def _imported(stages: Iterable[Stage]) -> Iterator[str]:
    for stage in stages:
        for component in specs([stage.settings, stage.component.options, stage.engine], Component):
            if getattr(component.registration.implementation, "runs_code", False):
                yield f"{stage.name}: imported the code of {component.kind} '{component.name}'"


def _no_stage(name: str) -> Path:
    raise DataError(f"the data of stage '{name}' do not exist yet")
