"""Runs stages again in a temporary folder, which sees the results of the other stages, and compares their files."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.errors import NotReproduced, OutOfResource, Problem, RecipeError
from alignkit.io.changes import changes, shown
from alignkit.io.digest import file_digest
from alignkit.io.progress import Reporter
from alignkit.io.stage_results import EARLIER
from alignkit.outcome import Result
from alignkit.recipe.schema import Recipe
from alignkit.runs.run import Run
from alignkit.runs.stage_store import StageStore
from alignkit.stopping import Stopped, stoppable
from alignkit_http.stored_replies import stored_replies_only
from alignkit_plugins.people.waiting import NobodyAsked

METRICS = "metrics.jsonl"
NO_RESULTS = ("map", "checkpoints", "stage.json")  # stores of unfinished work, and the record itself
ENVIRONMENT = ("versions", "kernels", "source", "version", "recognized")  # keys of a hash that are no inputs


class _Enough(Stopped):
    """The rerun has made the iterations that are compared."""


class Rerun(Run):
    """A run of one stage. steps: end after this many iterations; None: at the stage's end."""

    def __init__(self, recipe: Recipe, run: Path, name: str, folder: Path, reporter: Reporter, steps: int | None):
        store = StageStore(run, recipe.stages)
        folder.mkdir()
        for other in (EARLIER, *recipe.stages):
            if other != name and store.path(other).is_dir():
                (folder / other).symlink_to(store.path(other).resolve(), target_is_directory=True)
        if (run / "cache").is_dir():
            shutil.copytree(run / "cache", folder / "cache", ignore=shutil.ignore_patterns("engine-*"))
        super().__init__(replace(recipe, trackers=()), folder, reporter)
        self.record, self.old = store.record(name), store.path(name)
        self.stage, self._steps, self._last = recipe.stages[name], steps, 0
        self.hashes.update(self.record["depends_on"]["upstream"])
        self.parts: dict[str, Any] = json.loads(json.dumps(self.parts_of(self.stage), default=str))

    def again(self) -> bool:
        """Run the stage. Returns whether it ran to its end."""
        try:
            with stored_replies_only():
                self._stage(self.stage)
        except _Enough:
            return False
        except Exception as error:
            error.add_note(f"stage '{self.stage.name}' was run again by verify; {self.old} is as it was")
            raise
        finally:
            self.reporter.stop()
        return True

    def should_stop(self) -> None:
        super().should_stop()
        if self._steps is not None and self._last >= self._steps:
            raise _Enough

    def notify(self, stage: str) -> Callable[..., Any]:
        call = super().notify(stage)

        def counting(hook: str, **values: Any) -> Any:
            if hook == "map_elsewhere":  # workers would not know that nothing is asked or paid for here
                return []
            if hook == "metrics_logged":
                self._last = int(values["step"])
            return call(hook, **values)

        return counting

    def changed(self) -> tuple[list[str], list[str]]:
        """What differs from the record: the stage's inputs, and the versions and the code."""
        inputs, around = list[str](), list[str]()
        for change in changes(self.record["depends_on"], self.parts):
            (around if set(ENVIRONMENT) & set(change.path) else inputs).append(shown(change))
        return inputs, around

    def differences(self, *, whole: bool) -> list[str]:
        """The files that differ, but for times and places."""
        new, before = self.store.path(self.stage.name), self.record["files"]
        files = {path.relative_to(new).as_posix(): path for path in sorted(new.rglob("*")) if path.is_file()}
        found = []
        for name in sorted({*files, *(before if whole else ())}, key=lambda name: (name != METRICS, name)):
            top = name.split("/")[0]
            if top in NO_RESULTS or (not whole and top == "adapter"):  # that of an unfinished stage is none
                continue
            if name not in files or name not in before:
                found.append(f"{name}: only {'in the run' if name in before else 'here'}")
            elif file_digest(files[name]) != before[name] and (text := _first(self.old / name, files[name], whole)):
                found.append(f"{name}: {text}")
        return found


def _first(old: Path, new: Path, whole: bool) -> str:
    """The first difference of two files whose digests differ; empty if it is of times and places only."""
    if old.suffix not in (".json", ".jsonl"):
        return "other bytes"
    before, now = ([json.loads(line) for line in _lines(file)] for file in (old, new))
    if len(now) < len(before) and not whole:
        before = before[: len(now)]
    for number, (one, other) in enumerate(zip(before, now, strict=False), 1):
        for change in changes(_untimed(one), _untimed(other)):
            return f"line {number}, {shown(change)}"
    return "" if len(before) == len(now) else f"{len(before)} lines in the run, {len(now)} here"


def _lines(file: Path) -> list[str]:
    text = file.read_text(encoding="utf-8")
    return text.splitlines() if file.suffix == ".jsonl" else [text]


def _untimed(value: Any) -> Any:
    if isinstance(value, Mapping):
        timed = ("time", "seconds", "base_model_name_or_path")
        ends = ("_per_second", "_runtime")
        names = [name for name in value if name not in timed and not name.endswith(ends)]
        return {name: _untimed(value[name]) for name in names if not name.startswith("seconds/")}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def _unusable(store: StageStore, name: str) -> str:
    """Why a stage cannot be verified; empty if it can."""
    record = store.record(name)
    if not record.get("complete"):
        return f"stage '{name}' is not finished"
    if damage := store.damage(name):
        return f"stage '{name}' is damaged: {damage}"
    for upstream, used in record["depends_on"]["upstream"].items():
        if upstream not in store.stages or store.record(upstream).get("hash") != used:
            return f"stage '{name}' was made from another result of stage '{upstream}' than the run has now"
        if damage := store.damage(upstream):
            return f"stage '{name}' depends on stage '{upstream}', which is damaged: {damage}"
    return ""


def _refuse(reasons: Sequence[str]) -> None:
    if reasons:
        help = "name another stage, as in `alignkit verify RUN/STAGE`, or run the recipe again"
        raise RecipeError([Problem(reason, help=help) for reason in reasons])


def verified(recipe: Recipe, run: Path, names: Sequence[str], steps: int | None) -> Result:
    """Run the stages again, and print what came of each. The result's error is NotReproduced if one differs.

    steps: only the first iterations of each training stage. Raises RecipeError, before any stage runs, if a result or
    an input is not as it was.
    """
    store, reporter = StageStore(run, recipe.stages), Reporter()
    _refuse([reason for name in names if (reason := _unusable(store, name))])
    if steps is not None:
        names = [name for name in names if recipe.stages[name].kind == "algorithm" and _has_metrics(store, name)]
    _refuse([] if names else ["there are no iterations here: leave out --iterations"])
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{run.resolve().name}.verify-", dir=run.resolve().parent))
    except OSError as error:
        raise OutOfResource(f"cannot write a temporary folder next to {run}: {error.strerror or error}") from None
    stages: dict[str, Any] = {}
    try:
        with stoppable():
            reruns = {name: Rerun(recipe, run, name, folder / name, reporter, steps) for name in names}
            inputs = {name: ", ".join(rerun.changed()[0]) for name, rerun in reruns.items()}
            _refuse([f"stage '{name}' has other inputs now: {text}" for name, text in inputs.items() if text])
            for name in names:
                stages[name] = _verified(reruns.pop(name), reporter)  # and its models go
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    facts = {"run": run, "stages": stages}
    if wrong := [name for name in names if stages[name]["equal"] is False]:
        return Result("verify", facts, error=NotReproduced(f"not reproduced: {', '.join(wrong)}"))
    return Result("verify", facts)


def _has_metrics(store: StageStore, name: str) -> bool:
    return (store.path(name) / METRICS).is_file()


def _verified(rerun: Rerun, reporter: Reporter) -> dict[str, Any]:
    name = rerun.stage.name
    try:
        whole = rerun.again()
    except NobodyAsked:
        reporter.result(f"{name}: not verified, because people labeled what it read")
        return {"equal": None}
    found = rerun.differences(whole=whole)
    causes = rerun.changed()[1] if found else []
    part = "" if whole else " as far as the first iterations go"
    reporter.result("\n  ".join([f"{name}: {'DIFFERENT' if found else 'equal'}{part}", *found[:3]]))
    if found:
        reporter.result(f"  different here: {'; '.join(causes) or 'nothing that the record knows'}")
    return {"equal": not found, "differences": found, "causes": causes}
