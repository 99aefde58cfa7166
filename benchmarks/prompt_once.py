"""The same step with each prompt computed once for its K responses, or once per response."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks import models
from benchmarks.floor import Shape, Work, lengths
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.tokens.encoder import Encoded


def together(job: Job) -> Encoded:
    """A prompt with its responses, with exact lengths in tokens."""
    from alignkit.data.group import Group
    from alignkit.tokens.encoder import Encoded, ResponseTokens

    responses, length, prompt = job.options["responses"], job.options["length"], 256
    if job.short:
        length, prompt = 8, 16
    rng = np.random.default_rng(0)
    vocabulary = Shape.of(job.source).vocabulary

    def draw(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(vocabulary, size=count).tolist())

    rows = tuple(ResponseTokens(draw(length), (True,) * length) for _ in range(responses))
    return Encoded(Group((), id="group"), draw(prompt), rows)


def ours(job: Job, gate: Gate) -> None:
    step(job, gate, [together(job)])


def peer(job: Job, gate: Gate) -> None:
    from alignkit.tokens.encoder import Encoded

    group = together(job)
    step(
        job, gate, [Encoded(group.group, group.prompt, (response,)) for response in group.responses]
    )


def step(job: Job, gate: Gate, groups: list[Encoded]) -> None:
    from alignkit.models.packing import Examples

    policy = models.load(job)
    learner = models.learner(policy, "sft", job.adapter(models.POLICY))
    work = Work(Shape.of(job.source), job.dtype)
    work.learn(lengths(groups))
    while True:
        gate.begin()
        metrics = learner.step(Examples(groups), 0.0)
        losses = {"loss": metrics["loss"], "grad_norm": metrics["grad_norm"]}
        gate.end(sum(len(group.responses) for group in groups), losses, work.pieces)
