"""The command `alignkit init`: a recipe for data, or a copy of a recipe with every file that it
names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from alignkit.contract.commands import Result, argument, option
from alignkit.errors import OutOfResource, refuse
from alignkit.io.text import is_file
from alignkit_plugins.command_line.printing import files_written, print_table

STARTER = Path(__file__).with_name("starter") / "recipe.yaml"
_NAMES = re.compile(r"[\w.-]+(?:/[\w.-]+)*\.\w+")  # names of files


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
                "demos=, pairs= (rankings, labels of two answers), good-and-bad=, prompts= or "
                "known-answers=FILE."
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
    labels: Annotated[
        str,
        option("WORD=A,...", "What your words for labels of two answers mean: A, B or tie."),
    ] = "",
) -> Result:
    """Write a recipe that fits your data.

    Without data it is a tiny example, or a copy. Each file is recognized by its columns:
    demonstrations, pairs or rankings, good and bad responses, questions with a known answer,
    prompts. A fifth of the conversations or more is held out, and the run ends in what was learned
    about them. Where the columns do not tell, KIND says what a file is, or --columns which are
    meant. No file is ever replaced.

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
    from alignkit_plugins.command_line.words import named_columns
    from alignkit_plugins.recipe_tools.init_write import written

    if listed:
        rows = [(name, summary(path)) for name, path in shipped().items()]
        facts = [{"name": name, "summary": text} for name, text in rows]
        return Result("recipes", facts, lambda: print_table(("name", "what it does"), rows))
    words, place = list(files or ()), Path(folder)
    if _named(folder)[0] or is_file(place):
        words, place = [folder, *words], Path()
    load_plugins()
    if words and recipe is None:
        given, meant = list(map(_named, words)), named_columns(labels, "--labels")
        made, assumed = written(place, base, given, named_columns(columns), meant)
    else:
        if words or base or columns or labels:
            help = "leave out data, --base, --columns and --labels, and edit the copy"
            refuse("a recipe is copied unchanged", help)
        made, assumed = copied(find_recipe(recipe) if recipe else STARTER, place), []
    write_files(made)
    return files_written([*made], assumed, f"alignkit run {next(iter(made))}")


# Copies of recipes, which can be edited


def summary(path: Path) -> str:
    """What a recipe does: the comment `What:` of its file, up to the first sentence's end."""
    found = re.search(r"^# What:(.*(?:\n#   .*)*)", path.read_text("utf-8"), re.M)
    if found is None:
        return ""
    words = found[1].replace("\n#", " ").split()
    return " ".join(words).partition(". ")[0].rstrip(".")


def copied(recipe: Path, folder: Path) -> dict[Path, bytes]:
    """A recipe and the files below its folder that it names, by their new places; the recipe comes
    first.
    """
    from alignkit.host.plugins import plugins
    from alignkit_plugins.recipe_tools.options import SCHEMA, SCHEMA_LINE, schema_line

    root = recipe.parent
    files = [recipe, *root.glob("data/LICENSES.md")]
    for file in files:  # a recipe names others, which name further ones
        if file.suffix != ".yaml":
            continue
        for word in _NAMES.findall(file.read_text("utf-8")):
            if (root / word).is_file() and root / word not in files:
                files.append(root / word)
    line, copies = schema_line(plugins()).encode(), dict[Path, bytes]()
    for file in files:
        if file.name != SCHEMA:
            copy = file.read_bytes().replace(SCHEMA_LINE.encode(), line, 1)
            copies[folder / file.relative_to(root)] = copy
    return copies


def write_files(files: Mapping[Path, bytes]) -> None:
    """Write files: all, or none if one would replace another file, with a RecipeError. One with the
    same contents stays.
    """
    for path, contents in files.items():
        if path.exists() and not (path.is_file() and path.read_bytes() == contents):
            help = "name another folder: alignkit init FOLDER"
            refuse(f"already exists, with other contents: {path}", help)
    try:
        for path, contents in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(contents)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        text = f"cannot write {path}: {reason}\n  help: name another folder"
        raise OutOfResource(text) from error


def _named(word: str) -> tuple[str, Path]:
    """The kind that a word of the command line gives a file, such as `demos=faq.csv`, or an empty
    one; and the file.
    """
    from alignkit_plugins.recipe_tools.init_write import KINDS

    kind, equals, file = word.partition("=")
    return (kind, Path(file)) if equals and kind in KINDS else ("", Path(word))
