"""The commands `alignkit data stats`, `check`, `clean` and `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.arguments import NoPlugins, PluginFiles
from alignkit_apps.catalog.printing import console

data_app = typer.Typer(
    rich_markup_mode=None, no_args_is_help=True, help="Measure, check, clean and convert files of rows."
)

File = Annotated[
    str,
    typer.Argument(metavar="FILE", help="A file, a folder, a hub data set, or YAML: '{alpaca: my.csv}'."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Near = Annotated[
    float, typer.Option(metavar="S", min=0, max=1, help="Jaccard similarity of near duplicates; 0: only equal ones.")
]


@data_app.command()
def stats(
    file: File,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Also count tokens of this model. Default: only characters.")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Column of categories. Default: category, topic, source ..."),
    ] = None,
    near: Near = 0.8,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page with histograms.")] = None,
    json: Json = False,
    plugin: PluginFiles = None,
    no_plugin: NoPlugins = None,
) -> None:
    """Show what a file holds: rows, lengths, languages, categories, repetition, refusals, margins, agreement.

    \b
    Examples:
      alignkit data stats pairs.jsonl
      alignkit data stats demos.jsonl --model HuggingFaceTB/SmolLM2-135M-Instruct --html stats.html
    """
    from alignkit.plugins import load_plugins
    from alignkit_apps.data import stats as measuring
    from alignkit_apps.data.corpus import open_corpus

    load_plugins(plugin or (), no_plugin or ())
    facts = measuring.stats(open_corpus(file), model, near or None, by)
    print(measuring.as_json(facts) if json else measuring.as_text(facts, console().width))
    if html is not None:
        measuring.write_page(facts, html)


@data_app.command()
def check(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Training data as in `stats`, or a RECIPE.")],
    against: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Data that must not be trained on; repeatable.")
    ] = None,
    near: Near = 0.8,
    marks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the training rows that leak, for `clean --marks`.")
    ] = None,
    json: Json = False,
    plugin: PluginFiles = None,
    no_plugin: NoPlugins = None,
) -> None:
    """Find rows that repeat each other, and held-out data in training data, by prompt, by response, and across turns.

    Of a recipe: all files that its stages name, each with its role. The exit code is 8 if anything is repeated.

    \b
    Examples:
      alignkit data check train.jsonl --against test.jsonl
      alignkit data check train.jsonl --against test.jsonl --marks leaks.jsonl
      alignkit data check recipe.yaml
    """
    from alignkit.arguments import load, refuse
    from alignkit.errors import Repeated
    from alignkit.extras import check_extra
    from alignkit.plugins import load_plugins
    from alignkit.recipe.shipped import shipped
    from alignkit.report import Report
    from alignkit_apps.data import check as checking
    from alignkit_apps.data.corpus import open_corpus

    check_extra("alignkit data check", "data", "rensa")
    if Path(file).suffix in (".yaml", ".yml") or file in shipped():
        if against:
            refuse("--against is for a file", "a recipe says what its stages train on and hold out")
        parts = checking.parts_of_recipe(load(file, [], plugin, no_plugin))
    else:
        load_plugins(plugin or (), no_plugin or ())
        parts = [checking.part_of(open_corpus(file), checking.TRAINING)]
        parts += [checking.part_of(open_corpus(other), "held out") for other in against or ()]
    checked = checking.check(parts, near or None)
    print(checked.as_json() if json else Report(checked.blocks()).text(console().width))
    if marks is not None:
        checking.write_marks(checked, marks)
    if checked.findings:
        leaks = len([one for one in checked.findings if one.training])
        raise Repeated(f"rows are repeated: {'held-out data are in training data' if leaks else 'within a file'}")


def _leave_out(rule: str, what: str) -> Any:
    """The option that switches a rule on or off."""
    return typer.Option(f"--{rule}/--no-{rule}", help=f"Leave out {what}.")


@data_app.command()
def clean(
    file: File,
    out: Annotated[Path, typer.Option(metavar="FILE", help="What is left, as .jsonl or .jsonl.gz.")],
    duplicates: Annotated[bool, _leave_out("duplicates", "rows that equal an earlier one")] = True,
    near: Near = 0.8,
    stock_phrases: Annotated[bool, _leave_out("stock-phrases", "answers such as `As an AI language model`")] = True,
    language: Annotated[
        list[str] | None, typer.Option(metavar="CODE", help="Leave out answers in other languages; repeatable.")
    ] = None,
    min_characters: Annotated[int, typer.Option(metavar="N", min=0, help="Leave out shorter answers.")] = 0,
    max_characters: Annotated[int | None, typer.Option(metavar="N", min=1, help="Leave out longer answers.")] = None,
    markdown: Annotated[bool, _leave_out("markdown", "answers with broken Markdown")] = True,
    personal: Annotated[bool, typer.Option("--personal/--no-personal", help="Replace personal details.")] = True,
    marks: Annotated[Path | None, typer.Option(metavar="FILE", help="Leave out the rows that this file marks.")] = None,
    json: Json = False,
    plugin: PluginFiles = None,
    no_plugin: NoPlugins = None,
) -> None:
    """Write a file without the rows that break a rule. The step `clean` has the same rules in a recipe.

    Of rows that repeat each other, the first stays. OUT.removed.jsonl has every row that was left out, and why. Rows
    that cannot be read are among them. The file itself is never changed.

    \b
    Examples:
      alignkit data clean train.jsonl --out clean.jsonl
      alignkit data clean train.jsonl --out clean.jsonl --language en --no-markdown --near 0
    """
    import json as jsons
    from dataclasses import asdict

    from alignkit.plugins import load_plugins
    from alignkit.report import Report
    from alignkit_apps.cleaning.rules import Rules
    from alignkit_apps.data import clean as cleaning
    from alignkit_apps.data.corpus import open_corpus

    load_plugins(plugin or (), no_plugin or ())
    rules = Rules(
        duplicates=duplicates,
        near=near or None,
        stock_phrases=stock_phrases,
        languages=language or [],
        min_characters=min_characters,
        max_characters=max_characters,
        markdown=markdown,
        personal=personal,
        marks=marks,
    )
    rules.check("alignkit data clean")
    done = cleaning.clean(open_corpus(file), rules, out)
    print(jsons.dumps(asdict(done), indent=1) if json else Report([done.table(out)]).text(console().width))


@data_app.command()
def convert(
    file: File,
    to: Annotated[str, typer.Option(metavar="LAYOUT", help="messages, sft, preference, ranked, kto or prompts.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The rows, as .jsonl or .jsonl.gz.")],
    plugin: PluginFiles = None,
    no_plugin: NoPlugins = None,
) -> None:
    """Write the rows of any format in a layout that TRL and other tools read; all turns are lists of messages.

    \b
    Examples:
      alignkit data convert '{alpaca: my.csv}' --to messages --out messages.jsonl
      alignkit data convert llmbar.json --to preference --out pairs.jsonl
    """
    from alignkit.arguments import refuse
    from alignkit.errors import did_you_mean
    from alignkit.plugins import load_plugins
    from alignkit_apps.catalog.printing import print_lines
    from alignkit_apps.data import convert as converting
    from alignkit_apps.data.corpus import open_corpus

    if to not in converting.LAYOUTS:
        choices = ", ".join(converting.LAYOUTS)
        refuse(f"--to: unknown layout '{to}'", did_you_mean(to, converting.LAYOUTS) or f"layouts: {choices}")
    load_plugins(plugin or (), no_plugin or ())
    print_lines(converting.convert(open_corpus(file), to, out).lines(out))
