"""TRL's DPO trainer as a stage: a second opinion on `dpo`.

The stage's own keys (data, epochs, batch_size, learning_rate ...) have their usual meaning or are
rejected. Every other field of TRL's `DPOConfig` is an option of `trl`. The reference is the policy
that the stage starts from. Differs from alignkit's algorithms: TRL runs its own loop with its own
use of memory, an interrupted stage starts over, and batch_size is TRL's, per device.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict

from alignkit import DataError, Group, Message, Needs, RunFailed
from alignkit.contract.algorithm import ExternalTrainer
from alignkit.data.group import preview
from alignkit.errors import did_you_mean
from alignkit_plugins.formats.layouts import LAYOUTS
from alignkit_plugins.text.rows import calls_of

if TYPE_CHECKING:
    from alignkit.contract.settings import ModelSpec

Row = dict[str, Any]

# Fields of TRL's config that the stage's own keys, or alignkit, decide
OF_THE_STAGE = {
    "output_dir",
    "per_device_train_batch_size",
    "num_train_epochs",
    "learning_rate",
    "warmup_steps",
    "warmup_ratio",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "max_steps",
    "max_length",
    "seed",
    "bf16",
    "fp16",
    "report_to",
    "save_strategy",
    "logging_steps",
}


class TRL(ExternalTrainer):
    """TRL's DPO trainer, fed from pairs."""

    packages = ("trl",)
    needs = Needs(pairs=True)

    class Options(ExternalTrainer.Options):
        model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

        def check_values(self) -> None:
            if not self.model_extra:
                return
            from trl import DPOConfig

            known = [field.name for field in dataclasses.fields(DPOConfig)]
            for name in self.model_extra:
                if name in OF_THE_STAGE:
                    raise ValueError(f"'{name}' cannot be set here: the stage's own keys decide it")
                if name not in known:
                    help = did_you_mean(name, known)
                    raise ValueError(f"TRL's DPOConfig has no field '{name}'\n{help}".strip())

    unsupported_keys: ClassVar[Mapping[str, str]] = {
        "mix": "TRL's trainer does not support a second data stream",
        "reference": "TRL's reference is the policy that the stage starts from",
        "validation": "TRL would not keep the best version: evaluate in a stage of its own",
        "data.validation": "TRL would not keep the best version: evaluate in a stage of its own",
        "keep_versions": "only the last version is saved",
        "checkpoint_every": "an interrupted stage starts over",
        "optimizer": "set optim, adam_beta1, max_grad_norm and others as options of trl",
    }

    def check_model(self, model: ModelSpec) -> None:
        """Raise RunFailed for a model without LoRA."""
        if model.lora is None or model.quantization != "none":
            raise RunFailed(
                "trl: needs LoRA on an unquantized base; remove model.quantization and 'lora: none'"
            )

    def train(self, stage: Any) -> Mapping[str, Any]:
        rows, metrics = pair_rows(stage), stage.metrics(0)
        start = stage.models.role(stage.settings.from_ or stage.models.name)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            convert(stage, start, folder / "before")
            model = load_model(stage, folder / "before")
            try:
                trainer = self._trainer(stage, model, rows, folder)
                learned = len(trainer.train_dataset)
                if learned < len(rows):
                    left_out = f"TRL left out {len(rows) - learned} of {len(rows)} rows"
                    stage.say(f"{left_out}: no room in max_length {stage.settings.max_length}")
                trainer.add_callback(progress(stage, metrics))
                stage.say("TRL's DPOTrainer; if interrupted, the stage starts over")
                trainer.train()
            except (ValueError, TypeError) as error:  # TRL does not combine some options
                raise RunFailed(f"trl: DPOTrainer rejected the configuration: {error}") from error
            finally:
                stage.reporter.stop()
                metrics.sync()
            trainer.model.save_pretrained(folder / "after", selected_adapters=["default"])
            convert(stage, folder / "after", stage.adapter)
        return {"rows": learned, "steps": int(trainer.state.global_step)}

    def _trainer(self, stage: Any, model: Any, rows: list[Row], folder: Path) -> Any:
        from datasets import Dataset
        from transformers import PrinterCallback
        from trl import DPOConfig, DPOTrainer

        config = DPOConfig(**arguments(stage, folder) | (self.options.model_extra or {}))
        # With several GPUs, the trainer would wrap the model in `nn.DataParallel`, and multiply
        # batch_size.
        config._n_gpu = min(config.n_gpu, 1)
        trainer = DPOTrainer(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=stage.model.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)  # it prints what `progress` logs
        check_reference(trainer)
        return trainer


def arguments(stage: Any, folder: Path) -> dict[str, Any]:
    """The fields of TRL's config that the stage's keys decide."""
    import torch

    settings, schedule = stage.settings, stage.settings.lr_scheduler_type
    fields = {
        "output_dir": str(folder),
        "per_device_train_batch_size": settings.batch_size,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.max_steps or -1,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": schedule,
        "max_length": settings.max_length,
        "seed": stage.seed,
        "bf16": stage.model.dtype == torch.bfloat16,
        "use_cpu": stage.model.device.type == "cpu",
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
    }
    if not isinstance(schedule, str):
        fields["lr_scheduler_type"] = schedule.name
        fields["lr_scheduler_kwargs"] = schedule.options.model_dump(exclude_unset=True)
    if settings.warmup_ratio:
        # TRL reads a number below 1 as a share.
        fields["warmup_steps"] = min(settings.warmup_ratio, 1 - 1e-9)
    return fields


def pair_rows(stage: Any) -> list[Row]:
    """The pairs in TRL's conversational format. Raises RunFailed for what TRL lacks."""
    loaded, rows = stage.load(stage.settings.data), list[Row]()
    weighted = loaded.weights is not None
    for group in loaded.groups:
        weighted = weighted or group.weight != 1
        rows += pairs(group)
    if weighted or loaded.validation:
        raise RunFailed(
            f"stage '{stage.name}': trl does not support weights of rows, or 'validation' in 'data'"
        )
    if not rows:
        raise DataError(f"stage '{stage.name}': no row has anything for TRL's trainer to learn")
    return rows


def pairs(group: Group) -> list[Row]:
    """A row for each pair in its likelier order, without undecided ones: TRL has no soft labels.
    Raises DataError for several turns, because TRL would learn the user's, too.
    """
    rows = []
    for row in LAYOUTS["preference"].rows(group):
        prompt, answers = row["prompt"], (row["chosen"], row["rejected"])
        if any(len(turns) > 1 for turns in answers):
            raise DataError(
                f"trl: a response to {preview(group)} has several turns, and TRL would learn the "
                "user's, too"
            )
        if group.tools or any(map(calls_of, chain(prompt, *answers))):
            raise DataError(f"trl: {preview(group)} has tools, which TRL would not get")
        chosen, rejected = ([*map(_turn, turns)] for turns in answers)
        rows.append({"prompt": [*map(_turn, prompt)], "chosen": chosen, "rejected": rejected})
    return rows


def _turn(message: Message) -> dict[str, str]:
    return {"role": message["role"], "content": message["content"]}


def convert(stage: Any, start: str | Path, folder: Path) -> None:
    """Write an adapter to a folder, read from another one or a role, and checked to fit the
    base.
    """
    role = f"{stage.name}~external"
    stage.model.add_role(role, start=start, head="language")
    stage.model.save(role, folder)
    stage.model.drop_role(role)


def load_model(stage: Any, adapter: Path) -> Any:
    """A copy of the base with the adapter to train, because TRL's trainers modify the model they
    get.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(stage.model.source, dtype=stage.model.dtype)
    return PeftModel.from_pretrained(base.to(stage.model.device), adapter, is_trainable=True)


def check_reference(trainer: Any) -> None:
    """Raise RunFailed unless TRL's reference, the adapter `ref`, equals the policy at the start of
    the stage.
    """
    weights = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    for name, weight in weights.items():
        reference = weights.get(name.replace(".default.", ".ref."))
        if ".default." in name and (reference is None or not reference.equal(weight)):
            raise RunFailed(
                "trl: the trainer's reference is not the policy that the stage starts from"
            )


def progress(stage: Any, metrics: Any) -> Any:
    """A callback that passes TRL's log lines and steps on to the stage."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            stage.reporter.start(stage.name, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            stage.should_stop()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            step, numbers = state.global_step, dict[str, float]()
            for name, value in (logs or {}).items():
                if isinstance(value, int | float):
                    numbers[name] = value
            for name in ("loss", "grad_norm"):
                if not math.isfinite(numbers.get(name, 0.0)):
                    raise RunFailed(
                        f"trl: {name} is not finite at step {step}; lower learning_rate"
                    )
            metrics.write(step, **numbers)
            if "loss" in numbers:
                stage.reporter.advance(step, numbers)

    return Progress()
