"""The step `lm_eval`: benchmarks of EleutherAI's lm-evaluation-harness, for any policies.

Every policy is written as a plain model folder, and the harness's own command evaluates it in a
process of its own. Its results stay as it writes them, and are summarized with its standard errors
(Gao et al., "A framework for few-shot language model evaluation",
https://zenodo.org/records/12608602).
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import field_validator

import alignkit
from alignkit import Artifact, Field, PolicyRef, RunFailed, Step, StepContext
from alignkit.errors import check_extra, should_stop
from alignkit.evaluation.statistics import shown
from alignkit.report import Report, Table
from alignkit_plugins.compare.comparison import short_names

COMMAND = (sys.executable, "-P", "-m", "lm_eval")
LOG = "lm_eval.log"
LAST_LINES = 8  # of the log, in an error
Z = 1.959964  # of a normal interval at 95%


class LmEval(Step):
    """Run tasks of the harness on each policy, and report every metric with its 95% interval."""

    class Options(alignkit.Options):
        policies: list[PolicyRef] = Field(
            min_length=1, description="policies to evaluate: `base`, stages or `STAGE@k`"
        )
        tasks: list[Annotated[str, Field(min_length=1)]] = Field(
            min_length=1,
            description="tasks, groups or patterns of the harness, such as `gsm8k` or `mmlu_*`",
        )
        limit: float | None = Field(
            None,
            gt=0,
            description=(
                "use only the first N documents of each task, or this share if below 1; for tests"
            ),
        )
        include_path: Path | None = Field(None, description="folder with tasks of your own as YAML")
        args: list[str] = Field(
            default_factory=list,
            description=(
                "more options of `lm-eval run`, such as [--num_fewshot, '5', --apply_chat_template]"
            ),
        )
        confirm_run_unsafe_code: bool = Field(
            False,
            description="run the Python that tasks in include_path name, and what the model writes",
        )

        @field_validator("policies", "tasks")
        @classmethod
        def _unique(cls, value: list[str]) -> list[str]:
            if repeated := sorted({name for name in value if value.count(name) > 1}):
                raise ValueError(f"duplicates: {', '.join(repeated)}; names must be unique")
            return value

    packages = ("lm_eval",)  # whose version decides the results
    options: Options

    def check(self, folder: Path) -> None:
        check_extra("step 'lm_eval'", "lm-eval", "lm_eval")
        path = self.options.include_path
        if path is not None and not path.is_dir():
            raise RunFailed(
                f"include_path is no folder: {path}\nhelp: name the folder with the YAML files"
            )
        if path is not None and not self.options.confirm_run_unsafe_code:
            raise RunFailed(
                f"the harness runs the Python that tasks in {path} name"
                "\nhelp: read them, then set 'confirm_run_unsafe_code: true'"
            )
        validation = subprocess.run(
            [*COMMAND, "validate", *self._tasks()],
            cwd=folder,
            env=_environment(),
            capture_output=True,
            text=True,
        )
        if validation.returncode:
            raise RunFailed(
                f"lm_eval refuses the tasks:\n{_last_lines(validation.stdout + validation.stderr)}"
            )

    def _tasks(self) -> list[str]:
        include = (
            []
            if self.options.include_path is None
            else ["--include_path", str(self.options.include_path)]
        )
        return ["--tasks", ",".join(self.options.tasks), *include]

    def run(self, context: StepContext) -> Artifact:
        names = short_names(self.options.policies)
        results, notes = {}, list[str]()
        if self.options.limit is not None:
            notes.append(
                f"limit {self.options.limit:g}: for tests, not for comparisons with published "
                "numbers"
            )
        for number, (policy, name) in enumerate(names.items(), 1):
            file = re.sub(r"[^\w@.+-]", "-", f"{number}-{name}")

            def evaluate(policies: Sequence[str], file: str = file) -> list[dict[str, Any]]:
                return [self._evaluate(context, policy, file) for policy in policies]

            (answer,) = context.map(f"lm_eval-{file}", [policy], evaluate)
            results[name] = answer["results"]
            for note in answer["notes"]:
                notes.append(f"{name}: {note}")
            for metric in _not_finite(answer["results"]):
                notes.append(f"{name}: {metric}")
        found = summary(results, notes)
        context.write_json("lm_eval.json", found)
        return Artifact(summary=found, report=report(found))

    def _evaluate(self, context: StepContext, policy: str, file: str) -> dict[str, Any]:
        """The harness's results of one policy, and notes on its model folder. A resumed run does
        not ask again.
        """
        model, output, log = (
            context.out / "model",
            context.out / "results" / file,
            context.out / LOG,
        )
        shutil.rmtree(output, ignore_errors=True)  # of a run that was interrupted
        tasks = ", ".join(self.options.tasks)
        context.say(f"{context.stage}: {policy} answers {tasks} (log: {log})")
        command = [
            *COMMAND,
            "run",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={model}",
            *self._tasks(),
        ]
        command += ["--output_path", str(output), *self.options.args]
        if self.options.limit is not None:
            command += ["--limit", f"{self.options.limit:g}"]
        if self.options.confirm_run_unsafe_code:
            command.append("--confirm_run_unsafe_code")
        if "--device" not in self.options.args:
            command += ["--device", _device()]
        try:
            notes = context.models[policy].save(model)
            _run(command, context.folder, log)
        finally:
            shutil.rmtree(model, ignore_errors=True)
        (written,) = output.rglob("results_*.json")
        return {"results": json.loads(written.read_text(encoding="utf-8")), "notes": list(notes)}


def _environment() -> dict[str, str]:
    """Nothing is reported to anybody."""
    return {
        **os.environ,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _device() -> str:
    """A GPU if there is one. Versions of the harness take none for a GPU."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _run(command: Sequence[str], folder: Path, log: Path) -> None:
    """Run the harness to its end. folder: the recipe's, where relative paths start."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=_environment(),
        )
        try:
            while process.poll() is None:
                should_stop()
                try:
                    process.wait(timeout=1)
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()
    if process.returncode:
        text = log.read_text(encoding="utf-8", errors="replace")
        raise RunFailed(
            f"lm_eval ended with exit code {process.returncode}:\n"
            f"{_last_lines(text)}\n"
            f"help: {log} has more"
        )


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LAST_LINES:])


def summary(results: Mapping[str, Mapping[str, Any]], notes: Sequence[str]) -> dict[str, Any]:
    """The numbers of each policy: task -> metric -> mean, standard error and interval. results: by
    policy.
    """
    version = next(
        (str(found["lm_eval_version"]) for found in results.values() if "lm_eval_version" in found),
        None,
    )
    policies = {policy: _metrics_of_tasks(found) for policy, found in results.items()}
    return {"lm_eval": version, "notes": list(notes), "policies": policies}


def _tables(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The metrics of tasks and of groups, as the harness calls them: `acc,none`,
    `acc_stderr,none`.
    """
    return {**results.get("results", {}), **results.get("groups", {})}


def _values(table: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """The metrics of a table that are numbers, with their filters."""
    for key, value in table.items():
        metric, comma, filtered = key.partition(",")
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if comma and is_number and not metric.endswith("_stderr"):
            yield metric, filtered, float(value)


def _not_finite(results: Mapping[str, Any]) -> Iterator[str]:
    """The metrics that no table can show."""
    for task, table in _tables(results).items():
        for metric, _, value in _values(table):
            if not math.isfinite(value):
                yield f"{metric} of {task} is {value} and left out"


def _metrics_of_tasks(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of groups as well as of tasks; a metric is called `acc`, or `exact_match,strict-match` with
    its filter.
    """
    counts, higher = results.get("n-samples", {}), results.get("higher_is_better", {})
    tasks: dict[str, dict[str, Any]] = {}
    for task, table in _tables(results).items():
        metrics = {}
        for metric, filtered, value in _values(table):
            if math.isfinite(value):
                name = metric if filtered == "none" else f"{metric},{filtered}"
                metrics[name] = {
                    **_estimate(value, table.get(f"{metric}_stderr,{filtered}")),
                    "n": counts.get(task, {}).get("effective"),
                    "higher_is_better": higher.get(task, {}).get(metric),
                }
        if metrics:
            tasks[task] = metrics
    return tasks


def _estimate(mean: float, error: Any) -> dict[str, Any]:
    """No interval without a spread: equal scores of few documents say nothing about others."""
    if not isinstance(error, float) or not math.isfinite(error) or error == 0:
        return {"mean": mean, "standard_error": None, "low": None, "high": None}
    return {
        "mean": mean,
        "standard_error": error,
        "low": mean - Z * error,
        "high": mean + Z * error,
    }


def report(found: Mapping[str, Any]) -> Report:
    """A row per task and metric, a column per policy."""
    policies = found["policies"]
    numbers: dict[tuple[str, str], dict[str, Any]] = {}
    for policy, tasks in policies.items():
        for task, metrics in tasks.items():
            for metric, number in metrics.items():
                numbers.setdefault((task, metric), {})[policy] = number
    rows = []
    for (task, metric), by_policy in numbers.items():
        first = next(iter(by_policy.values()))
        lower = " (lower is better)" if first["higher_is_better"] is False else ""
        count = "" if first["n"] is None else str(first["n"])
        rows.append(
            [
                task,
                metric + lower,
                count,
                *(shown(by_policy.get(name), digits=3) for name in policies),
            ]
        )
    title = (
        f"lm-evaluation-harness {found['lm_eval'] or ''}".rstrip()
        + ": mean and 95% interval by its standard error"
    )
    table = Table(title, ["task", "metric", "documents", *policies], rows, keys=2)
    return Report(["\n".join(found["notes"]), table] if found["notes"] else [table])
