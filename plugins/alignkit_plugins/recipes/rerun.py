"""Runs stages again in a temporary folder, which sees the results of the other stages, and compares
their files.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.commands import Result, refuse
from alignkit.errors import NotReproduced, stoppable
from alignkit.io.console import Reporter
from alignkit.io.results import RESULTS, Results, damage_of, folders_of
from alignkit.recipe.schema import Recipe
from alignkit.runs.run import Run
from alignkit_plugins.ai_feedback.stored_replies import stored_replies_only
from alignkit_plugins.people.step import NobodyAsked
from alignkit_plugins.report.changes import changes, shown

ENVIRONMENT = {"versions", "source", "version", "recognized"}  # keys of a hash that are no inputs
# Keys of results that differ from run to run
PLACES = {"time", "seconds", "base_model_name_or_path"}


class Rerun(Run):
    """A run of one stage, from the results of the others, in an empty folder."""

    def __init__(self, recipe: Recipe, run: Path, name: str, folder: Path, reporter: Reporter):
        old = Results(run)
        (folder / RESULTS).mkdir(parents=True)
        for other in recipe.stages:
            if other != name and (run / other).is_dir():
                (folder / other).symlink_to((run / other).resolve(), target_is_directory=True)
            for result in folders_of(run, other) if other != name else ():
                (folder / RESULTS / result.name).symlink_to(
                    result.resolve(), target_is_directory=True
                )
        if (run / "cache").is_dir():
            shutil.copytree(
                run / "cache", folder / "cache", ignore=shutil.ignore_patterns("engine-*")
            )
        super().__init__(replace(recipe, trackers=()), folder, reporter)
        self.others = []  # nothing is reused
        self.stage, self.record, self.old = self.stages[name], old.record(name), run / name
        for part in (name, *self.record.get("depends_on", {}).get("upstream", {})):
            self.hashes[part] = old.record(part).get("hash", "")
            if (
                damage := "it is not finished"
                if not old.record(part).get("complete")
                else damage_of(run / part)
            ):
                refuse(
                    f"stage '{part}': {damage}, so '{name}' cannot be run again",
                    "run the recipe again",
                )
        now = json.loads(json.dumps(self.stage.key(), default=str))
        changed = [*changes(self.record["depends_on"], now)]
        self.around = [shown(one) for one in changed if ENVIRONMENT & {*one.path}]
        if inputs := [shown(one) for one in changed if not ENVIRONMENT & {*one.path}]:
            refuse(
                f"stage '{name}' has other inputs now: {', '.join(inputs)}", "run the recipe again"
            )

    def event(self, hook: str, **values: Any) -> list[Any]:
        # Workers elsewhere would not know that nothing is asked or paid for here
        if hook == "map_elsewhere":
            return []
        return super().event(hook, **values)

    def verified(self) -> dict[str, Any]:
        """Run the stage, print whether its files are equal, and return that as plain data."""
        name = self.stage.name
        try:
            with stored_replies_only():
                self._stage(self.stage)
        except NobodyAsked:
            self.reporter.result(f"{name}: not verified, because people labeled what it read")
            return {"equal": None}
        finally:
            self.reporter.stop()
        found = self.differences()
        causes = self.around if found else []
        here = (
            "different here: "
            f"{'; '.join(causes) or 'nothing that the record knows, so perhaps the machine'}"
        )
        self.reporter.result(
            "\n  ".join([f"{name}: DIFFERENT", *found[:3], here]) if found else f"{name}: equal"
        )
        return {"equal": not found, "differences": found, "causes": causes}

    def differences(self) -> list[str]:
        """The files whose digests differ, but for those that differ only in times and places."""
        new, found = self.folder / self.stage.name, []
        made = self.store.record(self.stage.name)
        for change in changes(_digests(self.record), _digests(made)):
            name = str(change.path[0])
            texts = ["other bytes" if change.old and change.new else "only in one of the two"]
            if change.old and change.new and Path(name).suffix in (".json", ".jsonl"):
                texts = [
                    shown(one) for one in changes(_facts(self.old / name), _facts(new / name))
                ][:1]
            found += [f"{name}: {text}" for text in texts]
        return [text for text in found if not text.startswith("map/")]  # a store of unfinished work


def _digests(record: Mapping[str, Any]) -> dict[str, str]:
    return {name: file["sha256"] for name, file in record["files"].items()}


def _facts(file: Path) -> dict[str, Any]:
    """What a file of JSON says, by lines, without times and places."""
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines() if file.suffix == ".jsonl" else [text]
    return {
        f"line {number}": json.loads(line, object_hook=_untimed)
        for number, line in enumerate(lines, 1)
    }


def _untimed(values: dict[str, Any]) -> dict[str, Any]:
    timed = {
        name
        for name in values
        if name.startswith("seconds/") or name.endswith(("_per_second", "_runtime"))
    }
    return {name: value for name, value in values.items() if name not in timed | PLACES}


def verified(recipe: Recipe, run: Path, names: Sequence[str]) -> Result:
    """Run the stages again. Raises RecipeError, before any stage runs, if a result or an input is
    not as it was.
    """
    with (
        tempfile.TemporaryDirectory(prefix=".verify-", dir=run.resolve().parent) as folder,
        stoppable(),
    ):
        reruns = [Rerun(recipe, run, name, Path(folder, name), Reporter()) for name in names]
        stages = {name: reruns.pop(0).verified() for name in names}  # and its models go
    wrong = ", ".join(name for name in names if stages[name]["equal"] is False)
    failed = NotReproduced(f"not reproduced: {wrong}") if wrong else None
    return Result("verify", {"run": run, "stages": stages}, error=failed)
