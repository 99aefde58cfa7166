"""Find a recipe on disk or among the shipped recipes, and load it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignkit.errors import Problem, RecipeError, did_you_mean
from alignkit.io.lookup import is_dir, is_file
from alignkit.plugins import plugins
from alignkit.recipe.build import build
from alignkit.recipe.document import load_document
from alignkit.recipe.schema import Recipe
from alignkit.registry import Registry


def load_recipe(path: Path | str, overrides: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """Read and check a recipe, without importing anything heavy. Raises RecipeError with every problem found."""
    return build(load_document(Path(path), overrides), registry if registry is not None else plugins().registry)


def _shipped() -> dict[str, Path]:
    """Return the shipped recipes by name: those of a checkout, or those installed next to the package."""
    root = Path(__file__).resolve().parents[2]
    folders = (root / "alignkit_recipes", root / "recipes")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe, given as a path or by the name of a shipped recipe (`quickstart`)."""
    path = Path(name)
    if is_file(path):
        return path
    shipped = _shipped()
    if str(name) in shipped:
        return shipped[str(name)]
    if is_dir(path):
        raise RecipeError([Problem("expected a recipe file, got a folder", str(name))])
    near = [item.name for item in path.parent.glob("*.y*ml")] if is_dir(path.parent) else []
    help = did_you_mean(path.name, [*near, *shipped]) or f"shipped recipes: {', '.join(shipped) or 'none'}"
    raise RecipeError([Problem(f"no such recipe: {name}", help=help)])
