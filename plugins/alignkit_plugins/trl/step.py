"""TRL's trainers as stages: a second opinion on SFT, DPO and reward models.

The stage's own keys (data, epochs, batch_size, learning_rate ...) have their usual meaning or are
rejected. Every other field of the trainer's config can be set next to `trainer`. DPO's reference is
the policy that the stage starts from. Differs from alignkit's algorithms: TRL runs its own loop
with its own use of memory, an interrupted stage starts over, and batch_size is TRL's, per device.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator

from alignkit import DataError, Field, Needs, RunFailed, Trains
from alignkit.algorithm import ExternalTrainer
from alignkit.errors import did_you_mean
from alignkit_plugins.trl.config import (
    STAGE_KEYS,
    TRAINERS,
    arguments,
    config_fields,
    one_device,
)
from alignkit_plugins.trl.rows import Row, demonstrations, pairs
from alignkit_plugins.trl.stage import TRLStage

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
                    message = f"TRL's {TRAINERS[self.trainer]}Config has no field '{name}'"
                    raise ValueError(f"{message}\n{did_you_mean(name, known)}".strip())
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

    @property
    def trainer_name(self) -> str:
        """The name of TRL's class."""
        return f"{TRAINERS[self.options.trainer]}Trainer"

    def check_model(self, model: ModelSpec) -> None:
        """Raise RunFailed for a model without LoRA, or an option of a wrong type, which only TRL's
        classes know.
        """
        import trl

        if model.lora is None or model.quantization != "none":
            raise RunFailed(
                "trl: needs LoRA on an unquantized base; remove model.quantization and 'lora: none'"
            )
        types = get_type_hints(getattr(trl, f"{TRAINERS[self.options.trainer]}Config"))
        for name, value in (self.options.model_extra or {}).items():
            one_or_several = types[name] | str if "list[str]" in str(types[name]) else types[name]
            try:
                TypeAdapter(
                    one_or_several, config=ConfigDict(arbitrary_types_allowed=True)
                ).validate_python(value)
            except ValidationError as error:
                raise RunFailed(f"trl: {name}: {value!r}: {error.errors()[0]['msg']}") from error

    def train(self, stage: Any) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as name, closing(TRLStage(stage)) as context:
            folder, scalar_head = Path(name), self.options.trainer == "reward"
            context.export_start(folder / "before", scalar_head=scalar_head)
            model = load_model(context, folder / "before", scalar_head)
            trainer, rows = self._trainer(context, model, folder / "out")
            too_long = self._without_room(context, trainer, rows)
            context.say(f"TRL's {self.trainer_name}; if interrupted, the stage starts over")
            with self._rejections():
                trainer.train()
            summary = self._summary(trainer) | ({"too_long": too_long} if too_long else {})
            trainer.model.save_pretrained(folder / "after", selected_adapters=["default"])
            context.import_adapter(folder / "after", scalar_head=scalar_head)
        return summary

    @contextmanager
    def _rejections(self) -> Iterator[None]:
        """TRL reports combinations of options that it does not support as ValueError or
        TypeError.
        """
        try:
            yield
        except (ValueError, TypeError) as error:
            raise RunFailed(
                f"trl: {self.trainer_name} rejected the configuration: {error}"
            ) from error

    def _trainer(self, context: TRLStage, model: Any, folder: Path) -> tuple[Any, int]:
        """The trainer, and the number of rows that it was given."""
        from transformers import PrinterCallback

        import trl

        kind = self.options.trainer
        with self._rejections():
            config = getattr(trl, f"{TRAINERS[kind]}Config")
            args = one_device(config(**arguments(context, folder) | self.options.model_extra))
            rows = self._rows(context)
            trainer: Any = getattr(trl, self.trainer_name)(
                model=model,
                args=args,
                train_dataset=rows,
                processing_class=context.tokenizer,
                callbacks=[progress(context)],
            )
        trainer.remove_callback(PrinterCallback)  # it prints what `progress` logs
        if kind == "dpo":
            check_reference(trainer)
        return trainer, len(rows)

    def _without_room(self, context: TRLStage, trainer: Any, rows: int) -> int:
        """The number of rows that the trainer left out because they exceed `max_length`. Raises
        DataError if all.
        """
        if getattr(trainer.args, "packing", False):  # its rows are no longer the data's
            return 0
        left_out = rows - len(trainer.train_dataset)
        if left_out == rows:
            raise DataError(
                f"stage '{context.name}': TRL's {self.trainer_name} leaves out all {rows} rows, "
                f"because they exceed max_length {context.settings.max_length}"
            )
        if left_out:
            context.say(
                f"TRL left out {left_out} of {rows} rows: no room in max_length "
                f"{context.settings.max_length}"
            )
        return left_out

    def _summary(self, trainer: Any) -> dict[str, Any]:
        """Numbers for stage.json. Raises RunFailed if the training diverged."""
        if not all(bool(p.isfinite().all()) for p in trainer.model.parameters() if p.requires_grad):
            raise RunFailed(
                "trl: training diverged, and the weights are not finite; lower learning_rate"
            )
        steps = int(trainer.state.global_step)
        return {"trainer": self.trainer_name, "steps": steps, "rows": len(trainer.train_dataset)}

    def _rows(self, context: TRLStage) -> Any:
        """The trainer's data set in TRL's conversational format."""
        from datasets import Dataset

        rows = self._converted(context)
        if self.options.trainer != "reward" or not any(row["margin"] for row in rows):
            rows = [{key: row[key] for key in row if key != "margin"} for row in rows]
        return Dataset.from_list(rows)

    def _converted(self, context: TRLStage) -> list[Row]:
        kind, loaded = self.options.trainer, context.load(context.settings.data)
        if loaded.validation:
            raise RunFailed(
                f"stage '{context.name}': trl does not support 'validation' in 'data'; remove it"
            )
        turns = (turn for g in loaded.groups for r in g.responses for turn in r.messages or ())
        if any(g.weight != 1 for g in loaded.groups) or any(
            type(t.get("train", True)) is float for t in turns
        ):
            raise RunFailed(
                f"stage '{context.name}': trl does not support weights of rows or turns; remove "
                "them"
            )
        convert = demonstrations if kind == "sft" else pairs
        converted = [convert(group) for group in loaded.groups]
        if not any(converted):
            raise DataError(
                f"stage '{context.name}': no row has anything for TRL's {kind} trainer to learn"
            )
        if empty := converted.count([]):
            context.say(
                f"left out {empty} of {len(loaded.groups)} rows, which have nothing to learn"
            )
        return [row for rows in converted for row in rows]


class TRLPairs(TRL):
    """A trainer that learns from pairs."""

    needs: ClassVar[Needs] = Needs(pairs=True)


class TRLReward(TRLPairs):
    """TRL's reward trainer."""

    trains: ClassVar[Trains] = Trains.REWARD


def load_model(context: TRLStage, adapter: Path, scalar_head: bool) -> Any:
    """A copy of the base with the adapter to train, because TRL's trainers modify the model they
    get.
    """
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if scalar_head:
        base = AutoModelForSequenceClassification.from_pretrained(
            context.base, num_labels=1, dtype=context.dtype
        )
        base.config.pad_token_id = context.tokenizer.pad_token_id
    else:
        base = AutoModelForCausalLM.from_pretrained(context.base, dtype=context.dtype)
        # TRL samples until a token that the model's own settings name. The chat template may end
        # turns with another.
        base.generation_config.eos_token_id = sorted(context.end_ids)
    return PeftModel.from_pretrained(base.to(context.device), adapter, is_trainable=True)


def check_reference(trainer: Any) -> None:
    """Raise RunFailed unless TRL's reference, the adapter `ref`, equals the policy at the start of
    the stage.
    """
    if getattr(trainer, "ref_model", None) is not None or getattr(trainer, "beta", 1.0) == 0.0:
        return
    parameters = dict(trainer.accelerator.unwrap_model(trainer.model).named_parameters())
    policy = {name: parameter for name, parameter in parameters.items() if ".default." in name}
    reference = [parameters.get(name.replace(".default.", ".ref.")) for name in policy]
    same = (
        theirs is not None and theirs.equal(ours)
        for ours, theirs in zip(policy.values(), reference, strict=True)
    )
    if not policy or not all(same):
        raise RunFailed("trl: the trainer's reference is not the policy that the stage starts from")


def progress(context: TRLStage) -> Any:
    """A callback that passes TRL's log lines and steps on to the stage."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            context.start(state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            context.check_stop()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            metrics = {
                key: value for key, value in (logs or {}).items() if isinstance(value, int | float)
            }
            if not all(math.isfinite(metrics.get(key, 0.0)) for key in ("loss", "grad_norm")):
                raise RunFailed(
                    f"trl: the loss or the gradient is not finite at step {state.global_step}; "
                    "lower learning_rate"
                )
            context.log(state.global_step, metrics)

    return Progress()
