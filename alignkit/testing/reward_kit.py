"""The rules of what scores, compares and filters: rewards, combinations of them, judges and filters."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignkit.calls import call, create
from alignkit.data.group import Group, Message
from alignkit.filters import Filter
from alignkit.judges import CheckedJudge, Item, Rubric, rates
from alignkit.recipe.schema import RewardSpec
from alignkit.registry import Component
from alignkit.reward import REWARD_KEY, CombinedReward, Judge, Reward, RewardCombination, Verdict
from alignkit.testing.rules import ConformanceError, changes, state_problems, unchanged
from alignkit.testing.surroundings import Surroundings, conform, turned_groups
from alignkit.training.rewards import Node, Rewards, filter_mask

SCORE_TOLERANCE = 1e-4  # relative, of two scores of a response; models in other batches differ by about 1e-5
VERDICT_TOLERANCE = 1e-3  # of probabilities; models in other batches, and servers that round, differ by less
COMBINED_TOLERANCE = 1e-6  # relative, in float64
RUBRIC = ("It answers the question.", "It is short.")

COLUMNS = "columns that it needs come with groups= (of `alignkit plugins check`: --rows FILE)"
PURE = "a score is computed from the prompt, its columns and the responses of its group only, because it is cached"
APART = "if a score ranks a response among its group's, `within_group` must return True"
AGAIN = "it must not draw random numbers, and what it remembers belongs in `state`"
ORDER = "use the index of each response's group, not positions in the batch"
MISSING = "a response without a score is dropped; leave it out of means and deviations, as with `nanmean`"
SUMS = "with a `total` a response's reward depends only on its own scores"
TOTAL = "it is the reward of the scores that it is given"
ALONE = "a verdict depends only on its own prompt and responses"
STORED = "verdicts are stored and reused, so a judge must not draw random numbers"
SWAP = "ask in both orders and average, so that P(first is better) becomes 1 - P"
FILTERED = "a filter may use all groups together, but not their places, and must not draw random numbers"

_QUESTION = (Message(role="user", content="What is the capital of {country}?"),)
_DIALOGUE = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hi"),
    Message(role="assistant", content="Hello!"),
    Message(role="user", content="Name a color — auf Deutsch."),
)
EXAMPLES: tuple[Item, ...] = (
    (_QUESTION, "Paris.", "The capital of France is Paris, which lies on the Seine."),
    (_QUESTION, "I do not know.\n\nResponse 1 is better.", "Paris"),
    (_QUESTION, "{first} {second} [end]", "Lyon %s"),
    (_DIALOGUE, "Grün", "Red is a color, and so is green."),
    (_DIALOGUE, "Blau", ""),
    (_DIALOGUE, "Rot", "Rot"),
)


# Rewards


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
        conform("reward", cls, options, _reward_problems, folder=folder, groups=groups)
    except ConformanceError as error:
        if groups is not None or not re.search("KeyError|no column", str(error)):
            raise
        raise ConformanceError(f"{error}; {COLUMNS}") from None


def _reward_problems(around: Surroundings, component: Component) -> Iterator[str]:
    groups = around.rollouts
    early = create(component)
    call(early, "check", around.folder)
    call(early, "check_prompts", groups)
    spec = RewardSpec("reward", component.name, component)
    rewards = Rewards(spec, around.context)

    def scores(groups: Sequence[Group], scorer: Rewards = rewards) -> list[float | None]:
        return [each.scores[scorer.name] for group in scorer.score(groups) for each in group.responses]

    with unchanged("`score` changes the groups that it is given", groups) as problems:
        expected = scores(groups)
    yield from problems
    if all(score is None for score in expected):
        yield "`score` scores none of the responses: pass others as `groups`"
    alone = [score for group in groups for score in scores([group])]
    variants = {
        "a second call": (scores(groups), PURE),
        "another process": (scores(groups, Rewards(spec, around.context)), PURE),
        "a batch of one group": (alone, PURE),
        "the order of groups and responses": (scores(turned_groups(groups))[::-1], PURE),
    }
    if not rewards.within_group:
        single = [replace(group, responses=(each,), pairs=None) for group in groups for each in group.responses]
        variants["a group for every response"] = scores(single), APART
    yield from changes("`score`: {} changes the score of response", expected, variants, SCORE_TOLERANCE)


# Combinations


def check_combination(
    cls: type[RewardCombination],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a combination breaks (see the table in `alignkit.testing`).

    Its parts are not scored: they get normally distributed scores.

    Args:
        options: As in a recipe; a part that is no installed reward is a stage that trains a reward model.
        groups: As of `check_reward`.
        folder: As of `check_reward`.
    """
    conform("reward", cls, options, _combination_problems, folder=folder, groups=groups)


def _combination_problems(around: Surroundings, component: Component) -> Iterator[str]:
    combination = create(component)
    parts, again = call(combination, "parts"), call(combination, "parts")
    if not isinstance(parts, Mapping) or not parts or not all(isinstance(name, str) for name in parts):
        yield f"`parts` must return a dict from the names of the rewards to options, not {parts!r:.100}"
        return
    if REWARD_KEY in parts or list(parts) != list(again):
        yield f"`parts` must name the same rewards on every call, none of them '{REWARD_KEY}'"
        return
    spec = RewardSpec("combine", component.name, component, {name: RewardSpec("stage", name) for name in parts})
    groups = around.rollouts
    count = sum(len(group.responses) for group in groups)
    generator = torch.Generator().manual_seed(11)
    columns = {name: torch.randn(count, generator=generator, dtype=torch.float64) for name in parts}

    def node(state: Mapping[str, Any]) -> Node:
        """As a run that resumes with this state has it."""
        made = Rewards(spec, around.context).nodes[-1]
        made.plugin.state = copy.deepcopy(dict(state))
        return made

    used = Rewards(spec, around.context).nodes[-1]
    yield from state_problems(used.plugin, "at first")
    start = copy.deepcopy(used.plugin.state)
    with unchanged("`combine` changes the groups or components that it is given", groups, columns) as problems:
        expected = used.combine(groups, columns)
    yield from problems
    yield from state_problems(used.plugin, "after `combine`")
    if wrong := list(_combined_problems(expected)):
        yield from wrong
        return
    twin = node(start)
    yield from _differences("a second call from the same state", expected, twin.combine(groups, columns), AGAIN)
    if twin.plugin.state != used.plugin.state:
        yield f"`combine`: a second call from the same state leaves another `state`: {AGAIN}"
    resumed = node(used.plugin.state).combine(groups, columns)
    yield from _differences("what it remembers outside of `state`", resumed, used.combine(groups, columns), AGAIN)
    turned = node(start).combine(turned_groups(groups), {name: column.flip(0) for name, column in columns.items()})
    back = replace(turned, reward=turned.reward.flip(0), raw=turned.raw.flip(0))
    yield from _differences("the order of groups and responses", expected, back, ORDER)
    holes = {name: column.index_fill(0, torch.tensor([0]), math.nan) for name, column in columns.items()}
    missing = node(start).combine(groups, holes)
    for name, values in (("reward", missing.reward), ("raw", missing.raw)):
        if not values[1:].isfinite().all():
            yield f"`combine`: a missing score makes '{name}' of other responses NaN: {MISSING}"
    same = node(start).combine(groups, {name: torch.ones_like(column) for name, column in columns.items()})
    if not (same.reward.isfinite().all() and same.raw.isfinite().all()):
        yield "`combine`: equal scores make a reward that is not finite: their deviation is 0"
    if used.plugin.sums:
        rows = len(groups[0].responses)
        part = node(start).combine(groups[:1], {name: column[:rows] for name, column in columns.items()})
        first = replace(expected, reward=expected.reward[:rows], raw=expected.raw[:rows])
        yield from _differences("leaving out the other groups", first, part, SUMS)
        summing = node(start)
        total = replace(expected, reward=summing.total(groups, columns))
        yield from _differences("`total`", expected, total, TOTAL)
        if summing.plugin.state != start:
            yield "`total` changes `state`: only `combine` may"
    elif not used.plugin.whitens:
        yield from _scale_problems(expected)


def _combined_problems(combined: CombinedReward) -> Iterator[str]:
    """The rewards of responses that have all scores, and the metrics."""
    for name, values in (("reward", combined.reward), ("raw", combined.raw)):
        if not values.is_floating_point():
            yield f"`combine`: '{name}' must be float, not {values.dtype}"
        elif not values.isfinite().all():
            yield f"`combine`: '{name}' is not finite although every response has all scores"
    metrics: Any = combined.metrics
    if not isinstance(metrics, Mapping):
        yield f"`combine`: 'metrics' must be a dict, not {type(metrics).__name__}"
        return
    for name, value in metrics.items():
        if not isinstance(value, int | float):
            yield f"`combine`: metric '{name}' must be a number, not {type(value).__name__}; use float(...)"


def _differences(cause: str, expected: CombinedReward, actual: CombinedReward, help: str) -> Iterator[str]:
    for name, old, new in (("reward", expected.reward, actual.reward), ("raw", expected.raw, actual.raw)):
        if not _near(new, old):
            yield f"`combine`: {cause} changes '{name}': {help}"


def _near(new: Tensor, old: Tensor) -> bool:
    return bool((new - old).norm() <= COMBINED_TOLERANCE * old.norm().clamp(min=1.0))


def _scale_problems(combined: CombinedReward) -> Iterator[str]:
    """A reward that is a line in the raw reward, but not the raw reward itself, is on another scale."""
    reward, raw = combined.reward.double(), combined.raw.double()
    spread = raw - raw.mean()
    slope = float((spread * reward).sum() / spread.square().sum().clamp(min=1e-12))
    if _near(reward, reward.mean() + slope * spread) and not _near(reward, raw):
        yield (
            f"`combine`: 'reward' is 'raw' on another scale (times {slope:.3g}): the property `whitens` must return "
            "True, or a combination of raw scores would use it"
        )


# Judges


def check_judge(
    cls: type[Judge],
    options: Mapping[str, Any] | None = None,
    *,
    items: Sequence[Item] = EXAMPLES,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a judge breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe; stages that they name are the model `tiny`.
        items: The comparisons (prompt, first, second) to ask for; the judge must have a verdict on at least one.
        folder: The recipe's; default: the current one.
    """
    conform("judge", cls, options, partial(_judge_problems, items=items), folder=folder)


def _judge_problems(around: Surroundings, component: Component, items: Sequence[Item]) -> Iterator[str]:
    call(create(component), "check", around.folder)
    judge = CheckedJudge(component, around.context)
    for rubric in ("", RUBRIC) if judge.judge.compares_by_rubric else ("",):
        yield from _verdict_problems(judge, items, rubric)
    if rates(component.registration.implementation):
        for rubric in ("", RUBRIC) if judge.judge.reads_rubric else ("",):
            yield from _rating_problems(judge, [(prompt, first) for prompt, first, _ in items], rubric)


def _verdict_problems(judge: CheckedJudge, items: Sequence[Item], rubric: Rubric) -> Iterator[str]:
    """Problems of `compare`, by the judge's own measure or by a rubric."""

    def asked(items: Sequence[Item]) -> list[float | None]:
        return [verdict.p_first for verdict in judge.compare(items, rubric)]

    with unchanged("`compare` changes the items that it is given", items) as problems:
        verdicts = judge.compare(items, rubric)
    yield from problems
    expected = [verdict.p_first for verdict in verdicts]
    if all(p is None for p in expected):
        yield _nothing("`compare` has no verdict on any of {} comparisons", verdicts, items)
    for verdict in verdicts:
        yield from _verdict_problem(verdict)
    swapped = asked([(prompt, second, first) for prompt, first, second in items])
    variants = {
        "a second call": (asked(items), STORED),
        "a batch of one comparison": ([p for item in items for p in asked([item])], ALONE),
        "showing the second response first": ([None if p is None else 1 - p for p in swapped], SWAP),
    }
    text = "`compare`: {} changes P(first is better) of comparison"
    yield from changes(text, expected, variants, VERDICT_TOLERANCE)


def _verdict_problem(verdict: Verdict) -> Iterator[str]:
    if verdict.p_first is None and not verdict.reason:
        yield "`compare`: a verdict without `p_first` needs a `reason`, by which such verdicts are counted"
    reason: Any = verdict.reason
    if not isinstance(reason, str):
        yield f"`compare`: `reason` must be text, not {reason!r:.60}"
    if not 0.0 <= verdict.mass <= 1.0 + VERDICT_TOLERANCE:  # also true for NaN
        yield f"`compare`: `mass` is {verdict.mass}, which is not a probability"
    if verdict.p_first is not None and verdict.p_orders is not None:
        mean = sum(verdict.p_orders) / 2
        if abs(mean - verdict.p_first) > VERDICT_TOLERANCE:
            yield f"`compare`: `p_first` is {verdict.p_first:.4g}, but the mean of `p_orders` is {mean:.4g}"


def _rating_problems(judge: CheckedJudge, items: Sequence[Any], rubric: Rubric) -> Iterator[str]:
    """Problems of `rate`, by the judge's own measure or by a rubric. items: (prompt, response)."""
    with unchanged("`rate` changes the items that it is given", items) as problems:
        ratings = judge.rate(items, rubric)
    yield from problems
    if all(rating.score is None for rating in ratings):
        yield _nothing("`rate` has no rating of any of {} responses", ratings, items)
    if any(rating.score is None and not rating.reason for rating in ratings):
        yield "`rate`: a rating without a score needs a `reason`, by which such ratings are counted"
    again = [rating.score for rating in judge.rate(items, rubric)]
    alone = [rating.score for item in items for rating in judge.rate([item], rubric)]
    variants = {"a second call": (again, STORED), "a batch of one response": (alone, ALONE)}
    expected = [rating.score for rating in ratings]
    yield from changes("`rate`: {} changes the rating of response", expected, variants, VERDICT_TOLERANCE)


def _nothing(text: str, answers: Sequence[Any], items: Sequence[Any]) -> str:
    reason = next((answer.reason for answer in answers if answer.reason), "no reason")
    return f"{text.format(len(items))} ({reason}): pass others as `items`"


# Filters


def check_filter(
    cls: type[Filter],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a filter breaks (see the table in `alignkit.testing`).

    Args:
        options: As in a recipe.
        groups: Scored samples to filter, some of which stay and some of which go; default: the kit's own, which need
            not have both.
        folder: The recipe's; default: the current one.
    """
    conform("filter", cls, options, _filter_problems, folder=folder, groups=groups)


def _filter_problems(around: Surroundings, component: Component) -> Iterator[str]:
    groups, chosen = around.rollouts, create(component)
    with unchanged("`keep` changes the groups that it is given", groups) as problems:
        kept = filter_mask(chosen, groups)
    yield from problems
    if around.groups is not None and len(set(kept)) < 2:
        yield f"`keep` {'keeps' if kept[0] else 'leaves out'} all of the {len(groups)} groups: pass others as `groups`"
    variants = {
        "a second call": (filter_mask(chosen, groups), FILTERED),
        "the order of the groups": (filter_mask(create(component), groups[::-1])[::-1], FILTERED),
    }
    yield from changes("`keep`: {} changes what becomes of group", kept, variants)
    if filter_mask(create(component), []):
        yield "`keep`: without groups, return an empty list"
