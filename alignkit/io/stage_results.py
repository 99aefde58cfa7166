"""The results of a run's stages by name: `align@ppo` is the newest that ppo made, `align@ppo~1` the one before it.

A result keeps its name when another takes its place in the run's folder. `align@2` is something else: the version
after epoch or iteration 2 of the current result.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import Problem, RecipeError, did_you_mean
from alignkit.io.digest import digest

EARLIER = ".earlier"  # RUN/.earlier/STAGE/HASH: a result that another one replaced
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*@(?!all$)[A-Za-z_][^@/]*")


@dataclass(frozen=True)
class NamedResult:
    """A complete result of a training stage. name: `align@ppo`. record: its stage.json. current: it is in RUN/STAGE."""

    name: str
    stage: str
    folder: Path
    record: Mapping[str, Any]
    current: bool

    @property
    def hash(self) -> str:
        """The hash of everything that it depends on."""
        return str(self.record["hash"])

    @property
    def algorithm(self) -> str:
        """What made it."""
        return str(self.record["plugin"])


def is_result_name(reference: str) -> bool:
    """Whether a reference is one like `align@ppo`, and not like `align`, `align@2` or `align@all`."""
    return bool(_NAME.fullmatch(reference))


def results_of_stage(run: Path, stage: str) -> list[NamedResult]:
    """The complete results of a training stage, the newest first; none for a step."""
    found = []
    for folder in (run / stage, *(run / EARLIER / stage).glob("[!.]*")):
        record = read_record(folder)
        if record.get("complete") and (record.get("depends_on") or {}).get("settings") is not None:
            found.append(((folder / "stage.json").stat().st_mtime, folder, record))
    found.sort(key=lambda item: (item[0], item[1].name), reverse=True)
    seen: Counter[str] = Counter()
    results = []
    for _, folder, record in found:
        algorithm = str(record["plugin"])
        name = f"{stage}@{algorithm}" + (f"~{seen[algorithm]}" if seen[algorithm] else "")
        seen[algorithm] += 1
        results.append(NamedResult(name, stage, folder, record, folder == run / stage))
    return results


def find_result(run: Path, reference: str) -> NamedResult:
    """The result with a name. Raises RecipeError if the run has none with it."""
    stage, _, wanted = reference.partition("@")
    results = {result.name: result for result in results_of_stage(run, stage)}
    if reference in results:
        return results[reference]
    algorithm, _, age = wanted.partition("~")
    made = any(result.algorithm == algorithm for result in results.values())
    what = f"no earlier result by {algorithm}, ~{age}" if made else f"no result by {wanted}"
    has = f"it has {', '.join(results)}" if results else "it has no complete result"
    help = did_you_mean(reference, results) or f"`alignkit show {run}` lists all results"
    raise RecipeError([Problem(f"{reference}: stage {stage} of {run} has {what}; {has}", help=help)])


def read_record(folder: Path) -> dict[str, Any]:
    """A stage folder's stage.json; empty if it is missing or damaged."""
    try:
        record: dict[str, Any] = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
        check = record.pop("check")
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return record if check == digest(record) else {}
