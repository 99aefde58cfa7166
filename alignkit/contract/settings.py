"""The keys of `model:`, of what samples, and of a training stage. They are the same for every
algorithm.

What samples follows training: judges should see texts of the kind that training saw. Before a run
starts, every key of `sampling` that a recipe leaves out gets the value that the `rollout` of an
online stage has: the first one among the step's policies, or else the first one of the recipe. A
reward takes the values of the stage that it scores for. Without an online stage, the defaults of
`rollout` apply.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict

from alignkit.contract.options import (
    DataRef,
    EnvironmentRef,
    Field,
    FilterRef,
    MonitorRef,
    Options,
    PolicyRef,
    Ref,
    RewardRef,
    StageRef,
    in_recipe,
)


class LoraSpec(Options):
    """The LoRA adapter, under peft's names."""

    r: int = Field(16, "rank of the adapter", ge=1, le=4096)
    lora_alpha: int = Field(32, "scale: the adapter's output is multiplied by lora_alpha / r", ge=1)
    target_modules: str | list[str] = Field(
        "all-linear",
        (
            "layers that get an adapter: names, or all-linear for every linear layer; the "
            "routers and MLPs of a mixture of experts stay frozen"
        ),
    )
    use_rslora: bool = Field(False, "multiply by lora_alpha / sqrt(r) instead")


class ModelSpec(Options):
    """The base model, and how its weights are trained."""

    base: Annotated[str, in_recipe("model")] = Field(
        min_length=1,
        description="Hugging Face model id, folder, GGUF file, or a plugin's NAME or NAME://PATH",
    )
    revision: str | None = Field(None, "commit, branch or tag on the Hub; default: the latest")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        (
            "dtype of the base weights; auto: bfloat16 if the base is frozen and the hardware "
            "supports it, else float32"
        ),
    )
    quantization: Literal["none", "nf4", "nf4_double_quant", "int8"] = Field(
        "none",
        (
            "store the base weights in 4 or 8 bits (bitsandbytes), with double_quant also their "
            "scales; requires LoRA (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)"
        ),
    )
    lora: Annotated[
        LoraSpec | None, BeforeValidator(lambda value: None if value == "none" else value)
    ] = Field(LoraSpec(), "LoRA options, such as {r: 16}; none: train all weights")
    mixed_precision: Literal["none", "bf16"] = Field(
        "none", "bf16: with lora: none, keep weights and losses in float32 and multiply in bfloat16"
    )
    activation_checkpointing: bool = Field(
        False,
        (
            "store only the input of each layer, and compute the layer again for its gradient: "
            "less memory, a third to half more time"
        ),
    )
    chat_template: Annotated[str | None, in_recipe("template")] = Field(
        None,
        (
            "plain, a plugin's such as chatml, hermes (chatml with tools), llama2, llama3, gemma "
            "or zephyr, or a Jinja file; default: the model's own, or plain if it has none"
        ),
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, "arguments of the chat template, such as {enable_thinking: false}"
    )
    trust_remote_code: bool = Field(False, "run Python code that comes with a Hub model")
    device: str = Field(
        "auto",
        "torch device, such as cpu or cuda:1; auto: a GPU if there is one",
        pattern=r"^(auto|cpu(:0)?|(cuda|mps|xpu|hpu|npu|mtia)(:\d{1,3})?)$",
    )


# What samples


class Sampling(Options):
    """How a model samples.

    These are the keys under `sampling:` of what samples, and under `rollout:` of a stage that
    trains. Models and engines are asked with them.

    Attributes:
        max_new_tokens: The limit of a response; in an episode, of all turns of the policy.
        min_new_tokens: Below it no end token is sampled; a stop text ends a response nevertheless.
        temperature: 0 is greedy.
        top_p: 1 does not filter.
        top_k: 0 does not filter.
        stop: Texts that end a response and stay in it.
    """

    model_config = ConfigDict(frozen=True)

    max_new_tokens: int = Field(128, "maximum response length, in tokens", ge=1)
    min_new_tokens: int = Field(0, "minimum response length, in tokens", ge=0)
    temperature: float = Field(
        1.0, "sampling temperature, which log-probabilities also use; 0 is greedy", ge=0
    )
    top_p: float = Field(
        1.0, "sample from the most likely tokens with this total probability; 1: all", gt=0, le=1
    )
    top_k: int = Field(0, "sample from this many most likely tokens; 0: all", ge=0)
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        [], "texts that end a response, even before min_new_tokens; they stay part of the response"
    )

    def check_values(self) -> None:
        """Raise ValueError if the least number of tokens is above the largest."""
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens {self.min_new_tokens} is above max_new_tokens "
                f"{self.max_new_tokens}"
            )


KEYS = tuple(Sampling.model_fields)


class SamplingOptions(Options):
    """Options of what samples responses."""

    sampling: Sampling = Field(
        default_factory=Sampling,
        description=(
            "how responses are sampled, such as {temperature: 0.7}; keys that are left out: as "
            "in training"
        ),
    )

    def policies_to_sample(self) -> list[str]:
        """The policies that respond, by whose training missing keys are filled in."""
        return []

    def asks_engine(self) -> bool:
        """A step that reads data instead names no policies."""
        return type(self).policies_to_sample is SamplingOptions.policies_to_sample or bool(
            self.policies_to_sample()
        )

    def follow(self, sampling: Sampling) -> None:
        """Fill the keys that are left out.

        Args:
            sampling: What they become.
        """
        keys = sampling.model_dump(include={*KEYS}) | self.sampling.model_dump(exclude_unset=True)
        keys["min_new_tokens"] = min(keys["min_new_tokens"], keys["max_new_tokens"])
        self.sampling = self.sampling.model_copy(update=keys)

    def sampled(self) -> dict[str, Any]:
        """The keys as `Models.sample` takes them, without those that change nothing."""
        values = {
            "max_new_tokens": self.sampling.max_new_tokens,
            "temperature": self.sampling.temperature,
        }
        return values | self.sampling.model_dump(exclude_defaults=True)

    def described(self) -> str:
        """The keys in words: `temperature 0.7, max_new_tokens 32`."""
        return ", ".join(f"{key} {value}" for key, value in self.sampled().items())


# A training stage


class Rollout(Sampling):
    """How the policy samples responses."""

    temperature: float = Field(1.0, "sampling temperature, which log-probabilities also use", gt=0)
    samples_per_prompt: int = Field(1, "responses to each prompt", ge=1, le=1024)
    missing_eos_penalty: float = Field(
        0.0, "subtracted from the reward of a response truncated at max_new_tokens", ge=0
    )
    filters: list[FilterRef] | None = Field(
        None,
        (
            "which scored groups are learned from, such as [spread]; each filter sees those that "
            "the ones before it kept; default: all"
        ),
    )
    max_num_gen_batches: int | None = Field(
        None,
        (
            "most batches of prompts in an iteration, until filters and algorithm leave "
            "`prompts_per_iteration` groups (DAPO's dynamic sampling); default: one, whatever is left"
        ),
        ge=2,
    )
    async_level: int | None = Field(
        None,
        (
            "1: an engine samples the next iteration while this one is learned, with weights "
            "one update behind; default: 0"
        ),
        ge=0,
        le=1,
    )
    max_turns: int | None = Field(
        None, "turns that the policy may write in an episode (with environment); default: 8", ge=1
    )


class Mix(Options):
    """A second data stream in every optimizer step (InstructGPT's PPO-ptx)."""

    data: DataRef = Field(description="the second data stream")
    objective: Literal["text", "sft"] = Field(
        "text", "how the rows are used: text (raw text) or sft (demonstrations)"
    )
    weight: float = Field(
        ge=0, description="weight of this loss, added to the algorithm's own loss"
    )
    batch_size: int | None = Field(
        None, "rows per optimizer step; default: the stage's batch_size", ge=1
    )


# Rows of it may be held out for validation.
TrainingDataRef = Annotated[Any, Ref("training_data")]
EngineRef = Annotated[Any, Ref("engine")]
TrackerRef = Annotated[Any, Ref("tracker")]
OptimizerRef = Annotated[Any, Ref("optimizer")]
ScheduleRef = Annotated[Any, Ref("schedule")]
LEARNING_RATE = 2e-4  # for algorithms without a default
MAX_GRAD_NORM = 1.0


class OptimizerOptions(Options):
    """What alignkit itself does with the gradients, whatever the optimizer."""

    max_grad_norm: float = Field(MAX_GRAD_NORM, "gradients are clipped to this norm", gt=0)


class Settings(Options):
    """The keys of a training stage."""

    model_config = ConfigDict(populate_by_name=True)

    from_: Annotated[str, Ref("from")] | None = Field(
        None,
        (
            "starting weights: a stage, stage@k, base, or a folder with an adapter or a model; "
            "default: the base model"
        ),
        alias="from",
    )
    reference: PolicyRef | None = Field(
        None,
        (
            "policy that the trained one is kept close to: a stage, base, or a folder with an "
            "adapter or a whole model, such as a larger teacher; default: the starting weights"
        ),
    )
    data: TrainingDataRef = Field(None, "training data (offline algorithms)")
    validation: DataRef = Field(
        None,
        (
            "held-out data; its loss is measured after every epoch, and the best epoch is kept "
            "(offline algorithms)"
        ),
    )
    prompts: DataRef = Field(None, "prompts that the policy responds to (online algorithms)")
    reward: RewardRef = Field(
        None,
        (
            "scores the responses: a reward-model stage or a reward plugin (online algorithms); "
            "algorithms that learn from no reward only report it"
        ),
    )
    monitors: list[MonitorRef] | None = Field(
        None,
        (
            "what looks at the samples, and may end the stage, such as [{kl_budget: {max: 8}}, "
            "{gold: {reward: REWARD}}] (online algorithms)"
        ),
    )
    environment: EnvironmentRef = Field(
        None,
        (
            "writes the turns between those of the policy, which may call its tools (online "
            "algorithms)"
        ),
    )
    rollout: Rollout = Field(
        default_factory=Rollout, description="how responses are sampled (online algorithms)"
    )
    engine: EngineRef = Field(
        None,
        (
            "what samples: local (alignkit itself) or an engine plugin (online algorithms); "
            "default: the recipe's engine"
        ),
    )
    iterations: int = Field(
        10, "number of iterations; each samples, scores and trains (online algorithms)", ge=1
    )
    prompts_per_iteration: int = Field(
        32, "prompts sampled per iteration (online algorithms)", ge=1
    )
    mix: Mix | None = Field(None, "a second data stream in every optimizer step")
    value_from: Annotated[str, Ref("reward_stage")] | None = Field(
        None,
        (
            "reward-model stage that the value function starts from; "
            "default: the first one in reward, else a zero head on the policy"
        ),
    )
    batch_size: int = Field(
        16, "groups per optimizer step; the size of micro-batches depends on memory", ge=1
    )
    epochs: int = Field(1, "passes over the data, or over the rollouts of an iteration", ge=1)
    max_steps: int | None = Field(
        None, "stop after this many optimizer steps (offline algorithms); default: no limit", ge=1
    )
    learning_rate: float | None = Field(
        None,
        (
            "peak learning rate; default: the algorithm's, scaled to the model's hidden size and "
            "to LoRA or all weights"
        ),
        gt=0,
        le=1,
    )
    optimizer: OptimizerRef = Field(
        "adamw",
        (
            "optimizer of torch, bitsandbytes, transformers or a plugin, with its options, as in "
            "{adamw: {betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.1, max_grad_norm: 1}}"
        ),
    )
    warmup_ratio: float = Field(
        0.0,
        "fraction of the steps (or iterations) in which the learning rate rises, step by step",
        ge=0,
        le=1,
    )
    lr_scheduler_type: ScheduleRef = Field(
        "linear",
        (
            "learning rate after warmup, over steps (offline) or iterations (online): constant, "
            "linear, cosine, another one of transformers or of a plugin, as in {polynomial: "
            "{power: 2}}"
        ),
    )
    max_length: int = Field(
        1024, "maximum length of a prompt and its response together, in tokens", ge=2
    )
    checkpoint_every: int | None = Field(
        None,
        (
            "steps (offline; default: a tenth of the stage) or iterations (online; default: 1) "
            "between checkpoints"
        ),
        ge=1,
    )
    keep_versions: bool = Field(
        False, "keep the adapter of every epoch or iteration k, for use as STAGE@k"
    )
    replay_from: list[StageRef] = Field(
        [],
        (
            "earlier stages whose rollouts are replayed, rescored by this stage's reward; "
            "default: none"
        ),
    )

    @property
    def max_grad_norm(self) -> float:
        """The norm to which gradients are clipped."""
        return float(
            getattr(getattr(self.optimizer, "options", None), "max_grad_norm", MAX_GRAD_NORM)
        )
