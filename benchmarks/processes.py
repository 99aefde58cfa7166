"""What a second process is worth: `python -m benchmarks.processes [--model NAME] [--rounds 3]`.

One process with one thread, one with two, and two with one each run the same recipe in turns. What
counts is the time of a training step, and of an iteration that samples, scores and learns; starting
is left out.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from benchmarks.markdown import markdown_table

RUNS = {
    "1 process of 1 thread": (1, 1),
    "1 process of 2 threads": (1, 2),
    "2 processes of 1 thread": (2, 1),
}
WORDS = (
    "the",
    "people",
    "in",
    "this",
    "house",
    "say",
    "that",
    "bread",
    "is",
    "good",
    "near",
    "a",
    "river",
    "today",
)
SCORES = "def length(completions):\n    return [len(c) / 100 for c in completions]\n"

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[
        str, typer.Option(help="Base model: a plugin's name, a folder or a hub id.")
    ] = "tiny",
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; medians count.")] = 3,
    steps: Annotated[
        int, typer.Option(min=3, help="Training steps, and iterations; the first is left out.")
    ] = 6,
) -> None:
    """Compare processes with threads."""
    seconds: dict[str, dict[str, list[float]]] = {name: {"sft": [], "grpo": []} for name in RUNS}
    with tempfile.TemporaryDirectory(prefix="alignkit-processes-") as place:
        recipe = _recipe(Path(place), model, steps)
        for number in range(rounds):
            for name, (processes, threads) in RUNS.items():
                out = Path(place) / f"{number}-{processes}-{threads}"
                _run(recipe, out, processes, threads)
                for stage in seconds[name]:
                    seconds[name][stage] += _seconds(out / stage)
    header = ("", "seconds per SFT step", "speed", "seconds per GRPO iteration", "speed")
    rows, first = [], next(iter(seconds.values()))
    for name, stages in seconds.items():
        medians = {
            stage: (statistics.median(values), statistics.median(first[stage]))
            for stage, values in stages.items()
        }
        rows.append(
            (
                name,
                *(
                    text
                    for mine, base in medians.values()
                    for text in (f"{mine:.3f}", f"{base / mine:.2f}")
                ),
            )
        )
    print(markdown_table(header, rows))


def _recipe(folder: Path, model: str, steps: int) -> Path:
    rows = [
        [WORDS[(n * 7 + k) % len(WORDS)] for k in range(24 + 8 * (n % 5))]
        for n in range(16 * steps)
    ]
    lines = [
        json.dumps({"prompt": " ".join(row[:8]), "completion": " ".join(row[8:])}) for row in rows
    ]
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "scores.py").write_text(SCORES, encoding="utf-8")
    both: dict[str, Any] = {"batch_size": 16, "learning_rate": 1e-4}
    online = {
        "prompts": {"path": "rows.jsonl", "limit": 16},
        "reward": {"python": {"path": "scores.py", "function": "length"}},
        "rollout": {"samples_per_prompt": 4, "max_new_tokens": 24},
        "prompts_per_iteration": 16,
        "iterations": steps,
    }
    stages = {
        "sft": {
            "algorithm": "sft",
            "data": {"path": "rows.jsonl"},
            "epochs": 1,
            "max_steps": steps,
            **both,
        },
        "grpo": {"algorithm": "grpo", **online, **both},
    }
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"model": {"base": model, "dtype": "float32"}, "stages": stages}),
        encoding="utf-8",
    )
    return path


def _run(recipe: Path, out: Path, processes: int, threads: int) -> None:
    start = (
        ["torch.distributed.run", f"--nproc-per-node={processes}", "--master-port=0", "-m"]
        if processes > 1
        else []
    )
    command = [sys.executable, "-m", *start, "alignkit", "run", str(recipe), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "ALIGNKIT_REPORT": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(command)} failed:\n{done.stderr}")


def _seconds(stage: Path) -> list[float]:
    """Of each step or iteration but the first."""
    rows = [
        json.loads(line)
        for line in (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    if "seconds" in rows[0]:
        return [row["seconds"] for row in rows[1:]]
    return [after["time"] - before["time"] for before, after in pairwise(rows)]


if __name__ == "__main__":
    app()
