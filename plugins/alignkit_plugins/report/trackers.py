"""The trackers of accelerate (TensorBoard, Weights & Biases, MLflow ...), and what gives them the
metrics of runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from pydantic import ConfigDict

from alignkit import Add, Field, Options, RunFailed, Tracker, hookimpl
from alignkit.contract.hookspecs import ObservedRun
from alignkit.contract.kinds import TrackedRun
from alignkit.host.calls import create
from alignkit.io.text import redacted

# By the package that each needs, which is also accelerate's name
TRACKERS = {
    "tensorboard": "TensorBoard, in the run's folder",
    "wandb": "Weights & Biases",
    "trackio": "Trackio",
    "mlflow": "MLflow",
    "swanlab": "SwanLab",
    "comet_ml": "Comet",
    "aim": "Aim",
    "clearml": "ClearML",
    "dvclive": "DVCLive",
}
RESUMING = ("wandb", "swanlab", "trackio")  # take `resume`
RISING = (*RESUMING, "comet_ml")  # their steps must rise over all stages, so they count their own


class AccelerateTracker(Tracker):
    """A tracker of `accelerate.tracking`. Metrics are named STAGE/METRIC."""

    name: ClassVar[str]

    class Options(Options):
        model_config = ConfigDict(extra="allow")

        project: str = Field(
            "alignkit", "project or experiment in which the run is shown", min_length=1
        )

    options: Options

    def check(self) -> None:
        if importlib.util.find_spec(self.name) is None:
            text = f"tracker '{self.name}' needs the package {self.name}"
            raise RunFailed(f"{text}: run `pip install {self.name}`")

    def start(self, run: TrackedRun) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's loggers need it
        kind = LOGGER_TYPE_TO_CLASS[self.name]
        folder = run.folder / "trackers"
        folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {}
        if self.name in RESUMING:
            options = {"name": run.name, "resume": "allow"}
        if self.name in RESUMING[:2]:  # otherwise a name may be another run's
            options["id"] = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:16]
        if kind.requires_logging_directory:
            options["logging_dir"] = str(folder / self.name)
        title = run.name if self.name == "tensorboard" else self.options.project
        self.tracker = kind(title, **{**options, **(self.options.model_extra or {})})
        if hasattr(self.tracker, "start"):
            self.tracker.start()

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        values = {f"{stage}/{name}": value for name, value in metrics.items()}
        if self.name in RISING:
            self.tracker.log({**values, f"{stage}/step": step})
        else:
            self.tracker.log(values, step=step)

    def finish(self) -> None:
        self.tracker.finish()


class Following:
    """Hands the metrics of a run to its trackers, which start when there is something to show. One
    that fails is reported, and dropped for the rest of the run.
    """

    def __init__(self, run: ObservedRun):
        self.say = run.say
        self.run = TrackedRun(run.recipe.name, run.folder, redacted(run.recipe.resolved))
        self.trackers: dict[str, Tracker] = {one.name: create(one) for one in run.recipe.trackers}
        self.started = False

    def log(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """A new line of a stage's metrics.jsonl; texts in it are left out."""
        if not self.started:
            self.started = True
            self.call("start", self.run)
        numbers = dict[str, float]()
        for name, value in metrics.items():
            if isinstance(value, int | float):
                numbers[name] = float(value)
        self.call("log", stage, step, numbers)

    def call(self, method: str, *arguments: Any) -> None:
        """Call a method of each tracker; nothing that one raises ends the run."""
        for name, tracker in list(self.trackers.items()):
            try:
                getattr(tracker, method)(*arguments)
            except (Exception, SystemExit) as error:
                del self.trackers[name]
                problem = f"failed in `{method}`: {type(error).__name__}: {error}"
                text = f"warning: tracker '{name}' {problem}; it is dropped for this run"
                self.say(f"{text}; metrics.jsonl has everything")


_following: WeakKeyDictionary[Any, Following] = WeakKeyDictionary()


@hookimpl
def metrics_logged(run: ObservedRun, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
    if run.recipe.trackers:
        if run not in _following:
            _following[run] = Following(run)
        _following[run].log(stage, step, metrics)


@hookimpl(tryfirst=True)
def run_finished(run: ObservedRun) -> None:
    if run in _following:
        _following.pop(run).call("finish")


@hookimpl
def register(add: Add) -> None:
    for name, title in TRACKERS.items():
        facts = {"name": name, "__doc__": f"{title}, by accelerate."}
        add("tracker", name, type(f"{name.title()}Tracker", (AccelerateTracker,), facts), title)
