"""The command `alignkit init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import Result, refuse
from alignkit.io.text import is_file
from alignkit_plugins.printing import files_written, print_table


def init(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Where the recipe is written. Default: the current folder."
        ),
    ] = Path(),
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILES", help="Your data, of which each file is recognized."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--from", metavar="RECIPE", help="Copy a recipe that comes with alignkit."),
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List the recipes that come with alignkit.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Base model: a hub id, a folder, or a name of `alignkit plugins model`.",
        ),
    ] = None,
    demos: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts with one good response each.")
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Prompts with a better and a worse response each."),
    ] = None,
    rankings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts with ranked responses.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prompts to learn on. Needs --pairs.")
    ] = None,
    known_answers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Questions with the right answer in a column."),
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            metavar="NAME=COLUMN,...", help="Names of your columns, by those that a format expects."
        ),
    ] = "",
) -> Result:
    """Write the recipe that answers what your data can answer.

    Without data it is a tiny example, or a copy. Each file is recognized by its columns:
    demonstrations, pairs or rankings, labels, questions with a known answer, prompts. A fifth of
    the conversations is held out, and the run ends in what was learned about them. Where the
    columns do not tell, an option says what a file is, or which columns are meant. No file is ever
    replaced.

    \b
    Examples:
      alignkit init my-project
      alignkit init my-project demos.jsonl pairs.jsonl
      alignkit init my-project --known-answers questions.csv \\
        --base HuggingFaceTB/SmolLM2-360M-Instruct
      alignkit init --demos faq.csv --columns prompt=question,completion=answer
      alignkit init my-project --from quickstart
    """
    if listed:
        from alignkit.recipe.yaml import shipped
        from alignkit_plugins.recipes.init_write import summary

        rows = [(name, summary(path)) for name, path in shipped().items()]
        facts = [{"name": name, "summary": text} for name, text in rows]
        return Result("recipes", facts, lambda: print_table(("name", "what it does"), rows))
    named = [("demos", demos), ("pairs", pairs), ("pairs", rankings), ("prompts", prompts)]
    named.append(("known-answers", known_answers))
    given = [(kind, path) for kind, path in named if path is not None] + [
        ("", path) for path in files or ()
    ]
    if is_file(folder):
        folder, given = Path(), [("", folder), *given]
    for kind, path in given:
        if not is_file(path):
            refuse(f"{f'--{kind}: ' if kind else ''}no such file: {path}")
        if path.suffix in (".yaml", ".yml"):
            refuse(f"{path} is a recipe, and `init` writes one", f"to run it: alignkit run {path}")
    from alignkit.plugins import load_plugins
    from alignkit.recipe.yaml import find_recipe
    from alignkit_plugins.recipes.init_write import STARTER, copy_recipe, write

    load_plugins()
    if given and recipe is None:
        written, assumed = write(folder, base, given, _named_columns(columns))
    else:
        if given or base or columns:
            refuse(
                "a recipe is copied unchanged",
                "leave out data, --base and --columns, and edit the copy",
            )
        written, assumed = copy_recipe(find_recipe(recipe) if recipe else STARTER, folder), []
    return files_written(written, assumed, f"alignkit run {written[0]}")


def _named_columns(text: str) -> dict[str, str]:
    """Column names by the names that a format expects, from `prompt=question,completion=answer`."""
    columns: dict[str, str] = {}
    for part in filter(str.strip, text.split(",")):
        name, _, column = map(str.strip, part.partition("="))
        if not name or not column or name in columns:
            refuse(
                f"--columns: '{part}' is not NAME=COLUMN with a new name",
                "as in prompt=question,completion=answer",
            )
        columns[name] = column
    return columns
