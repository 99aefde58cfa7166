"""A PPO step: 8 prompts with one response of 64 tokens, a reward model, two epochs, LoRA for policy
and value model.

The peer is TRL 1.12, the last version with PPO, in its own environment. It trains all weights of
the value model; to compare the same work, its value model gets LoRA instead, with the same initial
weights as ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import models, online, trl
from benchmarks.floor import Lengths, Work
from benchmarks.worker import Gate, Job

VALUE_COEFFICIENT = 0.1


def ours(job: Job, gate: Gate) -> None:
    shared = job.options.get("shared_value", False)
    options = {
        "kl_coefficient": 0.05,
        "value_coefficient": VALUE_COEFFICIENT,
        "lam": 0.95,
        "clip_range": 0.2,
        "shared_value": shared,
    }
    stage = {"algorithm": {"ppo": options}, "reward": {"folder": str(job.adapter(models.REWARD))}}
    floor = _shared_floor if shared else _floor
    online.run(
        job,
        gate,
        stage,
        1,
        lambda m: {"loss": m["loss"], "kl": m["kl"], "reward": m["reward"]},
        floor,
    )


def two_rewards(job: Job, gate: Gate) -> None:
    """With Llama 2's helpfulness and safety models: policy, reference, value and both rewards on
    one base.
    """
    first = job.adapter(models.REWARD)
    shutil.copytree(first, second := first.with_name("reward_2"), dirs_exist_ok=True)
    stage = {
        "algorithm": {"ppo": {"kl_coefficient": 0.05}},
        "reward": {
            "llama2": {"helpful": {"folder": str(first)}, "safety": {"folder": str(second)}}
        },
    }
    online.run(job, gate, stage, 1, lambda m: {"loss": m["loss"]}, None, units=1)


def _floor(work: Work, groups: Sequence[Lengths]) -> None:
    work.read(groups, head=False)  # reward model
    work.read(groups)  # policy, before the update
    work.read(groups)  # reference
    work.read(groups, head=False)  # value
    for _ in range(2):
        work.learn(groups)
        work.learn(groups, head=False)


def _shared_floor(work: Work, groups: Sequence[Lengths]) -> None:
    """The value is a head on the policy, without a network of its own."""
    work.read(groups, head=False)  # reward model
    work.read(groups)  # policy and value, before the update
    work.read(groups)  # reference
    for _ in range(2):
        work.learn(groups)


def peer(job: Job, gate: Gate) -> None:
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    from alignkit.tokens.encoder import Encoder

    tokenizer = trl.tokenizer(job)
    tokenizer.padding_side = "left"
    encoder = Encoder(tokenizer)
    queries = [list(encoder.prompt(group.prompt)) for group in online.prompts(job)]
    length = online.new_tokens(job)
    batch = {
        "per_device_train_batch_size": len(queries),
        "local_rollout_forward_batch_size": len(queries),
    }
    shared = trl.arguments(job)
    del shared["max_steps"]
    args = PPOConfig(
        **shared,
        **batch,
        total_episodes=trl.ENDLESS * len(queries),
        response_length=length,
        temperature=1.0,
        num_ppo_epochs=2,
        kl_coef=0.05,
        vf_coef=VALUE_COEFFICIENT,
        lam=0.95,
        cliprange=0.2,
        num_sample_generations=0,
    )
    trainer = PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=trl.causal(job),
        ref_model=None,  # the policy without its adapter
        reward_model=_reward_model(job),
        value_model=_value_model(job),
        train_dataset=Dataset.from_dict({"input_ids": queries}),
        callbacks=[trl.pace(gate, len(queries) * length, _losses)],
        peft_config=trl.lora(job),
    )
    trl.load_adapter(trainer.policy_model, job.adapter(models.POLICY))
    _use_fixed_responses(gate, online.fixed_responses(job, encoder, 1))
    trl.run(trainer)


def _losses(logs: Mapping[str, float]) -> dict[str, float]:
    loss = logs["loss/policy_avg"] + VALUE_COEFFICIENT * logs["loss/value_avg"]
    return {"loss": loss, "kl": logs["objective/kl"], "reward": logs["objective/scores"]}


def _reward_model(job: Job) -> Any:
    """The reward model with its adapter merged, so that LoRA costs nothing and TRL finds its
    layers.
    """
    from peft import PeftModel

    return (
        PeftModel.from_pretrained(trl.scorer(job), job.adapter(models.REWARD))
        .merge_and_unload()
        .eval()
    )


def _value_model(job: Job) -> Any:
    """The base with the policy's adapter and a zero head, both trained, in a form in which TRL
    finds its layers.

    For `shared_value`, as TRL ships it: all weights are trained.
    """
    from peft import inject_adapter_in_model

    model = trl.scorer(job)
    if not job.options.get("shared_value"):
        inject_adapter_in_model(trl.lora(job), model)
        trl.load_adapter(model, job.adapter(models.POLICY))
    model.score.weight.data.zero_()
    model.score.weight.requires_grad_(True)
    return model


def _use_fixed_responses(
    gate: Gate, fixed: Mapping[tuple[int, ...], list[tuple[int, ...]]]
) -> None:
    """Make TRL's generation return the fixed responses and the policy's logits for them during the
    check.
    """
    import torch
    from trl.experimental.ppo import ppo_trainer

    generate = ppo_trainer.batch_generation

    @torch.no_grad()
    def generate_or_fixed(model: Any, queries: Any, size: int, pad: int, config: Any) -> Any:
        if not gate.checking:
            return generate(model, queries, size, pad, config)
        prompts = [tuple(token for token in row if token != pad) for row in queries.tolist()]
        responses = torch.tensor([fixed[prompt][0] for prompt in prompts], device=queries.device)
        sequences = torch.cat([queries, responses], dim=1)
        logits = ppo_trainer.forward(model, sequences, pad).logits[:, queries.shape[1] - 1 : -1]
        return sequences, logits

    ppo_trainer.batch_generation = generate_or_fixed
