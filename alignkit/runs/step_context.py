"""What steps can use, and their rows, which are carried out here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.data.group import Group
from alignkit.recipe.schema import Stage
from alignkit.runs.durable_map import durable_map
from alignkit.runs.learned_from import learned_from, log_odds
from alignkit.step import StepContext
from alignkit.training.scoring import ModelScores, Scorer

SCORED = 64  # groups that a reward scores at once


def step_context(rows: StepRows) -> StepContext:
    """The context of a step, whose rows these are."""
    run, stage, folder = rows.run, rows.stage, rows.folder
    seed = run.seed_of(stage)
    metrics = run.metrics(stage)
    known = ModelScores()
    return StepContext(
        models=run.models,
        cache=run.cache(),
        folder=run.recipe.folder,
        seed=seed,
        out=folder,
        load=lambda spec: run.load(spec).groups,
        scorer=lambda spec: Scorer(spec, run.reward_context(seed), known=known, rows=rows.scores),
        map=rows.map,
        log=lambda **values: metrics.write(stage=stage.name, **values),
        say=run.reporter.activity,
        trained_on=run.trained_on,
        base_of=run.bases.base_of,
        learned_from=lambda policy, rater: learned_from(policy, rater, run.recipe, run.folder),
        log_odds=partial(log_odds, run.store),
        stage=stage.name,
        progress=run.reporter.progress,
    )


@dataclass
class StepRows:
    """The rows of a step, carried out here. run: a `Run`. folder: the stage's."""

    run: Any
    stage: Stage
    folder: Path

    def map(self, name: str, rows: Sequence[Any], function: Callable[..., Any]) -> list[Any]:
        """See `StepContext.map`."""
        with self.run.reporter.progress(name, len(rows)) as done:
            return durable_map(self.file(name), rows, function, self.run.should_stop, done)

    def scores(self, leaf: Scorer, groups: Sequence[Group]) -> list[float | None]:
        """The scores of a single reward, one per response.

        A reward model's bits depend on the groups that it sees at once. So these are the same wherever rows are
        carried out.
        """
        column: list[float | None] = []
        with self.run.reporter.progress(f"scoring with {leaf.name}", len(groups)) as done:
            for start in range(0, len(groups), SCORED):
                self.run.should_stop()
                column += scored(self.run, leaf, groups[start : start + SCORED])
                done(min(start + SCORED, len(groups)))
        return column

    def close(self) -> None:
        """End what was started for the rows."""

    def file(self, name: str) -> Path:
        """Where the results of a map are stored."""
        return self.folder / "map" / f"{name}.jsonl"


def scored(run: Any, leaf: Scorer, groups: Sequence[Group]) -> list[float | None]:
    """A reward's scores of groups that it sees at once, whatever this process has scored before."""
    run.models.forget_scores()
    return leaf.column(groups)
