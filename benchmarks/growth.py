"""Costs that must not grow faster than the work: with the responses of a group, and with the rows
of a data set.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import yaml

from benchmarks import data, models
from benchmarks.worker import Gate, Job


def responses(job: Job, gate: Gate) -> None:
    """SFT steps on groups of `responses` responses; the total number of tokens is always the
    same.
    """
    from alignkit.data.group import Group
    from alignkit.models.packing import Examples
    from alignkit.tokens.encoder import Encoded, ResponseTokens

    k, prompt, length = job.options["responses"], *((8, 4) if job.short else (64, 21))
    tokens = 11 * (prompt + 9 * length)
    # The same share of the tokens for any k
    scored = round(length * (prompt + k * length) / (prompt + length) / k)
    policy = models.load(job)
    learner = models.learner(policy, "sft", job.adapter(models.POLICY))
    rng = np.random.default_rng(0)
    vocabulary = policy.model.config.vocab_size

    def draw(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(vocabulary, size=count).tolist())

    groups = [
        Encoded(
            Group((), id=str(number)),
            draw(prompt),
            tuple(
                ResponseTokens(draw(length), tuple(t < scored for t in range(length)))
                for _ in range(k)
            ),
        )
        for number in range(round(tokens / (prompt + k * length)))
    ]
    while True:
        gate.begin()
        metrics = learner.step(Examples(groups), 0.0)
        gate.end(sum(group.length for group in groups), {"loss": metrics["loss"]})


def rows(job: Job, gate: Gate) -> None:
    """SFT runs on `rows` demonstrations that end after the first step."""
    from alignkit.recipe.load import load_recipe
    from alignkit.runs.run import run_recipe

    count = min(job.options["rows"], 2000) if job.short else job.options["rows"]
    folder = Path(tempfile.mkdtemp(dir=job.adapters))
    _write(folder / "rows.jsonl", count)
    stage = {"algorithm": "sft", "data": "rows.jsonl", "batch_size": 8, "max_steps": 1}
    recipe = {"model": {"base": job.source, "dtype": job.dtype}, "stages": {"sft": stage}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    while True:
        gate.begin()
        run_recipe(load_recipe(folder / "recipe.yaml"), folder / "run")
        record = json.loads((folder / "run" / "sft" / "metrics.jsonl").read_text(encoding="utf-8"))
        gate.end(1, {"loss": record["loss"]})
        shutil.rmtree(folder / "run")


def _write(path: Path, count: int) -> None:
    """Write different demonstrations of about 80 words."""
    rng = np.random.default_rng(0)
    words = np.array(data.WORDS)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            drawn = words[rng.integers(len(words), size=80)].tolist()
            row = {
                "prompt": " ".join([str(number), *drawn[:20]]),
                "completion": " ".join(drawn[20:]),
            }
            file.write(json.dumps(row) + "\n")
