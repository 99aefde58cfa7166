"""Verifies stages one by one, and prints a verdict on each."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path

from alignkit.errors import NotReproduced, RunFailed
from alignkit.external import ExternalTrainer
from alignkit.io.progress import Reporter
from alignkit.runs.machine import machine_of
from alignkit.stopping import stoppable
from alignkit_apps.feedback.waiting import NobodyAsked
from alignkit_apps.verify.causes import causes, not_recorded, unknown
from alignkit_apps.verify.compare import METRICS, Compared, compare
from alignkit_apps.verify.rerun import Rerun, temporary_folder
from alignkit_apps.verify.source import Recorded, changed_inputs, refuse

MOST_SHOWN = 3  # differing files of a stage, and other differences of this machine


def verified(recorded: Recorded, steps: int | None, reporter: Reporter) -> None:
    """Run the stages again, and print what came of each. Raises NotReproduced if a result differs.

    steps: only the first ones of each training stage. Raises RecipeError, before any stage runs, if inputs are gone or
    have changed.
    """
    names = [name for name in recorded.names if steps is None or _has_steps(recorded, name)]
    if not names:
        refuse(recorded.run, [f"{_listed(recorded.names)}: no iterations; leave out --iterations"])
    with stoppable(), temporary_folder(recorded.run) as folder:
        _check_inputs(recorded, names, folder, reporter)
        equal = {name: _verify(recorded, name, folder, reporter, steps) for name in names}
        if False in equal.values():
            raise NotReproduced(f"not reproduced: {_listed([name for name in names if equal[name] is False])}")
    part = "" if steps is None else f", as far as the first {steps} go"
    count = sum(equal[name] is True for name in names)
    reporter.result(f"verified: {count} stage{'s' * (count != 1)}, and all is equal{part}")
    if left := [name for name in recorded.names if name not in names]:
        reporter.result(f"not verified, because --iterations is given: {_listed(left)}")


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


def _verify(recorded: Recorded, name: str, folder: Path, reporter: Reporter, steps: int | None) -> bool | None:
    """Run one stage again, and print whether it is equal; None if people would have to answer again."""
    rerun = Rerun(recorded, name, folder / name, reporter, steps)
    try:
        whole = rerun.again()
    except NobodyAsked:
        reporter.result(f"{name}: not verified, because people labeled what it read")
        return None
    compared = compare(recorded.store.path(name), rerun.store.path(name), None if whole else steps)
    machine = machine_of(rerun.models)
    reporter.result("\n".join(_lines(recorded, name, compared, whole)))
    if compared.differences:
        found = causes(recorded.record(name), rerun.parts, machine)
        first, *more = found or [unknown(machine)]
        reporter.result(f"  likely cause: {first}")
        if more:
            reporter.result(f"  also different here: {'; '.join(more)}")
        if missing := not_recorded(recorded.record(name)):
            reporter.result(f"  not known: {missing}")
    if recorded.store.record(name) != recorded.record(name):
        raise RunFailed(f"stage '{name}' of {recorded.run} has changed while it was verified: is it running?")
    del rerun
    gc.collect()  # the next stage loads its models again
    return not compared.differences


def _lines(recorded: Recorded, name: str, compared: Compared, whole: bool) -> list[str]:
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


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
