"""What surrounds a run: its folder's lock, the command that resumes it, and errors of the machine in words."""

from __future__ import annotations

import errno
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from alignkit.errors import OutOfResource, Problem, RecipeError, RemoteError, RunFailed, memory_ran_out, no_disk
from alignkit.io.atomic import LOCK, make_folder, remove_leftovers
from alignkit.io.credentials import redacted
from alignkit.io.lookup import exists, is_dir
from alignkit.kernels import memory
from alignkit.models.models import Models
from alignkit.stopping import Stopped


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


def resource_error(error: BaseException) -> OutOfResource | None:
    """The error to show if memory or disk space ran out, or a disk is read-only, however a library reported it."""
    if found := no_disk(error):
        return found
    if memory_ran_out(error):
        ways = "reduce max_length or samples_per_prompt, or set model.activation_checkpointing=true"
        return OutOfResource(f"out of memory: {ways} ({error})")
    return None


def with_help(error: BaseException, stage: str) -> BaseException:
    """The error that ends a run, with notes on where it was and how it continues, if it was nobody's mistake."""
    if isinstance(error, KeyboardInterrupt | Stopped | RemoteError | OutOfResource):
        if stage:
            error.add_note(f"in stage '{stage}'")
        error.add_note(f"to resume: {resume_command()}")
    return error


def peak_memory(models: Models) -> str:
    """The most memory that this process has used, in words."""
    return memory.peak_text(next((one.model.device for one in models.bases.values()), None))
