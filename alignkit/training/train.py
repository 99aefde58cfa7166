"""Runs the stage of an external trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from alignkit.calls import call
from alignkit.data.group import Group, Response
from alignkit.data.sources import Loaded
from alignkit.errors import RunFailed
from alignkit.external import ExternalTrainer
from alignkit.training.context import StageContext
from alignkit.training.rewards import Rewards


class ExternalStage:
    """Runs an external trainer, and is the `TrainerContext` that the trainer receives."""

    def __init__(self, context: StageContext, trainer: ExternalTrainer):
        self._context, self._trainer = context, trainer
        self._model = context.model
        self._metrics = context.metrics(0)
        self.name, self.seed, self.settings = context.name, context.seed, context.settings
        self.base, self.dtype, self.device = self._model.source, self._model.dtype, self._model.device
        self.tokenizer, self.end_ids = self._model.tokenizer, context.models.encoder.end_ids

    def run(self) -> dict[str, Any]:
        """Train; the summary is for stage.json."""
        if self.settings.reward is not None:
            _ = self._rewards  # a reward that cannot be prepared fails here, not at the first step
        return dict(call(self._trainer, "train", self))

    def close(self) -> None:
        self._context.reporter.stop()
        self._metrics.sync()  # last: on a full disk it raises

    # TrainerContext

    def load(self, data: Any) -> Loaded:
        loaded = self._context.load(data)
        if loaded.weights is not None:
            raise RunFailed(
                f"stage '{self.name}': {self._context.stage.component.name} draws rows in its own way, so 'weight' "
                "would have no effect; remove it"
            )
        return loaded

    def export_start(self, folder: Path, *, scalar_head: bool = False) -> None:
        start = self._context.models.role(self.settings.from_ or self._context.models.name)
        self._save(start, folder, scalar_head)

    def import_adapter(self, folder: Path, *, scalar_head: bool = False) -> None:
        self._save(folder, self._context.adapter, scalar_head)

    def _save(self, start: str | Path, folder: Path, scalar_head: bool) -> None:
        role = f"{self.name}~external"
        self._model.add_role(role, start=start, head="scalar" if scalar_head else "language")
        self._model.save(role, folder)
        self._model.drop_role(role)

    def score(self, groups: Sequence[Group]) -> list[float | None]:
        groups = [replace(group, responses=tuple(map(self._as_sampled, group.responses))) for group in groups]
        table = self._rewards.combine(self._rewards.ask(groups), self.settings.rollout.missing_eos_penalty)
        self._rewards.remember(table.states)
        assert table.raw is not None and table.reward is not None
        both = zip(table.raw.tolist(), table.reward.tolist(), strict=True)
        return [None if math.isnan(raw) else reward for raw, reward in both]

    def _as_sampled(self, response: Response) -> Response:
        """A response with the text that rewards read of its tokens in other stages. Trainers may decode otherwise."""
        encoder, tokens = self._context.models.encoder, response.tokens
        if tokens is None or response.tokenizer not in (None, encoder.digest):  # another tokenizer's mean other words
            return response
        return replace(response, text=encoder.said(tokens), tokenizer=encoder.digest)

    @cached_property
    def _rewards(self) -> Rewards:
        return Rewards(self.settings.reward, self._context.reward_context())

    def start(self, steps: int) -> None:
        self._context.reporter.start(self.name, steps)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._metrics.write(stage=self.name, step=step, **metrics)
        self._context.notify("metrics_logged", step=step, metrics=dict(metrics))
        if "loss" in metrics:
            self._context.reporter.advance(step, metrics)

    def say(self, text: str) -> None:
        self._context.say(text)

    def check_stop(self) -> None:
        self._context.should_stop()
