"""The interface of an external trainer: a stage whose plugin does the training itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignkit.algorithm import Algorithm
from alignkit.settings import ModelSpec

if TYPE_CHECKING:
    pass


class ExternalTrainer(Algorithm):
    """A foreign trainer as a stage: it does the training itself, and alignkit everything around it.

    It is exempt from exact resume: a stage that was killed begins again.
    """

    def check_model(self, model: ModelSpec) -> None:
        """Called before a run's first stage: raise RunFailed where it cannot train such a model."""

    def train(self, context: Any) -> Mapping[str, Any]:
        """Train, leave the adapter in `run.adapter`, and give the summary for stage.json."""
        raise NotImplementedError(f"{type(self).__name__} trains nothing")
