"""From the command's arguments to a page that runs: the store is filled, then the server listens."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from alignkit.data.group import Group
from alignkit.data.reading import DataSource
from alignkit.data.sources import OR_SKIP, DataSpec
from alignkit.errors import DataError, Problem, RecipeError, did_you_mean
from alignkit.extras import check_extra
from alignkit.io.lookup import exists, is_file
from alignkit.io.printable import printable
from alignkit.recipe.schema import Recipe, specs
from alignkit.runs.data import RunData
from alignkit.runs.files import RECIPE, STARTS
from alignkit.runs.stage_store import StageStore
from alignkit_apps.label.guidelines import Guidelines
from alignkit_apps.web.address import address_of
from alignkit_apps.web.hosting import PACKAGES, addresses_of, annotators_of, announce, listening, server_of
from alignkit_plugins.people.asking import Wanted, items_of
from alignkit_plugins.people.database import SUFFIX
from alignkit_plugins.people.items import CRITERIA, TASKS, Item
from alignkit_plugins.people.store import Store

PLAN = ("overlap", "gold_rate", "repeat_rate", "seed", "qualify", "min_gold")


@dataclass(frozen=True)
class Source:
    """What is labeled: a file, a store, or a stage of a recipe."""

    data: str
    stage: str | None = None
    overrides: Sequence[str] = ()
    out: Path | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Plans:
    """How it is labeled; None leaves what the store says."""

    task: str | None = None
    criteria: Sequence[str] = ()
    batch: str = ""
    license: str = ""
    overlap: int | None = None
    gold_rate: float | None = None
    repeat_rate: float | None = None
    seed: int | None = None
    qualify: int | None = None
    min_gold: float | None = None


def start(
    source: Source,
    path: Path | None,
    plans: Plans,
    *,
    guidelines: Path | None,
    gold: Path | None,
    annotators: Sequence[str] | None,
    reviewers: Sequence[str] = (),
    port: int | None,
    host: str | None = None,
    open_page: bool,
) -> None:
    """Fill the store, print the addresses, and serve the page until Ctrl-C.

    Raises RunFailed if a package is missing, RecipeError for wrong arguments, DataError for rows that cannot be
    labeled.
    """
    check_extra("the page", "label", *PACKAGES)
    from alignkit_apps.label.app import make_app
    from alignkit_apps.web.guard import Sessions

    names, address = annotators_of(annotators, reviewers), address_of(host)
    store = prepared(source, path, plans, gold)
    with store:
        from alignkit_apps.label.label_api import LabelApi

        api = LabelApi(store, Guidelines(store, guidelines), said_last)
        for warning in store.warnings:
            print(printable(f"warning: {warning}"), file=sys.stderr)
        with listening(port, address) as listener:
            sessions = Sessions(names, reviewers, address)
            addresses = addresses_of(sessions, listener)
            _greet(store, len(addresses))
            address.warn(listener)
            announce(addresses, "Whoever has an address labels under that name.", open_page)
            with suppress(KeyboardInterrupt):
                server_of(make_app(api, sessions, plans.batch or "Label")).run(sockets=[listener])
        print(printable(said_last(store)), file=sys.stderr)


def prepared(source: Source, path: Path | None, plans: Plans, gold: Path | None = None) -> Store:
    """The store with the items in it."""
    if plans.task is not None and plans.task not in TASKS:
        hint = did_you_mean(plans.task, TASKS) or f"tasks: {', '.join(TASKS)}"
        raise RecipeError([Problem(f"--task: unknown task '{plans.task}'", help=hint)])
    from alignkit.plugins import load_plugins

    load_plugins(lazy=True)
    if path is None and (waiting := _waiting(source)) is not None:
        source = Source(str(waiting))
    wanted = Wanted(plans.task, tuple(plans.criteria or CRITERIA), plans.batch, plans.license)
    is_store = source.data.endswith(SUFFIX)
    if is_store and path is not None:
        raise RecipeError([Problem("DATA is a store already", help="leave out --store")])
    groups, name = ([], "") if is_store else _groups(source)
    path = Path(source.data) if is_store else path or Path(f"{name}{SUFFIX}")
    if path.suffix != SUFFIX:
        help = f"recipes recognize stores by their name: {path.with_suffix(SUFFIX)}"
        raise RecipeError([Problem(f"--store: {path}: the name must end in {SUFFIX}", help=help)])
    if plans.task is None:
        _check_writing(groups, source.data)
    items = items_of(groups, wanted, path.parent)
    right = items_of(file_groups(gold), wanted, path.parent, gold=True) if gold else []
    if not items and not is_store:
        raise DataError(f"{source.data}: there is no row to label")
    store = Store.open(path, new=not is_store)
    try:
        _set_plan(store, plans)
        add(store, items, right)
        _check_qualification(store, plans)
        if changed := give_license(store, plans.license, None if is_store else [*items, *right]):
            text = f"{changed} item{'s' * (changed != 1)} without a license: now {plans.license}"
            print(printable(text), file=sys.stderr)
    except BaseException:
        store.close()
        raise
    return store


def _waiting(source: Source) -> Path | None:
    """The store in which a stage of a run waits for labels, if the source is such a stage."""
    if source.stage is None or not source.data.endswith((".yaml", ".yml")):
        return None
    recipe = _recipe(source)
    found = StageStore(source.out or Path("runs") / recipe.name, recipe.stages).labels(source.stage)
    return found if found is not None and found.is_file() else None


def entry_groups(text: str) -> list[Group]:
    """The rows of a data entry as a recipe has it, such as `{path: FILE, columns: {prompt: question}}`."""
    from alignkit.plugins import plugins
    from alignkit.recipe.document import plain_data
    from alignkit.recipe.load import made_recipe

    step = {"step": "people", "data": plain_data(text, f"'{text}'")}
    recipe = made_recipe(
        {"model": {"base": "tiny"}, "stages": {"label": step}}, "alignkit label", (), plugins().registry
    )
    (spec,) = specs([recipe.stages["label"].component.options], DataSpec)
    return RunData(lambda stage: Path(stage), 0).read(spec).groups


def _groups(source: Source) -> tuple[list[Group], str]:
    if source.stage is None:
        if source.data.startswith("{"):
            return entry_groups(source.data)[: source.limit], "labels"
        if source.data.endswith((".yaml", ".yml")):
            raise RecipeError([Problem("a recipe needs a stage", help=f"alignkit label {source.data} STAGE")])
        path = Path(source.data)
        return file_groups(path, source.limit), path.name.split(".")[0] or "labels"
    if is_file(Path(source.data)) and not source.data.endswith((".yaml", ".yml")):
        raise RecipeError([Problem(f"{source.data} is not a recipe, so it has no stage '{source.stage}'")])
    recipe = _recipe(source)
    groups = stage_groups(recipe, source.stage, source.out or Path("runs") / recipe.name)
    return groups[: source.limit], f"{recipe.name}-{source.stage}"


def _recipe(source: Source) -> Recipe:
    from alignkit.arguments import load

    return load(source.data, source.overrides)


def _check_writing(groups: Sequence[Group], data: str) -> None:
    """Refuse prompts next to a list of texts, which may be answers to compare: nobody would see them."""
    for group in groups:
        for name, value in group.meta.items():
            texts = isinstance(value, list) and len(value) > 1 and all(isinstance(text, str) for text in value)
            if texts and not group.responses:
                text = f"{data}: people would write answers, and see nothing of the texts in column '{name}'"
                compare = f"to compare them: alignkit label '{{unlabeled: {data}}}'"
                raise RecipeError([Problem(text, help=f"{compare}; to write: --task demonstration")])


def _set_plan(store: Store, plans: Plans) -> None:
    given = {name: getattr(plans, name) for name in PLAN}
    changes = {name: value for name, value in given.items() if value is not None}
    if changes:
        try:
            store.set_plan(replace(store.plan, **changes))
        except ValueError as error:
            text = str(error)
            for name in given:
                text = text.replace(name, f"--{name.replace('_', '-')}")
            raise RecipeError([Problem(text)]) from error


def _check_qualification(store: Store, plans: Plans) -> None:
    asked = store.plan.qualify
    have = store.rows("SELECT count(*) AS n FROM items WHERE gold IS NOT NULL AND retired = 0")[0]["n"]
    if asked > have:
        text = f"--qualify {asked}: the store has only {have} gold item{'s' * (have != 1)}"
        raise RecipeError([Problem(text, help="add rows whose labels are right: --gold FILE")])
    if plans.min_gold is not None and not asked:
        raise RecipeError([Problem("--min-gold is about the items of --qualify", help="add --qualify N")])


def _greet(store: Store, people: int) -> None:
    left = store.rows("SELECT count(*) AS n FROM items WHERE labels < wanted AND retired = 0 AND gold IS NULL")[0]["n"]
    print(printable(f"{left} item{'s' * (left != 1)} to label; labels go to {store.path}"), file=sys.stderr)
    if (missing := store.plan.overlap - people) > 0:
        names = f"{missing} more --annotator" if missing > 1 else "one more --annotator"
        wanted = f"each item needs labels by {store.plan.overlap} people, but only {people} can label here"
        print(f"warning: {wanted}\n  help: add {names}, or merge the labels of others later", file=sys.stderr)


def said_last(store: Store) -> str:
    """The last line: recipes learn from labels, but a run that waits for them only needs to continue."""
    path = _from_here(store.path)
    query = "SELECT batch, labels, coalesce(json_extract(content, '$.held_out'), 0) AS held_out FROM items"
    rows = store.rows(f"{query} WHERE retired = 0 AND labels > 0")
    if not rows:
        return f"no labels yet; they will be in {path}"
    count = sum(row["labels"] for row in rows)
    said = f"{count} labels are in {path}" if count > 1 else f"1 label is in {path}"
    if all(row["held_out"] for row in rows):
        return f"{said}; run the recipe again to continue"
    if _is_of_a_run(store.path, {row["batch"] for row in rows}):
        return f"{said}; `alignkit run` with the same recipe continues"
    return f"{said}; train on {'them' if count > 1 else 'it'} with `data: {path}`"


def _from_here(path: Path) -> str:
    here, there = Path.cwd(), path.absolute()
    return str(there.relative_to(here) if there.is_relative_to(here) else path)


def _is_of_a_run(path: Path, batches: set[str]) -> bool:
    """Whether the store is in a run's folder, or a batch is the folder of a run's stage, from the store's folder."""
    folder = path.absolute().parent
    stages = [(folder / batch).resolve() for batch in batches if batch]
    runs = {folder, *(parent for stage in stages if stage.is_dir() for parent in stage.parents)}
    return any(exists(run / STARTS) or exists(run / RECIPE) for run in runs)


# Rows and items


def file_groups(path: Path, limit: int | None = None) -> list[Group]:
    """The rows of a file, in any format. Raises `RecipeError` if it is not there, `DataError` for bad rows."""
    from alignkit.plugins import plugins

    if not is_file(path):
        raise RecipeError([Problem(f"no such file: {path}", help="name a file with rows, a store or a recipe")])
    plugins()  # which have readers and formats
    spec = DataSpec((DataSource(None, path=path.resolve(), limit=limit),))
    try:
        return RunData(lambda stage: path, 0).read(spec).groups
    except DataError as error:  # only a recipe can skip rows
        raise DataError(str(error).removesuffix(OR_SKIP)) from error


def add(store: Store, items: Sequence[Item], gold: Sequence[Item] = ()) -> None:
    """Add items, and gold ones. An item that the store has as an ordinary one becomes gold. Raises `DataError`."""
    if not items and not gold and not store.rows("SELECT 1 FROM items LIMIT 1"):
        raise DataError("there is no row to label")
    known = {row["id"] for row in store.rows("SELECT id FROM items WHERE gold IS NULL")}
    settled = {item.id for item in gold}
    store.add([*(item for item in items if item.id not in settled), *gold])
    for item in gold:
        if item.id in known:
            store.revise(item.id, gold=item.gold)


def give_license(store: Store, license: str, items: Sequence[Item] | None) -> int:
    """Set the license of those of the items that the store has without one; None: of all. Returns how many they are."""
    asked = None if items is None else {item.id for item in items}
    rows = store.rows("SELECT id FROM items WHERE license = '' AND retired = 0") if license else []
    bare = [row["id"] for row in rows if asked is None or row["id"] in asked]
    for name in bare:
        store.revise(name, license=license)
    return len(bare)


def stage_groups(recipe: Recipe, name: str, folder: Path) -> list[Group]:
    """What a stage of a run wrote as data; if it wrote none, what it reads. folder: of the run.

    Raises `RecipeError` for a stage that is not there, `DataError` for one that has no data.
    """
    if name not in recipe.stages:
        hint = _round_of(recipe, name, folder) or did_you_mean(name, recipe.stages)
        hint = hint or f"stages: {', '.join(recipe.stages)}"
        raise RecipeError([Problem(f"no stage '{name}'", str(recipe.path), help=hint)])
    store, stage = StageStore(folder, recipe.stages), recipe.stages[name]
    entries = specs([stage.settings, stage.component.options], DataSpec)
    spec = DataSpec((DataSource(None, stage=name),)) if store.data(name).is_file() else next(iter(entries), None)
    if spec is None:
        raise DataError(f"stage '{name}' reads no data, and {folder} has none that it wrote; run the recipe first")
    for source in spec.sources:
        if source.stage is not None and not store.data(source.stage).is_file():
            raise DataError(
                f"stage '{name}' reads the data of '{source.stage}', which {folder} does not have\n"
                f"help: run the recipe as far as '{source.stage}' first, or name the run's folder with --out"
            )
    return RunData(store.data, recipe.seed).read(spec).groups


def _round_of(recipe: Recipe, name: str, folder: Path) -> str:
    """Which round of a repeated stage to name: the one that waits for labels, or else the first; empty without any."""
    rounds = [stage for stage in recipe.stages if re.fullmatch(rf"{re.escape(name)}_[1-9]\d*", stage)]
    waiting = [stage for stage in rounds if StageStore(folder, recipe.stages).labels(stage) is not None]
    if waiting:
        return f"it is repeated, and '{waiting[0]}' waits for labels"
    return f"it is repeated; name a round, such as '{rounds[0]}'" if rounds else ""
