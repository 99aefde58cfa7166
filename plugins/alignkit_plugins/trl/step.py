"""TRL's trainers as stages: a second opinion on SFT, DPO and reward models.

The stage's own keys (data, epochs, batch_size, learning_rate ...) have their usual meaning or are
rejected. Every other field of the trainer's config can be set next to `trainer`. DPO's reference is
the policy that the stage starts from. Differs from alignkit's algorithms: TRL runs its own loop
with its own use of memory, an interrupted stage starts over, and batch_size is TRL's, per device.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator

from alignkit import DataError, Field, Group, Needs, RunFailed, Trains
from alignkit.algorithm import ExternalTrainer
from alignkit.errors import did_you_mean
from alignkit_plugins.trl.config import STAGE_KEYS, TRAINERS, arguments, config_fields
from alignkit_plugins.trl.rows import Row, demonstrations, pairs

if TYPE_CHECKING:
    from alignkit.settings import ModelSpec


class TRL(ExternalTrainer):
    """One of TRL's trainers, fed from groups."""

    packages = ("trl",)

    class Options(ExternalTrainer.Options):
        model_config = ConfigDict(extra="allow", arbitrary_types_allowed=True)

        trainer: Literal["sft", "dpo", "reward"] = Field(
            description="TRL's trainer; all other fields of its config can be set next to this one"
        )

        @model_validator(mode="after")
        def _known_to_trl(self) -> TRL.Options:
            known = config_fields(self.trainer)
            for name in self.model_extra or {}:
                if name in STAGE_KEYS:
                    raise ValueError(f"'{name}' cannot be set here: {STAGE_KEYS[name]}")
                if name not in known:
                    config = f"{TRAINERS[self.trainer]}Config"
                    help = did_you_mean(name, known)
                    raise ValueError(f"TRL's {config} has no field '{name}'\n{help}".strip())
            return self

    unsupported_keys: ClassVar[Mapping[str, str]] = {
        "mix": "TRL's trainers do not support a second data stream",
        "reference": "TRL's reference is the policy that the stage starts from",
        "validation": "TRL would not keep the best version: evaluate in a stage of its own",
        "data.validation": "TRL would not keep the best version: evaluate in a stage of its own",
        "keep_versions": "only the last version is saved",
        "checkpoint_every": "an interrupted stage starts over",
        "optimizer": "set optim, adam_beta1, max_grad_norm and others next to trainer",
    }

    @classmethod
    def specialize(cls, options: Any) -> type[TRL]:
        """The trainer decides what is trained, and from what."""
        kinds: dict[Any, type[TRL]] = {"reward": TRLReward, "dpo": TRLPairs}
        return kinds.get(options.get("trainer") if isinstance(options, Mapping) else None, cls)

    def _of_trl(self, kind: str) -> Any:
        """TRL's class: the trainer, or its config."""
        import trl

        return getattr(trl, f"{TRAINERS[self.options.trainer]}{kind}")

    def check_model(self, model: ModelSpec) -> None:
        """Raise RunFailed for a model without LoRA, or an option of a wrong type, which only TRL's
        classes know.
        """
        if model.lora is None or model.quantization != "none":
            raise RunFailed(
                "trl: needs LoRA on an unquantized base; remove model.quantization and 'lora: none'"
            )
        types = get_type_hints(self._of_trl("Config"))
        for name, value in (self.options.model_extra or {}).items():
            one_or_several = types[name] | str if "list[str]" in str(types[name]) else types[name]
            adapter = TypeAdapter(one_or_several, config=ConfigDict(arbitrary_types_allowed=True))
            try:
                adapter.validate_python(value)
            except ValidationError as error:
                text = error.errors()[0]["msg"]
                raise RunFailed(f"trl: {name}: {value!r}: {text}") from error

    def train(self, stage: Any) -> Mapping[str, Any]:
        name, scalar_head = (
            f"{TRAINERS[self.options.trainer]}Trainer",
            self.options.trainer == "reward",
        )
        rows, metrics = self._rows(stage), stage.metrics(0)
        start = stage.models.role(stage.settings.from_ or stage.models.name)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            convert(stage, start, folder / "before", scalar_head)
            model = load_model(stage, folder / "before", scalar_head)
            try:
                trainer = self._trainer(stage, model, rows, folder)
                summary = {"trainer": name, "rows": len(trainer.train_dataset)}
                if left_out := self._left_out(stage, trainer, len(rows)):
                    summary["too_long"] = left_out
                trainer.add_callback(progress(stage, metrics))
                stage.say(f"TRL's {name}; if interrupted, the stage starts over")
                trainer.train()
            except (ValueError, TypeError) as error:  # of options that TRL does not combine
                raise RunFailed(f"trl: {name} rejected the configuration: {error}") from error
            finally:
                stage.reporter.stop()
                metrics.sync()
            trained = [each for each in trainer.model.parameters() if each.requires_grad]
            if not all(bool(each.isfinite().all()) for each in trained):
                raise RunFailed(
                    "trl: training diverged, and the weights are not finite; lower learning_rate"
                )
            trainer.model.save_pretrained(folder / "after", selected_adapters=["default"])
            convert(stage, folder / "after", stage.adapter, scalar_head)
        return {**summary, "steps": int(trainer.state.global_step)}

    def _trainer(self, stage: Any, model: Any, rows: list[Row], folder: Path) -> Any:
        from datasets import Dataset
        from transformers import PrinterCallback

        config = self._of_trl("Config")(**arguments(stage, folder) | self.options.model_extra)
        # With several GPUs, the trainer would wrap the model in `nn.DataParallel`, and multiply
        # batch_size.
        config._n_gpu = min(config.n_gpu, 1)
        trainer = self._of_trl("Trainer")(
            model=model,
            args=config,
            train_dataset=Dataset.from_list(rows),
            processing_class=stage.model.tokenizer,
        )
        trainer.remove_callback(PrinterCallback)  # it prints what `progress` logs
        if self.options.trainer == "dpo":
            check_reference(trainer)
        return trainer

    def _left_out(self, stage: Any, trainer: Any, rows: int) -> int:
        """The number of rows that exceed `max_length`, which TRL left out. Raises DataError if all
        do.
        """
        if getattr(trainer.args, "packing", False):  # its rows are no longer the data's
            return 0
        left_out = rows - len(trainer.train_dataset)
        told = (
            f"TRL left out {left_out} of {rows} rows: no room in max_length "
            f"{stage.settings.max_length}"
        )
        if left_out == rows:
            raise DataError(f"stage '{stage.name}': {told}")
        if left_out:
            stage.say(told)
        return left_out

    def _rows(self, stage: Any) -> list[Row]:
        """The trainer's data set in TRL's conversational format. Raises RunFailed for what TRL
        lacks.
        """
        loaded, convert = stage.load(stage.settings.data), pairs
        if self.options.trainer == "sft":
            convert = demonstrations
        if loaded.weights is not None or any(map(_is_weighted, loaded.groups)):
            raise RunFailed(
                f"stage '{stage.name}': trl does not support weights of rows or turns; remove them"
            )
        if loaded.validation:
            raise RunFailed(
                f"stage '{stage.name}': trl does not support 'validation' in 'data'; remove it"
            )
        rows, empty = list[Row](), 0
        for group in loaded.groups:
            found = convert(group)
            rows += found
            empty += not found
        if not rows:
            raise DataError(f"stage '{stage.name}': no row has anything for TRL's trainer to learn")
        if empty:
            stage.say(f"left out {empty} of {len(loaded.groups)} rows, which have nothing to learn")
        if self.options.trainer != "reward" or not any(row["margin"] for row in rows):
            for row in rows:
                row.pop("margin", None)
        return rows


def _is_weighted(group: Group) -> bool:
    """Whether the row, or a turn in it, has a weight."""
    if group.weight != 1:
        return True
    for response in group.responses:
        for turn in response.messages or ():
            if type(turn.get("train", True)) is float:
                return True
    return False


class TRLPairs(TRL):
    """A trainer that learns from pairs."""

    needs: ClassVar[Needs] = Needs(pairs=True)


class TRLReward(TRLPairs):
    """TRL's reward trainer."""

    trains: ClassVar[Trains] = Trains.REWARD


def convert(stage: Any, start: str | Path, folder: Path, scalar_head: bool) -> None:
    """Write an adapter to a folder, read from another one or a role, and checked to fit the
    base.
    """
    role = f"{stage.name}~external"
    stage.model.add_role(role, start=start, head="scalar" if scalar_head else "language")
    stage.model.save(role, folder)
    stage.model.drop_role(role)


def load_model(stage: Any, adapter: Path, scalar_head: bool) -> Any:
    """A copy of the base with the adapter to train, because TRL's trainers modify the model they
    get.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    source, dtype = stage.model.source, stage.model.dtype
    if scalar_head:
        base = AutoModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=dtype)
        base.config.pad_token_id = stage.model.tokenizer.pad_token_id
    else:
        base = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
        # TRL samples until a token that the model's own settings name. The chat template may end
        # turns with another.
        base.generation_config.eos_token_id = sorted(stage.models.encoder.end_ids)
    return PeftModel.from_pretrained(base.to(stage.model.device), adapter, is_trainable=True)


def check_reference(trainer: Any) -> None:
    """Raise RunFailed unless TRL's reference, the adapter `ref`, equals the policy at the start of
    the stage.
    """
    if getattr(trainer, "ref_model", None) is not None or getattr(trainer, "beta", 1.0) == 0.0:
        return
    parameters = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    policy = {name: each for name, each in parameters.items() if ".default." in name}
    reference = [parameters.get(name.replace(".default.", ".ref.")) for name in policy]
    pairs = zip(policy.values(), reference, strict=True)
    if not policy or not all(theirs is not None and theirs.equal(ours) for ours, theirs in pairs):
        raise RunFailed("trl: the trainer's reference is not the policy that the stage starts from")


def progress(stage: Any, metrics: Any) -> Any:
    """A callback that passes TRL's log lines and steps on to the stage."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            stage.reporter.start(stage.name, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            stage.should_stop()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            step = state.global_step
            numbers = {key: n for key, n in (logs or {}).items() if isinstance(n, int | float)}
            if not all(math.isfinite(numbers.get(key, 0.0)) for key in ("loss", "grad_norm")):
                raise RunFailed(
                    f"trl: the loss or the gradient is not finite at step {step}; lower "
                    "learning_rate"
                )
            metrics.write(stage=stage.name, step=step, **numbers)
            stage.notify("metrics_logged", step=step, metrics=numbers)
            if "loss" in numbers:
                stage.reporter.advance(step, numbers)

    return Progress()
