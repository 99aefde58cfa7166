"""Data sets of the Hugging Face hub, and folders of data files, as numbered rows; read by `datasets`."""

from __future__ import annotations

import ast
import importlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from alignkit.data.files import json_value
from alignkit.errors import DataError, did_you_mean
from alignkit.io.cache import cache_folder
from alignkit.io.digest import folder_digest

CommitOf = Callable[[str, str | None], str | None]  # data set, revision -> commit, or None if it is unknown


def as_written(name: str, revision: str | None) -> str | None:
    """The revision as the recipe writes it, without asking the hub."""
    return revision


def hub_rows(
    name: str,
    config: str | None = None,
    revision: str | None = None,
    data_files: Any = None,
    split: str = "train",
    commit: CommitOf = as_written,
) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a part of a hub data set, or of a local folder in the layout of one.

    config: the configuration (subset); None means the only one, or the default.
    data_files: a file or pattern inside, a list of these, or one of these for each split.
    commit: reads exactly this commit.
    Raises `DataError` if `datasets` cannot load them.
    """
    datasets = importlib.import_module("datasets")  # takes seconds, so only when needed
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # a README without a card is no fault
    where = {"name": config, "data_files": data_files}
    if Path(name).is_dir():
        if revision is not None:
            raise DataError(f"{name}: a folder has no 'revision'; remove it")
        # `datasets` knows a prepared file by its time of change; this knows it by its content.
        where["cache_dir"] = str(cache_folder() / "datasets" / folder_digest(Path(name)))
    else:
        where["revision"] = commit(name, revision)
    where = {key: value for key, value in where.items() if value is not None}
    try:
        for number, row in enumerate(datasets.load_dataset(name, split=split, **where), 1):
            yield number, json_value(row)
    except Exception as error:  # the network, the hub and Arrow raise many kinds
        label = f"{name}{f'/{config}' if config else ''}[{split}]"
        raise DataError(f"{label}: `datasets` cannot load it: {_reason(error, config)}") from error


def _reason(error: Exception, config: str | None) -> str:
    """The error in words, with what there is to choose from."""
    text = str(error)
    listed = re.search(r"(?:Available|available configs): (\[.*?\])", text)
    if listed is None:
        return f"{type(error).__name__}: {text}"
    names = [str(name) for name in ast.literal_eval(listed[1])]
    choices = f"its configurations are {', '.join(names)}"
    if config is None:
        return f"it has several configurations; choose one with 'name': {', '.join(names)}"
    guess = did_you_mean(config, names)
    return f"there is no configuration '{config}'; {f'{guess} ' if guess else ''}{choices}"
