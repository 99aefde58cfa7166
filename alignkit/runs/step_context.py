"""What steps can use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.data.group import Group
from alignkit.io.console import Metrics
from alignkit.recipe.schema import Stage
from alignkit.runs.durable_map import durable_map
from alignkit.runs.learned_from import learned_from, log_odds
from alignkit.step import StepContext
from alignkit.training.rewards import Column, Rewards

SCORED = 64  # groups that a reward scores at once


def step_context(run: Any, stage: Stage, folder: Path, metrics: Metrics) -> StepContext:
    """The context of a step. run: a `Run`. folder: the stage's."""
    seed = run.recipe.seed

    def map_rows(name: str, rows: Sequence[Any], function: Callable[..., Any]) -> list[Any]:
        with run.reporter.progress(name, len(rows)) as done:
            elsewhere = run.notify(stage.name)("map_elsewhere", folder=folder, name=name)
            file = folder / "map" / f"{name}.jsonl"
            return durable_map(file, rows, function, run.should_stop, done, next(iter(elsewhere), None))

    return StepContext(
        models=run.models,
        cache=run.cache(),
        folder=run.recipe.folder,
        seed=seed,
        out=folder,
        load=lambda spec: run.load(spec).groups,
        scorer=lambda spec: Rewards(spec, run.reward_context(seed), in_parts=partial(_in_parts, run)),
        map=map_rows,
        log=lambda **values: metrics.write(stage=stage.name, **values),
        say=run.reporter.activity,
        trained_on=run.trained_on,
        base_of=run.bases.base_of,
        learned_from=lambda policy, rater: learned_from(policy, rater, run.recipe, run.folder),
        log_odds=partial(log_odds, run.store),
        stage=stage.name,
        progress=run.reporter.progress,
    )


def _in_parts(run: Any, name: str, groups: Sequence[Group], score: Callable[[Sequence[Group]], Column]) -> Column:
    """The scores of a single reward, one per response.

    A reward model's bits depend on the groups that it sees at once, and on nothing that was scored before.
    """
    column: Column = []
    with run.reporter.progress(f"scoring with {name}", len(groups)) as done:
        for start in range(0, len(groups), SCORED):
            run.should_stop()
            column += score(groups[start : start + SCORED])
            done(min(start + SCORED, len(groups)))
    return column
