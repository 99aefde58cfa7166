"""A step of supervised fine-tuning on the responses of long-tailed demonstrations."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks import data, models, trl
from benchmarks.floor import Shape, Work, lengths
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.models.shared_model import SharedModel
    from alignkit.tokens.encoder import Encoded

IGNORED = -100  # label of tokens that are not learned


def demonstrations(job: Job, tokenizer: Any) -> list[Encoded]:
    from alignkit.testing.examples import encode_all
    from alignkit.tokens.encoder import Encoder

    groups = (
        data.demonstrations(4, 6, 6)
        if job.short
        else data.demonstrations(job.options.get("count", 8), 64, 128)
    )
    return encode_all(Encoder(tokenizer), groups, models.MAX_LENGTH)


def ours(job: Job, gate: Gate) -> None:
    step(job, gate, lambda policy: None)


def parameters(job: Job, gate: Gate) -> None:
    """The same step; the memory is that of the parameters only."""
    step(job, gate, models.bytes_of)


def step(job: Job, gate: Gate, memory: Callable[[SharedModel], int | None]) -> None:
    from alignkit.models.packing import Examples

    policy = models.load(job)
    learner = models.learner(policy, "sft", job.adapter(models.POLICY))
    parameter_bytes = memory(policy)
    encoded = demonstrations(job, policy.tokenizer)
    units = job.options.get("units") or trl.real_tokens(encoded)
    work = Work(Shape.of(job.source), job.dtype)
    work.learn(lengths(encoded))
    while True:
        gate.begin()
        metrics = learner.step(Examples(encoded), 0.0)
        gate.end(units, {"loss": metrics["loss"]}, work.pieces, memory=parameter_bytes)


def peer(job: Job, gate: Gate) -> None:
    """Padded batches, by default one, or packed (best fit) with one pack per forward pass; the
    labels are tokens.

    Equal to TRL's `assistant_only_loss` on conversations, without the line break that its template
    adds.
    """
    from datasets import Dataset
    from peft import PeftModel
    from trl import SFTConfig, SFTTrainer

    tokenizer = trl.tokenizer(job)
    encoded = demonstrations(job, tokenizer)
    rows = [
        {
            "input_ids": [*group.prompt, *response.tokens],
            "labels": [*(IGNORED for _ in group.prompt), *response.tokens],
        }
        for group in encoded
        for response in group.responses
    ]
    packed = job.options.get("packed", False)
    micro = 1 if packed else min(job.options.get("micro", len(rows)), len(rows))
    # One epoch is one step: the trainer also steps at the end of an epoch, before the accumulation
    # is full.
    steps = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": len(rows) // micro,
    }
    trainer = SFTTrainer(
        model=PeftModel.from_pretrained(
            trl.causal(job), job.adapter(models.POLICY), is_trainable=True
        ),
        args=SFTConfig(**trl.arguments(job), **steps, packing=packed, max_length=models.MAX_LENGTH),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[trl.pace(gate, trl.real_tokens(encoded), lambda logs: {"loss": logs["loss"]})],
    )
    trl.run(trainer)
