"""Data sets of the Hugging Face hub, and folders of data files, as numbered rows; read by `datasets`."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class HubRows:
    """A part of a hub data set, or of a local folder in the layout of one.

    config: the configuration (subset); None means the only one, or the default. data_dir: a folder inside.
    data_files: a file or pattern inside, a list of these, or one of these for each split.
    streaming: read rows as they are needed, instead of downloading all files first.
    """

    name: str
    config: str | None = None
    revision: str | None = None
    data_dir: str | None = None
    data_files: Any = None
    split: str = "train"
    streaming: bool = False

    def rows(self, commit: CommitOf = as_written) -> Iterator[tuple[int, Any]]:
        """Numbered rows. commit: reads exactly this commit. Raises `DataError` if `datasets` cannot load them."""
        datasets = importlib.import_module("datasets")  # takes seconds, so only when needed
        where = {"name": self.config, "data_dir": self.data_dir, "data_files": self.data_files}
        if Path(self.name).is_dir():
            if self.revision is not None:
                raise DataError(f"{self.name}: a folder has no 'revision'; remove it")
            # `datasets` knows a prepared file by its time of change; this knows it by its content.
            where["cache_dir"] = str(cache_folder() / "datasets" / folder_digest(Path(self.name)))
        else:
            where["revision"] = commit(self.name, self.revision)
        where = {key: value for key, value in where.items() if value is not None}
        if self.streaming:
            where["streaming"] = True
        try:
            found = datasets.load_dataset(self.name, split=self.split, **where)
            for number, row in enumerate(found, 1):
                yield number, json_value(row)
        except Exception as error:  # the network, the hub and Arrow raise many kinds
            raise DataError(f"{self._label}: `datasets` cannot load it: {_reason(error, self.config)}") from error

    @property
    def _label(self) -> str:
        return f"{self.name}{f'/{self.config}' if self.config else ''}[{self.split}]"


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
