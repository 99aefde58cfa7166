"""A GRPO cycle: 8 prompts with 8 responses of 64 tokens, a reward function, two epochs, KL to the
base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import models, online, rewards, trl
from benchmarks.floor import Lengths, Work
from benchmarks.worker import Gate, Job

KL_COEFFICIENT = 0.04
EPOCHS = 2
MICRO_BATCH = 8  # responses per forward pass of TRL


def samples(job: Job) -> int:
    return 4 if job.short else 8


def ours(job: Job, gate: Gate, more: Mapping[str, Any] | None = None) -> None:
    """more: keys of the stage."""
    stage = {
        **(more or {}),
        "algorithm": {"grpo": {"kl_coefficient": KL_COEFFICIENT}},
        "reward": {"python": {"path": str(Path(rewards.__file__)), "function": "even"}},
    }
    online.run(
        job,
        gate,
        stage,
        samples(job),
        lambda metrics: {
            "loss": metrics["loss"],
            "kl": metrics["kl_loss"],
            "reward": metrics["reward"],
        },
        _floor,
    )


def _floor(work: Work, groups: Sequence[Lengths]) -> None:
    work.read(groups)  # policy, before the update
    work.read(groups)  # reference
    for _ in range(EPOCHS):
        work.learn(groups)


def peer(job: Job, gate: Gate) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    from alignkit.tokens.encoder import Encoder

    tokenizer = trl.tokenizer(job)
    groups, each, length = online.prompts(job), samples(job), online.new_tokens(job)
    rows = len(groups) * each
    micro = min(MICRO_BATCH, rows)
    steps = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": rows // micro}
    args = GRPOConfig(
        **trl.arguments(job),
        **steps,
        num_generations=each,
        max_completion_length=length,
        generation_kwargs={"min_new_tokens": length},
        num_iterations=EPOCHS,
        beta=KL_COEFFICIENT,
        loss_type="grpo",
    )
    trainer = GRPOTrainer(
        model=trl.causal(job),
        reward_funcs=rewards.even,
        args=args,
        train_dataset=Dataset.from_list(
            [{"prompt": [dict(m) for m in group.prompt]} for group in groups]
        ),
        processing_class=tokenizer,
        peft_config=trl.lora(job),
        callbacks=[
            trl.pace(
                gate,
                rows * length,
                lambda logs: {name: logs[name] for name in ("loss", "kl", "reward")},
                EPOCHS,
            )
        ],
    )
    trl.load_adapter(trainer.model, job.adapter(models.POLICY))
    _use_fixed_responses(gate, trainer, online.fixed_responses(job, Encoder(tokenizer), each))
    trl.run(trainer)


def _use_fixed_responses(
    gate: Gate, trainer: Any, fixed: dict[tuple[int, ...], list[tuple[int, ...]]]
) -> None:
    """Make TRL's generation return the fixed responses during the check."""
    generate = trainer._generate_single_turn

    def generate_or_fixed(prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        if not gate.checking:
            return generate(prompt_ids, *args, **kwargs)
        remaining = {prompt: iter(responses) for prompt, responses in fixed.items()}
        return [list(next(remaining[tuple(ids)])) for ids in prompt_ids], None

    trainer._generate_single_turn = generate_or_fixed
