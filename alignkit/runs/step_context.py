"""What a step can use, and its rows: carried out here, or by the stage's executor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.data.group import Group, group_to_json
from alignkit.io.progress import Reporter
from alignkit.recipe.schema import RewardSpec, Stage, specs
from alignkit.runs.contamination import log_odds
from alignkit.runs.durable_map import CHUNK, durable_map
from alignkit.runs.learned_from import learned_from
from alignkit.runs.row_chunks import map_in_blocks
from alignkit.runs.scored_rows import scored
from alignkit.runs.stage_work import stage_work
from alignkit.step import StepContext
from alignkit.training.scoring import ModelScores, Scorer

SCORED = 64  # groups that a reward scores at once


def step_context(run: Any, stage: Stage, folder: Path, executor: Any = None) -> StepContext:
    """The context of a step. run: a `Run`. folder: the stage's. executor: None if the rows are carried out here."""
    seed = run.seed_of(stage)
    metrics = run.metrics(stage)
    rows, known = StepRows(run, stage, folder, executor), ModelScores()
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
        say=run.reporter.say,
        trained_on=run.trained_on,
        base_of=run.bases.base_of,
        learned_from=lambda policy, rater: learned_from(policy, rater, run.recipe, run.folder),
        log_odds=partial(log_odds, run.store),
        stage=stage.name,
        progress=run.reporter.progress,
    )


@dataclass
class StepRows:
    """The rows of a step. run: a `Run`. folder: the stage's. executor: None if the rows are carried out here."""

    run: Any
    stage: Stage
    folder: Path
    executor: Any

    def map(self, name: str, rows: Sequence[Any], function: Callable[..., Any]) -> list[Any]:
        """See `StepContext.map`."""
        with self._reporter.progress(name, len(rows)) as done:
            if self.executor is None or name not in self.stage.component.registration.implementation.maps:
                return durable_map(self._file(name), rows, function, self.run.should_stop, done)
            return self._in_blocks(self.executor, name, rows, done, CHUNK)

    def scores(self, leaf: Scorer, groups: Sequence[Group]) -> list[float | None]:
        """The scores of a single reward, one per response.

        A reward model's bits depend on the groups that it sees at once. So these are the same with and without an
        executor.
        """
        with self._reporter.progress(f"scoring with {leaf.name}", len(groups)) as done:
            place = place_of(leaf.spec, self.stage)
            if self.executor is None or place is None:
                return self._scored_here(leaf, groups, done)
            found = self._in_blocks(self.executor, f"scores-{place}", _Lines(groups), done, SCORED, (place, leaf.name))
        return [score for scores in found for score in scores]

    def _scored_here(self, leaf: Scorer, groups: Sequence[Group], done: Callable[[int], None]) -> list[float | None]:
        column: list[float | None] = []
        for start in range(0, len(groups), SCORED):
            self.run.should_stop()
            column += scored(self.run, leaf, groups[start : start + SCORED])
            done(min(start + SCORED, len(groups)))
        return column

    def _in_blocks(
        self,
        executor: Any,
        name: str,
        rows: Sequence[Any],
        done: Callable[[int], None],
        size: int,
        leaf: tuple[int, str] | None = None,
    ) -> list[Any]:
        work = stage_work(self.run, self.stage, self.folder, name, size, leaf)
        return map_in_blocks(
            self._file(name),
            rows,
            lambda blocks, stop: executor.replies(work, blocks, self.run.should_stop, stop),
            self.run.should_stop,
            done,
            size=size,
            block_rows=executor.block_rows,
            retries=executor.retries,
        )

    def _file(self, name: str) -> Path:
        return self.folder / "map" / f"{name}.jsonl"

    @property
    def _reporter(self) -> Reporter:
        found: Reporter = self.run.reporter
        return found


class _Lines(Sequence[Any]):
    """Groups as JSON, made when they are asked for, so that not all of them are in memory twice."""

    def __init__(self, groups: Sequence[Group]):
        self._groups = groups

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, place: Any) -> Any:
        found = self._groups[place]
        return [group_to_json(group) for group in found] if isinstance(place, slice) else group_to_json(found)


def place_of(spec: RewardSpec, stage: Stage) -> int | None:
    """The place of a reward among all that a step's options name, those within others included; None if it is none."""
    every = specs(stage.component.options, RewardSpec)
    return next((place for place, each in enumerate(every) if each is spec), None)
