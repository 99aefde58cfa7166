"""The rules of model sources: a complete folder, made once."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from alignkit.errors import AlignkitError
from alignkit.models.shared_model import SharedModel
from alignkit.registry import Registration
from alignkit.runs.bases import made_model
from alignkit.settings import LoraSpec, ModelSpec
from alignkit.testing.checks import ConformanceError, check_registered


def check_model_source(source: Callable[..., Path | str], *, cache: Path | None = None, path: str = "") -> None:
    """Raise ConformanceError if a source of base models breaks a rule (see the table in `alignkit.testing`).

    The model is loaded on the CPU in float32.

    Args:
        source: The function that is registered.
        cache: The folder that the source gets; default: an empty one, so that it makes or downloads the model again.
        path: What a recipe writes after `NAME://`, for a source that takes it.
    """
    name = check_registered("model", source)
    with tempfile.TemporaryDirectory(prefix="alignkit-testing-") as empty:
        try:
            problem = _problem(Registration(name, source), cache or Path(empty), *filter(None, [path]))
        except (AlignkitError, OSError, ValueError) as error:  # what a run would report
            problem = str(error)
    if problem:
        raise ConformanceError(f"{name}: {problem}")


def _problem(registration: Registration, cache: Path, *path: str) -> str:
    """The first rule that the source breaks, or an empty text."""
    folder = made_model(registration, cache, *path)
    if not Path(folder).is_dir():
        return f"it must return a folder, and '{folder}' is none"
    if cache.resolve() not in Path(folder).resolve().parents:
        return f"it must make the model below the cache folder that it is given, not in '{folder}'"
    before = _files(Path(folder))
    SharedModel(ModelSpec(base=folder, dtype="float32", device="cpu", lora=LoraSpec(r=4, lora_alpha=8)), folder)
    again = made_model(registration, cache, *path)
    if again != folder:
        return f"a second call returns another folder, '{again}', instead of the one that exists"
    if _files(Path(folder)) != before:
        return "a second call writes files again, although the folder is complete"
    return ""


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """The size and the time of every file."""
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.rglob("*"))}
