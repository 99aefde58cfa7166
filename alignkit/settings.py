"""The keys of `model:` and of a training stage. They are the same for every algorithm."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from alignkit.options import (
    DataRef,
    EnvironmentRef,
    FilterRef,
    MonitorRef,
    Options,
    PolicyRef,
    Ref,
    RewardRef,
    StageRef,
    in_recipe,
)
from alignkit.sampling import Sampling


class LoraSpec(Options):
    """The LoRA adapter, under peft's names."""

    r: int = Field(default=16, ge=1, le=4096, description="rank of the adapter")
    lora_alpha: int = Field(
        default=32, ge=1, description="scale: the adapter's output is multiplied by lora_alpha / r"
    )
    target_modules: str | list[str] = Field(
        default="all-linear",
        description=(
            "layers that get an adapter: names, or all-linear for every linear layer; the "
            "routers and MLPs of a mixture of experts stay frozen"
        ),
    )
    use_rslora: bool = Field(default=False, description="multiply by lora_alpha / sqrt(r) instead")


class ModelSpec(Options):
    """The base model, and how its weights are trained."""

    base: Annotated[str, in_recipe("model")] = Field(
        min_length=1, description="Hugging Face model id, folder, or a plugin's NAME or NAME://PATH"
    )
    revision: str | None = Field(
        default=None, description="commit, branch or tag on the Hub; default: the latest"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description=(
            "dtype of the base weights; auto: bfloat16 if the base is frozen and the hardware "
            "supports it, else float32"
        ),
    )
    quantization: Literal["none", "nf4", "nf4_double_quant", "int8"] = Field(
        default="none",
        description=(
            "store the base weights in 4 or 8 bits (bitsandbytes), with double_quant also their "
            "scales; requires LoRA (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)"
        ),
    )
    lora: Annotated[
        LoraSpec | None, BeforeValidator(lambda value: None if value == "none" else value)
    ] = Field(
        default=LoraSpec(), description="LoRA options, such as {r: 16}; none: train all weights"
    )
    mixed_precision: Literal["none", "bf16"] = Field(
        default="none",
        description=(
            "bf16: with lora: none, keep weights and losses in float32 and multiply in bfloat16"
        ),
    )
    activation_checkpointing: bool = Field(
        default=False,
        description=(
            "store only the input of each layer, and compute the layer again for its gradient: "
            "less memory, about a third more time"
        ),
    )
    chat_template: Annotated[str | None, in_recipe("template")] = Field(
        default=None,
        description=(
            "plain, a plugin's such as chatml, hermes (chatml with tools), llama2, llama3, gemma "
            "or zephyr, or a Jinja file; default: the model's own, or plain if it has none"
        ),
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="arguments of the chat template, such as {enable_thinking: false}",
    )
    trust_remote_code: bool = Field(
        default=False, description="run Python code that comes with a Hub model"
    )
    device: str = Field(
        default="auto",
        pattern=r"^(auto|cpu(:0)?|(cuda|mps|xpu|hpu|npu|mtia)(:\d{1,3})?)$",
        description="torch device, such as cpu or cuda:1; auto: a GPU if there is one",
    )


class Rollout(Sampling):
    """How the policy samples responses."""

    temperature: float = Field(
        default=1.0, gt=0, description="sampling temperature, which log-probabilities also use"
    )
    samples_per_prompt: int = Field(
        default=1, ge=1, le=1024, description="responses to each prompt"
    )
    missing_eos_penalty: float = Field(
        default=0.0,
        ge=0,
        description="subtracted from the reward of a response truncated at max_new_tokens",
    )
    filters: list[FilterRef] | None = Field(
        default=None,
        description=(
            "which scored groups are learned from, such as [spread]; each filter sees those that "
            "the ones before it kept; default: all"
        ),
    )
    max_num_gen_batches: int | None = Field(
        default=None,
        ge=2,
        description="most batches of prompts in an iteration, until filters and algorithm leave "
        "`prompts_per_iteration` groups (DAPO's dynamic sampling); default: one, whatever is left",
    )
    ahead: int | None = Field(
        default=None,
        ge=0,
        le=1,
        description=(
            "1: an engine samples the next iteration while this one is learned, with weights "
            "one update behind; default: 0"
        ),
    )
    max_turns: int | None = Field(
        default=None,
        ge=1,
        description="turns that the policy may write in an episode; default: 8 (with environment)",
    )


class Mix(Options):
    """A second data stream in every optimizer step (InstructGPT's PPO-ptx)."""

    data: DataRef = Field(description="the second data stream")
    objective: Literal["text", "sft"] = Field(
        default="text", description="how the rows are used: text (raw text) or sft (demonstrations)"
    )
    weight: float = Field(
        ge=0, description="weight of this loss, added to the algorithm's own loss"
    )
    batch_size: int | None = Field(
        default=None, ge=1, description="rows per optimizer step; default: the stage's batch_size"
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

    max_grad_norm: float = Field(
        default=MAX_GRAD_NORM, gt=0, description="gradients are clipped to this norm"
    )


class Settings(Options):
    """The keys of a training stage."""

    model_config = ConfigDict(populate_by_name=True)

    from_: Annotated[str, Ref("from")] | None = Field(
        default=None,
        alias="from",
        description=(
            "starting weights: a stage, stage@k, base, or a folder with an adapter or a model; "
            "default: the base model"
        ),
    )
    reference: PolicyRef | None = Field(
        default=None,
        description=(
            "policy that the trained one is kept close to: a stage, base, or a folder with an "
            "adapter or a whole model, such as a larger teacher; default: the starting weights"
        ),
    )
    data: TrainingDataRef = Field(default=None, description="training data (offline algorithms)")
    validation: DataRef = Field(
        default=None,
        description=(
            "held-out data; its loss is measured after every epoch, and the best epoch is kept "
            "(offline algorithms)"
        ),
    )
    prompts: DataRef = Field(
        default=None, description="prompts that the policy responds to (online algorithms)"
    )
    reward: RewardRef = Field(
        default=None,
        description=(
            "scores the responses: a reward-model stage or a reward plugin (online algorithms); "
            "algorithms that learn from no reward only report it"
        ),
    )
    monitors: list[MonitorRef] | None = Field(
        default=None,
        description=(
            "what looks at the samples, and may end the stage, such as [{kl_budget: {max: 8}}, "
            "{gold: {reward: REWARD}}] (online algorithms)"
        ),
    )
    environment: EnvironmentRef = Field(
        default=None,
        description=(
            "writes the turns between those of the policy, which may call its tools (online "
            "algorithms)"
        ),
    )
    rollout: Rollout = Field(
        default_factory=Rollout, description="how responses are sampled (online algorithms)"
    )
    engine: EngineRef = Field(
        default=None,
        description=(
            "what samples: local (alignkit itself) or an engine plugin; default: the recipe's "
            "engine (online algorithms)"
        ),
    )
    iterations: int = Field(
        default=10,
        ge=1,
        description="number of iterations; each samples, scores and trains (online algorithms)",
    )
    prompts_per_iteration: int = Field(
        default=32, ge=1, description="prompts sampled per iteration (online algorithms)"
    )
    mix: Mix | None = Field(
        default=None, description="a second data stream in every optimizer step"
    )
    value_from: Annotated[str, Ref("reward_stage")] | None = Field(
        default=None,
        description="reward-model stage that the value function starts from; "
        "default: the first one in reward, else a zero head on the policy",
    )
    batch_size: int = Field(
        default=16,
        ge=1,
        description="groups per optimizer step; the size of micro-batches depends on memory",
    )
    epochs: int = Field(
        default=1, ge=1, description="passes over the data, or over the rollouts of an iteration"
    )
    max_steps: int | None = Field(
        default=None,
        ge=1,
        description="stop after this many optimizer steps; default: no limit (offline algorithms)",
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description=(
            "peak learning rate; default: the algorithm's, scaled to the model's hidden size and "
            "to LoRA or all weights"
        ),
    )
    optimizer: OptimizerRef = Field(
        default="adamw",
        description=(
            "optimizer of torch, bitsandbytes, transformers or a plugin, with its options, as in "
            "{adamw: {betas: [0.9, 0.95], eps: 1.0e-8, weight_decay: 0.1, max_grad_norm: 1}}"
        ),
    )
    warmup_ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description=(
            "fraction of the steps (or iterations) in which the learning rate rises, step by step"
        ),
    )
    lr_scheduler_type: ScheduleRef = Field(
        default="linear",
        description=(
            "learning rate after warmup, over steps (offline) or iterations (online): constant, "
            "linear, cosine, another one of transformers or of a plugin, as in {polynomial: "
            "{power: 2}}"
        ),
    )
    max_length: int = Field(
        default=1024,
        ge=2,
        description="maximum length of a prompt and its response together, in tokens",
    )
    checkpoint_every: int | None = Field(
        default=None,
        ge=1,
        description=(
            "steps (offline; default: a tenth of the stage) or iterations (online; default: 1) "
            "between checkpoints"
        ),
    )
    keep_versions: bool = Field(
        default=False,
        description="keep the adapter of every epoch or iteration k, for use as STAGE@k",
    )
    replay_from: list[StageRef] = Field(
        default_factory=list,
        description=(
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
