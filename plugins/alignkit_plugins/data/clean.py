"""The step `clean`: rows without duplicates, stock phrases, wrong languages and personal details,
by `alignkit data`'s rules.
"""

from __future__ import annotations

import json
from pathlib import Path

from alignkit import Artifact, DataRef, Field, Step, StepContext
from alignkit.report import Report
from alignkit_plugins.data.rules import Rules, redacted_group, removed_counts, table

REMOVED = "removed.jsonl"


class Clean(Step):
    """Of rows that say the same, the first stays. What was left out and why is in removed.jsonl in
    the stage's folder.

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
        held_out = context.load(self.options.against) if self.options.against else []
        names = [group.origin for group in groups]
        found = self.options.faults(
            [[group] for group in groups], names, [[group] for group in held_out]
        )
        counts = removed_counts(found, len(groups), "clean")
        kept = [group for at, group in enumerate(groups) if at not in found]
        clean = [redacted_group(group) for group in kept] if self.options.personal else kept
        changed = sum(before != after for before, after in zip(kept, clean, strict=True))
        lines = [{"row": str(names[at]), **found[at]._asdict()} for at in sorted(found)]
        context.write_text(
            REMOVED, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )
        summary = {"rows": len(groups), "kept": len(kept), "removed": counts, "redacted": changed}
        return Artifact(
            groups=clean, summary=summary, report=Report([table("", counts, len(kept), changed)])
        )
