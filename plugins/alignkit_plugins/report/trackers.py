"""The trackers of accelerate (TensorBoard, Weights & Biases, MLflow ...), and what gives them the
metrics of runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from pydantic import ConfigDict

from alignkit import Add, Field, Options, RunFailed, Tracker, hookimpl
from alignkit.calls import create
from alignkit.kinds import TrackedRun, tracked

# accelerate's name: what must be installed (any of them), whether it counts its own steps, what it
# is called
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


class AccelerateTracker(Tracker):
    """A tracker of `accelerate.tracking`. Metrics are named STAGE/METRIC; a resumed run continues
    where it is shown.
    """

    name: ClassVar[str]

    class Options(Options):
        model_config = ConfigDict(extra="allow")

        project: str = Field(
            "alignkit", min_length=1, description="project or experiment in which the run is shown"
        )

    options: Options

    def check(self) -> None:
        packages = TRACKERS[self.name][0]
        if not any(importlib.util.find_spec(package) for package in packages):
            raise RunFailed(
                f"tracker '{self.name}' needs the package {packages[0]}: run `pip install "
                f"{packages[0]}`"
            )

    def start(self, run: TrackedRun) -> None:
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # accelerate's loggers need it
        kind = LOGGER_TYPE_TO_CLASS[self.name]
        folder = run.folder / "trackers"
        folder.mkdir(parents=True, exist_ok=True)
        mlflow_run = folder / "mlflow.run"  # the run's id in MLflow, which names runs itself
        given: dict[str, Any] = {}
        if kind.requires_logging_directory:
            given["logging_dir"] = str(folder / self.name)
        if self.name in ("wandb", "swanlab"):
            key = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:16]
            given |= {"name": run.name, "id": key, "resume": "allow"}
        elif self.name == "trackio":
            given |= {"name": run.name, "resume": "allow"}
        elif self.name == "mlflow":
            given |= (
                {"run_id": mlflow_run.read_text()}
                if mlflow_run.exists()
                else {"run_name": run.name}
            )
        title = run.name if self.name == "tensorboard" else self.options.project
        self.tracker = kind(title, **{**given, **(self.options.model_extra or {})})
        if hasattr(self.tracker, "start"):
            self.tracker.start()
        if self.name == "mlflow":
            mlflow_run.write_text(self.tracker.tracker.info.run_id)

    def log(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        values = {f"{stage}/{name}": value for name, value in metrics.items()}
        if TRACKERS[self.name][1]:  # its steps must rise over all stages
            self.tracker.log({**values, f"{stage}/step": step})
        else:
            self.tracker.log(values, step=step)

    def finish(self) -> None:
        self.tracker.finish()


class Following:
    """Hands the metrics of a run to its trackers. One that fails is reported, and dropped for the
    rest of the run.
    """

    def __init__(self, run: Any):
        self.say = run.reporter.say
        self.run = TrackedRun(run.recipe.name, run.folder, run.recipe.resolved)
        # Until there is something to show
        self.waiting = {one.name: create(one) for one in run.recipe.trackers}
        self.trackers: dict[str, Tracker] = {}
        self.lines: Counter[str] = Counter()  # of each stage

    def log(self, line: Mapping[str, Any]) -> None:
        """A new line of a stage's metrics.jsonl."""
        self.lines[line["stage"]] += 1
        self.trackers |= self.waiting
        for name in self.waiting:
            self.call(name, "start", self.run)
        self.waiting = {}
        for name in list(self.trackers):
            self.call(name, "log", *tracked(line, self.lines[line["stage"]]))

    def call(self, name: str, method: str, *arguments: Any) -> None:
        """Call a method of a tracker; nothing that it raises ends the run."""
        call: Callable[..., None] = getattr(self.trackers[name], method)
        try:
            call(*arguments)
        except (Exception, SystemExit) as error:
            del self.trackers[name]
            problem = f"failed in `{method}`: {type(error).__name__}: {error}"
            self.say(
                f"warning: tracker '{name}' {problem}; it is dropped for this run; metrics.jsonl "
                "has everything"
            )


_following: WeakKeyDictionary[Any, Following] = WeakKeyDictionary()


@hookimpl
def metrics_opened(run: Any, metrics: Any) -> None:
    if run.recipe.trackers:
        if run not in _following:
            _following[run] = Following(run)
        metrics.follower = _following[run].log


@hookimpl(tryfirst=True)
def run_finished(run: Any) -> None:
    if following := _following.pop(run, None):
        for name in list(following.trackers):
            following.call(name, "finish")


@hookimpl
def register(add: Add) -> None:
    for name, (_, _, title) in TRACKERS.items():
        facts = {"name": name, "__doc__": f"{title}, by accelerate."}
        add("tracker", name, type(f"{name.title()}Tracker", (AccelerateTracker,), facts), title)
