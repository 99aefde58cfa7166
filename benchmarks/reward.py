"""A reward-model step on long-tailed pairs, or on rankings of K responses, which are K(K-1)/2 pairs
for TRL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import data, models, trl
from benchmarks.floor import Shape, Work, lengths
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.tokens.encoder import Encoded

MICRO_BATCH = 4  # pairs per forward pass of TRL


def comparisons(job: Job, tokenizer: Any) -> list[Encoded]:
    """Groups encoded for scoring: each sequence ends with an end of turn, whose position holds the
    score.
    """
    from alignkit.testing.examples import encode_all
    from alignkit.tokens.encoder import Encoder

    k = job.options["responses"]
    if job.short:
        groups = data.groups(2, min(k, 4), 6, 6)
    elif k == 2:
        groups = data.groups(8, k, 64, 128)
    else:
        groups = data.groups(1, k, 98, 128, fixed_prompt=True)  # 128 with the system message
    return encode_all(Encoder(tokenizer), groups, models.MAX_LENGTH, scoring=True)


def units(job: Job, groups: list[Encoded]) -> int:
    """The number of real tokens for pairs, of rankings for longer rankings."""
    return trl.real_tokens(groups) if job.options["responses"] == 2 else len(groups)


def ours(job: Job, gate: Gate) -> None:
    from alignkit.models.packing import Examples

    policy = models.load(job)
    learner = models.learner(policy, "reward_model", job.adapter(models.REWARD))
    encoded = comparisons(job, policy.tokenizer)
    work = Work(Shape.of(job.source), job.dtype)
    work.learn(lengths(encoded), head=False)
    while True:
        gate.begin()
        metrics = learner.step(Examples(encoded), 0.0)
        gate.end(units(job, encoded), {"loss": metrics["loss"]}, work.pieces)


def peer(job: Job, gate: Gate) -> None:
    from datasets import Dataset
    from peft import PeftModel
    from trl import RewardConfig, RewardTrainer

    tokenizer = trl.tokenizer(job)
    encoded = comparisons(job, tokenizer)
    rows = [
        {
            "chosen_ids": row["prompt_ids"] + row["chosen_ids"],
            "rejected_ids": row["prompt_ids"] + row["rejected_ids"],
        }
        for row in trl.preferences(encoded)
    ]
    micro = min(MICRO_BATCH, len(rows))
    steps = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": len(rows) // micro,
    }
    base = trl.scorer(job)
    base.config.pad_token_id = tokenizer.pad_token_id
    trainer = RewardTrainer(
        model=PeftModel.from_pretrained(base, job.adapter(models.REWARD), is_trainable=True),
        args=RewardConfig(**trl.arguments(job), **steps, center_rewards_coefficient=0.01),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[trl.pace(gate, units(job, encoded), lambda logs: {"loss": logs["loss"]})],
    )
    trl.run(trainer)
