"""Every hook that a plugin may implement: `register`, and the events in the order in which a run
calls them.

A plugin is a module named in the entry-point group `alignkit`, with functions decorated by
`@alignkit.hookimpl`. They may take fewer arguments than the hook has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from alignkit.data.group import Group

hookspec = pluggy.HookspecMarker("alignkit")
hookimpl = pluggy.HookimplMarker("alignkit")
"""Decorates the functions of a plugin that implement hooks."""


class Add(Protocol):
    """Provides an implementation under a kind and a name. May be called several times.

    Args:
        kind: One of `alignkit.host.registry.KINDS`. `format`, `algorithm`, `reward`, `judge`,
            `environment`, `step`, `filter`, `monitor`, `tracker`, `engine`, `reader` and `launcher`
            take a subclass of the class of this name; `reward` also takes a `RewardCombination`.
            `model` takes a function `source(cache) -> Path` that returns a local transformers
            folder for `model.base`; with `source(cache, path)`, recipes write `NAME://PATH`.
            `optimizer` takes a class of `torch.optim.Optimizer` or a function that makes one, and
            `schedule` a function `factor(step, total) -> float`; their other arguments are options.
            `template` takes Jinja code. The rest are functions that every run asks, and that have
            something to say if they return it: `rewrite(document)` changes a recipe's data before
            they are read; `plan(recipe, out)` what a run would do, as a
            `commands.Result`; `advice(row, formats)` what a user may do about a row that no format
            recognizes; `alike(rows)` the pairs of places of a file's rows, as parsed, that nearly
            repeat each other; `cells(load, command, each, out, jobs, part, dry_run)` the result of
            `run --each`; `data_facts(loaded)` what stage.json keeps of each source of a data entry;
            `executor(run, stage, folder, name)` what computes the chunks of a step's map elsewhere,
            in order; `results(folder, records, width)` the lines that a run prints at its end.
        name: What recipes write; of a reader the suffix of its files. If two plugins provide it,
            recipes must write `PACKAGE:NAME`.
        implementation: The class, function or text, or where it is: `"module:Class"` is imported
            when it is used.
        summary: One line for `alignkit plugins`.
        default: Whether it is used where no recipe names one. Every online stage has the monitors
            that are. There must be one launcher, one reader of data without a file, such as the
            hub's, and one model for the kits of `alignkit.testing`.
    """

    def __call__(
        self,
        kind: str,
        name: str,
        implementation: Any,
        summary: str = "",
        *,
        default: bool = False,
    ) -> None: ...


@hookspec
def register(add: Add) -> None:
    """The plugin is loaded. Name everything in it that recipes can use.

    Args:
        add: Called as `add(kind, name, implementation, summary)`.
    """


class ObservedRun(Protocol):
    """A run, as event hooks see it.

    Attributes:
        folder: Its own.
        recipe: As it was read.
        say: Prints a line.
        request_stop: Called as `request_stop(reason)`: the run ends at the next opportunity, and can
            be resumed.
        should_stop: Raises if the run must stop.
        peak_memory: The most memory that this process has used, in words.
    """

    folder: Path
    recipe: Any

    def say(self, text: str) -> None: ...
    def request_stop(self, reason: str) -> None: ...
    def should_stop(self) -> None: ...
    @property
    def peak_memory(self) -> str: ...


# Events of a run. Hooks observe, and must not change what is computed. They get the run and the name
# of its stage.


@hookspec
def run_started(run: ObservedRun) -> None:
    """A run begins."""


@hookspec
def stage_started(run: ObservedRun, stage: str) -> None:
    """A stage begins or resumes."""


@hookspec
def stage_changed(
    run: ObservedRun, stage: str, record: Mapping[str, Any], parts: Mapping[str, Any]
) -> None:
    """A stage that has changed starts over, with its models loaded.

    Args:
        record: Stage.json of its result.
        parts: What a result depends on now, as `depends_on` there.
    """


@hookspec
def data_read(run: ObservedRun, stage: str, loaded: Any) -> None:
    """A stage has read a data entry.

    Args:
        loaded: Its `groups`, those for `validation`, and `sources`.
    """


@hookspec
def rollouts_scored(run: ObservedRun, stage: str, iteration: int, groups: list[Group]) -> None:
    """The rollouts of an iteration are scored.

    Args:
        iteration: Counts from 1.
        groups: With scored responses.
    """


@hookspec
def metrics_logged(run: ObservedRun, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
    """A line of the stage's metrics.jsonl was written: of an optimizer step, of an iteration, or of
    a step of the recipe. Trackers see the same.

    Args:
        step: Counts from 1; of a line without one, the number of the line.
        metrics: Its values by name.
    """


@hookspec
def checkpoint_saved(run: ObservedRun, stage: str, path: str) -> None:
    """A checkpoint is complete on disk.

    Args:
        path: The folder of the checkpoint.
    """


@hookspec
def stage_finished(run: ObservedRun, stage: str, reused: bool) -> None:
    """A stage is complete.

    Args:
        reused: Its result is that of an earlier run.
    """


@hookspec
def run_finished(run: ObservedRun, error: BaseException | None) -> None:
    """The run ended.

    Args:
        error: None when it succeeded.
    """
