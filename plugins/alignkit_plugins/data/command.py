"""The commands of `alignkit data`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from alignkit.commands import Result
from alignkit_plugins.printing import files_written, reported

data_app = typer.Typer(
    rich_markup_mode=None, help="Look at files of rows, check, clean and convert them."
)

File = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="Data: a file, a folder, a hub data set, or YAML such as '{alpaca: my.csv}'.",
    ),
]
RuleWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RULE=VALUE",
        help="Options of the step `clean`; `alignkit plugins clean` lists them.",
    ),
]


@data_app.command()
def browse(
    file: File,
    rules: RuleWords = None,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="File for the page, which a browser opens.")
    ] = Path("rows.html"),
) -> Result:
    """Write a page with the rows of a file, and what `alignkit data clean` would leave out.

    \b
    Examples:
      alignkit data browse pairs.jsonl
      alignkit data browse demos.jsonl 'languages=[en]' --out demos.html
    """
    from alignkit_plugins.data.browse import write_page
    from alignkit_plugins.data.files import entry

    options = entry(file, rules or ())
    options.check("alignkit data browse")
    return files_written([out], [write_page(options, out)], "open it in a browser")


@data_app.command()
def check(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help="Training data: a file, a folder, a hub data set, YAML, or a recipe.",
        ),
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Held-out data that must not be in FILE. Repeatable."),
    ] = None,
    near: Annotated[
        float,
        typer.Option(
            metavar="S",
            min=0,
            max=1,
            help="Jaccard similarity of near duplicates; 0 finds only equal rows.",
        ),
    ] = 0.8,
) -> Result:
    """Show what a file holds, rows that repeat each other, and held-out data in training data.

    Lengths, margins and labels; faults that `alignkit data clean` sees; repetition by prompt, by
    response, and across turns. Of a recipe: all files that its stages name, each with its role. The
    exit code is 8 if a file repeats itself, or of a recipe, if its held-out data are in its
    training data.

    \b
    Examples:
      alignkit data check train.jsonl --against test.jsonl
      alignkit data check recipe.yaml
    """
    from alignkit.commands import load, refuse
    from alignkit.errors import Repeated, check_extra
    from alignkit.recipe.yaml import shipped
    from alignkit_plugins.data import check as checking
    from alignkit_plugins.data.clean import Rules
    from alignkit_plugins.data.files import entry

    check_extra("alignkit data check", "data", "rensa")
    is_recipe = Path(file).suffix in (".yaml", ".yml") or file in shipped()
    if is_recipe and against:
        refuse("--against is for a file", "a recipe says what its stages train on and hold out")
    if is_recipe:
        parts = checking.parts_of_recipe(load(file, []))
    else:
        parts = [checking.part_of(entry(file).data, checking.TRAINING)]
        parts += [checking.part_of(entry(other).data, "held out") for other in against or ()]
    checked = checking.check(parts, Rules.model_validate({"near": near}))
    result = reported(checking.report(checked), "data_check", checked)
    if checked["leaks"]:
        return replace(result, error=Repeated("held-out data are in training data"))
    repeats = [one for one in checked["files"] if {*checking.REPEATED} & one["faults"].keys()]
    if repeats and not is_recipe:
        return replace(result, error=Repeated("rows are repeated in a file"))
    return result


@data_app.command()
def clean(
    file: File,
    rules: RuleWords = None,
    *,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="File for the rows that are left, as .jsonl or .jsonl.gz."
        ),
    ],
) -> Result:
    """Write a file without the rows that break a rule of the step `clean`.

    Of rows that repeat each other, the first stays. OUT.removed.jsonl has every row that was left
    out, and why. Rows that cannot be read are among them. The file itself is never changed.

    \b
    Examples:
      alignkit data clean train.jsonl --out clean.jsonl
      alignkit data clean train.jsonl --out clean.jsonl 'languages=[en]' near=0.9 against=test.jsonl
    """
    from alignkit.report import Report
    from alignkit_plugins.data import files
    from alignkit_plugins.data.clean import cleaned_file

    options = files.entry(file, rules or ())
    options.check("alignkit data clean")
    files.check_target(out, options.data)
    _, done = cleaned_file(options)
    rows = [{"text": row.raw} if isinstance(row.raw, str) else row.raw for row in done.kept]
    files.write_rows(files.removed_file(out), done.removed)
    files.write_rows(out, rows)
    left = (
        f"{out}: {len(rows):,} of {len(done.rows):,} rows; {files.removed_file(out).name} says why"
    )
    return reported(Report([done.table(left)]))


@data_app.command()
def convert(
    file: File,
    to: Annotated[
        str,
        typer.Option(
            metavar="LAYOUT",
            help="Layout of the rows: messages, sft, preference, ranked, kto or prompts.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="File for the rows, as .jsonl or .jsonl.gz.")
    ],
) -> Result:
    """Write the rows of any format in a layout that TRL and other tools read; all turns are lists
    of messages.

    \b
    Examples:
      alignkit data convert '{alpaca: my.csv}' --to messages --out messages.jsonl
      alignkit data convert llmbar.json --to preference --out pairs.jsonl
    """
    from alignkit.commands import refuse
    from alignkit.errors import did_you_mean
    from alignkit_plugins.data import files
    from alignkit_plugins.formats.layouts import LAYOUTS

    if to not in LAYOUTS:
        help = did_you_mean(to, LAYOUTS) or f"layouts: {', '.join(LAYOUTS)}"
        refuse(f"--to: unknown layout '{to}'", help)
    lines = files.convert(files.entry(file).data, to, out)
    return files_written([out], lines, text="\n".join(lines))
