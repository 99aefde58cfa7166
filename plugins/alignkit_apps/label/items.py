"""The rows that `alignkit label` asks about: of a file, or of a recipe's stage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from alignkit.data.group import Group
from alignkit.data.reading import DataSource
from alignkit.data.sources import OR_SKIP, DataSpec
from alignkit.errors import DataError, Problem, RecipeError, did_you_mean
from alignkit.io.lookup import is_file
from alignkit.recipe.schema import Recipe, specs
from alignkit_apps.feedback.items import Item
from alignkit_apps.feedback.store import Added, Store

UNLABELED = (
    'a row of answers without labels is {"alignkit": 1, "prompt": [{"role": "user", "content": TEXT}], '
    '"responses": [{"text": TEXT}, ...]}'
)


def file_groups(path: Path, limit: int | None = None) -> list[Group]:
    """The rows of a file, in any format. Raises `RecipeError` if it is not there, `DataError` for bad rows."""
    from alignkit.plugins import load_plugins
    from alignkit.runs.data import RunData

    if not is_file(path):
        raise RecipeError([Problem(f"no such file: {path}", help="name a file with rows, a store or a recipe")])
    load_plugins()
    spec = DataSpec((DataSource(None, path=path.resolve(), limit=limit),))
    try:
        return RunData(lambda stage: path, 0).read(spec).groups
    except DataError as error:  # only a recipe can skip rows
        raise DataError(f"{str(error).removesuffix(OR_SKIP)}\nhelp: {UNLABELED}") from error


def add(store: Store, items: Sequence[Item], gold: Sequence[Item] = ()) -> Added:
    """Add items, and gold ones. An item that the store has as an ordinary one becomes gold. Raises `DataError`."""
    if not items and not gold and not store.rows("SELECT 1 FROM items LIMIT 1"):
        raise DataError("there is no row to label")
    known = {row["id"] for row in store.rows("SELECT id FROM items WHERE gold IS NULL")}
    settled = {item.id for item in gold}
    added = store.add([*(item for item in items if item.id not in settled), *gold])
    for item in gold:
        if item.id in known:
            store.revise(item.id, gold=item.gold)
    return added


def give_license(store: Store, license: str, items: Sequence[Item] | None) -> int:
    """Set the license of those of the items that the store has without one; None: of all. Returns how many they are."""
    asked = None if items is None else {item.id for item in items}
    rows = store.rows("SELECT id FROM items WHERE license = '' AND retired = 0") if license else []
    bare = [row["id"] for row in rows if asked is None or row["id"] in asked]
    for name in bare:
        store.revise(name, license=license)
    return len(bare)


def store_of_stage(recipe: Recipe, name: str, folder: Path) -> Path | None:
    """The store in which a stage waits for labels; None if it does not wait. folder: of the run."""
    from alignkit.runs.stage_store import StageStore

    return StageStore(folder, recipe.stages).labels(name)


def stage_groups(recipe: Recipe, name: str, folder: Path) -> list[Group]:
    """What a stage of a run wrote as data; if it wrote none, what it reads. folder: of the run.

    Raises `RecipeError` for a stage that is not there, `DataError` for one that has no data.
    """
    from alignkit.runs.data import RunData
    from alignkit.runs.stage_store import StageStore

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
    waiting = [stage for stage in rounds if store_of_stage(recipe, stage, folder) is not None]
    if waiting:
        return f"it is repeated, and '{waiting[0]}' waits for labels"
    return f"it is repeated; name a round, such as '{rounds[0]}'" if rounds else ""
