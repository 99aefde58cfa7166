"""The command line: `python -m benchmarks [--only NAME,...] [--short] [--json FILE]`."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from alignkit.io.text import cache_folder
from benchmarks import engines
from benchmarks.catalogue import BENCHMARKS, Benchmark
from benchmarks.gpu import GPU, SHAPES, random_model, refusal
from benchmarks.measure import ENVIRONMENTS, Failed, ask_once, run
from benchmarks.worker import Job

COLUMNS = (
    *("unit", "alignkit", "peer", "ratio", "alignkit GiB", "peer GiB", "memory ratio"),
    *("times the floor", "loss difference", "rounds"),
)
MODEL, TINY = "smollm2-135m-instruct", "tiny"
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    only: Annotated[
        str, typer.Option(metavar="NAME,...", help="Benchmarks to run; default: all.")
    ] = "",
    short: Annotated[
        bool, typer.Option("--short", help="Tiny model and sizes, to check that everything works.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds per side; medians count.")] = 3,
    model: Annotated[
        str | None,
        typer.Option(help=f"Base model: a plugin's name, a folder or a hub id; default: {MODEL}."),
    ] = None,
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing", help="Let TRL recompute activations: less memory, more work."
        ),
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(SHAPES), help="GPU sizes in bf16, for a model of this shape."
        ),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the benchmarks and exit.")] = False,
) -> None:
    """Compare alignkit with other libraries: speed, peak memory, and the time relative to the
    hardware limit.
    """
    if gpu is not None and gpu not in SHAPES:
        raise typer.BadParameter(f"--gpu: no shape '{gpu}'; choose from {', '.join(SHAPES)}")
    chosen = _chosen(only, BENCHMARKS if gpu is None else GPU)
    if listed:
        for benchmark in chosen:
            print(f"{benchmark.name:<18} {benchmark.description}; peer: {benchmark.peer_name}")
        return
    if short and model:
        raise typer.BadParameter("--short uses the tiny model: remove --model")
    if gpu is not None:
        if short or model:
            raise typer.BadParameter(
                "--gpu brings its own model and sizes: remove --short and --model"
            )
        if because := refusal():
            raise typer.BadParameter(because)
        model = random_model(gpu, cache_folder())
    if out is not None:
        _write([], out)
    with tempfile.TemporaryDirectory(prefix="alignkit-benchmarks-") as folder:
        starts = StartingPoints(
            Job(
                "", dtype="bfloat16" if gpu else "float32", short=short, checkpointing=checkpointing
            ),
            TINY if short else model or MODEL,
            Path(folder),
        )
        try:
            for benchmark in chosen:
                # A model that is not there is reported before the machine is probed
                starts.of(benchmark)
            probed = ask_once(replace(starts.job, function="floor:probe"))
            _print_machine(probed["machine"], probed["rates"])
            failed = _measure(chosen, starts, rounds, probed["machine"], probed["rates"], out)
        except Failed as error:
            print(f"error: {error}", file=sys.stderr)
            failed = 1
    raise typer.Exit(1 if failed else 0)


class StartingPoints:
    """The base models, and the adapters in `folder`, that both sides start from; made when first
    needed.
    """

    def __init__(self, job: Job, model: str, folder: Path):
        self.job, self.model, self._folder = job, model, folder
        self._jobs: dict[str, Job] = {}

    def of(self, benchmark: Benchmark) -> tuple[str, Job]:
        """The model's name, and the job that both sides share. Raises `Failed`."""
        model = TINY if benchmark.tiny else self.model
        if model not in self._jobs:
            job = replace(self.job, adapters=str(self._folder / str(len(self._jobs))))
            options = {"model": model, "dtype": job.dtype}
            source = ask_once(replace(job, function="models:prepare", options=options))
            self._jobs[model] = replace(job, source=source)
        return model, self._jobs[model]


def _chosen(only: str, known: Mapping[str, Benchmark]) -> list[Benchmark]:
    names = [name.strip() for name in only.split(",") if name.strip()] or list(known)
    if "engines" in names:
        names = [name for name in known if name.startswith("engines_") or name in names]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(
            f"no benchmark {', '.join(unknown)}; choose from {', '.join(known)}"
        )
    return [known[name] for name in names]


def _measure(
    chosen: Sequence[Benchmark],
    starts: StartingPoints,
    rounds: int,
    machine: Mapping[str, Any],
    rates: Mapping[str, Any],
    out: Path | None,
) -> int:
    """Run the benchmarks and return the number that failed. Results are written after each, so that
    none is lost.
    """
    rows: list[dict[str, Any]] = []
    failed = 0
    for benchmark in chosen:
        if because := _unfit(benchmark, rates):
            print(f"{benchmark.name}: skipped: {because}", file=sys.stderr)
            failed += len(chosen) < len(BENCHMARKS)  # it was requested by name
            continue
        print(
            f"{benchmark.name}: {benchmark.description}; peer: {benchmark.peer_name}",
            file=sys.stderr,
        )
        try:
            model, job = starts.of(benchmark)
            row = run(benchmark, job, rounds, rates)
        except Failed as error:
            print(f"error: {benchmark.name}: {error}", file=sys.stderr)
            failed += 1
            continue
        settings = {"model": model, "short": job.short, "checkpointing": job.checkpointing}
        rows.append(row | settings | {"machine": machine, "rates": rates})
        failed += not row["losses_agree"]
        print(_line(row), file=sys.stderr)
        if out is not None:
            _write(rows, out)
    _print_table(rows)
    return failed


def _unfit(benchmark: Benchmark, rates: Mapping[str, Any]) -> str:
    """Why a benchmark cannot run here; empty if it can."""
    if benchmark.environment == "vllm" and (because := engines.missing()):
        return because
    if not ENVIRONMENTS[benchmark.environment].is_file():
        return "its peer needs its own environment, which `make bench` creates"
    if benchmark.precision not in rates["flop"]:
        return f"this machine has no instructions that multiply {benchmark.precision}"
    return ""


def _write(rows: Sequence[Mapping[str, Any]], out: Path) -> None:
    try:
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"--json: cannot write {out}: {error.strerror}") from error


def _print_machine(machine: Mapping[str, Any], rates: Mapping[str, Any]) -> None:
    products = ", ".join(
        f"{rate / 1e9:.0f} GFLOP/s in {name}" for name, rate in rates["flop"].items()
    )
    hardware = (
        machine["gpu"]
        or f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"
    )
    packages = ", ".join(
        f"{name} {machine[name]}" for name in ("torch", "transformers", "trl", "peft")
    )
    print(f"machine: {hardware}, {machine['memory_gib']} GiB; {packages}")
    print(f"hardware limit: matrix products {products}; memory {rates['bandwidth'] / 1e9:.1f} GB/s")


def _line(row: Mapping[str, Any]) -> str:
    ratios = ", ".join(f"{ratio:.2f}" for ratio in row["ratios"])
    text = (
        f"{row['name']}: {row['ratio']:.2f} times the speed of {row['peer_name']} (rounds: "
        f"{ratios})"
    )
    if not row["losses_agree"]:
        text += f"; LOSSES DIFFER: alignkit {row['ours_losses']}, peer {row['peer_losses']}"
    return text


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("benchmark")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(table)


def _cells(row: Mapping[str, Any]) -> list[str]:
    def number(value: float | None, form: str = ".2f") -> str:
        return "-" if value is None else format(value, form)

    memory = [number(row[key] / 2**30) for key in ("ours_memory", "peer_memory")]
    differs = number(row["loss_difference"], ".1e") + ("" if row["losses_agree"] else " !")
    speeds = [number(row["ours"], ".4g"), number(row["peer"], ".4g"), number(row["ratio"])]
    more = [
        number(row["memory_ratio"]),
        number(row["floor_ratio"], ".1f"),
        differs,
        str(row["rounds"]),
    ]
    return [row["name"], row["unit"], *speeds, *memory, *more]


if __name__ == "__main__":
    app()
