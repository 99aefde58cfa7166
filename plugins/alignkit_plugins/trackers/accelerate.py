"""The trackers of accelerate: TensorBoard, Weights & Biases, Trackio, MLflow, SwanLab, Comet, Aim, ClearML, DVCLive."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from alignkit import Field, Options, Register, RunFailed, Tracker, hookimpl
from alignkit.tracker import TrackedRun


class AccelerateTracker(Tracker):
    """A tracker of `accelerate.tracking`. Metrics are named STAGE/METRIC.

    tracker: accelerate's name. packages: what must be installed, any of them. counts: it counts its own steps, which
    must rise over all stages; a stage's step is then the metric STAGE/step.
    """

    tracker: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]
    counts: ClassVar[bool] = False

    class Options(Options):
        model_config = ConfigDict(extra="allow")

        project: str = Field("alignkit", min_length=1, description="project or experiment in which the run is shown")

    options: Options

    def check(self) -> None:
        if not any(importlib.util.find_spec(package) for package in self.packages):
            raise RunFailed(
                f"tracker '{self.tracker}' needs the package {self.packages[0]}: run `pip install {self.packages[0]}`"
            )

    def start(self, run: TrackedRun) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's loggers need it
        kind = LOGGER_TYPE_TO_CLASS[self.tracker]
        folder = run.folder / "trackers" / self.tracker
        given: dict[str, Any] = {"logging_dir": str(folder)} if kind.requires_logging_directory else {}
        name = run.name if self.tracker == "tensorboard" else self.options.project
        self._tracker = kind(name, **given, **self._defaults(run), **(self.options.model_extra or {}))
        if hasattr(self._tracker, "start"):
            self._tracker.start()
        if self.tracker == "mlflow":  # which names its runs itself
            _mlflow_run(run).write_text(self._tracker.tracker.info.run_id, encoding="utf-8")

    def _defaults(self, run: TrackedRun) -> dict[str, Any]:
        """Arguments that the recipe can override: a resumed run continues where it is shown."""
        written = self.options.model_extra or {}
        defaults: dict[str, Any] = {}
        key = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:16]
        if self.tracker in ("wandb", "swanlab"):
            defaults = {"name": run.name, "id": key, "resume": "allow"}
        elif self.tracker == "trackio":
            defaults = {"name": run.name, "resume": "allow"}
        elif self.tracker == "mlflow":
            known = _mlflow_run(run)
            defaults = {"run_id": known.read_text(encoding="utf-8")} if known.exists() else {"run_name": run.name}
        return {key: value for key, value in defaults.items() if key not in written}

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        values = {f"{stage}/{name}": value for name, value in metrics.items()}
        if self.counts:
            self._tracker.log({**values, f"{stage}/step": step})
        else:
            self._tracker.log(values, step=step)

    def finish(self) -> None:
        self._tracker.finish()


def _mlflow_run(run: TrackedRun) -> Path:
    """The file with the id of the run in MLflow; without it, a resumed run is a new one there."""
    folder = run.folder / "trackers"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "mlflow.run"


# accelerate's name: packages, whether it counts its own steps, what it is called
TRACKERS: Mapping[str, tuple[tuple[str, ...], bool, str]] = {
    "tensorboard": (("tensorboard", "tensorboardX"), False, "TensorBoard, in the run's folder"),
    "wandb": (("wandb",), True, "Weights & Biases"),
    "trackio": (("trackio",), True, "Trackio"),
    "mlflow": (("mlflow",), False, "MLflow"),
    "swanlab": (("swanlab",), True, "SwanLab"),
    "comet_ml": (("comet_ml",), True, "Comet"),
    "aim": (("aim",), False, "Aim"),
    "clearml": (("clearml",), False, "ClearML"),
    "dvclive": (("dvclive",), False, "DVCLive"),
}


@hookimpl
def register_trackers(register: Register) -> None:
    for name, (packages, counts, title) in TRACKERS.items():
        facts = {"tracker": name, "packages": packages, "counts": counts, "__doc__": f"{title}, by accelerate."}
        register(name, type(f"{name.title()}Tracker", (AccelerateTracker,), facts), summary=title)
