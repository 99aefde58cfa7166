"""What a run would do with each stage: which results it reuses, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from alignkit.io.digest import digest
from alignkit.io.results import RESULTS, WORK, damage_of, find, read_record
from alignkit.recipe.schema import Stage
from alignkit_plugins.report.changes import change_since

if TYPE_CHECKING:
    from alignkit.runs.run import Run


def planned(run: Run) -> Iterator[str]:
    """What a run would do with each stage: `sft: reused`. Nothing is done."""
    # Else no key is needed, and no base model.
    known = any(
        (place / kind).exists() for place in (run.folder, *run.others) for kind in (RESULTS, WORK)
    )
    for stage in run.stages.values():
        parts = stage.key() if known else {}
        run.hashes[stage.name] = digest(parts)
        yield f"{stage.name}: {_planned(run, stage.stage, parts)}"


def _planned(run: Run, stage: Stage, parts: Mapping[str, Any]) -> str:
    name, key = stage.name, run.hashes[stage.name]
    record = run.store.record(name)
    if found := find(run.folder, name, key, run.others):
        if found.parent.parent != run.folder:
            return f"reused from {found.parent.parent}"
        return "reused" if record.get("hash") == key else "an earlier result is restored"
    if run.recipe.chosen and name not in run.recipe.chosen:
        return f"needed, but not complete: --until {name} runs it"
    if record.get("hash") == key and record.get("complete"):
        return f"runs again, because {damage_of(run.folder / name)}"
    if begun := read_record(run.store.of(WORK, name, key)):
        return "continues, if people have labeled enough" if begun.get("waits_for") else "continues"
    return f"starts over{change_since(record, parts, stage)}" if record else "runs"
