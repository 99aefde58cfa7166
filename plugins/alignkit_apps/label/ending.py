"""What `alignkit label` says when it stops: how many labels there are, where, and what comes next."""

from __future__ import annotations

from pathlib import Path

from alignkit.io.lookup import exists
from alignkit.runs.files import RECIPE, STARTS
from alignkit_apps.feedback.store import Store


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
