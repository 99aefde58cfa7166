"""Shared by the sides that run TRL's trainers: pacing, initial weights, common arguments.

The trainers run unmodified in their own `train()`; a callback holds them between rounds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.models import POLICY
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.tokens.encoder import Encoded

ENDLESS = 1_000_000  # steps; the worker exits when there are no more requests


def pace(
    gate: Gate,
    units: float,
    losses: Callable[[Mapping[str, float]], dict[str, float]],
    steps: int = 1,
) -> Any:
    """A callback that makes every `steps` steps a round; it reports the losses of the first one."""
    from transformers import TrainerCallback

    class Pace(TrainerCallback):
        logged: list[Mapping[str, float]] = []  # noqa: RUF012 the logs of the current round

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            gate.begin()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            self.logged.append(dict(logs))
            if len(self.logged) == steps:
                gate.end(units, losses(self.logged[0]))
                self.logged.clear()
                gate.begin()

    return Pace()


def arguments(job: Job) -> dict[str, Any]:
    """Arguments of every trainer: one log per step, nothing saved, no changes to the weights."""
    import torch

    return {
        "output_dir": tempfile.mkdtemp(dir=job.adapters),
        "max_steps": ENDLESS,
        "learning_rate": 0.0,
        "lr_scheduler_type": "constant",
        "bf16": job.dtype == "bfloat16",
        "gradient_checkpointing": job.checkpointing,
        "use_cpu": not torch.cuda.is_available(),
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 0,
    }


def run(trainer: Any) -> None:
    """Train until there are no more requests."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    trainer.train()


def tokenizer(job: Job) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(job.source)


def causal(job: Job) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(job.source, dtype=getattr(torch, job.dtype))


def scorer(job: Job) -> Any:
    """The base model with a scalar head."""
    import torch
    from transformers import AutoModelForSequenceClassification

    dtype = getattr(torch, job.dtype)
    return AutoModelForSequenceClassification.from_pretrained(job.source, num_labels=1, dtype=dtype)


def lora(job: Job) -> Any:
    """The configuration of the adapters, as trainable."""
    from peft import LoraConfig

    config = LoraConfig.from_pretrained(job.adapter(POLICY))
    config.inference_mode = False
    return config


def load_adapter(model: Any, adapter: Path) -> None:
    """Load saved weights into a model's adapter `default`; the reference remains the base without
    an adapter.
    """
    import torch
    from safetensors.torch import load_file

    prefix = "base_model.model."
    parameters = {
        name.removeprefix(prefix): parameter for name, parameter in model.named_parameters()
    }
    saved = {
        key: value
        for key, value in load_file(adapter / "adapter_model.safetensors").items()
        if "lora_" in key
    }
    with torch.no_grad():
        for key, value in saved.items():
            parameters[key.removeprefix(prefix).replace(".weight", ".default.weight")].copy_(value)


def preferences(groups: Sequence[Encoded]) -> Iterable[dict[str, list[int]]]:
    """Tokenized pairs in the columns of TRL's collator."""
    for group in groups:
        for pair in group.pairs:
            better, worse = group.responses[pair.better].tokens, group.responses[pair.worse].tokens
            yield {
                "prompt_ids": list(group.prompt),
                "chosen_ids": list(better),
                "rejected_ids": list(worse),
            }


def real_tokens(groups: Sequence[Encoded]) -> int:
    """The number of tokens in all sequences, each with its prompt, without padding."""
    return sum(
        len(group.prompt) + len(response.tokens) for group in groups for response in group.responses
    )
