"""What the JSON files of a saved model say. Without torch, whose import takes seconds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignkit.errors import AlignkitError, RunFailed, memory_ran_out, reason_of

CONFIG = "config.json"
ADAPTER, ORIGIN = "adapter_config.json", "alignkit.json"  # files of an adapter
SCALE = ("r", "lora_alpha", "use_rslora")
ALL = "all-linear"  # the layers that have one by default
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
        return dict(json.loads(file.read_text("utf-8")))


def has_score(folder: Path) -> bool:
    """Whether a saved role is a reward model."""
    for file in (folder / ADAPTER, folder / CONFIG):
        config = read_json(file, optional=True)
        names = config.get("architectures") or []
        if config.get("task_type") == "SEQ_CLS" or any(
            name.endswith("ForSequenceClassification") for name in names
        ):
            return True
    return False


def base_name(folder: Path) -> str:
    """The name of the base model that the adapter in a folder is for."""
    return str(
        origin_of(folder).get("name") or read_json(folder / ADAPTER).get("base_model_name_or_path")
    )


def scale_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options in peft's configuration that scale an adapter."""
    return {key: config[key] for key in SCALE if config.get(key) is not None}


def origin_of(folder: Path) -> Mapping[str, Any]:
    """What `save_origin` has written; empty for an adapter of plain peft."""
    saved = read_json(folder / ORIGIN, optional=True).get("base")
    return saved if isinstance(saved, dict) else {}
