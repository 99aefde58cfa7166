"""The step `lm_eval`: benchmarks of EleutherAI's lm-evaluation-harness, for any policies.

Every policy is written as a plain model folder, which the harness loads in a process of its own; its random numbers,
its settings of the environment and its logs stay there. Its results are written untouched, and summarized with its
standard errors (Gao et al., "A framework for few-shot language model evaluation", https://zenodo.org/records/12608602).
Code that belongs to tasks in `include_path`, metrics that are code from the hub, and tasks that run what the model
writes are refused unless `confirm_run_unsafe_code` is set.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import field_validator

import alignkit
from alignkit import Artifact, Field, PolicyRef, Register, RunFailed, Step, StepContext, hookimpl
from alignkit.evaluation.comparison import file_names, short_names
from alignkit.extras import check_extra
from alignkit_plugins.steps.lm_eval import harness, summary
from alignkit_plugins.steps.lm_eval.harness import code_in

PACKAGE = "lm_eval"


class LmEval(Step):
    """Run tasks of the harness on each policy, and report every metric with its 95% interval."""

    class Options(alignkit.Options):
        policies: list[PolicyRef] = Field(min_length=1, description="policies to evaluate: `base`, stages or `STAGE@k`")
        tasks: list[Annotated[str, Field(min_length=1)]] = Field(
            min_length=1, description="tasks, groups or patterns of the harness, such as `gsm8k` or `mmlu_*`"
        )
        num_fewshot: int | None = Field(None, ge=0, description="examples in front of a question; default: the task's")
        limit: float | None = Field(
            None, gt=0, description="use only the first N documents of each task, or this share if below 1; for tests"
        )
        batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
            1, description="rows per batch; auto: the most that fit"
        )
        device: str | None = Field(
            None, description="torch device, such as cpu or cuda:1; default: a GPU if there is one"
        )
        include_path: Path | None = Field(None, description="folder with tasks of your own as YAML")
        apply_chat_template: bool = Field(False, description="ask in the chat template of the run's model")
        system_instruction: str | None = Field(None, description="system message in front of every question")
        gen_kwargs: dict[str, Any] = Field(
            default_factory=dict, description="options of generation that replace a task's"
        )
        model_args: dict[str, Any] = Field(
            default_factory=dict, description="options of the harness's model class `hf`, such as {max_length: 2048}"
        )
        log_samples: bool = Field(False, description="write every question and answer into `samples/`")
        confirm_run_unsafe_code: bool = Field(
            False, description="run code of tasks in include_path, metrics from the hub, and what the model writes"
        )

        @field_validator("limit")
        @classmethod
        def _whole(cls, value: float | None) -> float | None:
            if value is not None and value > 1 and value != int(value):
                raise ValueError("must be a whole number of documents, or a share below 1")
            return value

        @field_validator("policies", "tasks")
        @classmethod
        def _unique(cls, value: list[str]) -> list[str]:
            if repeated := sorted({name for name in value if value.count(name) > 1}):
                raise ValueError(f"duplicates: {', '.join(repeated)}; names must be unique")
            return value

        def request(self) -> dict[str, Any]:
            """The options for the harness's process."""
            values = self.model_dump(mode="json", exclude={"policies"})
            limit = self.limit
            return {**values, "limit": int(limit) if limit is not None and limit >= 1 else limit}

    packages = (PACKAGE,)  # whose version decides the results
    options: Options
    _data_checked = False

    def check(self, folder: Path) -> None:
        check_extra("step 'lm_eval'", "lm-eval", PACKAGE)
        options = self.options
        if options.include_path is not None and not options.include_path.is_dir():
            raise RunFailed(
                f"include_path is no folder: {options.include_path}\nhelp: name the folder with the YAML files"
            )
        unread = options.include_path if not options.confirm_run_unsafe_code else None
        if found := code_in(unread) if unread is not None else []:
            more = f" and {len(found) - 3} more places" if len(found) > 3 else ""
            raise RunFailed(
                f"tasks in include_path name Python code, which the harness would run: {', '.join(found[:3])}{more}"
                "\nhelp: read it, then set 'confirm_run_unsafe_code: true'"
            )
        harness.check_tasks(options.request(), folder)

    def run(self, context: StepContext) -> Artifact:
        names = short_names(self.options.policies)
        files = file_names(names.values())
        results, notes = {}, dict[str, None]()
        self._data_checked = False
        for number, (policy, name) in enumerate(names.items(), 1):
            done = self._evaluated(context, policy, name, files[name], f"{number} of {len(names)}")
            results[name] = json.loads(done["results"])
            notes |= {f"{name}: {note}": None for note in done["notes"]}
            _write(context, f"results/{files[name]}.json", done["results"])
        found = summary.summary(results, [*summary.notes(self.options, results), *notes])
        context.write_json("lm_eval.json", found)
        return Artifact(summary=found, report=summary.report(found))

    def _evaluated(self, context: StepContext, policy: str, name: str, file: str, number: str) -> dict[str, Any]:
        """The harness's results of a policy as JSON text, and notes on its model folder. Stored for a resumed run.

        file: the name of its files.
        """

        def evaluate(policies: Sequence[Any]) -> list[dict[str, Any]]:
            request, model = self.options.request(), context.out / "model"
            if not self._data_checked:  # before hours of answers
                harness.check_data(request, context.folder, context.out)
                self._data_checked = True
            tasks = ", ".join(self.options.tasks)
            context.say(f"{context.stage}: {name} answers {tasks} ({number}; log: {context.out / harness.LOG})")
            try:
                notes = context.models.export(policy, model, bases=True)
                samples = str(context.out / "samples" / file) if self.options.log_samples else None
                text = harness.evaluate(
                    {**request, "model": str(model), "samples": samples}, context.folder, context.out
                )
            finally:
                shutil.rmtree(model, ignore_errors=True)
            return [{"results": text, "notes": list(notes)}]

        (found,) = context.map(f"lm_eval-{file}", [policy], evaluate)
        return dict(found)


def _write(context: StepContext, name: str, text: str) -> None:
    (context.out / name).parent.mkdir(exist_ok=True)
    context.write_text(name, text)


@hookimpl
def register_steps(register: Register) -> None:
    register("lm_eval", LmEval, summary="benchmarks of EleutherAI's lm-evaluation-harness (needs lm_eval)")
