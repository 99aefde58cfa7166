"""Files and folders that a recipe names.

Relative paths start at the folder of the file that contains them; those of overrides, where the command was typed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alignkit.errors import did_you_mean
from alignkit.io.lookup import NO_FILE, exists, expanded, is_dir, is_special, resolved
from alignkit.readers import reader_of
from alignkit.recipe.document import Document, Keys
from alignkit.recipe.problems import Problems
from alignkit.recipe.yaml_nodes import ESCAPES

LONGEST_NAME = 200  # characters of a model or data set on the hub


def means_folder(text: str) -> bool:
    """Whether a text can only be a folder, and no name on the hub."""
    return text.startswith((".", "/", "~")) or len(text) > LONGEST_NAME


def _cure(text: str, folder: Path) -> str:
    """What to write instead of a path that other tools or systems understand; empty if it is none."""
    if not text.isprintable():
        return ESCAPES
    if re.match(r"[A-Za-z]:[\\/]", text):
        return f"{text[:2]} is a drive of Windows; write the path that the file has on this system"
    if "\\" in text:
        return f"write slashes: {text.replace(chr(92), '/')}"
    if "$" in text:
        return "variables are not replaced; write the path, or set the key in the command: KEY=$DATA/rows.jsonl"
    if set("*?[") & set(text):
        found = sorted(path.name for path in folder.glob(Path(text).name))[:3]
        return f"patterns are not replaced; list the files: [{', '.join(found or ['a.jsonl', 'b.jsonl'])}]"
    return ""


@dataclass
class Paths:
    """Locates the paths of one document and remembers them."""

    problems: Problems
    located: dict[int, tuple[str, str]] = field(default_factory=dict)  # id of a value's mark -> (text, absolute path)

    @property
    def document(self) -> Document:
        """The recipe."""
        return self.problems.document

    def locate(self, text: str, keys: Keys) -> Path:
        """Return the absolute path of a path written at `keys`, whether or not the file exists."""
        path = expanded(text)
        if path.is_absolute():
            return path
        path = resolved(self.document.folder(keys) / path)
        if keys in self.document.places and exists(path):
            self.located[id(self.document.places[keys][1])] = (text, str(path))
        return path

    def file(self, text: str, keys: Keys, also: Iterable[str] = ()) -> Path | None:
        """Return the absolute path of a file that must exist. also: stages that the user may have meant instead."""
        path = self.locate(text, keys)
        if is_special(path):
            self.problems.error(keys, f"{text}: {NO_FILE}")
            return None
        if exists(path):
            return path
        near = sorted(item.name for item in path.parent.iterdir()) if is_dir(path.parent) else []
        help = did_you_mean(path.name, [*near, *also]) or f"looked in {path.parent}"
        help = self.meant_in_recipe(text, keys) or _cure(text, path.parent) or help
        self.problems.error(keys, f"no such file{' or stage' if also else ''}: {text}", help=help)
        return None

    def meant_in_recipe(self, text: str, keys: Keys) -> str:
        """What to do if an override names a file of the recipe's folder; empty if it does not."""
        in_recipe = self.document.path.parent / text
        if not self.document.overridden(keys) or not exists(in_recipe):
            return ""
        return f"an override's path starts at the current folder; did you mean {in_recipe}?"

    def folder(self, text: str, keys: Keys) -> Path | None:
        """Return the absolute path of a folder that must exist."""
        path = self.locate(text, keys)
        if is_dir(path):
            return path
        self.problems.error(keys, f"no such folder: {text}", help=f"looked for {path}")
        return None

    def folder_or_hub(self, text: str, keys: Keys) -> str:
        """Return the absolute path of a folder, or a name on the hub. Reports what can only be a missing folder."""
        folder = self.folder(text, keys) if means_folder(text) else self.locate(text, keys)
        return str(folder) if folder is not None and is_dir(folder) else text

    def address(self, text: str, name: str, rest: str, keys: Keys) -> str:
        """Return `name://rest` with an absolute path if the rest is a file or folder."""
        path = self.locate(rest, keys)
        made = f"{name}://{path}" if exists(path) else text
        if keys in self.document.places:
            self.located[id(self.document.places[keys][1])] = (text, made)
        return made

    def option(self, value: Path, keys: Keys) -> Path:
        """Check the file that an option names, and return its absolute path. One that runs write need not exist yet."""
        path = self.locate(str(value), keys)
        if not exists(path) and not ((reader := reader_of(path)) and reader.grows):
            help = self.meant_in_recipe(str(value), keys) or f"looked for {path}"
            self.problems.error(keys, f"no such file: {value}", help=help)
        return path

    def for_run(self, value: Path, keys: Keys) -> Path:
        """Return a path that a run can use. A run looks in the recipe's folder, not in those of extended files."""
        if self.document.folder(keys) == self.document.path.parent:
            return value
        return self.locate(str(value), keys)

    def portable(self, value: Any, keys: Keys = ()) -> Any:
        """Return plain data of the document with all located paths absolute, so that it works in any folder."""
        if isinstance(value, dict):
            return {key: self.portable(item, (*keys, key)) for key, item in value.items()}
        if isinstance(value, list):
            return [self.portable(item, (*keys, i)) for i, item in enumerate(value)]
        mark = self.document.places[keys][1] if keys in self.document.places else None
        text, path = self.located.get(id(mark), (None, ""))
        return path if isinstance(value, str) and value == text else value
