"""The step `lm_eval`: benchmarks of EleutherAI's lm-evaluation-harness, for any policies.

Every policy is written as a plain model folder, and the harness's own command evaluates it in a
process of its own. Its results stay as it writes them, and are summarized with intervals by its
standard errors (Gao et al., "A framework for few-shot language model evaluation",
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
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import field_validator

import alignkit
from alignkit import Artifact, Field, PolicyRef, RunFailed, Step, StepContext
from alignkit.contract.report import Report
from alignkit.evaluation import statistics
from alignkit.runs.signals import should_stop
from alignkit_plugins.compare.comparison import check_unique, short_names
from alignkit_plugins.compare.rows import Row, plain
from alignkit_plugins.compare.tables import table
from alignkit_plugins.extras import check_extra

COMMAND = (sys.executable, "-P", "-m", "lm_eval")
LOG = "lm_eval.log"
POLL = 0.2  # seconds
LAST_LINES = 8  # lines of the log in an error
Z = 1.959964  # deviations in a normal interval at 95%
# Metrics of the harness that are no shares: those that may be negative, and the others.
SIGNED = re.compile("diff|mcc|corr|likelihood")
POSITIVE = re.compile(r"(bleu|chrf|rouge|ter$|.*perplexity|bits|brier)(?!.*diff)")
CONSENT = "--confirm_run_unsafe_code"
# Nothing is reported to anybody.
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}


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
        include_path: Path | None = Field(
            None,
            "folder with tasks of your own as YAML; the harness runs the Python that they name",
        )
        args: list[str] = Field(
            [], "more options of `lm-eval run`, such as [--num_fewshot, '5', --apply_chat_template]"
        )

        @field_validator("policies", "tasks")
        @classmethod
        def _unique(cls, value: list[str]) -> list[str]:
            check_unique("the list", value)
            return value

    packages = ("lm_eval",)  # its version decides the results
    options: Options

    @property
    def _tasks(self) -> list[str]:
        folder = self.options.include_path
        include = [] if folder is None else ["--include_path", str(folder)]
        return ["--tasks", ",".join(self.options.tasks), *include]

    def check(self, folder: Path) -> None:
        check_extra("step 'lm_eval'", "lm-eval", "lm_eval")
        path = self.options.include_path
        if path is not None and not path.is_dir():
            raise RunFailed(
                f"include_path is no folder: {path}\nhelp: name the folder with the YAML files"
            )
        if path is not None and CONSENT not in self.options.args:
            raise RunFailed(
                f"the harness runs the Python that tasks in {path} name"
                f"\nhelp: read them, then add {CONSENT} to 'args'"
            )
        command, environment = [*COMMAND, "validate", *self._tasks], {**os.environ, **QUIET}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RunFailed(f"lm_eval refuses the tasks:\n{_last_lines(done.stdout + done.stderr)}")

    def run(self, context: StepContext) -> Artifact:
        notes, rows, version = list[str](), list[Row](), ""
        for number, (policy, name) in enumerate(short_names(self.options.policies).items(), 1):
            output = context.out / "results" / f"{number}-{name.replace('/', '-')}"
            new_notes, results = self._evaluated(context, policy, output)
            version = results.get("lm_eval_version", version)
            notes += [f"{name}: {note}" for note in new_notes]
            for row in rows_by_metric(name, results):
                if math.isfinite(row.estimate["mean"]):
                    rows.append(row)
                else:
                    notes.append(f"{name}: {row.metric} is {row.estimate['mean']} and left out")
        title = f"lm-evaluation-harness {version}: mean and 95% interval by its standard error"
        summary = {"lm_eval": version, "notes": notes, "results": list(map(plain, rows))}
        context.write_json("lm_eval.json", summary)
        return Artifact(summary=summary, report=Report(["\n".join(notes), table(rows, title)]))

    def _evaluated(self, context: StepContext, policy: str, output: Path) -> tuple[Any, Any]:
        """Notes on a policy's model folder, and the harness's results. A resumed run does not ask
        again.
        """
        notes_file, log, model = output / "notes.json", context.out / LOG, context.out / "model"
        if not notes_file.exists():
            shutil.rmtree(output, ignore_errors=True)  # left by a run that was interrupted
            tasks = ", ".join(self.options.tasks)
            context.say(f"{context.stage}: {policy} answers {tasks} (log: {log})")
            command = [*COMMAND, "run", "--model", "hf", "--model_args", f"pretrained={model}"]
            command += [*self._tasks, "--output_path", str(output), "--device", _device()]
            try:
                notes = context.models[policy].save(model)
                _run([*command, *self.options.args], context.folder, log)
            finally:
                shutil.rmtree(model, ignore_errors=True)
            notes_file.write_text(json.dumps(list(notes)), encoding="utf-8")
        (written,) = output.rglob("results_*.json")
        return json.loads(notes_file.read_text("utf-8")), json.loads(written.read_text("utf-8"))


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
            env={**os.environ, **QUIET},
        )
        try:
            while process.poll() is None:
                should_stop()
                time.sleep(POLL)
        finally:
            process.kill()  # does nothing to one that has ended
            process.wait()
    if process.returncode:
        last_lines = _last_lines(log.read_text("utf-8", "replace"))
        raise RunFailed(
            f"lm_eval ended with exit code {process.returncode}:\n{last_lines}\nhelp: {log} has more"
        )


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LAST_LINES:])


def _estimate(name: str, mean: float, error: float, n: int | None) -> Mapping[str, Any]:
    """A mean and its 95% interval by its standard error. A share's interval is that of as many
    independent documents as have this error.
    """
    found: Any = {"mean": mean, "low": mean - Z * error, "high": mean + Z * error, "n": n}
    most = mean * (1 - mean)  # variance that a share can have
    if POSITIVE.search(name):
        return statistics.of_share(found, math.inf)
    if SIGNED.search(name) or error**2 * ((n or 2) - 1) > 1.01 * most:
        return dict(found)
    return {**found, **(statistics.share(mean, 1, most / error**2) or {}), "n": n}


def rows_by_metric(policy: str, results: Mapping[str, Any]) -> Iterator[Row]:
    """Every metric of the tasks and groups, which the harness calls `acc,none` and
    `acc_stderr,none`.
    """
    for task, values in {**results.get("results", {}), **results.get("groups", {})}.items():
        n = results.get("n-samples", {}).get(task, {}).get("effective")
        higher = results.get("higher_is_better", {}).get(task, {})
        for key, mean in values.items():
            name, comma, filter = key.partition(",")
            if type(mean) not in (int, float) or not comma or name.endswith("_stderr"):
                continue
            estimate: Any = statistics.without_interval(mean, n)
            error = values.get(f"{name}_stderr,{filter}")
            # No interval without a spread: equal scores of few documents say nothing about others.
            if isinstance(error, float) and 0 < error < math.inf:
                estimate = _estimate(name, mean, error, n)
            metric = f"{task}: {name}" if filter == "none" else f"{task}: {key}"
            yield Row(policy, metric, "metric", estimate, lower=higher.get(name) is False)
