"""The default learning rate: an algorithm's own, scaled to the model's width and to what is trained.

An algorithm's default is for LoRA on a hidden size of 576 (SmolLM2-135M), where the defaults were measured. The best
rate of AdamW falls with the width of a model, as 1 / width for the same training (Yang et al. 2022, arXiv:2203.03466),
and LoRA takes about ten times the rate of training all weights, whatever its rank (Schulman et al. 2025, "LoRA Without
Regret"). A written rate is used as it is.
"""

from __future__ import annotations

from dataclasses import replace

from alignkit.algorithm import StageDefaults
from alignkit.settings import LEARNING_RATE
from alignkit.training.context import StageContext

HIDDEN_SIZE = 576
ALL_WEIGHTS = 0.1  # all weights take this part of LoRA's rate


def scaled(rate: float, hidden_size: int, lora: bool) -> float:
    """An algorithm's default for a model. Narrower models keep the rate: it was not measured on any."""
    return float(f"{rate * min(1.0, HIDDEN_SIZE / hidden_size) * (1.0 if lora else ALL_WEIGHTS):.2g}")


def with_learning_rate(context: StageContext, defaults: StageDefaults) -> StageContext:
    """The context with the stage's learning rate: as written, or the algorithm's default for this model."""
    if context.settings.learning_rate is not None:
        return context
    lora, hidden_size = context.model.spec.lora is not None, context.model.hidden_size
    rate = scaled(defaults.learning_rate or LEARNING_RATE, hidden_size, lora)
    trained = "LoRA" if lora else "all weights"
    context.activity(f"learning_rate {rate:g}, the default for {trained} and hidden size {hidden_size}")
    settings = context.settings.model_copy(update={"learning_rate": rate})
    return replace(context, stage=replace(context.stage, settings=settings))
