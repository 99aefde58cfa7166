"""The keys of `model` and of a training stage: the same for every algorithm."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator, model_validator

from alignkit.options import DataRef, Options, Ref, RewardRef, StageRef


class LoraSpec(Options):
    """The adapter, in peft's own names."""

    r: int = Field(default=16, ge=1, le=4096, description="rank")
    lora_alpha: int = Field(default=32, ge=1, description="scale: the adapter counts lora_alpha / r")
    target_modules: str | list[str] = Field(default="all-linear", description="layers that get an adapter")
    use_rslora: bool = Field(default=False, description="scale by lora_alpha / sqrt(r)")
    lora_dropout: float = Field(default=0.0, description="always 0")

    @field_validator("lora_dropout")
    @classmethod
    def _no_dropout(cls, value: float) -> float:
        if value != 0:
            raise ValueError("alignkit trains without dropout so that old and new log-probabilities agree")
        return value


def _none_word(value: Any) -> Any:
    return None if value == "none" else value


class ModelSpec(Options):
    """The base model and how it is trained."""

    base: str = Field(min_length=1, description="hub id, folder, or a model plugin's name")
    revision: str | None = Field(default=None, description="commit or tag on the hub")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    lora: Annotated[LoraSpec | None, BeforeValidator(_none_word)] = Field(
        default=LoraSpec(), description="adapter options; none: train all weights"
    )
    chat_template: str | None = Field(default=None, description="name or file of a template; none: the model's own")
    trust_remote_code: bool = False
    device: str = "auto"


class Rollout(Options):
    """How responses are sampled."""

    samples_per_prompt: int | None = Field(default=1, ge=1, le=1024, description="responses to each prompt")
    max_new_tokens: int | None = Field(default=128, ge=1, description="longest response")
    min_new_tokens: int = Field(default=0, ge=0, description="no end of turn before this many tokens")
    temperature: float | None = Field(default=1.0, gt=0, description="of sampling; log-probabilities use it too")
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, description="0: all tokens")
    stop: list[Annotated[str, Field(min_length=1)]] = Field(
        default_factory=list, description="texts that end a response and stay in it, however short it is"
    )
    missing_eos_penalty: float = Field(
        default=0.0, ge=0, description="taken off the reward of a response that was cut off at max_new_tokens"
    )

    @model_validator(mode="after")
    def _ordered(self) -> Rollout:
        if self.max_new_tokens is not None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens {self.min_new_tokens} is above max_new_tokens {self.max_new_tokens}")
        return self


class Mix(Options):
    """A second stream of data beside the algorithm's own (InstructGPT's ptx)."""

    data: DataRef
    objective: Literal["text", "sft"] = "text"
    weight: float = Field(ge=0, description="its loss counts so much")
    batch_size: int | None = Field(default=None, ge=1)


class Settings(Options):
    """The stage-level keys of a training stage; the same for every algorithm."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, populate_by_name=True)

    from_: Annotated[str, Ref("from")] | None = Field(
        default=None, alias="from", description="stage, stage@k, base, or a local adapter folder to start from"
    )
    reference: StageRef | None = Field(
        default=None, description="stage to stay near; default: where the stage starts from"
    )
    data: DataRef = None
    validation: DataRef = None
    prompts: DataRef = None
    reward: RewardRef = None
    rollout: Rollout = Field(default_factory=Rollout)
    iterations: int = Field(default=10, ge=1)
    prompts_per_iteration: int = Field(default=32, ge=1)
    mix: Mix | None = None
    value_from: StageRef | None = Field(default=None, description="reward-model stage that the value role starts from")
    batch_size: int = Field(default=16, ge=1, description="groups per optimiser step, over all devices")
    epochs: int = Field(default=1, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(default=1024, ge=2, description="longest prompt with response, in tokens")
    seed: int | None = Field(default=None, ge=0)
    checkpoint_every: int | None = Field(
        default=None, ge=1, description="steps (of a data set) or iterations (of rollouts) between checkpoints"
    )
    keep_versions: bool = Field(default=False, description="keep the adapter of every epoch or iteration k as NAME@k")
    replay_from: list[StageRef] = Field(default_factory=list, description="earlier stages whose rollouts count too")
