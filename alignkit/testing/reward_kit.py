"""The rules of rewards: a score per response, the same in every batch, and on every call."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.calls import call, create
from alignkit.data.group import Group
from alignkit.recipe.schema import RewardSpec
from alignkit.registry import Component
from alignkit.reward import Reward
from alignkit.testing.checks import ConformanceError
from alignkit.testing.purity import changed, memory_of
from alignkit.testing.surroundings import Surroundings, conform, turned_groups
from alignkit.training.rewards import Rewards

Scores = list[float | None]
TOLERANCE = 1e-4  # relative, of two scores of a response; models in other batches differ by about 1e-5

COLUMNS = "columns that it needs come with groups= (of `alignkit plugins check`: --rows FILE)"
PURE = "a score is computed from the prompt, its columns and the responses of its group only, because it is cached"
APART = "if a score ranks a response among its group's, `within_group` must return True"


def check_reward(
    cls: type[Reward],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a reward breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe. A reward or judge that they name must be installed; any other name is a stage, whose
            model is `tiny` with weights of its own.
        groups: To score, and what data options hold; default: sampled responses to four prompts without further
            columns.
        folder: The recipe's; default: the current one.
    """
    try:
        conform("reward", cls, options, _problems, folder=folder, groups=groups)
    except ConformanceError as error:
        if groups is not None or not re.search("KeyError|no column", str(error)):
            raise
        raise ConformanceError(f"{error}; {COLUMNS}") from None


def _problems(around: Surroundings, component: Component) -> Iterator[str]:
    groups = around.rollouts
    before = copy.deepcopy(groups)
    early = create(component)
    call(early, "check", around.folder)
    call(early, "check_prompts", groups)
    scorer = _scorer(around, component)
    remembered = memory_of(scorer.root.plugin)
    scores = _scores(scorer, groups)
    if groups != before:
        yield "`score` changes the groups that it is given: make new ones with dataclasses.replace"
    if all(score is None for score in scores):
        yield "`score` scores none of the responses: pass others as `groups`"
    name = changed(remembered, memory_of(scorer.root.plugin))
    memory = f"{PURE}{f' (it changed self.{name})' if name else ''}"
    yield from _changes("a second call", scores, _scores(scorer, groups), memory)
    yield from _changes("another process", scores, _scores(_scorer(around, component), groups), PURE)
    alone = [score for group in groups for score in _scores(scorer, [group])]
    yield from _changes("a batch of one group", scores, alone, memory)
    turned = _scores(scorer, turned_groups(groups))[::-1]
    yield from _changes("the order of groups and responses", scores, turned, memory)
    if not scorer.within_group:
        single = [replace(group, responses=(each,), pairs=None) for group in groups for each in group.responses]
        yield from _changes("a group for every response", scores, _scores(scorer, single), APART)


def _scorer(around: Surroundings, component: Component) -> Rewards:
    return Rewards(RewardSpec("reward", component.name, component), around.context)


def _scores(scorer: Rewards, groups: Sequence[Group]) -> Scores:
    """What a run makes of the plugin's scores, or refuses."""
    return [response.scores[scorer.name] for group in scorer.score(groups) for response in group.responses]


def same_score(old: Any, new: Any) -> bool:
    """Whether two scores of one response are the same, up to rounding."""
    numbers = isinstance(old, int | float) and isinstance(new, int | float)
    return bool(old == new or (numbers and abs(new - old) <= TOLERANCE * max(1.0, abs(old))))


def _changes(cause: str, expected: Scores, actual: Scores, help: str) -> list[str]:
    """One line about the first response whose score differs."""
    for index, (old, new) in enumerate(zip(expected, actual, strict=True)):
        if not same_score(old, new):
            return [f"`score`: {cause} changes the score of response {index} from {old} to {new}: {help}"]
    return []
