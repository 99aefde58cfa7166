"""Verifies stages one by one, and prints a verdict on each."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.errors import NotReproduced, RunFailed
from alignkit.external import ExternalTrainer
from alignkit.io.changes import Change, changes
from alignkit.io.progress import Reporter
from alignkit.outcome import Result
from alignkit.runs.machine import machine_of
from alignkit.stopping import stoppable
from alignkit_apps.verify.compare import METRICS, Compared, compare
from alignkit_apps.verify.rerun import Rerun, temporary_folder
from alignkit_apps.verify.source import Recorded, changed_inputs, of_code, refuse
from alignkit_plugins.people.waiting import NobodyAsked

MOST_SHOWN = 3  # differing files of a stage, and other differences of this machine


def verified(recorded: Recorded, steps: int | None, reporter: Reporter) -> Result:
    """Run the stages again, and print what came of each. The result's error is NotReproduced if one differs.

    steps: only the first ones of each training stage. Raises RecipeError, before any stage runs, if inputs are gone or
    have changed.
    """
    names = [name for name in recorded.names if steps is None or _has_steps(recorded, name)]
    if not names:
        refuse(recorded.run, [f"{', '.join(recorded.names)}: no iterations; leave out --iterations"])
    with stoppable(), temporary_folder(recorded.run) as folder:
        _check_inputs(recorded, names, folder, reporter)
        stages = {name: _verify(recorded, name, folder, reporter, steps) for name in names}
    left = [name for name in recorded.names if name not in names]
    facts = {"run": recorded.run, "stages": stages | {name: {"equal": None} for name in left}}
    if wrong := [name for name in names if stages[name]["equal"] is False]:
        return Result("verify", facts, error=NotReproduced(f"not reproduced: {', '.join(wrong)}"))
    part = "" if steps is None else f", as far as the first {steps} go"
    count = sum(stages[name]["equal"] is True for name in names)
    reporter.result(f"verified: {count} stage{'s' * (count != 1)}, and all is equal{part}")
    if left:
        reporter.result(f"not verified, because --iterations is given: {', '.join(left)}")
    return Result("verify", facts)


def _has_steps(recorded: Recorded, name: str) -> bool:
    """Whether a rerun of the stage can end after some steps, and be compared by its metrics."""
    stage = recorded.stage(name)
    implementation = stage.component.registration.implementation
    has_metrics = (recorded.store.path(name) / METRICS).is_file()
    return stage.kind == "algorithm" and not issubclass(implementation, ExternalTrainer) and has_metrics


def _check_inputs(recorded: Recorded, names: Sequence[str], folder: Path, reporter: Reporter) -> None:
    """Raise RecipeError for inputs that are not what they were, of all stages."""
    reasons = []
    for name in names:
        parts = Rerun(recorded, name, folder / f"{name}-inputs", reporter).parts
        before = recorded.record(name)["depends_on"]
        reasons += [f"stage '{name}': {text}" for text in changed_inputs(recorded.stage(name), before, parts)]
    refuse(recorded.run, reasons)


def _verify(recorded: Recorded, name: str, folder: Path, reporter: Reporter, steps: int | None) -> dict[str, Any]:
    """Run one stage again, and print whether it is equal; None if people would have to answer again."""
    rerun = Rerun(recorded, name, folder / name, reporter, steps)
    try:
        whole = rerun.again()
    except NobodyAsked:
        reporter.result(f"{name}: not verified, because people labeled what it read")
        return {"equal": None}
    compared = compare(recorded.store.path(name), rerun.store.path(name), None if whole else steps)
    machine = machine_of(rerun.models)
    reporter.result("\n".join(_lines(name, compared, whole)))
    found: list[str] = []
    if compared.differences:
        found = causes(recorded.record(name), rerun.parts, machine) or [unknown(machine)]
        first, *more = found
        reporter.result(f"  likely cause: {first}")
        if more:
            reporter.result(f"  also different here: {'; '.join(more)}")
    if recorded.store.record(name) != recorded.record(name):
        raise RunFailed(f"stage '{name}' of {recorded.run} has changed while it was verified: is it running?")
    del rerun
    gc.collect()  # the next stage loads its models again
    differences = [str(difference) for difference in compared.differences]
    return {"equal": not differences, "files": compared.files, "differences": differences, "causes": found}


def _lines(name: str, compared: Compared, whole: bool) -> list[str]:
    what = (
        f"{compared.files} files" if whole else f"the first {compared.steps} lines of metrics and what belongs to them"
    )
    if not compared.differences:
        return [f"{name}: equal ({what})"]
    shown = compared.differences[:MOST_SHOWN]
    lines = [f"{name}: DIFFERENT", *(f"  {difference}" for difference in shown)]
    if more := len(compared.differences) - len(shown):
        lines.append(f"  and {more} more file{'s' if more > 1 else ''}")
    return lines


# Why the bytes of a rerun may differ

UNKNOWN = "nothing that the record knows is different here"
_ON_A_GPU = "a GPU may add numbers in another order each time"
_ADVICE = {"threads": "set OMP_NUM_THREADS={old}", "kernels": "set ALIGNKIT_KERNELS={old}"}
# Facts of the machine.
_LIKELIEST = ("code", "processes", "threads", "instructions", "processor", "device", "python", "system")


def causes(record: Mapping[str, Any], parts: Mapping[str, Any], machine: Mapping[str, Any]) -> list[str]:
    """Differences between a stage's record and this process, the likeliest cause first.

    record: its stage.json. parts: of its hash, now. machine: `machine_of` now.
    """
    found = list(changes(record["depends_on"], parts))
    versions = [change for change in found if change.path[0] == "versions"]
    plugins = {_plugin(change, record["depends_on"]) for change in found if of_code(change)}
    kernels = [change for change in found if change.path[0] == "kernels"]
    texts = [f"{change.path[-1]} {change.old} -> {change.new}" for change in versions]
    texts += [f"the code of plugin {name} has changed" for name in sorted(plugins)]
    texts += [_with_advice("kernels", change.old, change.new) for change in kernels]
    return texts + list(_of_machine(record["machine"], machine))


def unknown(machine: Mapping[str, Any]) -> str:
    """The likely cause if nothing is known to be different."""
    if machine.get("device") not in (None, "cpu"):
        return f"{UNKNOWN}, but {_ON_A_GPU}"
    return f"{UNKNOWN}: a plugin that draws from a stream of its own, or hardware that miscalculates?"


def _of_machine(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for name in _LIKELIEST:
        old, new = before.get(name), now.get(name)
        if old != new:
            yield "the code of alignkit has changed" if name == "code" else _with_advice(name, old, new)


def _with_advice(name: str, old: Any, new: Any) -> str:
    advice = f" ({_ADVICE[name].format(old=old)})" if name in _ADVICE and old is not None else ""
    return f"{name} {old} -> {new}{advice}"


def _plugin(change: Change, parts: Mapping[str, Any]) -> str:
    """The name of the plugin whose code has changed: next to its `source` in the parts of the hash."""
    value: Any = parts
    for key in change.path:
        if key in ("source", "version"):
            return str(value.get("name", key)) if isinstance(value, Mapping) else str(key)
        if key == "recognized":
            found = value.get("recognized") if isinstance(value, Mapping) else None
            return str(found[0]) if found else str(key)
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int):
            value = value[key]
    return ".".join(map(str, change.path))
