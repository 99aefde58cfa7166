"""What a run would do with each stage: which results it reuses, and why not the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.io.digest import digest
from alignkit.recipe.schema import Stage
from alignkit.runs.reuse import has_stages, other_runs, reusable
from alignkit_apps.report.changed import change_since

if TYPE_CHECKING:
    from alignkit.runs.run import Run


def planned(run: Run) -> Iterator[str]:
    """What a run would do with each stage: `sft: reused`. Nothing is done."""
    others, names = other_runs(run.folder, run.recipe), list(run.recipe.stages)
    # Else no hash is needed, and no base model.
    known = any(map(run.store.has_results, names)) or has_stages(others, names)
    for stage in run.recipe.stages.values():
        parts = run.parts_of(stage) if known else {}
        run.hashes[stage.name] = digest(parts)
        yield f"{stage.name}: {_planned(run, stage, parts, others)}"


def _planned(run: Run, stage: Stage, parts: Mapping[str, Any], others: Sequence[Path]) -> str:
    name = stage.name
    store, stage_hash = run.store, run.hashes[name]
    record = store.record(name)
    if store.is_complete(name, stage_hash):
        damage = store.damage(name)
        return f"runs again, because {damage}" if damage else "reused"
    if store.waits(name, stage_hash):
        return "an earlier result is restored"
    if record.get("hash") == stage_hash:
        return "continues, if people have labeled enough" if record.get("waits_for") else "continues"
    if found := next(reusable(name, stage_hash, others), None):
        return f"reused from {found[0]}"
    return f"starts over{change_since(record, parts, stage)}" if record else "runs"
