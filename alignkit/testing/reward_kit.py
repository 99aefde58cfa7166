"""The rules of what scores, compares and filters: rewards, combinations of them, judges and
filters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from alignkit.contract.kinds import Filter
from alignkit.contract.reward import CombinedReward, Item, Judge, Reward, RewardCombination
from alignkit.data.group import (
    Group,
    Message,
    assistant_turn,
    responses_of,
    user_turn,
    with_responses,
)
from alignkit.host.calls import call, create
from alignkit.host.judges import CheckedJudge, rates
from alignkit.host.registry import Component
from alignkit.recipe.schema import RewardSpec
from alignkit.testing.surroundings import Surroundings, conform, turned_groups
from alignkit.training.rewards import Node, Rewards, filter_mask

# Relative, of two scores of a response; models in other batches differ by about 1e-5
SCORE_TOLERANCE = 1e-4
# Probabilities of models in other batches, and of servers that round, differ by less.
VERDICT_TOLERANCE = 1e-3
COMBINED_TOLERANCE = 1e-6  # relative, in float64
RUBRIC = ("It answers the question.", "It is short.")

PURE = (
    "a score is computed from the prompt, its columns and the responses of its group only, "
    "because it is cached"
)
APART = "if a score ranks a response among its group's, `within_group` must return True"
AGAIN = "it must not draw random numbers, and what it remembers belongs in `state`"
ORDER = "use the index of each response's group, not positions in the batch"
MISSING = (
    "a response without a score is dropped; leave it out of means and deviations, as with `nanmean`"
)
ALONE = "an answer depends only on its own prompt and responses"
STORED = "answers are stored and reused, so a judge must not draw random numbers"
SWAP = "ask in both orders and average, so that P(first is better) becomes 1 - P"
FILTERED = (
    "a filter may use all groups together, but not their places, and must not draw random numbers"
)

_QUESTION = (user_turn("What is the capital of {country}?"),)
_DIALOGUE = (
    Message(role="system", content="Be brief."),
    user_turn("Hi"),
    assistant_turn("Hello!"),
    user_turn("Name a color — auf Deutsch."),
)
EXAMPLES: tuple[Item, ...] = (
    (_QUESTION, "Paris.", "The capital of France is Paris, which lies on the Seine."),
    (_QUESTION, "I do not know.\n\nResponse 1 is better.", "Paris"),
    (_QUESTION, "{first} {second} [end]", "Lyon %s"),
    (_DIALOGUE, "Grün", ""),
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
    """Raise ConformanceError listing every rule that a reward breaks (see the table in
    `alignkit.testing`).

    Args:
        options: As in a recipe. A reward or judge that they name must be installed; any other name
            is a stage, whose model is `tiny` with weights of its own.
        groups: To score, with the columns that the reward reads, and what data options hold;
            default: sampled responses to four prompts without further columns.
        folder: The recipe's; default: the current one.
    """
    conform("reward", cls, options, _check_reward, folder=folder, groups=groups)


def _check_reward(around: Surroundings, component: Component) -> None:
    groups = around.rollouts
    early = create(component)
    call(early, "check", around.folder)
    call(early, "check_prompts", groups)
    spec = RewardSpec("reward", component.name, component)
    rewards = Rewards(spec, around.context)

    def scores(groups: Sequence[Group], rewards: Rewards = rewards) -> list[float | None]:
        return [response.scores[rewards.name] for response in responses_of(rewards.score(groups))]

    with around.problems.unchanged("`score` changes the groups", groups):
        expected = scores(groups)
    if all(score is None for score in expected):
        around.problems.append("`score` scores none of the responses: pass others as `groups`")
    alone = []
    for group in groups:
        alone += scores([group])
    variants = {
        "a second call": (scores(groups), PURE),
        "another process": (scores(groups, Rewards(spec, around.context)), PURE),
        "a batch of one group": (alone, PURE),
        "the order of groups and responses": (scores(turned_groups(groups))[::-1], PURE),
    }
    if not rewards.within_group:
        single: list[Group] = []
        for group in groups:
            single += [
                with_responses(group, (response,), pairs=None) for response in group.responses
            ]
        variants["a group for every response"] = scores(single), APART
    around.problems.compare(
        "`score`: {} changes the score of response", expected, variants, SCORE_TOLERANCE
    )


# Combinations


def check_combination(
    cls: type[RewardCombination],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a combination breaks (see the table in
    `alignkit.testing`).

    Its parts are not scored: they get normally distributed scores.

    Args:
        options: As in a recipe; a part that is no installed reward is a stage that trains a reward
            model.
        groups: As in `check_reward`.
        folder: As in `check_reward`.
    """
    conform("reward", cls, options, _check_combination, folder=folder, groups=groups)


def _check_combination(around: Surroundings, component: Component) -> None:
    problems, groups = around.problems, around.rollouts
    spec = around.combination(component)
    spec = replace(spec, children={name: RewardSpec("stage", name) for name in spec.children})
    count, generator = len(responses_of(groups)), torch.Generator().manual_seed(11)
    columns = {
        name: torch.randn(count, generator=generator, dtype=torch.float64) for name in spec.children
    }

    def node(state: Mapping[str, Any] | None = None) -> Node:
        """The combination as a run has it. state: of a run that resumes."""
        made = Rewards(spec, around.context).combinations[spec.name]
        if state is not None:
            made.plugin.state = copy.deepcopy(dict(state))
        return made

    def numbers(result: CombinedReward) -> list[float]:
        return result.reward.tolist()

    used = node()
    problems.must_be_json("`state` at first", used.plugin.state)
    start = copy.deepcopy(used.plugin.state)
    with problems.unchanged("`combine` changes the groups or components", groups, columns):
        result = used.combine(groups, columns)
    problems.must_be_json("`state` after `combine`", used.plugin.state)
    expected = numbers(result)
    if not all(map(math.isfinite, expected)):
        problems.append("`combine`: a reward is not finite although every response has all scores")
    if problems:
        return
    twin, resumed = node(start), node(used.plugin.state)
    turned = node(start).combine(
        turned_groups(groups), {name: column.flip(0) for name, column in columns.items()}
    )
    variants = {
        "a second call from the same state": (numbers(twin.combine(groups, columns)), AGAIN),
        "the order of groups and responses": (numbers(turned)[::-1], ORDER),
    }
    text = "`combine`: {} changes the rewards: number"
    problems.compare(text, expected, variants, COMBINED_TOLERANCE)
    if twin.plugin.state != used.plugin.state:
        problems.append(
            f"`combine`: a second call from the same state leaves another `state`: {AGAIN}"
        )
    later = {
        "what it remembers outside of `state`": (numbers(used.combine(groups, columns)), AGAIN)
    }
    problems.compare(text, numbers(resumed.combine(groups, columns)), later, COMBINED_TOLERANCE)
    holes = {
        name: column.index_fill(0, torch.tensor([0]), math.nan) for name, column in columns.items()
    }
    some = node(start).combine(groups, holes)
    if not some.reward[1:].isfinite().all():
        problems.append(
            f"`combine`: a missing score makes the rewards of other responses NaN: {MISSING}"
        )


# Judges


def check_judge(
    cls: type[Judge],
    options: Mapping[str, Any] | None = None,
    *,
    items: Sequence[Item] = EXAMPLES,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a judge breaks (see the table in
    `alignkit.testing`).

    Args:
        options: As in a recipe; stages that they name are the model `tiny`.
        items: The comparisons (prompt, first, second) to ask for; the judge must have a verdict on
            at least one.
        folder: The recipe's; default: the current one.
    """
    conform("judge", cls, options, partial(_check_judge, items=items), folder=folder)


def _check_judge(around: Surroundings, component: Component, items: Sequence[Item]) -> None:
    call(create(component), "check", around.folder)
    judge = CheckedJudge(component, around.context)
    for rubric in ("", RUBRIC)[: 1 + judge.judge.compares_by_rubric]:

        def compare(items: Sequence[Any], rubric: Any = rubric) -> list[Any]:
            return judge.compare(items, rubric)

        expected = _check_answers(
            around, "compare", "P(first is better)", compare, items, "p_first"
        )
        swapped = compare([(prompt, second, first) for prompt, first, second in items])
        back = [
            verdict.p_first if verdict.p_first is None else 1 - verdict.p_first
            for verdict in swapped
        ]
        text, variants = (
            "`compare`: {} changes P(first is better) of item",
            {"showing the second first": (back, SWAP)},
        )
        around.problems.compare(text, expected, variants, VERDICT_TOLERANCE)
    if rates(component.registration.implementation):
        rated = [(prompt, first) for prompt, first, _ in items]
        for rubric in ("", RUBRIC)[: 1 + judge.judge.reads_rubric]:
            _check_answers(
                around, "rate", "the rating", partial(judge.rate, rubric=rubric), rated, "score"
            )


def _check_answers(
    around: Surroundings,
    method: str,
    what: str,
    ask: Callable[[Sequence[Any]], Sequence[Any]],
    items: Sequence[Any],
    field: str,
) -> list[float | None]:
    """Check verdicts or ratings of items; returns their numbers. field: which holds them."""
    with around.problems.unchanged(f"`{method}` changes the items", items):
        answers = ask(items)
    expected = [getattr(answer, field) for answer in answers]
    reasons = [answer.reason for answer in answers if getattr(answer, field) is None]
    if len(reasons) == len(items):
        around.problems.append(
            f"`{method}` answers none of {len(items)} items ({reasons[0]}): pass others as `items`"
        )
    if not all(reasons):
        around.problems.append(
            f"`{method}`: an answer without `{field}` needs a `reason`, by which it is counted"
        )
    again = [getattr(answer, field) for answer in ask(items)]
    alone = [getattr(ask([item])[0], field) for item in items]
    variants = {"a second call": (again, STORED), "a batch of one item": (alone, ALONE)}
    around.problems.compare(
        f"`{method}`: {{}} changes {what} of item", expected, variants, VERDICT_TOLERANCE
    )
    return expected


# Filters


def check_filter(
    cls: type[Filter],
    options: Mapping[str, Any] | None = None,
    *,
    groups: Sequence[Group] | None = None,
    folder: Path | None = None,
) -> None:
    """Raise ConformanceError listing every rule that a filter breaks (see the table in
    `alignkit.testing`).

    Args:
        options: As in a recipe.
        groups: Scored samples to filter; default: the kit's own.
        folder: The recipe's; default: the current one.
    """
    conform("filter", cls, options, _check_filter, folder=folder, groups=groups)


def _check_filter(around: Surroundings, component: Component) -> None:
    groups, chosen = around.rollouts, create(component)
    with around.problems.unchanged("`keep` changes the groups", groups):
        kept = filter_mask(chosen, groups)
    variants = {
        "a second call": (filter_mask(chosen, groups), FILTERED),
        "the order of the groups": (filter_mask(create(component), groups[::-1])[::-1], FILTERED),
    }
    around.problems.compare("`keep`: {} changes what becomes of group", kept, variants)
