"""Our side of PPO and GRPO: a stage of a recipe, which an event hook holds between iterations.

Losses on sampled responses could not agree, so in the check both sides learn from the same fixed
responses.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import yaml

from benchmarks import data, models
from benchmarks.floor import Lengths, Shape, Work
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.data.group import Group
    from alignkit.tokens.encoder import Encoder, Ids

NO_CHANGE = 1e-30  # a learning rate that changes no weight; 0 is not allowed
ENDLESS = 1_000_000  # iterations; the worker exits when there are no more requests


def prompts(job: Job) -> list[Group]:
    return data.prompts(4, 6) if job.short else data.prompts(8, 64)


def new_tokens(job: Job) -> int:
    return 8 if job.short else 64


def fixed_responses(job: Job, encoder: Encoder, samples: int) -> dict[Ids, list[Ids]]:
    """The responses to each tokenized prompt that the check learns from; all end with an end of
    turn.
    """
    length = new_tokens(job)
    questions = [encoder.prompt(group.prompt) for group in prompts(job)]
    texts = iter(data.answers(len(questions) * samples, length))
    return {
        question: [
            data.truncated(encoder.text(next(texts)), length, encoder.end_of_turn)
            for _ in range(samples)
        ]
        for question in questions
    }


def lengths(job: Job, encoder: Encoder, samples: int) -> list[Lengths]:
    return [
        (len(encoder.prompt(group.prompt)), [new_tokens(job)] * samples) for group in prompts(job)
    ]


def run(
    job: Job,
    gate: Gate,
    stage: Mapping[str, Any],
    samples: int,
    losses: Callable[[Mapping[str, float]], dict[str, float]],
    floor: Callable[[Work, Sequence[Lengths]], None] | None,
    units: int | None = None,
) -> None:
    """Run a recipe with one on-policy stage, one iteration per round.

    stage: keys of the stage in addition to the shared ones. losses: picks the losses to compare
    from the metrics. floor: adds the work other than sampling; None means no floor. units: of an
    iteration; None means its new tokens.
    """
    from transformers import AutoTokenizer

    import alignkit
    from alignkit.host.plugins import plugins
    from alignkit.models import generate as engines
    from alignkit.recipe.load import load_recipe
    from alignkit.runs.run import run_recipe
    from alignkit.tokens.encoder import Encoder

    encoder = Encoder(AutoTokenizer.from_pretrained(job.source))
    fixed = fixed_responses(job, encoder, samples)
    written = lengths(job, encoder, samples)
    work = Work(Shape.of(job.source), job.dtype)
    if floor is not None:
        work.write(written)
        floor(work, written)
    count = units or len(written) * samples * new_tokens(job)

    class Pace:
        @alignkit.hookimpl
        def stage_started(self) -> None:
            gate.begin()

        @alignkit.hookimpl
        def metrics_logged(self, metrics: Mapping[str, float]) -> None:
            gate.end(count, losses(metrics), work.pieces)
            gate.begin()

    plugins().manager.register(Pace())
    folder = Path(tempfile.mkdtemp(dir=job.adapters))
    recipe = load_recipe(_write_recipe(job, folder, stage, samples))
    with patch.object(engines, "generate", _with_fixed_responses(gate, engines.generate, fixed)):
        run_recipe(recipe, folder / "run")


def _write_recipe(job: Job, folder: Path, stage: Mapping[str, Any], samples: int) -> Path:
    groups = prompts(job)
    rows = [json.dumps({"prompt": [dict(message) for message in group.prompt]}) for group in groups]
    (folder / "prompts.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    length = new_tokens(job)
    shared = {
        "from": str(job.adapter(models.POLICY)),
        "reference": "base",
        "prompts": "prompts.jsonl",
        "rollout": {
            "samples_per_prompt": samples,
            "max_new_tokens": length,
            "min_new_tokens": length,
        },
        "prompts_per_iteration": len(groups),
        "batch_size": len(groups),
        "epochs": 2,
        "iterations": ENDLESS,
        "checkpoint_every": ENDLESS,
        "learning_rate": NO_CHANGE,
        "lr_scheduler_type": "constant",
    }
    recipe = {
        "model": {"base": job.source, "dtype": job.dtype},
        "stages": {"benchmark": {**shared, **stage}},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def _with_fixed_responses(
    gate: Gate, generate: Callable[..., Any], fixed: Mapping[Ids, list[Ids]]
) -> Callable[..., Any]:
    """`generate`, which returns the fixed responses during the check."""
    from alignkit.contract.engine import Completion

    def generate_or_fixed(request: Any, *done: Any) -> Any:
        if not gate.checking:
            return generate(request, *done)
        return [
            [Completion(tokens, None, 0) for tokens in fixed[prompt]] for prompt in request.prompts
        ]

    return generate_or_fixed
