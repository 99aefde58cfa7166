"""What a stage's algorithm or step and its rewards say of its data, found out without weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from alignkit.algorithm import Algorithm, SelectContext, Trains
from alignkit.calls import blame, call, create
from alignkit.data.describe import way_out
from alignkit.data.files import SkippedRow, bad_rows_error
from alignkit.data.group import Group, prompts_of, resolved_pairs
from alignkit.data.sources import OR_SKIP, DataSpec, Loaded
from alignkit.environment import Environment
from alignkit.errors import DataError
from alignkit.external import ExternalTrainer
from alignkit.recipe.schema import Recipe, Stage, keys_of, specs
from alignkit.recipe.yaml import Keys
from alignkit.registry import Component
from alignkit.reward import Reward, RewardCombination
from alignkit.runs.learned_from import learned_from
from alignkit.step import StepData

if TYPE_CHECKING:
    from pathlib import Path

    from alignkit.tokens.encoder import Encoder

EncoderOf = Callable[[], "Encoder | None"]
FIRST_ROWS = 200  # of each source that the chat template renders before the first stage
MOST_ROWS = 2000  # that are tokenized in search of one that fits


def check_stage_data(
    recipe: Recipe,
    stage: Stage,
    spec: DataSpec,
    loaded: Loaded,
    encoder: EncoderOf,
    say: Callable[[str], None],
    *,
    run_code: bool,
    rows: int | None,
) -> None:
    """Raise DataError if a training stage would stop at this entry: its data, or its prompts.

    say: prints a line. run_code: whether to run code that the recipe names. rows: of each source that the chat template
    renders; None: all.
    """
    settings = stage.settings
    if settings is None:
        return
    groups = [*loaded.groups, *loaded.validation]
    if (encode := encoder()) is not None:
        with pointing_at(("data",) if spec is settings.data else ("prompts",)):
            groups = _rendered(stage, groups, encode, say, rows)
    if spec is settings.data:
        with pointing_at(("data",)):
            _check_learning(recipe, stage, groups, encoder)
    elif spec is settings.prompts:
        with pointing_at(("prompts",)):
            keys = ("reward", "environment") if settings.gold_prompts is not None else ("reward", "environment", "gold")
            _check_prompts(recipe, stage, groups, encoder, run_code, keys)
    elif spec is settings.gold_prompts:
        with pointing_at(("gold_prompts",)):
            _check_prompts(recipe, stage, groups, encoder, run_code, ("reward", "gold"), "gold_prompts")


def _rendered(
    stage: Stage, groups: Sequence[Group], encoder: Encoder, say: Callable[[str], None], rows: int | None
) -> list[Group]:
    """The groups without those that the chat template refuses among the first rows of each source.

    Raises DataError with the refused rows of sources without `on_bad_row: skip`.
    """
    from alignkit.tokens.encoder import RowRefused

    seen, refused, bad, kept = Counter[int](), list[SkippedRow](), list[SkippedRow](), list[Group]()
    for group in groups:
        source = group.origin.source if group.origin is not None else -1
        seen[source] += 1
        if rows is None or seen[source] <= rows:
            try:
                encoder.render(group)
            except RowRefused as error:
                if group.origin is None:
                    raise
                row = SkippedRow(group.origin.file, group.origin.row, error.reason)
                (refused if group.origin.skip else bad).append(row)
                continue
        kept.append(group)
    if bad:
        raise DataError(f"{bad_rows_error(bad)}\nhelp: correct the rows{OR_SKIP}")
    if refused:
        say(f"{stage.name}: left out, because the chat template refuses them: {bad_rows_error(refused)}")
    return kept


def check_template(recipe: Recipe, stage: Stage, encoder: Callable[[], Encoder]) -> None:
    """Raise RunFailed if the base model's chat template is unfit for the stage's environment."""
    settings = stage.settings
    if settings is None or settings.environment is None:
        return
    from alignkit.training.checked_environment import MOST_TURNS, CheckedEnvironment
    from alignkit.training.episodes import Episodes  # imports torch

    environment = CheckedEnvironment(settings.environment, stage.name, recipe.seed, MOST_TURNS, recipe.folder)
    Episodes(environment, encoder(), settings.max_length)


def check_step_data(
    recipe: Recipe, stage: Stage, read: Sequence[tuple[DataSpec, Loaded]], say: Callable[[str], None], *, run_code: bool
) -> None:
    """Raise DataError if a step would stop at its data. read: the entries that are here."""

    def load(spec: Any) -> list[Group] | None:
        return next((list(loaded.groups) for entry, loaded in read if entry is spec), None)

    def check_prompts(reward: Any, groups: Sequence[Group]) -> None:
        with _pointing_inside(keys_of(stage.component.options, reward) or ()):
            check_scoring(specs(reward, Component), groups, recipe.folder, run_code=run_code)

    known = partial(learned_from, recipe=recipe)
    data = StepData(load, check_prompts, known, lambda text: say(f"{stage.name}: {text}"))
    with pointing_at(()):
        call(create(stage.component, stage.name), "check_data", data)


@contextmanager
def pointing_at(option: Keys) -> Iterator[None]:
    """Let a DataError point at an option of the stage, unless it already does."""
    try:
        yield
    except DataError as error:
        error.option = option if error.option is None else error.option
        raise


@contextmanager
def _pointing_inside(option: Keys) -> Iterator[None]:
    """Let a DataError point at an option of the stage, or at what it names below that."""
    try:
        yield
    except DataError as error:
        error.option = (*option, *(error.option or ()))
        raise


def _check_learning(recipe: Recipe, stage: Stage, groups: Sequence[Group], encoder: EncoderOf) -> None:
    """Let the algorithm select from the data and check them, as the stage will."""
    name, needs, settings = stage.component.name, stage.needs, stage.settings
    if needs is not None and needs.pairs and not any(map(resolved_pairs, groups)):
        files = ", ".join(source.name for source in settings.data.sources) if settings else ""
        raise DataError(
            f"stage '{stage.name}': {name} learns from pairs of a better and a worse response, but no row of "
            f"{files} has a pair{way_out(groups)}"
        )
    algorithm: Algorithm = create(stage.component, stage.name)
    if isinstance(algorithm, ExternalTrainer):
        return
    chosen = selected(recipe, stage, groups, algorithm)
    call(algorithm, "check_data", chosen)
    turns, scoring = algorithm.trained_turns(), algorithm.trains is Trains.REWARD
    if (encode := encoder()) is not None and settings is not None:
        limit = settings.max_length
        with_prompt = [group for group in chosen if group.prompt]  # a document is learned in pieces
        if with_prompt and len(with_prompt) == len(chosen):
            fits = (_fits(encode, group, limit, turns, scoring) for group in with_prompt)
            _check_room(stage, encode, with_prompt, fits, 1)


def _fits(encoder: Encoder, group: Group, limit: int, turns: str, scoring: bool) -> bool:
    from alignkit.tokens.encoder import RowRefused

    try:
        return encoder.encode(group, limit, turns=turns, scoring=scoring) is not None
    except RowRefused:  # behind the first rows; the stage says so
        return False


def selected(recipe: Recipe, stage: Stage, groups: Sequence[Group], algorithm: Algorithm) -> Sequence[Group]:
    """The groups that the algorithm selects, with the same random numbers as in the stage."""
    if type(algorithm).select is Algorithm.select:
        return groups
    from alignkit import seeds  # imports numpy

    random = seeds.stream(recipe.seed, stage.name, "select")
    context = SelectContext(0, recipe.seed, lambda: [], lambda **facts: None, random, False, lambda text: None)
    chosen = call(algorithm, "select", groups, context)
    return [group for item in chosen for group in ([item] if isinstance(item, Group) else item.groups)]


def _check_prompts(
    recipe: Recipe,
    stage: Stage,
    groups: Sequence[Group],
    encoder: EncoderOf,
    run_code: bool,
    keys: Sequence[str],
    name: str = "prompts",
) -> None:
    """Check that a prompt leaves room for a response, and that prompts have what these keys of the stage need."""
    prompts, settings = prompts_of(groups), stage.settings
    if groups and not prompts:
        raise DataError(f"stage '{stage.name}': the rows of '{name}' are raw text, without a prompt to answer")
    assert settings is not None
    algorithm = create(stage.component, stage.name)
    if name == "prompts" and isinstance(algorithm, Algorithm):
        call(algorithm, "check_prompts", prompts)
    for key in keys:
        with _pointing_inside((key,)):
            components = specs(getattr(settings, key), Component)
            check_scoring(components, prompts, recipe.folder, run_code=run_code, stage=stage.name)
    if (encode := encoder()) is not None and prompts:
        room = settings.rollout.max_new_tokens or 1
        lengths = (len(encode.prompt(group.prompt, group.tools)) for group in prompts)
        _check_room(stage, encode, prompts, (length + room <= settings.max_length for length in lengths), room)


def check_scoring(
    components: Iterable[Component], groups: Sequence[Group], folder: Path, *, run_code: bool, stage: str = ""
) -> None:
    """Let rewards, combinations and environments say what the groups lack. folder: the recipe's.

    stage: begins the message.
    """
    for component in components:
        kind = component.registration.implementation
        scoring = issubclass(kind, Environment | Reward) and (run_code or not kind.runs_code)
        if not scoring and not issubclass(kind, RewardCombination):
            continue
        plugin = create(component, stage)
        if scoring:
            call(plugin, "check", folder)
        with blame(plugin, "check_prompts", groups):
            try:
                plugin.check_prompts(groups)
            except DataError as error:
                if error.option is None:
                    raise
                text = f"{component.kind} '{component.name}': {error}"
                raise DataError(text, option=(component.name, *error.option)) from error


def _check_room(stage: Stage, encoder: Encoder, groups: Sequence[Group], fits: Iterable[bool], room: int) -> None:
    """Raise DataError if no group fits. Usually the first one does, so little is tokenized."""
    if any(islice(fits, MOST_ROWS)) or len(groups) > MOST_ROWS:
        return
    lengths = [len(encoder.prompt(group.prompt, group.tools)) for group in groups]
    assert stage.settings is not None
    needed = f"{room} new tokens" if room > 1 else "a response"
    raise DataError(
        f"stage '{stage.name}': no prompt leaves room for {needed} in max_length {stage.settings.max_length}; the "
        f"shortest prompt has {min(lengths)} tokens, the longest {max(lengths)}"
    )
