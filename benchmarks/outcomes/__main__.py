"""The command line: `python -m benchmarks.outcomes [METHOD...] [--seeds 3,4,5,6,7] [--tuning] [--out FOLDER]`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from alignkit.data.group import Group, prompts_of
from alignkit.data.sources import DataSpec
from alignkit.errors import AlignkitError, RunFailed, message_of
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe, specs
from alignkit.runs.data import RunData
from benchmarks.markdown import markdown_table
from benchmarks.outcomes import figure, tables
from benchmarks.outcomes.rows import (
    AFTER,
    BEFORE,
    FOLDER,
    GOLD,
    REPORTS,
    Row,
    compute,
    gold_accuracies,
    key_of,
    methods,
    recipe_of,
    stored,
)

METHODS = methods()
REPORTED, TUNED = "3,4,5,6,7", "0,1,2"
LEAST_ACCURACY = 0.6
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(metavar="[METHOD]...", help="Default: all.")] = None,
    seeds: Annotated[str, typer.Option(metavar="N,...", help=f"Default: {REPORTED}; with --tuning: {TUNED}.")] = "",
    tuning: Annotated[bool, typer.Option("--tuning", help="Ask the prompts that settings may be chosen on.")] = False,
    extra: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override of outcomes.yaml for all methods.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Rows, and the runs of each seed.")] = Path(
        "runs/outcomes"
    ),
    only_stored: Annotated[bool, typer.Option("--stored", help="Compute nothing: print the stored rows.")] = False,
    show: Annotated[int, typer.Option(min=0, help="Answers to print, chosen at random.")] = 20,
    chart: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Also draw the gains, as an SVG.")
    ] = None,
) -> None:
    """Align with every method and seed, and print what gold judges say of the answers."""
    chosen = names or list(METHODS)
    unknown = [name for name in chosen if name not in METHODS]
    if unknown:
        raise typer.BadParameter(f"no method {', '.join(unknown)}; choose from {', '.join(METHODS)}")
    if chart is not None and not chart.absolute().parent.is_dir():
        raise typer.BadParameter(f"--figure {chart}: the folder {chart.parent} does not exist")
    try:
        numbers = [int(seed) for seed in (seeds or (TUNED if tuning else REPORTED)).split(",")]
    except ValueError:
        raise typer.BadParameter(f"--seeds {seeds}: expected numbers with commas, such as {REPORTED}") from None
    try:
        found = list(_rows(chosen, numbers, tuning, extra or [], out, only_stored))
    except AlignkitError as error:
        typer.echo(message_of(error), err=True)
        raise typer.Exit(error.exit_code) from None
    rows = [row for row in found if row is not None]
    if not rows and only_stored:
        typer.echo("error: no such row is stored; leave out --stored to compute it", err=True)
        raise typer.Exit(RunFailed.exit_code)
    if only_stored and None in found:
        typer.echo(f"{found.count(None)} of {len(found)} rows are not stored and left out", err=True)
    if rows:
        _print(rows, show)
    if rows and chart is not None:
        figure.draw(_by_method(rows), chart)
    raise typer.Exit(0 if only_stored or None not in found else RunFailed.exit_code)


def _rows(
    methods: Sequence[str], seeds: Sequence[int], tuning: bool, extra: Sequence[str], out: Path, only_stored: bool
) -> Iterator[Row | None]:
    """The rows, seed by seed: methods of one seed share its SFT and reward models. None for a run that failed."""
    wanted = [(method, seed, *recipe_of(METHODS[method], seed, tuning, extra)) for seed in seeds for method in methods]
    kept = [stored(method, seed, key_of(recipe), out) for method, seed, recipe, _ in wanted]
    if not only_stored:
        check({method: recipe for (method, _, recipe, _), row in zip(wanted, kept, strict=True) if row is None})
    for (method, seed, recipe, overrides), row in zip(wanted, kept, strict=True):
        if row is not None or only_stored:
            yield row
            continue
        typer.echo(f"{method}, seed {seed}: running; progress in {out / 'run.log'}", err=True)
        try:
            yield compute(method, seed, recipe, overrides, out)
        except RunFailed as error:
            typer.echo(f"error: {method}, seed {seed}: {error}", err=True)
            yield None


def check(recipes: Mapping[str, Recipe]) -> None:
    """Raises RunFailed if a gold model is often wrong, if a model has seen a prompt, or if policies are asked others.

    recipes: by method.
    """
    judges = load_recipe(FOLDER / "judges.yaml")
    known = {name: _read(judges, name) for name in GOLD} if recipes else {}
    for method, recipe in recipes.items():
        read = {name: _read(recipe, name) for name in recipe.stages}
        for before, after in zip(BEFORE.values(), AFTER.values(), strict=True):
            if {before, after} <= read.keys() and read[after] != read[before]:
                raise RunFailed(f"{method}: {before} and {after} ask other prompts, so their answers do not compare")
        asked = set().union(*(read[name] for name in REPORTS if name in read))
        for name in GOLD:
            if seen := asked & known[name]:
                raise RunFailed(f"{name} was trained on {len(seen)} of the prompts; a judge must not know them")
        for name in read.keys() - {*REPORTS}:
            if seen := asked & read[name]:
                raise RunFailed(
                    f"{method}: stage {name} reads {len(seen)} of the prompts that will be asked; "
                    "a gain on them would say nothing of others"
                )
    for name, accuracy in gold_accuracies().items() if recipes else ():
        if accuracy < LEAST_ACCURACY:
            raise RunFailed(
                f"{name} orders {accuracy:.0%} of its validation pairs as people did; "
                f"a judge of anything needs {LEAST_ACCURACY:.0%}"
            )


def _read(recipe: Recipe, name: str) -> set[str]:
    """The prompts that a stage reads from files: to learn from, to validate on, to answer."""
    data, stage = RunData(lambda stage: recipe.folder / stage, recipe.seed), recipe.stages[name]
    entries = specs([stage.settings, stage.component.options], DataSpec)
    files = [replace(entry, sources=tuple(part for part in entry.sources if not part.stage)) for entry in entries]
    loaded = [data.load(entry) for entry in files if entry.sources]
    return {words for entry in loaded for words in _words([*entry.groups, *entry.validation])}


def _words(groups: Sequence[Group]) -> set[str]:
    """First user turns, by their letters and digits."""
    users = ([turn for turn in group.prompt if turn["role"] == "user"] for group in (*groups, *prompts_of(groups)))
    return {"".join(filter(str.isalnum, turns[0]["content"].lower())) for turns in users if turns}


def _by_method(rows: Sequence[Row]) -> list[list[Row]]:
    return [[row for row in rows if row.method == method] for method in dict.fromkeys(row.method for row in rows)]


def _print(rows: Sequence[Row], show: int) -> None:
    """Print the judges, the methods over all seeds, every row, and answers to read."""
    titled = {
        "The judges": tables.judges_table(rows),
        f"Gain over SFT on {len(rows[0].asked)} prompts, by gold": tables.methods_table(_by_method(rows)),
        "The same, seed by seed": tables.methods_table([[row] for row in rows]),
    }
    for title, lines in titled.items():
        typer.echo(f"\n{title}\n")
        header, *body = lines
        typer.echo(markdown_table(header, body))
    if show:
        typer.echo("\nAnswers at random\n")
    for text in tables.samples(rows, show):
        typer.echo(text)


if __name__ == "__main__":
    app()
