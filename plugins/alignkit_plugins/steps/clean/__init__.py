"""The step `clean`: rows without duplicates, stock phrases, wrong languages and personal details, by `alignkit data`'s
rules."""

from __future__ import annotations

import json
from pathlib import Path

from alignkit import Artifact, DataRef, Field, Group, Register, Step, StepContext, hookimpl
from alignkit.report import Report
from alignkit_plugins.data.rules import Fault, Rules, mark_of, redacted_group, removed_counts, table

REMOVED = "removed.jsonl"


class Clean(Step):
    """Of rows that say the same, the first stays. What was left out and why is in removed.jsonl in the stage's folder.

    A later stage reads what is left with `data: STAGE`.
    """

    class Options(Rules):
        data: DataRef = Field(description="rows to clean; other stages then read `data: STAGE`")

    options: Options
    packages = ("rensa", "py3langid")

    def check(self, folder: Path) -> None:
        self.options.check("step 'clean'")

    def run(self, context: StepContext) -> Artifact:
        groups = context.load(self.options.data)
        clean = [redacted_group(group) for group in groups] if self.options.personal else groups
        found = self._faults(groups, clean)
        counts = removed_counts(found, len(groups), "clean")
        kept = [at for at in range(len(groups)) if at not in found]
        changed = sum(groups[at] != clean[at] for at in kept)
        lines = [{"row": str(groups[at].origin), **found[at]._asdict()} for at in sorted(found)]
        context.write_text(REMOVED, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        summary = {"rows": len(groups), "kept": len(kept), "removed": counts, "redacted": changed}
        report = Report([table("", counts, len(kept), changed)])
        return Artifact(groups=[clean[at] for at in kept], summary=summary, report=report)

    def _faults(self, groups: list[Group], clean: list[Group]) -> dict[int, Fault]:
        """What is wrong with rows, by their places. clean: the same redacted, which may make them equal."""
        marks = self.options.marked({group.origin.file for group in groups if group.origin})
        found = {}
        for at, group in enumerate(groups):
            mark = mark_of(marks, group.origin.file, group.origin.row) if group.origin else None
            if fault := mark or self.options.fault([group]):
                found[at] = fault
        if self.options.compares:
            import pyarrow

            from alignkit_plugins.data import near  # imports numpy

            units = pyarrow.table(near.table((at, near.units_of([group], ["row"])) for at, group in enumerate(clean)))
            found |= self.options.repeated(near.Units.of(units, "row"), found, lambda at: groups[at].origin)
        return found


@hookimpl
def register_steps(register: Register) -> None:
    register("clean", Clean, summary="leave out duplicates, stock phrases, wrong languages; redact personal details")
