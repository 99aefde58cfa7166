"""The command line: `python -m benchmarks.people noise` and `python -m benchmarks.people rounds`."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from alignkit.errors import AlignkitError
from alignkit.evaluation.statistics import Estimate
from benchmarks.markdown import markdown_table
from benchmarks.people import words
from benchmarks.people.ceiling import Expected, Setting, expected, noisy, right_on_average
from benchmarks.people.crowd import AGREEMENT, Noise, accuracy_of
from benchmarks.people.guesser import READERS
from benchmarks.people.guesser import measure as measure_guesser
from benchmarks.people.noise import SETTINGS, Measured, measure
from benchmarks.people.rounds import command, figure, run_with_people, versions

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
HEADER = ("labels", "pairs", "votes", "errors", "margin", "expected", "measured", "by noisy labels", "change")


@app.callback()
def people() -> None:
    """Simulated people label, and models learn from them."""


@app.command("noise")
def noise(
    seeds: Annotated[int, typer.Option(min=2, help="Runs of each setting.")] = 5,
    only: Annotated[int, typer.Option(min=1, help="Only the first N settings.")] = len(SETTINGS),
) -> None:
    """How good a reward model becomes on labels of people who agree in 73% of the pairs, and what that allows."""
    os.environ.setdefault("ALIGNKIT_REPORT", "0")
    typer.echo(f"Agreement {AGREEMENT:.0%}: each annotator is right with p = {accuracy_of(AGREEMENT):.3f}.\n")
    bounds = {
        setting: (expected(setting, words.placed_words), expected(setting, words.word_counts))
        for setting in SETTINGS[:only]
    }
    for setting, (low, high) in bounds.items():
        typer.echo(f"expected: {setting}: {_between(low, high)}")
    with tempfile.TemporaryDirectory(prefix="alignkit-people-") as folder, open(os.devnull, "w") as nowhere:
        rows: list[list[str]] = []
        first: dict[Noise, list[Measured]] = {}
        for number, setting in enumerate(SETTINGS[:only]):
            with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
                found = [measure(setting, seed, Path(folder) / f"{number}-{seed}") for seed in range(seeds)]
            rows.append(_row(setting, bounds[setting], found, first.setdefault(setting.noise, found)))
            typer.echo(f"measured: {setting}: {rows[-1][HEADER.index('measured')]}")
    typer.echo("")
    typer.echo(markdown_table(HEADER, rows))


@app.command("guesser")
def guesser(seeds: Annotated[int, typer.Option(min=2, help="Runs.")] = 3) -> None:
    """How good a reward model becomes if one of three people answers at random."""
    os.environ.setdefault("ALIGNKIT_REPORT", "0")
    with tempfile.TemporaryDirectory(prefix="alignkit-people-") as folder, open(os.devnull, "w") as nowhere:
        with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
            found = [measure_guesser(seed, Path(folder) / str(seed)) for seed in range(seeds)]
    rows = [[name, *(f"{one[name]:.3f}" for one in found), _mean([one[name] for one in found])] for name in READERS]
    typer.echo(markdown_table(["labels of", *(f"seed {seed}" for seed in range(seeds)), "mean"], rows))


@app.command("rounds")
def rounds(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The run; an interrupted one goes on.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """Five rounds with simulated people, whose truth is a gold reward model; the versions, and a figure of them."""
    try:
        stops = run_with_people(command(out, overrides or []), out / "labels.feedback")
    except AlignkitError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    for number, stop in enumerate(stops, 1):
        typer.echo(f"stop {number}: {stop.labels} labels, {stop.right:.0%} of them right")
    found = versions(out)
    rewards = list(found[-1].gains)
    typer.echo("")
    rows = [[each.name, *map(_gain, each.gains.values()), f"{each.kl:.2f}"] for each in found[1:]]
    typer.echo(markdown_table(["version", *(f"gain in {reward}" for reward in rewards), "KL, nats"], rows))
    figure(found, out / "versions.svg")
    typer.echo(f"\n{out / 'versions.svg'}")


def _gain(estimate: Estimate) -> str:
    low, high = estimate["low"], estimate["high"]
    return f"{estimate['mean']:+.2f}" + ("" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]")


def _row(
    setting: Setting, bounds: tuple[Expected, Expected], found: list[Measured], first: list[Measured]
) -> list[str]:
    truth, people = [each.truth for each in found], [each.noisy for each in found]
    gaps = [words.gap(item) for item in words.pairs(2000, seed=0)]
    most = right_on_average(setting.crowd(0), gaps) if setting.noise != "none" else 1.0
    likely = "at least" if setting.noise == "near" else "expected"
    change = [after.truth - before.truth for after, before in zip(found, first, strict=True)]
    return [
        str(setting.labels),
        f"{setting.pairs} x {setting.overlap}",
        setting.votes if setting.overlap > 1 else "",
        setting.noise,
        setting.margin,
        _between(*bounds),
        _mean(truth),
        f"{_mean(people)}; {likely} {noisy(setting, float(np.mean(truth)), gaps):.3f}, at most {most:.3f}",
        "" if found is first else _mean(change, sign="+"),
    ]


def _between(low: Expected, high: Expected) -> str:
    return f"{low.mean:.3f} to {high.mean:.3f}"


def _mean(values: list[float], sign: str = "") -> str:
    """The mean with its standard error."""
    return f"{np.mean(values):{sign}.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


if __name__ == "__main__":
    app()
