"""Runs stages again in a temporary folder, which sees the results of the other stages, and compares
their files.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.contract.commands import Result
from alignkit.errors import NotReproduced, refuse
from alignkit.io.console import Reporter
from alignkit.io.results import RESULTS, Results, damage_of, json_lines, recorded
from alignkit.models.saved import read_json
from alignkit.recipe.schema import Recipe
from alignkit.runs.run import Run
from alignkit.runs.signals import stoppable
from alignkit_plugins.cells.changes import change_in_words, changes
from alignkit_plugins.command_line.find import folders_of
from alignkit_plugins.people.step import NobodyAsked
from alignkit_plugins.servers.remote import stored_replies_only

ENVIRONMENT = {"versions", "source", "version", "recognized"}  # keys of a hash that are no inputs
# Keys of results that differ from run to run, and what others begin and end with
PLACES = {"time", "seconds", "base_model_name_or_path"}
TIMES, RATES = "seconds/", ("_per_second", "_runtime")


class Rerun(Run):
    """A run of one stage, from the results of the others, in an empty folder.

    Raises RecipeError if its result, one that it builds on, or an input is not as it was.
    """

    def __init__(self, recipe: Recipe, run: Path, name: str, folder: Path):
        old = Results(run)
        (folder / RESULTS).mkdir(parents=True)
        for other in recipe.stages:
            if other == name or not (run / other).is_dir():
                continue
            (folder / other).symlink_to((run / other).resolve(), target_is_directory=True)
            for result in folders_of(run, other):
                link = folder / RESULTS / result.name
                link.symlink_to(result.resolve(), target_is_directory=True)
        for noted in (run / RESULTS).glob(".*.json"):
            shutil.copy(noted, folder / RESULTS)
        if (run / "cache").is_dir():
            engines = shutil.ignore_patterns("engine-*")
            shutil.copytree(run / "cache", folder / "cache", ignore=engines)
        super().__init__(replace(recipe, trackers=()), folder, Reporter())
        self.others = []  # nothing is reused
        self.stage, self.record, self.old = self.stages[name], old.record(name), run / name
        for part in (name, *self.record.get("depends_on", {}).get("upstream", {})):
            record = old.record(part)
            self.hashes[part] = record.get("hash", "")
            damage = damage_of(run / part) if record.get("complete") else "it is not finished"
            if damage:
                refuse(f"stage '{part}': {damage}, so '{name}' cannot be run again", "run it again")
        now = recorded(self.stage.with_files(self.stage.key()))
        inputs, self.around = list[str](), list[str]()
        for one in changes(self.record["depends_on"], now):
            (self.around if ENVIRONMENT.intersection(one.path) else inputs).append(
                change_in_words(one)
            )
        if inputs:
            text = f"stage '{name}' has other inputs now: {', '.join(inputs)}"
            refuse(text, "run the recipe again")

    def executor(self, stage: str, folder: Path, name: str) -> None:
        """Nothing: workers elsewhere would not know that nothing is asked or paid for here."""

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
        differences = self.differences()
        lines, causes = [f"{name}: equal"], list[str]()
        if differences:
            causes = self.around
            around = "; ".join(causes) or "nothing that the record knows, so perhaps the machine"
            lines = [f"{name}: DIFFERENT", *differences[:3], f"different here: {around}"]
        self.reporter.result("\n  ".join(lines))
        return {"equal": not differences, "differences": differences, "causes": causes}

    def differences(self) -> list[str]:
        """The files that differ, but for those that differ only in times and places."""
        new, found = self.folder / self.stage.name, list[str]()
        old_files, new_files = self.record["files"], self.store.record(self.stage.name)["files"]
        for name in {**old_files, **new_files}:
            if name.startswith("map/"):
                continue  # a store of unfinished work
            if name not in old_files or name not in new_files:
                found.append(f"{name}: only in one of the two")
            elif old_files[name]["sha256"] == new_files[name]["sha256"]:
                continue
            elif Path(name).suffix in (".json", ".jsonl"):
                for one in changes(_lines(self.old / name), _lines(new / name)):
                    if not _is_of_this_run(one.path):
                        found.append(f"{name}: {change_in_words(one)}")
                        break
            else:
                found.append(f"{name}: other bytes")
        return found


def _lines(file: Path) -> Mapping[str, Any]:
    """What a file of JSON says, by lines."""
    rows = json_lines(file) if file.suffix == ".jsonl" else [read_json(file, optional=True)]
    return {f"line {number}": row for number, row in enumerate(rows, 1)}


def _is_of_this_run(path: Sequence[str | int]) -> bool:
    """Whether a key of a result is a time or a place, which differ from run to run."""
    keys = list(map(str, path))
    timed = any(key.startswith(TIMES) or key.endswith(RATES) for key in keys)
    return timed or bool(PLACES.intersection(keys))


def verified(recipe: Recipe, run: Path, names: Sequence[str]) -> Result:
    """Run the stages again. Raises RecipeError, before any stage runs, if a result or an input is
    not as it was.
    """
    above = run.resolve().parent
    stages, wrong = dict[str, Any](), list[str]()
    with tempfile.TemporaryDirectory(prefix=".verify-", dir=above) as folder, stoppable():
        reruns = [Rerun(recipe, run, name, Path(folder, name)) for name in names]
        for name in names:
            stages[name] = reruns.pop(0).verified()  # its models are freed
            if stages[name]["equal"] is False:
                wrong.append(name)
    facts = {"run": run, "stages": stages}
    if wrong:
        error = NotReproduced(f"not reproduced: {', '.join(wrong)}")
        return Result("verify", facts, error=error)
    return Result("verify", facts)
