"""The recipes that come with alignkit, found by name from any folder."""

from __future__ import annotations

from pathlib import Path

from alignkit.errors import Problem, RecipeError, did_you_mean
from alignkit.io.lookup import is_dir, is_file

SCHEMA = "recipe.schema.json"  # next to the shipped recipes
SCHEMA_LINE = f"# yaml-language-server: $schema={SCHEMA}"  # lets editors complete and check keys


def shipped_folder() -> Path:
    """The folder of the shipped recipes: a checkout's, or the one installed next to the package."""
    root = Path(__file__).resolve().parents[2]
    installed = root / "alignkit_recipes"
    return installed if installed.is_dir() else root / "recipes"


def shipped() -> dict[str, Path]:
    """The shipped recipes by name."""
    return {file.stem: file for file in sorted(shipped_folder().glob("*.yaml"))}


def shipped_recipe(text: str) -> Path | None:
    """The shipped recipe that is meant by `quickstart` or `recipes/quickstart.yaml`; None if there is none."""
    return shipped().get(text.removeprefix("recipes/").removesuffix(".yaml"))


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe, given as a path or by the name of a shipped recipe. Raises RecipeError."""
    path = Path(name)
    if is_file(path):
        return path
    if found := shipped_recipe(str(name)):
        return found
    if is_dir(path):
        inside = sorted(map(str, path.glob("*.y*ml")))
        help = f"name its recipe: {' or '.join(inside)}" if inside else f"`alignkit init {name}` writes a recipe there"
        raise RecipeError([Problem(f"{name} is a folder, and a recipe is a file", help=help)])
    near = [item.name for item in path.parent.glob("*.y*ml")] if is_dir(path.parent) else []
    help = did_you_mean(path.name, [*near, *shipped()]) or f"shipped recipes: {', '.join(shipped()) or 'none'}"
    raise RecipeError([Problem(f"no such recipe: {name}", help=help)])
