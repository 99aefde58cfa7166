"""Groups that a reward sees at once, here and in the workers of an executor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit.data.group import Group, group_from_json
from alignkit.training.scoring import Scorer


def scored(run: Any, leaf: Scorer, groups: Sequence[Group]) -> list[float | None]:
    """A reward's scores of groups that it sees at once, whatever this process has scored before."""
    run.models.forget_scores()
    return leaf.column(groups)


def scored_rows(run: Any, leaf: Scorer, rows: Sequence[str]) -> list[list[float | None]]:
    """The same for groups as JSON: the scores of each."""
    groups = [group_from_json(row) for row in rows]
    column = iter(scored(run, leaf, groups))
    return [[next(column) for _ in group.responses] for group in groups]
