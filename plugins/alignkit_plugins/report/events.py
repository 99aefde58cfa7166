"""What a run writes and shows for its readers: when it starts, the results of its stages, and when
it ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignkit import hookimpl


@hookimpl(tryfirst=True)
def run_started(run: Any) -> None:
    from alignkit_plugins.report.run_history import write_start

    write_start(run.folder, run.recipe.folder)


@hookimpl
def stage_changed(
    run: Any, stage: str, record: Mapping[str, Any], parts: Mapping[str, Any]
) -> None:
    """Say why, and what becomes of settings that were written for another algorithm."""
    from alignkit.recipe.schema import BASE
    from alignkit_plugins.report.changed import carried_over, change_since

    now = run.recipe.stages[stage]
    run.reporter.say(
        f"{stage}: changed since the last run{change_since(record, parts, now)}, starting over"
    )
    if now.kind == "algorithm":
        model = run.models.of(BASE).model
        for line in carried_over(
            record, now, run.recipe, model.hidden_size, model.spec.lora is not None
        ):
            run.reporter.say(f"{stage}: {line}")


@hookimpl
def data_read(run: Any, loaded: Any) -> list[dict[str, Any]]:
    from alignkit_plugins.report.data_lines import describe
    from alignkit_plugins.report.tally import cards

    for line in describe(loaded):
        if not line.startswith("  "):  # a row, which `alignkit check` shows
            run.reporter.say(line)
    return [{"card": card} for card in cards(loaded)]


@hookimpl
def results_shown(run: Any) -> list[str]:
    from alignkit_plugins.report.facts import facts_of
    from alignkit_plugins.report.screen import screen

    return [screen(facts_of(run.folder))]


@hookimpl(wrapper=True, tryfirst=True)
def run_finished(run: Any, error: BaseException | None) -> Iterator[None]:
    """Write how the run ended, and the report after all others have seen the end, even if one of
    them failed.
    """
    from alignkit_plugins.report.run_history import write_end
    from alignkit_plugins.report.write import report_run

    write_end(run.folder, error, run.reused, run.peak_memory)
    try:
        return (yield)
    finally:
        report_run(run.folder, run.reporter.say)
