"""Runs the cells of a recipe, each in a process of its own, in folders next to each other: what does
not depend on what varies is computed once.

RUN/cells/ADDRESS       the run of a cell, which every command takes as any other run
RUN/cells/ADDRESS.json  what it found (`alignkit_plugins.cells.rows`); a table reads nothing else
RUN/cells/commands.jsonl  each command with the cells that it runs: `show` knows which are to come
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from os.path import relpath
from pathlib import Path

from alignkit.errors import RecipeError, RunFailed, refuse
from alignkit.io.atomic import make_folder
from alignkit.io.console import Reporter
from alignkit.io.digest import digest
from alignkit.io.results import CELLS, append_line, json_lines, write_checked
from alignkit.io.text import duration
from alignkit.recipe.schema import Recipe
from alignkit.runs.services import folder_of, resume_command
from alignkit.runs.signals import should_stop, stoppable
from alignkit_plugins.cells.axes import Cell, cells_of
from alignkit_plugins.cells.rows import COMMANDS, row_of

LAST = 3  # lines of the log of a cell that failed
WAIT = 0.2  # seconds between looks at cells that run
DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG

Load = Callable[[Sequence[str]], Recipe]


def run_cells(
    load: Load, command: Sequence[str], words: Sequence[str], out: Path | None, jobs: int, part: str
) -> Path:
    """Run the cells that `--each` makes; returns the folder of the run.

    load: the recipe with further overrides. command: the words that run a cell, but for those.
    words: of `--each`. part: `I/N`, the share of the cells to run; empty: all. A cell that fails
    leaves the others.

    Raises RecipeError, before anything runs, for a value that the recipe does not take, and
    RunFailed at the end if a cell has failed.
    """
    chosen, recipes = chosen_cells(load, words, part)
    plain = load([])
    folder = folder_of(plain, out)
    base = base_of(plain)
    make_folder(folder / CELLS)
    _note(folder / CELLS / COMMANDS, chosen)
    reporter = Reporter()
    reporter.say(f"{len(chosen)} cell{'s' * (len(chosen) != 1)}, {folder / CELLS}")
    with stoppable():
        failed = _run(chosen, recipes, base, command, folder, jobs, reporter)
    if failed:
        help = f"to run them again, and only them: {resume_command()}"
        raise RunFailed(f"failed: {', '.join(failed)}\nhelp: {help}")
    return folder


def chosen_cells(
    load: Load, words: Sequence[str], part: str = ""
) -> tuple[Sequence[Cell], dict[str, Recipe]]:
    """The cells of a part, and the recipes of all by address. Raises RecipeError."""
    every, recipes = cells_of(words), dict[str, Recipe]()
    for cell in every:
        try:
            recipes[cell.address] = load(cell.overrides)
        except RecipeError as error:
            error.add_note(f"in cell {cell.address}")
            raise
    _check_different(recipes)
    return _share(every, part), recipes


def _note(file: Path, cells: Sequence[Cell]) -> None:
    """Append which cells this command runs, if that is not written yet."""
    line = {"command": resume_command(), "cells": [cell.address for cell in cells]}
    if line not in json_lines(file):
        append_line(file, line)


def base_of(recipe: Recipe) -> str:
    """A digest of a recipe, the same in each checkout. Cells of one table have the same."""
    text = json.dumps({**recipe.resolved, "name": ""}, default=str)
    # A base recipe's files lie in its own folder
    return digest(re.sub(r'"(/[^"]*)"', lambda found: relpath(found[1], recipe.folder), text))


def _check_different(recipes: Mapping[str, Recipe]) -> None:
    """Raise RecipeError if two cells are equal."""
    seen = dict[str, str]()
    for address, recipe in recipes.items():
        key = digest({**recipe.resolved, "name": ""})
        if key in seen:
            refuse(f"--each: {seen[key]} and {address} are the same", "leave one of them out")
        seen[key] = address


def _share(cells: Sequence[Cell], part: str) -> Sequence[Cell]:
    """Every Nth cell, from the Ith, for `I/N`."""
    if not part:
        return cells
    one, slash, all_ = part.partition("/")
    if not (slash and one.isdigit() and all_.isdigit() and 1 <= int(one) <= int(all_)):
        refuse(f"--part {part}: expected I/N", "such as 2/4, the second of four parts")
    return cells[int(one) - 1 :: int(all_)]


def _run(
    cells: Sequence[Cell],
    recipes: Mapping[str, Recipe],
    base: str,
    command: Sequence[str],
    folder: Path,
    jobs: int,
    reporter: Reporter,
) -> list[str]:
    """Run cells, some at a time; returns the addresses of those that failed."""
    waiting, running, failed = list(cells), dict[str, Process](), list[str]()
    try:
        while waiting or running:
            should_stop()
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                running[cell.address] = Process(cell, command, folder, jobs)
            for address, process in list(running.items()):
                if process.ended:
                    del running[address]
                    count = f"{len(cells) - len(waiting) - len(running)}/{len(cells)}"
                    row_file = process.folder.with_name(f"{address}.json")
                    if problem := process.problem:
                        row_file.unlink(missing_ok=True)  # an earlier command wrote it
                        failed.append(address)
                        reporter.say(f"{address}: failed ({count}): {problem}")
                        continue
                    done = process.cell
                    facts = {"place": done.place, "values": done.values, "base": base}
                    row = {**facts, **row_of(recipes[address], process.folder)}
                    before = row_file.read_bytes() if row_file.is_file() else b""
                    write_checked(row_file, row)
                    if row_file.read_bytes() == before:
                        reporter.say(f"{address}: unchanged ({count})")
                    else:
                        reporter.say(f"{address}: done ({count}) in {process.took}")
            time.sleep(WAIT)
    except BaseException as error:
        for process in running.values():
            process.process.terminate()
        for process in running.values():
            process.process.wait()
        error.add_note(f"to resume: {resume_command()}")
        raise
    return failed


class Process:
    """A cell that runs, with its share of the threads. Its output is in ADDRESS.log."""

    def __init__(self, cell: Cell, command: Sequence[str], folder: Path, jobs: int):
        self.cell, self.folder, self.began = cell, folder / CELLS / cell.address, time.monotonic()
        self.log = self.folder.with_name(f"{cell.address}.log")
        threads = max(1, (os.cpu_count() or 1) // jobs)
        environment = {"OMP_NUM_THREADS": str(threads)} if jobs > 1 else {}
        words = [*command, *cell.overrides, "--out", str(self.folder)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "alignkit", "run", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**environment, **os.environ},
                start_new_session=True,  # one signal each: a second one ends a run at once
                preexec_fn=_end_with_parent,  # or it holds the lock of a cell that resumes
            )

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def took(self) -> str:
        return duration(time.monotonic() - self.began)

    @property
    def problem(self) -> str:
        """Why it failed, by the last lines of its log; empty if it is complete."""
        if not self.process.returncode:
            return ""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "\n  ".join([f"see {self.log}", *lines[-LAST:]])


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(DEATH_OF_PARENT, signal.SIGKILL)
