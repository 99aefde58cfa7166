"""The command line: `python -m benchmarks.outcomes [METHOD...] [--seeds 3,4,5] [--out FOLDER]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from alignkit.errors import AlignkitError, RunFailed, message_of
from benchmarks.markdown import markdown_table
from benchmarks.outcomes import tables
from benchmarks.outcomes.rows import Row, compute, key_of, methods, recipe_of, stored

METHODS = methods()
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[METHOD]...", help="Default: all.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="N,...", help="Settings were chosen on 0 to 2.")
    ] = "3,4,5",
    extra: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Override of outcomes.yaml for all methods."
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Rows, and the run of each.")] = Path(
        "runs/outcomes"
    ),
    only_stored: Annotated[
        bool, typer.Option("--stored", help="Compute nothing: print the stored rows.")
    ] = False,
    show: Annotated[int, typer.Option(min=0, help="Answers to print, chosen at random.")] = 20,
) -> None:
    """Align with every method and seed, and print what the policies do by measures that nothing was
    trained on.
    """
    chosen = names or list(METHODS)
    unknown = [name for name in chosen if name not in METHODS]
    if unknown:
        raise typer.BadParameter(
            f"no method {', '.join(unknown)}; choose from {', '.join(METHODS)}"
        )
    try:
        numbers = [int(seed) for seed in seeds.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"--seeds {seeds}: expected numbers with commas, such as 3,4,5"
        ) from None
    try:
        found = list(_rows(chosen, numbers, extra or [], out, only_stored))
    except AlignkitError as error:
        typer.echo(message_of(error), err=True)
        raise typer.Exit(error.exit_code) from None
    rows = [row for row in found if row is not None]
    if not rows and only_stored:
        typer.echo("error: no such row is stored; leave out --stored to compute it", err=True)
        raise typer.Exit(RunFailed.exit_code)
    if only_stored and None in found:
        typer.echo(
            f"{found.count(None)} of {len(found)} rows are not stored and left out", err=True
        )
    if rows:
        _print(rows, show)
    raise typer.Exit(0 if only_stored or None not in found else RunFailed.exit_code)


def _rows(
    names: Sequence[str], seeds: Sequence[int], extra: Sequence[str], out: Path, only_stored: bool
) -> Iterator[Row | None]:
    """The rows, seed by seed: methods of one seed share its SFT and reward models. None for a run
    that failed.
    """
    wanted = [
        (name, seed, *recipe_of(METHODS[name], seed, extra)) for seed in seeds for name in names
    ]
    for method, seed, recipe, overrides in wanted:
        row = stored(method, seed, key_of(recipe), out)
        if row is not None or only_stored:
            yield row
            continue
        typer.echo(
            f"{method}, seed {seed}: running; progress in {out / f'{method}-{seed}.log'}", err=True
        )
        try:
            yield compute(method, seed, recipe, overrides, out)
        except RunFailed as error:
            typer.echo(f"error: {method}, seed {seed}: {error}", err=True)
            yield None


def _by_method(rows: Sequence[Row]) -> list[list[Row]]:
    return [
        [row for row in rows if row.method == method]
        for method in dict.fromkeys(row.method for row in rows)
    ]


def _print(rows: Sequence[Row], show: int) -> None:
    """Print every method over all seeds, every row, and answers to read."""
    titled = {
        f"{len(rows[0].asked)} prompts that no stage saw": tables.methods_table(_by_method(rows)),
        "The same, seed by seed": tables.methods_table([[row] for row in rows]),
        "Compared with SFT, in points (by seed)": tables.gains_table(_by_method(rows)),
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
