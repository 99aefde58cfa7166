"""The commands of `alignkit data`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from alignkit.contract.commands import Result, argument, option
from alignkit_plugins.command_line.printing import files_written, reported

EXAMPLES = 20  # dropped rows that are shown
data_app = typer.Typer(
    rich_markup_mode=None, help="Look at files of rows, check, clean and convert them."
)

File = Annotated[
    str,
    argument("FILE", "Data: a file, a folder, a hub data set, or YAML such as '{alpaca: my.csv}'."),
]
RuleWords = Annotated[
    list[str] | None,
    argument("RULE=VALUE", "Options of the step `clean`; `alignkit plugins clean` lists them."),
]


@data_app.command()
def browse(
    file: File,
    rules: RuleWords = None,
    out: Annotated[Path, option("FILE", "File for the page, which a browser opens.")] = Path(
        "rows.html"
    ),
) -> Result:
    """Write a page with the rows of a file, and what `alignkit data clean` would drop.

    \b
    Examples:
      alignkit data browse pairs.jsonl
      alignkit data browse demos.jsonl 'languages=[en]' --out demos.html
    """
    from alignkit_plugins.data_tools.browse import write_page
    from alignkit_plugins.data_tools.clean import named_rows

    options = named_rows(file, rules or ())
    options.check("alignkit data browse")
    return files_written([out], [write_page(options, out)], "open it in a browser")


@data_app.command()
def check(file: File, rules: RuleWords = None) -> Result:
    """Show what a file holds, and what `alignkit data clean` would drop, without writing
    anything.

    Counts, lengths, pairs and labels; then the rows that break a rule of the step `clean`. The exit
    code is 8 if rows repeat each other, or rows of held-out data.

    \b
    Examples:
      alignkit data check train.jsonl
      alignkit data check train.jsonl against=test.jsonl near=0.7
    """
    from alignkit.contract.report import Block, Report
    from alignkit.errors import Repeated
    from alignkit_plugins.data_tools import clean, files
    from alignkit_plugins.report import data_card
    from alignkit_plugins.text.shown import counts

    options = clean.named_rows(file, rules or ())
    options.check("alignkit data check")
    rows, done = clean.cleaned_file(options)
    groups = files.groups_of(rows)
    words = counts(groups, done.counts.get("unreadable", 0))
    card, name = data_card.card(groups), files.name_of(options.data)
    tables = data_card.tables([{"stage": "data", "name": name, **card}])
    lines = [f"{one['row']}: {one['rule']}: {one['reason']}" for one in done.removed[:EXAMPLES]]
    blocks: list[Block] = [f"{name}: {words}", *done.notes, *tables, done.table()]
    if lines:
        blocks.append("\n".join(lines))
    blocks += [*data_card.row_warnings(groups)]
    blocks += [f"warning: {warning}" for warning in options.warnings(groups)]
    facts = {"file": name, "counts": words, "faults": done.counts, "card": card}
    result = reported(Report(blocks), "data_check", {**facts, "redacted": len(done.redacted)})
    if clean.REPEATED & done.counts.keys():
        return replace(result, error=Repeated("rows are repeated, or in held-out data"))
    return result


@data_app.command()
def clean(
    file: File,
    rules: RuleWords = None,
    *,
    out: Annotated[
        Path,
        option("FILE", "File for the rows that are left, as .jsonl or .jsonl.gz."),
    ],
) -> Result:
    """Write a file without the rows that break a rule of the step `clean`.

    The first of rows that repeat each other stays. OUT.removed.jsonl has every row that was left
    out, and why. Rows that cannot be read are among them. The file itself is never changed.

    \b
    Examples:
      alignkit data clean train.jsonl --out clean.jsonl
      alignkit data clean train.jsonl --out clean.jsonl 'languages=[en]' near=0.9 against=test.jsonl
    """
    from alignkit.contract.report import Report
    from alignkit_plugins.data_tools import files
    from alignkit_plugins.data_tools.clean import cleaned_file, named_rows

    options = named_rows(file, rules or ())
    options.check("alignkit data clean")
    files.check_target(out, options.data)
    _, done = cleaned_file(options)
    rows = [{"text": row.raw} if isinstance(row.raw, str) else row.raw for row in done.kept]
    files.write_rows(files.removed_file(out), done.removed)
    files.write_rows(out, rows)
    left = f"{out}: {len(rows):,} of {len(done.rows):,} rows"
    if done.removed:
        left += f"; {files.removed_file(out).name} says why"
    return reported(Report([done.table(left)]))


@data_app.command()
def convert(
    file: File,
    to: Annotated[
        str,
        option("LAYOUT", "Layout of the rows: messages, sft, preference, ranked, kto or prompts."),
    ],
    out: Annotated[Path, option("FILE", "File for the rows, as .jsonl or .jsonl.gz.")],
) -> Result:
    """Write the rows of any format in a layout that TRL and other tools read; all turns are lists
    of messages.

    \b
    Examples:
      alignkit data convert '{alpaca: my.csv}' --to messages --out messages.jsonl
      alignkit data convert llmbar.json --to preference --out pairs.jsonl
    """
    from alignkit.errors import did_you_mean, refuse
    from alignkit_plugins.data_tools import files
    from alignkit_plugins.data_tools.clean import named_rows
    from alignkit_plugins.formats.layouts import LAYOUTS

    if to not in LAYOUTS:
        refuse(f"--to: unknown layout '{to}'", did_you_mean(to, LAYOUTS, "layouts"))
    lines = files.convert(named_rows(file).data, to, out)
    return files_written([out], lines, text="\n".join(lines))
