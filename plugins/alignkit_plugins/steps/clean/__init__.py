"""The step `clean`: rows without duplicates, stock phrases, wrong languages and personal details, by `alignkit data`'s
rules."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from alignkit import Artifact, DataError, DataRef, Field, Group, Register, Step, StepContext, hookimpl
from alignkit.report import Report, Table
from alignkit_apps.cleaning.rules import Fault, Rules, mark_of, redacted_group

REMOVED = "removed.jsonl"


class Clean(Step):
    """Of rows that say the same, the first stays. What was left out and why is in removed.jsonl in the stage's folder.

    A later stage reads what is left with `data: STAGE`.
    """

    class Options(Rules):
        data: DataRef = Field(description="rows to clean; other stages then read `data: STAGE`")

    options: Options

    def check(self, folder: Path) -> None:
        self.options.check("step 'clean'")

    def run(self, context: StepContext) -> Artifact:
        options, groups = self.options, context.load(self.options.data)
        found = self._faults(groups)
        kept = [group for at, group in enumerate(groups) if at not in found]
        if not kept:
            raise DataError(
                f"clean: no row of {len(groups)} is left: {_counted(Counter(f.rule for f in found.values()))}"
            )
        clean = [redacted_group(group) for group in kept] if options.personal else kept
        changed = sum(one != other for one, other in zip(clean, kept, strict=True))
        lines = [
            {"row": str(groups[at].origin), "rule": fault.rule, "reason": fault.reason}
            for at, fault in sorted(found.items())
        ]
        context.write_text(REMOVED, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        counts = dict(sorted(Counter(fault.rule for fault in found.values()).items()))
        summary = {"rows": len(groups), "kept": len(kept), "removed": counts, "redacted": changed}
        rows = [[name, f"{count:,}"] for name, count in (*counts.items(), ("kept", len(kept)), ("redacted", changed))]
        return Artifact(groups=clean, summary=summary, report=Report([Table("", ["rows", "number"], rows)]))

    def _faults(self, groups: list[Group]) -> dict[int, Fault]:
        """What is wrong with rows, by their places."""
        from alignkit_apps.cleaning import near  # imports numpy

        marks = self.options.marked()
        found = {}
        for at, group in enumerate(groups):
            mark = mark_of(marks, group.origin.file, group.origin.row) if group.origin else None
            if fault := mark or self.options.fault([group]):
                found[at] = fault
        if self.options.compares:
            rest = [at for at in range(len(groups)) if at not in found]
            units = near.Units.of(near.table((at, near.units_of([groups[at]], ["row"])) for at in rest), "row")
            for at, (fault, other) in self.options.duplicate_faults(units).items():
                found[at] = fault._replace(reason=f"{fault.reason} {groups[other].origin}")
        return found


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{rule} {count}" for rule, count in counts.most_common())


@hookimpl
def register_steps(register: Register) -> None:
    register("clean", Clean, summary="leave out duplicates, stock phrases, wrong languages; redact personal details")
