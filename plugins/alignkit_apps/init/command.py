"""The command `alignkit init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import Result, refuse
from alignkit.io.text import is_file
from alignkit_apps.catalog.printing import files_written, print_table


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Where to; or a data file. Default: the current folder.")
    ] = Path(),
    recipe: Annotated[
        str | None, typer.Option("--from", metavar="RECIPE", help="Copy a recipe that comes with alignkit.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the recipes that come with alignkit.")] = False,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A hub id, a folder, or a name of `alignkit plugins model`.")
    ] = None,
    demos: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts with a good response each.")] = None,
    pairs: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts with a better and a worse one.")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts to learn on; needs --pairs.")] = None,
    columns: Annotated[
        str, typer.Option(metavar="NAME=COLUMN,...", help="Your columns, by the names that a format expects.")
    ] = "",
) -> Result:
    """Write a recipe: for your data, a tiny example, or a copy.

    If no format reads your data, name their columns. A copy comes with the data and rewards that it names. The first
    line lets editors complete and check keys. No file is ever replaced.

    \b
    Examples:
      alignkit init my-project
      alignkit init my-project --from quickstart
      alignkit init demos.jsonl
      alignkit init my-project --demos demos.jsonl \\
        --base HuggingFaceTB/SmolLM2-360M-Instruct
      alignkit init --demos faq.csv --columns prompt=question,completion=answer
      alignkit init --demos demos.jsonl --pairs pairs.jsonl --prompts p.jsonl
    """
    data = {name: path for name, path in (("demos", demos), ("pairs", pairs), ("prompts", prompts)) if path is not None}
    if listed:
        from alignkit.recipe.yaml import shipped
        from alignkit_apps.init.copying import summary

        rows = [(name, summary(path)) for name, path in shipped().items()]
        facts = [{"name": name, "summary": text} for name, text in rows]
        return Result("recipes", facts, lambda: print_table(("name", "what it does"), rows))
    if is_file(folder):
        folder = _add_file(folder, data)
    from alignkit.plugins import load_plugins

    load_plugins()
    assumed: list[str] = []
    if recipe is not None:
        if data or base or columns:
            refuse("--from copies a recipe unchanged", "leave out the other options, and edit the copy")
        from alignkit_apps.init.copying import copy_recipe

        files = copy_recipe(recipe, folder)
    else:
        from alignkit_apps.init.write import write

        files, assumed = write(folder, base, data, _named_columns(columns))
    return files_written(files, assumed, f"alignkit run {files[0]}")


def _add_file(path: Path, data: dict[str, Path]) -> Path:
    """Add a file to the data by its kind, and return the current folder. Raises RecipeError for a recipe."""
    if path.suffix in (".yaml", ".yml"):
        refuse(f"{path} is a file, and `init` writes a folder", f"to run this recipe: alignkit run {path}")
    from alignkit_apps.init.write import kind_of_file

    if (kind := kind_of_file(path)) in data:
        refuse(f"{path} and --{kind} are the same kind of data", f"write one file: cat {path} {data[kind]} > FILE")
    data[kind] = path
    return Path()


def _named_columns(text: str) -> dict[str, str]:
    """Column names by the names that a format expects, from `prompt=question,completion=answer`."""
    columns: dict[str, str] = {}
    for part in filter(str.strip, text.split(",")):
        name, _, column = map(str.strip, part.partition("="))
        if not name or not column or name in columns:
            refuse(f"--columns: '{part}' is not NAME=COLUMN with a new name", "as in prompt=question,completion=answer")
        columns[name] = column
    return columns
