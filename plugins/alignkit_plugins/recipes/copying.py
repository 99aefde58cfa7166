"""Copies of recipes, with every file that they name, which can be edited; and what each shipped
recipe does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from alignkit.commands import refuse
from alignkit.errors import OutOfResource
from alignkit.plugins import plugins
from alignkit.recipe.yaml import SCHEMA, SCHEMA_LINE
from alignkit_plugins.recipes.options import schema_line

_NAMES = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.\w+")  # of files
STARTER = Path(__file__).with_name("starter") / "recipe.yaml"


def summary(path: Path) -> str:
    """What a recipe does: the comment `What:` of its file, up to the first sentence's end."""
    found = re.search(r"^# What:(.*(?:\n#   .*)*)", path.read_text(encoding="utf-8"), re.M)
    words = found[1].replace("\n#", " ").split() if found else []
    return " ".join(words).partition(". ")[0].rstrip(".")


def copy_recipe(recipe: Path, folder: Path) -> list[Path]:
    """Copy a recipe and the files below its folder that it names; return the copies, the recipe
    first.

    Raises RecipeError if a file with other contents is in the way; nothing is written then.
    """
    root = recipe.parent
    files = [recipe, *root.glob("data/LICENSES.md")]
    for file in files:  # a recipe names others, which name further ones
        words = _NAMES.findall(file.read_text(encoding="utf-8")) if file.suffix == ".yaml" else ()
        files += dict.fromkeys(
            root / word for word in words if (root / word).is_file() and root / word not in files
        )
    line = schema_line(plugins()).encode()
    copies = {
        folder / file.relative_to(root): file.read_bytes() for file in files if file.name != SCHEMA
    }
    return write_files(
        {file: copy.replace(SCHEMA_LINE.encode(), line, 1) for file, copy in copies.items()}
    )


def write_files(files: Mapping[Path, bytes]) -> list[Path]:
    """Write files: all, or none if one would replace another file. One with the same contents
    stays.
    """
    new = {
        path: contents
        for path, contents in files.items()
        if not (path.is_file() and path.read_bytes() == contents)
    }
    if taken := [str(path) for path in new if path.exists() or path.is_symlink()]:
        refuse(
            f"already exists, with other contents: {', '.join(taken)}",
            "name another folder: alignkit init FOLDER",
        )
    try:
        for path, contents in new.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutOfResource(
            f"cannot write {path}: {reason}\n  help: name another folder"
        ) from error
    return list(files)
