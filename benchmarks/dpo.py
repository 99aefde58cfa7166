"""A DPO step on long-tailed pairs; the reference is computed in every step, or read from the
cache.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import data, models, trl
from benchmarks.floor import Shape, Work, lengths
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.tokens.encoder import Encoded

MICRO_BATCH = 4  # pairs per forward pass of TRL


def pairs(job: Job, tokenizer: Any) -> list[Encoded]:
    from alignkit.testing.examples import encode_all
    from alignkit.tokens.encoder import Encoder

    groups = (
        data.groups(4, 2, 6, 6)
        if job.short
        else data.groups(job.options.get("count", 8), 2, 64, 128)
    )
    return encode_all(Encoder(tokenizer), groups, models.MAX_LENGTH)


def ours(job: Job, gate: Gate) -> None:
    import torch

    from alignkit.models.packing import Examples, flat, measure
    from alignkit.models.shared_model import UNMODIFIED

    policy = models.load(job)
    learner = models.learner(policy, "dpo", job.adapter(models.POLICY))
    encoded = pairs(job, policy.tokenizer)
    work = Work(Shape.of(job.source), job.dtype)
    work.read(lengths(encoded))
    work.learn(lengths(encoded))
    while True:
        gate.begin()
        examples = Examples(encoded)
        reference = measure(policy, UNMODIFIED, encoded)["logprobs"]
        examples.token_columns["reference_logprobs"] = flat(reference)
        metrics = learner.step(examples, 0.0)
        losses = {"loss": metrics["loss"]}
        if gate.checking and job.options.get("compared") == "nll":
            # DPO's loss depends on sums over hundreds of tokens, whose rounding errors do not
            # average out. So compare two precisions by their mean log-probability.
            trained = measure(policy, models.ROLE, encoded)["logprobs"]
            losses = {
                "loss": -float(torch.cat([*trained, *reference]).mean()),
                "dpo": metrics["loss"],
            }
        gate.end(trl.real_tokens(encoded), losses, work.pieces)


def peer(job: Job, gate: Gate) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    class Prepared(DPOTrainer):
        """Keeps our tokens: TRL's template would add a line break after the end of turn."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    tokenizer = trl.tokenizer(job)
    encoded = pairs(job, tokenizer)
    micro = min(job.options.get("micro", MICRO_BATCH), len(encoded))
    steps = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": len(encoded) // micro,
    }
    trainer = Prepared(
        model=trl.causal(job),
        args=DPOConfig(**trl.arguments(job), **steps, beta=0.1),
        train_dataset=Dataset.from_list(list(trl.preferences(encoded))),
        processing_class=tokenizer,
        peft_config=trl.lora(job),
        callbacks=[trl.pace(gate, trl.real_tokens(encoded), lambda logs: {"loss": logs["loss"]})],
    )
    trl.load_adapter(trainer.model, job.adapter(models.POLICY))
    trl.run(trainer)
