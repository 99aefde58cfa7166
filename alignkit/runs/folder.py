"""The folder of a run: what it may hold, its lock, and the command that resumes it. Nothing here imports torch."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

import alignkit
from alignkit.errors import OutOfResource, Problem, RecipeError, RunFailed
from alignkit.io.atomic import LOCK, make_folder, remove_leftovers
from alignkit.io.console import Reporter
from alignkit.io.results import FACTS, MARKDOWN, PAGE, RECIPE, STARTS, is_empty
from alignkit.io.text import exists, is_dir, redacted
from alignkit.recipe.schema import Recipe

# A run replaces these, next to the folders of its stages. It only adds to run.log and starts.jsonl.
REPLACED = ("cache", "trackers", "metrics.jsonl", PAGE, MARKDOWN, FACTS)


def begin(recipe: Recipe, out: Path | None = None) -> tuple[Path, Reporter]:
    """Say what will run, and where. Returns the run's folder (default `runs/NAME`) and its reporter.

    Raises RecipeError if the run would replace what is in that folder and is no run's.
    """
    folder, count = folder_of(recipe, out), len(recipe.stages)
    check_out(folder, recipe.stages)
    reporter = Reporter()
    reporter.say(f"alignkit {alignkit.__version__}: {recipe.name}, {count} stage{'s' * (count > 1)}, {folder}")
    return folder, reporter


def folder_of(recipe: Recipe, out: Path | None) -> Path:
    """Where a recipe runs."""
    return out or Path("runs") / recipe.name


def check_out(folder: Path, stages: Iterable[str]) -> None:
    """Raise RecipeError if a run of these stages would replace what is in the folder: a user's files, or another run.

    A run of other stages only is another one: its results would stay, but no longer its recipe and its report.
    """
    names, text = set(stages), ""
    if exists(folder / STARTS) or exists(folder / RECIPE):
        theirs = sorted(path.parent.name for path in folder.glob("*/stage.json"))
        if theirs and names.isdisjoint(theirs):
            text = f"holds another run, whose stages this recipe does not have: {_quoted(theirs)}"
    elif taken := [name for name in (*stages, *REPLACED) if exists(folder / name) and not is_empty(folder / name)]:
        text = f"is not the folder of a run, and a run would replace what is in it: {_quoted(taken)}"
    if text:
        raise RecipeError([Problem(f"--out {folder} {text}", help="choose another folder, such as --out runs/NAME")])


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the run's folder, hold its lock, so that two runs never share it, and clear what a killed run left."""
    if exists(folder) and not is_dir(folder):
        raise RecipeError([Problem(f"--out {folder} is a file, not a folder")])
    try:
        make_folder(folder)
        lock = FileLock(folder / LOCK).acquire(timeout=0)
    except Timeout:
        raise RunFailed(f"another run is using {folder}; choose another folder with --out") from None
    except ValueError as error:
        raise RecipeError([Problem(f"--out {str(folder)!r} cannot be the name of a folder: {error}")]) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise RecipeError([Problem(f"--out {str(folder)[:80]}... is too long for the name of a folder")]) from None
        reason = error.strerror or error
        raise OutOfResource(f"cannot write {folder}: {reason}; choose another folder with --out") from None
    with lock:
        remove_leftovers(folder)
        yield


def resume_command() -> str:
    """The command that resumes this run: the one that started it."""
    words = [Path(sys.argv[0]).name, *sys.argv[1:]]
    if words[0] in ("__main__.py", "-m"):
        words[:1] = ["python", "-m", "alignkit"]
    return redacted(shlex.join(words))
