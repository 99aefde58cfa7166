"""A training stage as TRL's trainers use it: data, adapters in peft's format, metrics and
progress.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit import RunFailed


class TRLStage:
    """A training stage that another library trains. stage: alignkit's own.

    base: folder or hub id of the base model's weights. dtype, device: those of the base model.
    tokenizer: with the recipe's chat template. end_ids: tokens that end a response.
    """

    def __init__(self, stage: Any):
        self._stage, self._model, self._metrics = stage, stage.model, stage.metrics(0)
        self.name, self.seed, self.settings = stage.name, stage.seed, stage.settings
        self.say, self.check_stop = stage.say, stage.should_stop
        self.base, self.dtype, self.device = (
            self._model.source,
            self._model.dtype,
            self._model.device,
        )
        self.tokenizer, self.end_ids = self._model.tokenizer, stage.models.encoder.end_ids

    def close(self) -> None:
        self._stage.reporter.stop()
        self._metrics.sync()  # last: on a full disk it raises

    def load(self, data: Any) -> Any:
        """Read a data entry of the settings."""
        loaded = self._stage.load(data)
        if loaded.weights is not None:
            raise RunFailed(
                f"stage '{self.name}': {self._stage.stage.component.name} draws rows in its own "
                "way, so 'weight' would have no effect; remove it"
            )
        return loaded

    def export_start(self, folder: Path, *, scalar_head: bool = False) -> None:
        """Write the adapter that the stage starts from. scalar_head: with the head of a reward
        model.
        """
        start = self._stage.models.role(self.settings.from_ or self._stage.models.name)
        self._save(start, folder, scalar_head)

    def import_adapter(self, folder: Path, *, scalar_head: bool = False) -> None:
        """Make a trained adapter the stage's result. Raises RunFailed if it does not fit the
        base.
        """
        self._save(folder, self._stage.adapter, scalar_head)

    def _save(self, start: str | Path, folder: Path, scalar_head: bool) -> None:
        role = f"{self.name}~external"
        self._model.add_role(role, start=start, head="scalar" if scalar_head else "language")
        self._model.save(role, folder)
        self._model.drop_role(role)

    def start(self, steps: int) -> None:
        """Begin the progress display."""
        self._stage.reporter.start(self.name, steps)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step. The progress display advances if they have a `loss`."""
        self._metrics.write(stage=self.name, step=step, **metrics)
        self._stage.notify("metrics_logged", step=step, metrics=dict(metrics))
        if "loss" in metrics:
            self._stage.reporter.advance(step, metrics)
