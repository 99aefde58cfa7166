"""Every hook that a plugin may implement: `register`, and the events in the order in which a run
calls them.

A plugin is a module named in the entry-point group `alignkit`, with functions decorated by
`@alignkit.hookimpl`. They may take fewer arguments than the hook has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
            `template` takes Jinja code.
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


@hookspec(firstresult=True)
def dry_run(recipe: Any, out: Path | None) -> Any:
    """A recipe is to be checked instead of run. Return a `commands.Result`, or raise the error with
    which a run would stop.

    Args:
        recipe: As it was read.
        out: The folder of the run; None: the default.
    """


# Events of a run. Hooks observe, and must not change what is computed, except those that return
# something, which the run uses.


@hookspec
def run_started(run: Any) -> None:
    """A run begins.

    Args:
        run: Has `folder`, `recipe` and `request_stop(reason)`.
    """


@hookspec
def stage_started(run: Any, stage: str) -> None:
    """A stage begins or resumes.

    Args:
        run: Has `folder`, `recipe` and `request_stop(reason)`.
        stage: Its name.
    """


@hookspec
def stage_changed(
    run: Any, stage: str, record: Mapping[str, Any], parts: Mapping[str, Any]
) -> None:
    """A stage that has changed starts over, with its models loaded.

    Args:
        record: Stage.json of its result.
        parts: What a result depends on now, as `depends_on` there.
    """


@hookspec
def data_read(run: Any, stage: str, loaded: Any) -> Sequence[Mapping[str, Any]] | None:
    """A stage has read a data entry. Return what its stage.json keeps of each source, next to the
    counts of its rows.

    Args:
        loaded: Its `groups`, those for `validation`, and `sources`.
    """


@hookspec
def map_elsewhere(
    run: Any, stage: str, folder: Path, name: str
) -> Callable[[Iterable[Sequence[Any]]], Iterator[Sequence[Any]]] | None:
    """A step maps rows (`StepContext.map`). Return what computes the results of chunks, in order;
    None: this process.

    Args:
        run: Has `folder`, `recipe` and `should_stop()`.
        stage: Its name; the step is `run.recipe.stages[stage].component`.
        folder: The stage's.
        name: The name of the map.
    """


@hookspec
def format_unrecognized(row: Any, formats: Mapping[str, Any]) -> str | None:
    """No format recognizes the first row of a source. Return what the user may do.

    Args:
        row: As parsed.
        formats: Classes by name.
    """


@hookspec
def metrics_opened(run: Any, stage: str, metrics: Any) -> None:
    """A stage begins or continues its metrics.jsonl.

    Args:
        metrics: Calls its `follower` with each new line.
    """


@hookspec
def rollouts_scored(run: Any, stage: str, iteration: int, groups: list[Group]) -> None:
    """The rollouts of an iteration are scored.

    Args:
        run: Has `folder`, `recipe` and `request_stop(reason)`.
        stage: Its name.
        iteration: Counts from 1.
        groups: With scored responses.
    """


@hookspec
def metrics_logged(run: Any, stage: str, step: int, metrics: Mapping[str, float]) -> None:
    """The metrics of an optimizer step or an iteration were written.

    Args:
        run: Has `folder`, `recipe` and `request_stop(reason)`.
        stage: Its name.
        step: Counts from 1.
        metrics: Numbers by name.
    """


@hookspec
def checkpoint_saved(run: Any, stage: str, path: str) -> None:
    """A checkpoint is complete on disk.

    Args:
        run: Has `folder`, `recipe` and `request_stop(reason)`.
        stage: Its name.
        path: The folder of the checkpoint.
    """


@hookspec
def stage_finished(run: Any, stage: str, reused: bool) -> None:
    """A stage is complete.

    Args:
        run: Has `folder`, `recipe` and `request_stop(reason)`.
        stage: Its name.
        reused: Its result is that of an earlier run.
    """


@hookspec
def results_shown(
    run: Any, records: Sequence[Mapping[str, Any]], width: int
) -> Sequence[str] | None:
    """All stages are complete. Return what the run prints.

    Args:
        run: Has `folder`, `recipe` and `request_stop(reason)`.
        records: Each stage's stage.json.
        width: The terminal's, in characters.
    """


@hookspec
def run_finished(run: Any, error: BaseException | None) -> None:
    """The run ended.

    Args:
        run: Has `folder`, `recipe` and `request_stop(reason)`.
        error: None when it succeeded.
    """
