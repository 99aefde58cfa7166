"""Every benchmark: the work, the code on both sides, and the peer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TRL = "TRL 1.16"
GENERATE = "transformers' generate"
OURS_FP32 = "alignkit in fp32"
LOCAL = "engine local"
BF16 = "bfloat16"


@dataclass(frozen=True)
class Benchmark:
    """Two programs that do the same work.

    description: the work of one round. unit: counted by the rates. ours, peer: `module:function` of
    this package. peer_name: for messages. environment: the peer's Python, see
    `measure.ENVIRONMENTS`. extra_memory: subtract the memory in use before the work. tiny: use the
    tiny model for any --model. same_loss: whether the losses of both sides must agree.
    peer_options: None means the same options.
    """

    name: str
    description: str
    unit: str
    ours: str
    peer: str
    peer_name: str
    dtype: str = "float32"
    peer_dtype: str = "float32"
    environment: str = "trl"
    extra_memory: bool = False
    tiny: bool = False
    same_loss: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    peer_options: Mapping[str, Any] | None = None

    @property
    def precision(self) -> str:
        """The dtype of the less precise side."""
        return BF16 if BF16 in (self.dtype, self.peer_dtype) else "float32"


BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "dpo",
            "DPO step, 8 long-tailed pairs, reference computed in the step",
            "real tokens/s",
            "dpo:ours",
            "dpo:peer",
            f"{TRL} DPOTrainer",
        ),
        Benchmark(
            "dpo_bf16",
            "DPO step in bf16",
            "real tokens/s",
            "dpo:ours",
            "dpo:ours",
            OURS_FP32,
            dtype=BF16,
            options={"compared": "nll"},
        ),
        Benchmark(
            "reward",
            "reward-model step, 8 long-tailed pairs",
            "real tokens/s",
            "reward:ours",
            "reward:peer",
            f"{TRL} RewardTrainer",
            options={"responses": 2},
        ),
        Benchmark(
            "reward_k9",
            "reward-model step, a ranking of 9 responses",
            "rankings/s",
            "reward:ours",
            "reward:peer",
            f"{TRL} RewardTrainer on its 36 pairs",
            options={"responses": 9},
        ),
        Benchmark(
            "sft",
            "SFT step on the responses of 8 long-tailed demonstrations",
            "real tokens/s",
            "sft:ours",
            "sft:peer",
            f"{TRL} SFTTrainer, padded",
            options={"packed": False},
        ),
        Benchmark(
            "sft_packed",
            "the same SFT step",
            "real tokens/s",
            "sft:ours",
            "sft:peer",
            f"{TRL} SFTTrainer, packed",
            options={"packed": True},
        ),
        Benchmark(
            "ppo",
            "PPO step, 8 prompts, 64 new tokens, reward model, 2 epochs",
            "new tokens/s",
            "ppo:ours",
            "ppo:peer",
            "TRL 1.12 PPOTrainer, value model with LoRA",
            environment="ppo",
        ),
        Benchmark(
            "ppo_shared",
            "PPO step with shared_value, a value head on the policy",
            "new tokens/s",
            "ppo:ours",
            "ppo:peer",
            "TRL 1.12 PPOTrainer unmodified: all weights of the value model are trained",
            environment="ppo",
            options={"shared_value": True},
        ),
        Benchmark(
            "ppo_bf16",
            "PPO step in bf16",
            "new tokens/s",
            "ppo:ours",
            "ppo:ours",
            OURS_FP32,
            dtype=BF16,
        ),
        Benchmark(
            "ppo_memory",
            "PPO step with two reward models; only its memory counts",
            "steps/s",
            "ppo:two_rewards",
            "sft:ours",
            "alignkit's SFT step on 8 demonstrations",
            same_loss=False,
            peer_options={"units": 1},
        ),
        Benchmark(
            "grpo",
            "GRPO cycle, 8 prompts x 8 samples x 64 new tokens, 2 epochs",
            "new tokens/s",
            "grpo:ours",
            "grpo:peer",
            f"{TRL} GRPOTrainer",
        ),
        Benchmark(
            "engines_sample",
            "engine vllm: 32 prompts x 4 samples x 64 tokens of an adapter",
            "new tokens/s",
            "engines:sampled",
            "engines:sampled",
            LOCAL,
            environment="vllm",
            options={"servers": 1, "long_tail": False},
            peer_options={"servers": 0, "long_tail": False},
        ),
        Benchmark(
            "engines_grpo",
            "engine vllm: the cycle of `grpo`",
            "new tokens/s",
            "engines:iteration",
            "engines:iteration",
            LOCAL,
            environment="vllm",
            options={"servers": 1},
            peer_options={"servers": 0},
        ),
        Benchmark(
            "engines_swap",
            "engine vllm: new weights of an adapter",
            "swaps/s",
            "engines:swap",
            "engines:swap",
            "writing the adapter only",
            environment="vllm",
            same_loss=False,
            options={"servers": 1},
            peer_options={"servers": 0},
        ),
        Benchmark(
            "engines_replicas",
            "engine vllm: the samples of `engines_sample` by 2 servers, each on a core of its own",
            "new tokens/s",
            "engines:sampled",
            "engines:sampled",
            "1 server on one core",
            environment="vllm",
            same_loss=False,
            options={"servers": 2, "pinned": True, "long_tail": False},
            peer_options={"servers": 1, "pinned": True, "long_tail": False},
        ),
        Benchmark(
            "sample",
            "32 prompts x 4 samples x 64 tokens",
            "useful tokens/s",
            "sample:ours",
            "sample:peer",
            GENERATE,
            options={"long_tail": False},
        ),
        Benchmark(
            "sample_bf16",
            "32 prompts x 4 samples x 64 tokens, in bf16",
            "useful tokens/s",
            "sample:ours",
            "sample:peer",
            f"{GENERATE} in bf16",
            dtype=BF16,
            peer_dtype=BF16,
            options={"long_tail": False},
        ),
        Benchmark(
            "sample_long_tail",
            "32 prompts x 4 samples of long-tailed lengths up to 64 tokens",
            "useful tokens/s",
            "sample:ours",
            "sample:peer",
            GENERATE,
            options={"long_tail": True},
        ),
        Benchmark(
            "head",
            "log-probabilities of 37% of 4096 positions, forward and backward",
            "positions/s",
            "head:ours",
            "head:peer",
            f"{TRL} add_fused_lm_head",
            extra_memory=True,
        ),
        Benchmark(
            "head_bf16",
            "log-probabilities of 37% of 4096 positions, in bf16",
            "positions/s",
            "head:ours",
            "head:peer",
            f"{TRL} add_fused_lm_head in fp32",
            dtype=BF16,
            extra_memory=True,
        ),
        Benchmark(
            "prompt_once",
            "SFT step, a prompt of 256 tokens computed once for 2 responses of 128",
            "responses/s",
            "prompt_once:ours",
            "prompt_once:peer",
            "alignkit with one row per response",
            options={"responses": 2, "length": 128},
        ),
        Benchmark(
            "prompt_once_k9",
            "SFT step, a prompt of 256 tokens computed once for 9 responses of 64",
            "responses/s",
            "prompt_once:ours",
            "prompt_once:peer",
            "alignkit with one row per response",
            options={"responses": 9, "length": 64},
        ),
        Benchmark(
            "roles",
            "switching between five roles on one base; memory of base and roles",
            "switches/s",
            "roles:ours",
            "roles:peer",
            "peft's set_adapter",
        ),
        Benchmark(
            "roles_nf4",
            "switching between five roles on a 4-bit base",
            "switches/s",
            "roles:ours",
            "roles:peer",
            "peft's set_adapter",
            dtype=BF16,
            peer_dtype=BF16,
            options={"quantization": "nf4"},
        ),
        Benchmark(
            "qlora",
            "SFT step on a 4-bit base with bf16 products; memory of base and adapter",
            "real tokens/s",
            "sft:parameters",
            "sft:parameters",
            "alignkit in bf16",
            dtype=BF16,
            peer_dtype=BF16,
            same_loss=False,
            options={"quantization": "nf4"},
            peer_options={"quantization": "none"},
        ),
        Benchmark(
            "growth_k",
            "SFT step, prompts of 64 tokens with 9 responses of 21 tokens",
            "packed tokens/s",
            "growth:responses",
            "growth:responses",
            "alignkit with 1 response per prompt, same number of tokens",
            same_loss=False,
            options={"responses": 9},
            peer_options={"responses": 1},
        ),
        Benchmark(
            "rows",
            "a run on a million rows up to its first step: read, check, tokenize, learn",
            "runs/s",
            "growth:rows",
            "growth:rows",
            "alignkit on a thousand rows",
            extra_memory=True,
            tiny=True,
            same_loss=False,
            options={"rows": 1_000_000},
            peer_options={"rows": 1_000},
        ),
        Benchmark(
            "encoding",
            "1259 bundled rows as tokens: templates, masks and checks",
            "texts/s",
            "encoding:ours",
            "encoding:peer",
            "transformers' apply_chat_template",
        ),
        Benchmark(
            "overhead",
            "DPO steps on the tiny model",
            "steps/s",
            "overhead:ours",
            "overhead:peer",
            "only the forward pass, backward pass and optimizer of the same step",
            tiny=True,
        ),
    )
}
