"""The command `alignkit init`."""

from __future__ import annotations

from pathlib import Path
from shlex import shlex
from typing import Annotated

import typer

from alignkit.contract.commands import Result, argument, option
from alignkit.errors import refuse
from alignkit.io.text import is_file
from alignkit_plugins.command_line.printing import files_written, print_table


def init(
    folder: Annotated[
        str,
        argument("DIR", "Where the recipe is written. Default: the current folder."),
    ] = ".",
    files: Annotated[
        list[str] | None,
        argument(
            "[KIND=]FILES",
            (
                "Your data. The format of each file is detected. If it cannot be: "
                "demos=, pairs= (rankings too), labels=, prompts= or known-answers=FILE."
            ),
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        option("RECIPE", "Copy a recipe that comes with alignkit.", "--from"),
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="List the recipes that come with alignkit.")
    ] = False,
    base: Annotated[
        str | None,
        option("MODEL", "Base model: a hub id, a folder, or a name of `alignkit plugins model`."),
    ] = None,
    columns: Annotated[
        str,
        option(
            "NAME=COLUMN,...",
            "Your columns, by the names that a format expects. Several may be `label`.",
        ),
    ] = "",
) -> Result:
    """Write a recipe that fits your data.

    Without data it is a tiny example, or a copy. Each file is recognized by its columns:
    demonstrations, pairs or rankings, labels, questions with a known answer, prompts. A fifth of
    the conversations is held out, and the run ends in what was learned about them. Where the
    columns do not tell, KIND says what a file is, or --columns which are meant. No file is ever
    replaced.

    \b
    Examples:
      alignkit init my-project
      alignkit init my-project demos.jsonl pairs.jsonl
      alignkit init my-project known-answers=questions.csv --base MODEL
      alignkit init demos=faq.csv --columns prompt=question,completion=answer
      alignkit init r.csv --columns prompt=Q,A="answer 1",B="answer 2",label=Ann
      alignkit init my-project --from quickstart
    """
    from alignkit.host.plugins import load_plugins
    from alignkit.recipe.yaml import find_recipe, shipped
    from alignkit_plugins.recipe_tools.init_write import STARTER, copy_recipe, named, summary, write

    if listed:
        rows = [(name, summary(path)) for name, path in shipped().items()]
        facts = [{"name": name, "summary": text} for name, text in rows]
        return Result("recipes", facts, lambda: print_table(("name", "what it does"), rows))
    words, place = list(files or ()), Path(folder)
    if named(folder)[0] or is_file(place):
        words, place = [folder, *words], Path()
    load_plugins()
    if words and recipe is None:
        written, assumed = write(place, base, list(map(named, words)), _named_columns(columns))
    else:
        if words or base or columns:
            help = "leave out data, --base and --columns, and edit the copy"
            refuse("a recipe is copied unchanged", help)
        written, assumed = copy_recipe(find_recipe(recipe) if recipe else STARTER, place), []
    return files_written(written, assumed, f"alignkit run {written[0]}")


def _named_columns(text: str) -> dict[str, str]:
    """Column names by the names that a format expects, from `prompt=question,label="by Ann"`. More
    than one label are `label_1`, `label_2` and so on.
    """
    words = shlex(text, posix=True)
    words.whitespace, words.whitespace_split = ",", True
    words.quotes, words.escape, words.commenters = '"', "", ""
    columns: dict[str, str] = {}
    for part in words:
        name, _, column = part.partition("=")
        if name == "label":
            name = f"label_{1 + sum(each.startswith(name) for each in columns)}"
        if not name or not column or name in columns:
            help = 'as in prompt=question,completion=answer; a name with a comma stands in ""'
            refuse(f"--columns: '{part}' is not NAME=COLUMN with a new name", help)
        columns[name] = column
    if "label_2" not in columns and "label_1" in columns:
        columns["label"] = columns.pop("label_1")
    return columns
