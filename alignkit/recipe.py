"""YAML -> Recipe: the types that a recipe consists of, and how one is found and loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from alignkit.algorithm import Options
from alignkit.document import load_document
from alignkit.errors import Problem, RecipeError, did_you_mean
from alignkit.plugins import Claim, Registry, plugins


@dataclass(frozen=True)
class Ref:
    """Marks an option as a reference, so that the graph of stages is known before anything runs."""

    kind: Literal["stage", "policy", "from", "reward", "data", "judge"]


StageRef = Annotated[str, Ref("stage")]  # stays text: `base`, `sft` or `sft@2`
PolicyRef = Annotated[str, Ref("policy")]  # the same, and no reward model
RewardRef = Annotated[Any, Ref("reward")]  # becomes a RewardSpec
DataRef = Annotated[Any, Ref("data")]  # becomes a DataSpec
JudgeRef = Annotated[Any, Ref("judge")]  # becomes a Component


@dataclass(frozen=True)
class Component:
    """A plugin that a recipe names, with its validated options."""

    kind: str
    name: str
    claim: Claim
    options: Options


@dataclass(frozen=True)
class DataSource:
    """One source of groups: exactly one of `path`, `stage` and `hub` is set. `format` None: detected."""

    format: Component | None = None
    path: Path | None = None
    stage: str | None = None
    hub: str | None = None
    limit: int | None = None
    split: str | None = None
    validation: float = 0.0
    weight: float = 1.0
    on_bad_row: Literal["error", "skip"] = "error"
    columns: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSpec:
    """Sources that are read as one."""

    sources: tuple[DataSource, ...]


@dataclass(frozen=True)
class RewardSpec:
    """A reward: a stage's model, a model in a folder (`name` is its path), a plugin, or a combination of these."""

    kind: Literal["stage", "folder", "reward", "combine"]
    name: str
    component: Component | None = None
    children: dict[str, RewardSpec] = field(default_factory=dict)


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
    keep_epochs: bool = Field(default=False, description="keep the adapter of every epoch or iteration k as NAME@k")
    carry_from: list[StageRef] = Field(default_factory=list, description="earlier stages whose rollouts count too")


@dataclass(frozen=True)
class Stage:
    """One named entry of a recipe. `settings`: None for a step. `upstream`: stages that it needs, by name."""

    name: str
    kind: Literal["algorithm", "step"]
    component: Component
    settings: Settings | None
    upstream: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A valid recipe. `stages` are in an order in which they can run; `resolved` is its plain data."""

    name: str
    path: Path
    folder: Path
    seed: int
    description: str
    model: ModelSpec
    stages: dict[str, Stage]
    resolved: dict[str, Any]


class TopKeys(Options):
    """The keys of a recipe."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    seed: int = Field(default=0, ge=0)
    requires: list[str] = Field(default_factory=list)
    model: Any
    stages: dict[str, Any] = Field(min_length=1)


class DataKeys(Options):
    """The keys every data source understands, whatever its format."""

    path: str | None = None
    hub: str | None = None
    stage: str | None = None
    limit: int | None = Field(default=None, ge=1)
    split: str | None = None
    validation: float = Field(default=0.0, ge=0, lt=1)
    weight: float = Field(default=1.0, gt=0)
    on_bad_row: Literal["error", "skip"] = "error"
    columns: dict[str, str] = Field(default_factory=dict)
    meta: dict[str, Any] = Field(default_factory=dict)


def fields_of(model: BaseModel) -> dict[str, Any]:
    """What stands in its fields, those included that its class allows without naming them."""
    return {**{name: getattr(model, name) for name in type(model).model_fields}, **(model.model_extra or {})}


# --- what a recipe's parts refer to

Spec = TypeVar("Spec", DataSpec, RewardSpec)


def specs(value: Any, kind: type[Spec]) -> list[Spec]:
    """Every data entry or reward in settings and options, wherever it stands, each once."""
    found: dict[int, Spec] = {}

    def walk(item: Any) -> None:
        if isinstance(item, kind):
            found[id(item)] = item
        if isinstance(item, BaseModel):
            below: Iterable[Any] = fields_of(item).values()
        elif isinstance(item, Component):
            below = [item.options]
        elif isinstance(item, RewardSpec):
            below = [item.component, *item.children.values()]
        elif isinstance(item, Mapping):
            below = item.values()
        else:
            below = item if isinstance(item, list | tuple) else ()
        for part in below:
            walk(part)

    walk(value)
    return list(found.values())


# --- a recipe from the disk


def load_recipe(path: Path | str, overrides: Sequence[str] = (), registry: Registry | None = None) -> Recipe:
    """Read and check a recipe; raises RecipeError with every problem found. Nothing heavy is imported."""
    from alignkit.validate import validate  # which is made of the types above

    return validate(load_document(Path(path), overrides), registry if registry is not None else plugins().registry)


def _shipped() -> dict[str, Path]:
    """The recipes that come with alignkit, by name: in a checkout, or beside the installed package."""
    root = Path(__file__).resolve().parent.parent
    folders = (root / "alignkit_recipes", root / "recipes")
    return {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str | Path) -> Path:
    """A path, or the name of a shipped recipe (`quickstart`)."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = _shipped()
    if str(name) in shipped:
        return shipped[str(name)]
    if path.is_dir():
        raise RecipeError([Problem("a recipe is a file, this is a folder", str(name))])
    near = [item.name for item in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    help = did_you_mean(path.name, [*near, *shipped]) or f"shipped recipes: {', '.join(shipped) or 'none'}"
    raise RecipeError([Problem(f"no such recipe: {name}", help=help)])
