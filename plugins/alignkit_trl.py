"""TRL's trainers as stages: what TRL has and alignkit lacks, and a second opinion on what both have.

The stage's own keys (data, prompts, reward, epochs, batch_size, learning_rate, rollout ...) mean here what they mean
everywhere; every other field of the trainer's config stands beside `trainer`. The reference of TRL's preference and
online trainers is where the stage starts from. Differs from alignkit's algorithms: TRL's loop and memory use, no
resume inside the stage (a killed one begins again), and batch_size is TRL's, per device.
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
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, model_validator

from alignkit import ROLLOUTS, DataError, Field, Group, Response, RunFailed, Runner, hookimpl, resolved_pairs
from alignkit.algorithm import REWARD, Source, Trains
from alignkit.errors import did_you_mean

if TYPE_CHECKING:
    from alignkit.hookspecs import Register
    from alignkit.recipe import Settings
    from alignkit.stages import StageRun

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


class TRL(Runner):
    """One of TRL's trainers, fed from groups."""

    class Options(Runner.Options):
        model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

        trainer: Literal["sft", "dpo", "kto", "reward", "grpo", "rloo"] = Field(
            description="which trainer; every other field of its config may stand beside this one"
        )

        @model_validator(mode="after")
        def _known_to_trl(self) -> TRL.Options:
            known = config_fields(self.trainer)
            for name in self.model_extra or {}:
                if name in STAGE_KEYS:
                    raise ValueError(f"'{name}' is decided by the stage: {STAGE_KEYS[name]}")
                if name not in known:
                    raise ValueError(
                        f"TRL's {TRAINERS[self.trainer]}Config has no field '{name}' {did_you_mean(name, known)}"
                    )
            return self

    @classmethod
    def variant(cls, options: Any) -> type[TRL]:
        """Where the groups come from, and what is trained, follows from the trainer."""
        trainer = options.get("trainer") if isinstance(options, Mapping) else None
        return Online if trainer in ONLINE else Reward if trainer == "reward" else cls

    def train(self, run: StageRun) -> Mapping[str, Any]:
        from transformers import PrinterCallback

        options, settings, policy = self.options, run.settings, run.engine.policy
        if policy.lora is None or policy.spec.quantization != "none":
            raise RunFailed("trl: needs LoRA on an unquantised base (model: lora, quantization: none)")
        if settings.mix is not None:
            raise RunFailed("trl: TRL's trainers take no second stream: leave 'mix' out")
        start = settings.from_ or "base"
        if settings.reference not in (None, start):
            raise RunFailed(f"trl: TRL's reference is where the stage starts from, '{start}': leave 'reference' out")
        reward = options.trainer == "reward"
        with tempfile.TemporaryDirectory() as folder:
            before, after = Path(folder) / "before", Path(folder) / "after"
            role = f"{run.name}~trl"
            policy.add_role(role, start=run.engine.role(start), head="scalar" if reward else "language")
            policy.save(role, before)
            policy.drop_role(role)
            trainer = self._trainer(run, load_model(policy, before, reward), Path(folder) / "out")
            if options.trainer in WITH_REFERENCE:
                check_reference(trainer)
            run.reporter.say(f"{run.name}: TRL's {TRAINERS[options.trainer]}Trainer; if killed it begins again")
            trainer.remove_callback(PrinterCallback)  # which writes what `progress` writes
            try:
                trainer.train()
            except (ValueError, TypeError) as error:
                raise RunFailed(f"trl: {TRAINERS[options.trainer]}Trainer refuses: {error}") from error
            steps = int(trainer.state.global_step)
            trainer.model.save_pretrained(after, selected_adapters=["default"])
            policy.add_role(role, start=after, head="scalar" if reward else "language")
            policy.save(role, run.adapter)
            policy.drop_role(role)
        return {"trainer": f"{TRAINERS[options.trainer]}Trainer", "steps": steps, "rows": len(trainer.train_dataset)}

    def _trainer(self, run: StageRun, model: Any, folder: Path) -> Any:
        import trl

        name = TRAINERS[self.options.trainer]
        config = getattr(trl, f"{name}Config")
        try:
            args = config(
                **arguments(run, self.options.trainer, folder) | stage_length(run, config) | self.options.model_extra
            )
            rows, more = self._rows(run)
            trainer: Any = getattr(trl, f"{name}Trainer")(
                model=model,
                args=args,
                train_dataset=rows,
                processing_class=run.engine.policy.tokenizer,
                callbacks=[progress(run)],
                **more,
            )
        except (ValueError, TypeError) as error:
            raise RunFailed(f"trl: {name}Trainer refuses: {error}") from error
        return trainer

    def _rows(self, run: StageRun) -> tuple[Any, dict[str, Any]]:
        """The trainer's data set in TRL's conversational format, and further arguments of the trainer."""
        from datasets import Dataset

        make = {"sft": demonstrations, "kto": thumbs}.get(self.options.trainer, pairs)
        groups = run.load(run.settings.data).groups
        rows = [row for group in groups for row in make(group)]
        if not rows:
            raise DataError(f"stage '{run.name}': no row gives TRL's {self.options.trainer} trainer anything to learn")
        return Dataset.from_list(rows), {}


class Reward(TRL):
    """TRL's reward trainer."""

    trains: ClassVar[Trains] = REWARD


class Online(TRL):
    """TRL's online trainers, with the stage's reward."""

    source: ClassVar[Source] = ROLLOUTS

    def _rows(self, run: StageRun) -> tuple[Any, dict[str, Any]]:
        from datasets import Dataset

        from alignkit.data import prompts_of

        prompts = prompts_of(run.load(run.settings.prompts).groups)
        rows = [{"prompt": list(group.prompt), "place": place} for place, group in enumerate(prompts)]
        return Dataset.from_list(rows), {"reward_funcs": reward_function(run, prompts)}


# --- groups -> TRL's rows


def conversation(group: Group) -> list[dict[str, str]]:
    return [{"role": message["role"], "content": message["content"]} for message in group.prompt]


def said(response: Response) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": response.text}]


def demonstrations(group: Group) -> list[dict[str, Any]]:
    return [{"prompt": conversation(group), "completion": said(response)} for response in group.responses]


def pairs(group: Group) -> list[dict[str, Any]]:
    """TRL has no soft labels: a pair counts as its likelier order, an undecided one not at all."""
    found = []
    for pair in resolved_pairs(group):
        better, worse = (pair.better, pair.worse) if pair.p > 0.5 else (pair.worse, pair.better)
        if pair.p != 0.5:
            row = {"chosen": said(group.responses[better]), "rejected": said(group.responses[worse])}
            found.append({"prompt": conversation(group), **row})
    return found


def thumbs(group: Group) -> list[dict[str, Any]]:
    """A pair is a thumb up and a thumb down; a response that stands in several pairs counts once a side."""
    ups = {(pair.better if pair.p > 0.5 else pair.worse, True) for pair in resolved_pairs(group) if pair.p != 0.5}
    downs = {(pair.worse if pair.p > 0.5 else pair.better, False) for pair in resolved_pairs(group) if pair.p != 0.5}
    return [
        {"prompt": conversation(group), "completion": said(group.responses[place]), "label": label}
        for place, label in sorted(ups | downs)
    ]


def reward_function(run: StageRun, prompts: Sequence[Group]) -> Callable[..., list[float | None]]:
    """The stage's reward in TRL's signature; a response that cannot be scored is None, which TRL leaves out."""
    from alignkit.scoring import PLAIN, Scorer

    scorer = Scorer(run.settings.reward, run.context())
    ends = run.engine.encoder.end_ids
    penalty = run.settings.rollout.missing_eos_penalty

    def reward(completions: Any, completion_ids: Any, place: Sequence[int], **_: Any) -> list[float | None]:
        run.engine.forget_scores()
        responses = [
            Response(text=completion[0]["content"], tokens=tuple(ids), truncated=not ids or ids[-1] not in ends)
            for completion, ids in zip(completions, completion_ids, strict=True)
        ]
        groups = [replace(prompts[at], responses=(response,)) for at, response in zip(place, responses, strict=True)]
        scored = scorer.score(groups)
        kept = [at for at, group in enumerate(scored) if group.responses[0].scores.get(PLAIN) is not None]
        found: list[float | None] = [None] * len(groups)
        if kept:
            combined = scorer.combine([scored[at] for at in kept]).reward.tolist()
            for at, value in zip(kept, combined, strict=True):
                found[at] = value - penalty * responses[at].truncated
        return found

    return reward


# --- TRL's side


def load_model(policy: Any, adapter: Path, reward: bool) -> Any:
    """The base with the adapter to train, apart from the policy's own: TRL's trainers change what they are given."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if reward:
        base = AutoModelForSequenceClassification.from_pretrained(policy.source, num_labels=1, dtype=policy.dtype)
        base.config.pad_token_id = policy.tokenizer.pad_token_id
    else:
        base = AutoModelForCausalLM.from_pretrained(policy.source, dtype=policy.dtype)
    return PeftModel.from_pretrained(base.to(policy.device), adapter, is_trainable=True)


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


def arguments(run: StageRun, trainer: str, folder: Path) -> dict[str, Any]:
    """The trainer's config as the stage's keys decide it."""
    import torch

    settings, device = run.settings, run.engine.policy.device.type
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
        "seed": run.seed,
        "bf16": run.engine.policy.dtype == torch.bfloat16,
        "use_cpu": device == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    if settings.warmup_ratio:
        found["warmup_steps"] = settings.warmup_ratio  # TRL reads a number below 1 as a share
    return found | (online(settings) if trainer in ONLINE else {})


def online(settings: Settings) -> dict[str, Any]:
    """Sampling, and one generation of `prompts_per_iteration` prompts an iteration."""
    rollout, samples = settings.rollout, settings.rollout.samples_per_prompt or 1
    if samples < 2:
        raise RunFailed("trl: GRPO and RLOO need rollout: {samples_per_prompt: 2} or more")
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


def stage_length(run: StageRun, config: type) -> dict[str, Any]:
    names = {field.name for field in config.__dataclass_fields__.values()}  # type: ignore[attr-defined]
    return {"max_length": run.settings.max_length} if "max_length" in names else {}


def progress(run: StageRun) -> Any:
    """TRL's log lines go where every stage's go."""
    from transformers import TrainerCallback

    from alignkit.report import Metrics

    metrics = Metrics(run.folder / "metrics.jsonl")

    class Progress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run.reporter.start(run.name, state.max_steps, 0)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            run.should_stop()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            found = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
            metrics.write(stage=run.name, step=state.global_step, **found)
            run.notify("metrics_logged", step=state.global_step, metrics=found)
            if "loss" in found:
                run.reporter.advance(state.global_step, found)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            metrics.sync()
            run.reporter.stop()

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
