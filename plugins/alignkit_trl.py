"""TRL's trainers as stages: what TRL has and alignkit lacks, and a second opinion on what both have.

The stage's own keys (data, prompts, reward, epochs, batch_size, learning_rate, rollout ...) mean here what they mean
everywhere, or are refused; every other field of the trainer's config stands beside `trainer`. The reference of TRL's
preference and online trainers is where the stage starts from. Differs from alignkit's algorithms: TRL's loop and memory
use, no resume inside the stage (a killed one begins again), and batch_size is TRL's, per device.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator

from alignkit import (
    ROLLOUTS,
    DataError,
    ExternalTrainer,
    Field,
    Group,
    Needs,
    Register,
    Response,
    RunFailed,
    hookimpl,
    resolved_pairs,
)
from alignkit.algorithm import REWARD, Source, Trains
from alignkit.data.group import preview, why_not_demonstration, with_labels
from alignkit.errors import did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from alignkit.external import TrainerContext
    from alignkit.settings import ModelSpec, Settings

TRAINERS = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "reward": "Reward", "grpo": "GRPO", "rloo": "RLOO"}
ONLINE = ("grpo", "rloo")
WITH_REFERENCE = ("dpo", "kto", "grpo", "rloo")
# Fields of TRL's configs that the stage's own keys decide.
STAGE_KEYS = {
    "output_dir": "--out",
    "per_device_train_batch_size": "batch_size",
    "num_train_epochs": "epochs",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "warmup_steps": "warmup_ratio",
    "warmup_ratio": "warmup_ratio",
    "lr_scheduler_type": "lr_scheduler_type",
    "max_grad_norm": "max_grad_norm",
    "max_steps": "max_steps, or iterations",
    "max_length": "max_length",
    "seed": "seed",
    "num_generations": "rollout: {samples_per_prompt: ...}",
    "max_completion_length": "rollout: {max_new_tokens: ...}",
    "temperature": "rollout: {temperature: ...}",
    "top_p": "rollout: {top_p: ...}",
    "top_k": "rollout: {top_k: ...}",
    "generation_batch_size": "prompts_per_iteration",
    "bf16": "model: {dtype: ...}",
    "fp16": "model: {dtype: ...}",
    "report_to": "nothing: alignkit writes metrics.jsonl",
    "save_strategy": "nothing: alignkit saves the adapter",
    "logging_steps": "nothing: every step is logged",
}
ONLINE_KEYS = {
    "num_iterations": "epochs",
    "steps_per_generation": "prompts_per_iteration and batch_size",
    "gradient_accumulation_steps": "batch_size",
}
Turns = list[dict[str, str]]
ResponseTokens = dict[str, Any]


class TRL(ExternalTrainer):
    """One of TRL's trainers, fed from groups."""

    class Options(ExternalTrainer.Options):
        model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

        trainer: Literal["sft", "dpo", "kto", "reward", "grpo", "rloo"] = Field(
            description="which trainer; every other field of its config may stand beside this one"
        )

        @model_validator(mode="after")
        def _known_to_trl(self) -> TRL.Options:
            known = config_fields(self.trainer)
            decided = STAGE_KEYS | (ONLINE_KEYS if self.trainer in ONLINE else {})
            for name in self.model_extra or {}:
                if name in decided:
                    raise ValueError(f"'{name}' is decided by the stage: {decided[name]}")
                if name not in known:
                    message = f"TRL's {TRAINERS[self.trainer]}Config has no field '{name}'"
                    raise ValueError(f"{message}\n{did_you_mean(name, known)}".strip())
            return self

    unsupported_keys: ClassVar[Mapping[str, str]] = {
        "mix": "TRL's trainers take no second stream",
        "reference": "TRL's reference is where the stage starts from",
        "validation": "TRL would measure on it without keeping the best version: evaluate in a stage of its own",
        "data.validation": "TRL would measure on it without keeping the best version: evaluate in a stage of its own",
        "keep_versions": "the last version alone is saved",
        "checkpoint_every": "a stage that is killed begins again",
        "replay_from": "TRL samples afresh",
        "rollout.stop": "TRL's samples end at an end of turn",
        "rollout.min_new_tokens": "write generation_kwargs: {min_new_tokens: ...} beside trainer",
    }

    @classmethod
    def specialize(cls, options: Any) -> type[TRL]:
        """Where the groups come from, and what is trained, follows from the trainer."""
        kinds: dict[Any, type[TRL]] = {**dict.fromkeys(ONLINE, TRLOnline), "reward": TRLReward, "dpo": TRLPairs}
        return kinds.get(options.get("trainer") if isinstance(options, Mapping) else None, cls)

    def check_model(self, model: ModelSpec) -> None:
        """Also what `validate` cannot, because it needs TRL: whether values are of the types that its fields have."""
        import trl

        if model.lora is None or model.quantization != "none":
            raise RunFailed("trl: needs LoRA on an unquantised base (model: lora, quantization: none)")
        types = get_type_hints(getattr(trl, f"{TRAINERS[self.options.trainer]}Config"))
        for name, value in (self.options.model_extra or {}).items():
            one_or_several = types[name] | str if "list[str]" in str(types[name]) else types[name]
            try:
                TypeAdapter(one_or_several, config=ConfigDict(arbitrary_types_allowed=True)).validate_python(value)
            except ValidationError as error:
                raise RunFailed(f"trl: {name}: {value!r}: {error.errors()[0]['msg']}") from error

    def train(self, context: TrainerContext) -> Mapping[str, Any]:
        from transformers import PrinterCallback

        options = self.options
        reward = options.trainer == "reward"
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "before", Path(folder) / "after"
            context.export_start(before, scalar_head=reward)
            trainer = self._trainer(context, load_model(context, before, reward), Path(folder) / "out")
            if options.trainer in WITH_REFERENCE:
                check_reference(trainer)
            context.say(f"TRL's {TRAINERS[options.trainer]}Trainer; if killed it begins again")
            trainer.remove_callback(PrinterCallback)  # which writes what `progress` writes
            try:
                trainer.train()
            except (ValueError, TypeError) as error:
                raise RunFailed(
                    f"trl: {TRAINERS[options.trainer]}Trainer rejected the configuration: {error}"
                ) from error
            if not all(bool(p.isfinite().all()) for p in trainer.model.parameters() if p.requires_grad):
                raise RunFailed("trl: the weights are not numbers any more: it has diverged; lower learning_rate")
            steps = int(trainer.state.global_step)
            idle = without_spread(trainer.state.log_history)
            if idle == steps:
                raise RunFailed(f"trl: in all {steps} steps the rewards of each prompt's samples were equal")
            trainer.model.save_pretrained(after, selected_adapters=["default"])
            context.import_adapter(after, scalar_head=reward)
        found = {"trainer": f"{TRAINERS[options.trainer]}Trainer", "steps": steps, "rows": len(trainer.train_dataset)}
        if options.trainer in ONLINE:
            found |= {"steps_without_spread": idle, "unscored": getattr(trainer.reward_funcs[0], "unscored", 0)}
        return found

    def _trainer(self, context: TrainerContext, model: Any, folder: Path) -> Any:
        import trl

        name = TRAINERS[self.options.trainer]
        config = getattr(trl, f"{name}Config")
        try:
            args = config(
                **arguments(context, self.options.trainer, folder)
                | stage_length(context, config)
                | self.options.model_extra
            )
            rows, more = self._rows(context)
            trainer: Any = getattr(trl, f"{name}Trainer")(
                model=model,
                args=args,
                train_dataset=rows,
                processing_class=context.tokenizer,
                callbacks=[progress(context)],
                **more,
            )
        except (ValueError, TypeError) as error:
            raise RunFailed(f"trl: {name}Trainer rejected the configuration: {error}") from error
        return trainer

    def _rows(self, context: TrainerContext) -> tuple[Any, dict[str, Any]]:
        """The trainer's data set in TRL's conversational format, and further arguments of the trainer."""
        from datasets import Dataset

        from alignkit import seeds

        make = {"sft": demonstrations, "kto": thumbs}.get(self.options.trainer, pairs)
        loaded = context.load(context.settings.data)
        if loaded.validation:
            raise RunFailed(f"stage '{context.name}': trl takes no share of 'data' for validation")
        made = [make(group) for group in loaded.groups]
        rows = [row for found in made for row in found]
        if not rows:
            raise DataError(
                f"stage '{context.name}': no row gives TRL's {self.options.trainer} trainer anything to learn"
            )
        if without := made.count([]):
            context.say(f"{without} of {len(loaded.groups)} rows give it nothing and are left out")
        if self.options.trainer == "kto":
            if len({row["label"] for row in rows}) < 2:
                raise DataError(
                    f"stage '{context.name}': kto needs desirable and undesirable responses: all are of one kind"
                )
            rows, alike = apart(
                rows, context.settings.batch_size or 1, seeds.stream(context.seed, context.name, "shuffle")
            )
            if alike:
                context.say(f"{alike} of {len(rows)} responses count for z0 behind their own prompt")
        if self.options.trainer != "reward" or not any(row["margin"] for row in rows):
            rows = [{key: row[key] for key in row if key != "margin"} for row in rows]
        return Dataset.from_list(rows), {}


class TRLPairs(TRL):
    """A trainer that learns from pairs."""

    needs: ClassVar[Needs] = Needs(pairs=True)


class TRLReward(TRLPairs):
    """TRL's reward trainer."""

    trains: ClassVar[Trains] = REWARD


class TRLOnline(TRL):
    """TRL's online trainers, with the stage's reward."""

    source: ClassVar[Source] = ROLLOUTS
    needs: ClassVar[Needs] = Needs(min_samples=2)

    def _rows(self, context: TrainerContext) -> tuple[Any, dict[str, Any]]:
        from datasets import Dataset

        from alignkit.data.group import prompts_of

        prompts = prompts_of(context.load(context.settings.prompts).groups)
        rows = [{"prompt": list(group.prompt), "place": place} for place, group in enumerate(prompts)]
        return Dataset.from_list(rows), {"reward_funcs": reward_function(context, prompts)}


# --- groups -> TRL's rows


def conversation(group: Group) -> Turns:
    return [{"role": message["role"], "content": message["content"]} for message in group.prompt]


def said(group: Group, place: int) -> Turns:
    """A response as TRL's completion, of which it counts every token. Raises DataError for several turns."""
    response = group.responses[place]
    if response.messages is None:
        return [{"role": "assistant", "content": response.text}]
    if len(response.messages) > 1:
        raise DataError(f"trl: a response to {preview(group)} has several turns, and TRL would count the user's, too")
    return [{"role": message["role"], "content": message["content"]} for message in response.messages]


def demonstrations(group: Group) -> list[ResponseTokens]:
    """A row for each assistant's turn that is learned, behind all that was said before it."""
    if fault := why_not_demonstration(group):
        raise DataError(f"trl: sft learns demonstrations, but the row with the prompt {preview(group)} {fault}")
    response, before, found = group.responses[0], conversation(group), []
    for message in response.messages or ({"role": "assistant", "content": response.text},):
        turn = {"role": message["role"], "content": message["content"]}
        if message["role"] == "assistant" and message.get("train", True):
            found.append({"prompt": list(before), "completion": [turn]})
        before.append(turn)
    return found


def pairs(group: Group) -> list[ResponseTokens]:
    """TRL has no soft labels: a pair counts as its likelier order, an undecided one not at all."""
    found = []
    for pair in resolved_pairs(group):
        better, worse = (pair.better, pair.worse) if pair.p > 0.5 else (pair.worse, pair.better)
        if pair.p != 0.5:
            margin = float(pair.margin) if isinstance(pair.margin, int | float) else 0.0
            row = {"chosen": said(group, better), "rejected": said(group, worse), "margin": margin}
            found.append({"prompt": conversation(group), **row})
    return found


def thumbs(group: Group) -> list[ResponseTokens]:
    rated = with_labels(group)
    return [
        {"prompt": conversation(group), "completion": said(rated, place), "label": response.label}
        for place, response in enumerate(rated.responses)
    ]


def apart(rows: Sequence[ResponseTokens], batch: int, rng: np.random.Generator) -> tuple[list[ResponseTokens], int]:
    """Thumbs in an order in which neighbours have different prompts, and how many have not.

    TRL's KTO keeps the order, and for z0 puts each response behind the prompt of its neighbour in the batch, a ring.
    """
    order = [rows[place] for place in rng.permutation(len(rows))]

    def alike(at: int) -> bool:
        """Whether a row or its neighbours meet their own prompt."""
        first = at - at % batch
        ring = order[first : first + batch]
        here = at - first
        own = order[at]["prompt"]
        return len(ring) > 1 and own in (ring[here - 1]["prompt"], ring[(here + 1) % len(ring)]["prompt"])

    for at in range(len(order)):
        for other in rng.permutation(len(order))[:50].tolist() if alike(at) else ():
            order[at], order[other] = order[other], order[at]
            if not alike(at) and not alike(other):
                break
            order[at], order[other] = order[other], order[at]
    return order, sum(map(alike, range(len(order))))


def reward_function(context: TrainerContext, prompts: Sequence[Group]) -> Callable[..., list[float | None]]:
    """The stage's reward in TRL's signature; a response that cannot be scored is None, which TRL leaves out."""

    def reward(completions: Any, completion_ids: Any, place: Sequence[int], **_: Any) -> list[float | None]:
        responses = [
            Response(
                text=completion[0]["content"],
                tokens=tuple(ids),
                truncated=not ids or ids[-1] not in context.end_ids,
            )
            for completion, ids in zip(completions, completion_ids, strict=True)
        ]
        groups = [replace(prompts[at], responses=(response,)) for at, response in zip(place, responses, strict=True)]
        scores = context.score(groups)
        reward.unscored += scores.count(None)  # type: ignore[attr-defined]
        return scores

    reward.unscored = 0  # type: ignore[attr-defined]
    return reward


def without_spread(history: Sequence[Mapping[str, Any]]) -> int:
    """Steps in which every prompt's samples had equal rewards."""
    return sum(row.get("frac_reward_zero_std") == 1.0 for row in history)


# --- TRL's side


def load_model(context: TrainerContext, adapter: Path, reward: bool) -> Any:
    """The base with the adapter to train, in a copy of its own: TRL's trainers modify the model they get."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if reward:
        base = AutoModelForSequenceClassification.from_pretrained(context.base, num_labels=1, dtype=context.dtype)
        base.config.pad_token_id = context.tokenizer.pad_token_id
    else:
        base = AutoModelForCausalLM.from_pretrained(context.base, dtype=context.dtype)
    return PeftModel.from_pretrained(base.to(context.device), adapter, is_trainable=True)


def check_reference(trainer: Any) -> None:
    """The reference must be the policy as it starts, not the bare base: TRL keeps it as the adapter `ref`."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    parameters = dict(model.named_parameters())
    ours = {name: p for name, p in parameters.items() if ".default." in name}
    same = all(
        (other := parameters.get(name.replace(".default.", ".ref."))) is not None and other.equal(p)
        for name, p in ours.items()
    )
    needs = getattr(trainer, "ref_model", None) is None and getattr(trainer, "beta", 1.0) != 0.0
    if needs and not (ours and same):
        raise RunFailed("trl: the trainer's reference is not the policy that the stage starts from")


def arguments(context: TrainerContext, trainer: str, folder: Path) -> dict[str, Any]:
    """The trainer's config as the stage's keys decide it."""
    import torch

    settings, device = context.settings, context.device.type
    found = {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.batch_size,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.adam_beta1,
        "adam_beta2": settings.adam_beta2,
        "adam_epsilon": settings.adam_epsilon,
        "lr_scheduler_type": settings.lr_scheduler_type,
        "max_grad_norm": settings.max_grad_norm,
        "seed": context.seed,
        "bf16": context.dtype == torch.bfloat16,
        "use_cpu": device == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
    }
    if settings.warmup_ratio:
        found["warmup_steps"] = min(settings.warmup_ratio, 1 - 1e-9)  # TRL reads a number below 1 as a share
    return found | (online(settings) if trainer in ONLINE else {})


def online(settings: Settings) -> dict[str, Any]:
    """Sampling, and one generation of `prompts_per_iteration` prompts an iteration."""
    rollout, samples = settings.rollout, settings.rollout.samples_per_prompt or 1
    size = math.gcd(settings.batch_size * samples, settings.prompts_per_iteration * samples)
    per_iteration = settings.prompts_per_iteration * samples
    return {
        "num_generations": samples,
        "max_completion_length": rollout.max_new_tokens,
        "temperature": rollout.temperature,
        "top_p": rollout.top_p,
        "top_k": rollout.top_k,
        "per_device_train_batch_size": size,
        "generation_batch_size": per_iteration,
        "num_iterations": settings.epochs,
        "num_train_epochs": 1,
        "max_steps": settings.iterations * settings.epochs * (per_iteration // size),
    }


def stage_length(context: TrainerContext, config: type) -> dict[str, Any]:
    names = {field.name for field in config.__dataclass_fields__.values()}  # type: ignore[attr-defined]
    return {"max_length": context.settings.max_length} if "max_length" in names else {}


def progress(context: TrainerContext) -> Any:
    """TRL's log lines go where every stage's go."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            context.start(state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            context.check_stop()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            metrics = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
            if not all(math.isfinite(metrics.get(key, 0.0)) for key in ("loss", "grad_norm")):
                raise RunFailed(
                    f"trl: loss or gradient is not a number at step {state.global_step}; lower learning_rate"
                )
            context.log(state.global_step, metrics)

    return Progress()


@cache
def config_fields(trainer: str) -> frozenset[str]:
    """Names of a trainer's config fields, read from TRL's and transformers' sources: importing them takes seconds."""
    trl, transformers = (Path(_folder(name)) for name in ("trl", "transformers"))
    files = (
        trl / "trainer" / f"{trainer}_config.py",
        trl / "trainer" / "base_config.py",
        transformers / "training_args.py",
    )
    return frozenset(name for file in files for name in _fields(file))


def _folder(package: str) -> str:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"{package} is not installed")
    return spec.submodule_search_locations[0]


def _fields(file: Path) -> list[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return [
        item.target.id
        for node in classes
        for item in node.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
    ]


@hookimpl
def register_algorithms(register: Register) -> None:
    register("trl", TRL, summary="a trainer of TRL's as a stage: sft, dpo, kto, reward, grpo, rloo")
