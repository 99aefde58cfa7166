"""What the JSON files of a saved model say. Without torch, whose import takes seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError, RunFailed, memory_ran_out, reason_of

CONFIG = "config.json"
_AGAIN = "copy or download the files again (`git lfs pull` if they come from a repository)"


@contextmanager
def reading(source: str | Path, help: str = _AGAIN) -> Iterator[None]:
    """Report what a library says of a model's files. It may raise anything for a file that it does
    not expect.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, AlignkitError) or memory_ran_out(error):
            raise
        raise RunFailed(f"{source} cannot be read ({reason_of(error)})\nhelp: {help}") from error


def read_json(file: Path, *, optional: bool = False) -> dict[str, Any]:
    """Read a JSON object. optional: none is empty. Raises RunFailed if the file holds anything
    else.
    """
    if optional and not file.is_file():
        return {}
    with reading(file):
        return dict(json.loads(file.read_text(encoding="utf-8")))


def has_score(folder: Path) -> bool:
    """Whether a saved role is a reward model."""
    for file in (folder / "adapter_config.json", folder / CONFIG):
        config = read_json(file, optional=True)
        names = config.get("architectures") or []
        if config.get("task_type") == "SEQ_CLS" or any(
            name.endswith("ForSequenceClassification") for name in names
        ):
            return True
    return False
