"""Applies a recipe's `reward:`: scores responses with every component, then combines the scores."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from alignkit import functional as F
from alignkit.data.group import Group, Response, preview
from alignkit.errors import AlignkitError, RunFailed
from alignkit.judges import spending, without_score
from alignkit.plugin_errors import calling, made
from alignkit.reward import LEARNED_KEY, REWARD_KEY, CombinedReward, Context, Rating, Reward, RewardCombination, Verdict
from alignkit.training.collectives import ONE_PROCESS, Reducer

if TYPE_CHECKING:
    from alignkit.recipe.schema import RewardSpec


class ModelScores:
    """What reward models said of the groups that were scored last. A model in several expressions scores them once."""

    def __init__(self) -> None:
        self._groups: Sequence[Group] = ()
        self._columns: dict[str, list[float | None]] = {}

    def of(self, model: str, groups: Sequence[Group], score: Callable[[], list[float | None]]) -> list[float | None]:
        """The scores of these very groups, by `score` if they are not known. model: a stage or a folder."""
        # By identity, which is cheap: all nodes of an expression score the same list of groups.
        if len(groups) != len(self._groups) or any(a is not b for a, b in zip(groups, self._groups, strict=True)):
            self._groups, self._columns = tuple(groups), {}
        if model not in self._columns:
            self._columns[model] = score()
        return self._columns[model]


Rows = Callable[["Scorer", Sequence[Group]], list[float | None]]


class Scorer:
    """One node of a reward expression with the nodes below it.

    reducer: each process scores its share of the groups, and combines the scores of all. known: shared by scorers of
    the same groups. rows(leaf, groups): the scores of a single reward, which asks for the `column` of some groups at a
    time; None: of all at once.
    """

    def __init__(
        self,
        spec: RewardSpec,
        context: Context,
        name: str = "",
        reducer: Reducer = ONE_PROCESS,
        known: ModelScores | None = None,
        rows: Rows | None = None,
    ):
        self.spec, self.context, self.reducer = spec, context, reducer
        self.name = name or spec.name
        self._known, self._rows = known or ModelScores(), rows
        self.children = {
            child: Scorer(below, context, child, reducer, self._known, rows) for child, below in spec.children.items()
        }
        self.plugin: Any = None
        self.reasons: dict[str, str] = {}  # judge -> its first reason for giving no score
        self.spent: list[Verdict | Rating] = []  # what judges said in this process's last scoring
        self._changes = False  # what the combination remembers changes what it makes of scores
        if spec.component is not None:
            self.plugin, self.author = made(spec.component, context.stage)
        if isinstance(self.plugin, RewardCombination) and not hasattr(self.plugin, "state"):
            self.plugin.state = {}  # its constructor did not call the base's
        if isinstance(self.plugin, Reward):
            with calling(self.author, "prepare", self.plugin):
                self.plugin.prepare(context)

    @property
    def whitens(self) -> bool:
        """Whether the combined reward is on another scale than the raw one."""
        below = any(child.whitens for child in self.children.values())
        return isinstance(self.plugin, RewardCombination) and (self.plugin.whitens or below)

    @property
    def within_group(self) -> bool:
        """Whether a score only ranks a response among its group's."""
        own = isinstance(self.plugin, Reward) and self.plugin.within_group
        return own or any(child.within_group for child in self.children.values())

    @property
    def incomparable(self) -> str:
        """Why raw scores of different iterations cannot be compared; empty if they can."""
        if self.within_group:
            return f"reward '{self.name}' compares the responses of one group"
        if isinstance(self.plugin, RewardCombination) and self.plugin.state and not self.plugin.whitens:
            return f"reward '{self.name}' changes with what it remembers"  # which can only be in `raw`
        return next(filter(None, (child.incomparable for child in self.children.values())), "")

    @property
    def untrained(self) -> list[str]:
        """Of the combinations that have scored: those that training would have changed, in sentences."""
        own = f"reward '{self.name}' is as in the first iteration of training: see 'combinations' in its stage.json"
        below = [text for child in self.children.values() for text in child.untrained]
        return [own, *below] if self._changes and not self.plugin.state else below

    def score(self, groups: Sequence[Group]) -> list[Group]:
        """The groups, with every component and the raw combination (`reward`) among their responses' scores."""
        if not any(group.responses for group in groups):
            return list(groups)
        components = self._components(groups)
        # Scoring may be repeated, so combinations must not remember it; they learn in `combine`.
        raw = self._combined(groups, components, learning=False).raw.tolist()
        # NaN is how a tensor says None.
        columns = {**components, REWARD_KEY: [None if math.isnan(x) else x for x in raw]}
        scored, index = [], 0
        for group in groups:
            responses = []
            for response in group.responses:
                scores = {name: column[index] for name, column in columns.items()}
                responses.append(replace(response, scores={**response.scores, **scores}))
                index += 1
            scored.append(replace(group, responses=tuple(responses)))
        return scored

    def combine(self, groups: Sequence[Group]) -> CombinedReward:
        """The combination over these scored groups as one batch, to learn from.

        Raises PluginError if a reward is not finite.
        """
        names = [name for name, _ in self.leaves()]
        responses = [response for group in groups for response in group.responses]
        # What was measured stays; only the combination is computed again, over fewer responses.
        components = {name: [r.scores.get(name) for r in responses] for name in names}
        combined = self._combined(groups, components, learning=True)
        for response, reward, raw in zip(responses, combined.reward.tolist(), combined.raw.tolist(), strict=True):
            if not math.isfinite(reward) or not math.isfinite(raw):
                raise self._wrong(
                    "combine", f"the reward is {reward} ({raw} before whitening) for scores {response.scores}"
                )
        return combined

    def states(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """What combinations remember, by their place in the expression. Raises PluginError if it is not JSON."""
        found: dict[str, dict[str, Any]] = {}
        if isinstance(self.plugin, RewardCombination) and self.plugin.state:
            try:
                json.dumps(self.plugin.state)
            except (TypeError, ValueError) as error:
                raise self._wrong("combine", f"`state` must be JSON; use float(...) ({error})") from error
            found[prefix + self.name] = self.plugin.state
        for child in self.children.values():
            found |= child.states(f"{prefix}{self.name}/")
        return found

    def restore(self, states: Mapping[str, dict[str, Any]], prefix: str = "") -> None:
        """Let combinations remember what a checkpoint kept."""
        if state := states.get(prefix + self.name):
            self.plugin.state = copy.deepcopy(state)
        for child in self.children.values():
            child.restore(states, f"{prefix}{self.name}/")

    def leaves(self, prefix: str = "") -> Iterator[tuple[str, Scorer]]:
        """The single rewards, each with the name of its scores."""
        if not self.children:
            yield prefix + self.name, self
        yield from ((prefix + name, child) for name, child in self.children.items() if not child.children)
        for name, child in self.children.items():
            if child.children:
                yield from child.leaves(f"{prefix}{name}/")

    def _components(self, groups: Sequence[Group], prefix: str = "") -> dict[str, list[float | None]]:
        if not self.children:
            return {prefix + self.name: self._leaf(groups)}
        columns: dict[str, list[float | None]] = {}
        for name, child in self.children.items():
            # A leaf appends its own name to the prefix; a combination becomes a part of it. `leaves` does the same.
            columns |= child._components(groups, f"{prefix}{name}/" if child.children else prefix)
        return columns

    def _leaf(self, groups: Sequence[Group]) -> list[float | None]:
        """The scores of a single component, one per response."""
        if self.spec.kind in ("stage", "folder"):
            return self._known.of(self.spec.name, groups, lambda: self._scored(groups))
        return self._scored(groups)

    def _scored(self, groups: Sequence[Group]) -> list[float | None]:
        return self.column(groups) if self._rows is None else self._rows(self, groups)

    def column(self, groups: Sequence[Group]) -> list[float | None]:
        """The scores of a single component for groups that it sees at once, one per response, checked."""
        sizes = [len(group.responses) for group in groups]
        self.reasons, self.spent = {}, []  # a process that has no share of the groups asks nobody
        column = self.reducer.deal(sizes, lambda own: self._column([groups[index] for index in own]))
        for index, value in enumerate(column):
            if value is not None and not _is_number(value):
                prompt = preview([group for group in groups for _ in group.responses][index])
                shown = "too large" if isinstance(value, int) else f"{value!r:.100}"
                raise self._wrong(
                    "score",
                    f"the score is {shown} for response {index} (prompt: {prompt}); return a finite number, or "
                    "None for a response that cannot be scored",
                )
        return column

    def _column(self, groups: Sequence[Group]) -> list[float | None]:
        """As many scores as responses, which may be anything else."""
        if self.spec.kind in ("stage", "folder"):
            column = list(self.context.models.scores(self.spec.name, groups))
        else:
            column = self._scores(groups)
        if len(column) != (count := sum(len(group.responses) for group in groups)):
            raise self._wrong("score", f"return {count} scores, one per response, not {len(column)}")
        return column

    def _scores(self, groups: Sequence[Group]) -> list[float | None]:
        """What the plugin says."""
        asked = (without_score(), spending())
        with asked[0] as self.reasons, asked[1] as self.spent, calling(self.author, "score", self.plugin):
            scores = self.plugin.score(groups)
        if not isinstance(scores, Mapping) or len(scores) != 1:
            what = f"components {sorted(map(str, scores))}" if isinstance(scores, Mapping) else type(scores).__name__
            raise self._wrong("score", f'return one component, such as {{"": [0.5, 1.0]}}, not {what}')
        (column,) = scores.values()
        if isinstance(column, Tensor):
            column = column.tolist()
        if not isinstance(column, Sequence) or isinstance(column, str):
            raise self._wrong("score", f"return a list of scores, not {type(column).__name__}")
        return list(column)

    def _wrong(self, method: str, text: str) -> AlignkitError:
        if self.plugin is None:  # a reward model
            return RunFailed(f"reward '{self.name}': {text}")
        return self.author.error(f"{type(self.plugin).__name__}.{method}", f"reward '{self.name}': {text}")

    def _combined(
        self,
        groups: Sequence[Group],
        components: Mapping[str, Sequence[float | None]],
        prefix: str = "",
        *,
        learning: bool,
    ) -> CombinedReward:
        """learning: whether a combination keeps what it remembers of this call."""
        if not self.children:
            values = _tensor(components[prefix + self.name])
            return CombinedReward(values, values, {})
        assert isinstance(self.plugin, RewardCombination)
        parts: dict[str, CombinedReward] = {}
        for name, child in self.children.items():
            below = f"{prefix}{name}/" if child.children else prefix
            parts[name] = child._combined(groups, components, below, learning=learning)
        if any(child.whitens for child in self.children.values()):
            # Whitened and raw parts are combined separately. If both calls were remembered, a batch would count twice.
            whitened = self._combination(groups, {name: part.reward for name, part in parts.items()}, learning=False)
            raw = self._combination(groups, {name: part.raw for name, part in parts.items()}, learning=learning)
            return replace(raw, reward=whitened.reward)
        return self._combination(groups, {name: part.raw for name, part in parts.items()}, learning=learning)

    def _combination(
        self, groups: Sequence[Group], components: Mapping[str, Tensor], *, learning: bool
    ) -> CombinedReward:
        """What the plugin makes of its components."""
        before = copy.deepcopy(self.plugin.state)
        with calling(self.author, "combine", self.plugin):
            combined = self.plugin.combine(groups, components)
        if not learning:
            self._changes = self._changes or (self.plugin.state != before and not self.plugin.whitens)
            self.plugin.state = before
        if not isinstance(combined, CombinedReward):
            raise self._wrong("combine", f"return a CombinedReward, not {type(combined).__name__}")
        count = sum(len(group.responses) for group in groups)
        for name, values in (("reward", combined.reward), ("raw", combined.raw)):
            if not isinstance(values, Tensor) or tuple(values.shape) != (count,):
                found = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
                raise self._wrong("combine", f"'{name}' must be [responses] = [{count}], not {found}")
        return combined


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an integer beyond the floats
        return False


def _tensor(column: Sequence[float | None]) -> Tensor:
    return torch.tensor([math.nan if x is None else x for x in column], dtype=torch.float64)


# --- rollouts


@dataclass(frozen=True)
class ScoredRollouts:
    """Rollouts with their rewards.

    groups: those to learn from: the responses that could be scored, in their groups; groups left without a response are
    absent. combined: the reward of these responses; None if nothing is learned from a reward, and `groups` are all.
    all_groups: every response, scored or not. Rewards include the penalty for a missing end of turn, and components do
    not. penalty: its mean.
    """

    groups: list[Group]
    combined: CombinedReward | None
    all_groups: list[Group]
    penalty: float | None = None

    @property
    def usable(self) -> list[bool]:
        """Whether each response of `all_groups` could be scored."""
        return [_has_score(response) for group in self.all_groups for response in group.responses]

    @property
    def unscored(self) -> int:
        """The number of responses that could not be scored; 0 if there is no reward."""
        responses = [response for group in self.all_groups for response in group.responses]
        # Without a reward the key is missing; None means that a reward found no score.
        return sum(REWARD_KEY in r.scores and r.scores[REWARD_KEY] is None for r in responses)

    @property
    def raw(self) -> Tensor | None:
        """The raw rewards of all responses that have one, float64; None if there are none."""
        if self.combined is not None:
            return self.combined.raw
        scores = [response.scores.get(REWARD_KEY) for group in self.all_groups for response in group.responses]
        known = [score for score in scores if score is not None]
        return torch.tensor(known, dtype=torch.float64) if known else None


def report_only(scorer: Scorer | None, groups: Sequence[Group]) -> ScoredRollouts:
    """Rollouts of an algorithm that learns from no reward, with the scores of the recipe's reward if it names one."""
    scored = list(groups) if scorer is None else scorer.score(groups)
    return ScoredRollouts(scored, None, scored)


def score_rollouts(scorer: Scorer, groups: Sequence[Group], penalty: float = 0.0) -> ScoredRollouts:
    """Score and combine. penalty: subtracted from the rewards of truncated responses."""
    scored = scorer.score(groups)
    usable = with_scores(scored)
    if not usable:
        nothing = torch.zeros(0, dtype=torch.float64)
        return ScoredRollouts([], CombinedReward(nothing, nothing, {}), scored)
    combined = scorer.combine(usable)
    if not penalty:
        return ScoredRollouts(usable, combined, scored)
    # After combining: whitening would rescale the penalty, and the scores of other responses with it.
    scored = penalize(scored, penalty)
    usable = with_scores(scored)  # the same responses as before, in the same order
    ended = torch.tensor([not response.truncated for group in usable for response in group.responses])
    reward, raw = (F.missing_eos_penalty(scores, ended, penalty) for scores in (combined.reward, combined.raw))
    mean = penalty * float((~ended).double().mean())
    return ScoredRollouts(usable, replace(combined, reward=reward, raw=raw), scored, mean)


def most_different(groups: Sequence[Group], combined: CombinedReward, count: int) -> tuple[list[Group], CombinedReward]:
    """`count` responses of each group, those with the highest and lowest rewards, and their rewards (PODS).

    Responses keep their order. Groups with fewer responses stay whole.
    """
    kept, rows, first = [], [], 0  # rows: indices into the responses of all groups
    for group in groups:
        last = first + len(group.responses)
        chosen = F.most_different(combined.reward[first:last], min(count, last - first)).tolist()
        kept.append(replace(group, responses=tuple(group.responses[index] for index in chosen)))
        rows += [first + index for index in chosen]
        first = last
    return kept, combined.take(rows)


def with_learned(groups: Sequence[Group], combined: CombinedReward | None) -> list[Group]:
    """The groups as filters and `keep_group` see them: their scores include the reward that is learned from."""
    if combined is None:
        return list(groups)
    rewards = iter(combined.reward.tolist())
    return [
        replace(g, responses=tuple(replace(r, scores={**r.scores, LEARNED_KEY: next(rewards)}) for r in g.responses))
        for g in groups
    ]


def with_scores(groups: Sequence[Group]) -> list[Group]:
    """The groups without the responses that could not be scored."""
    scored = [replace(group, responses=tuple(filter(_has_score, group.responses))) for group in groups]
    return [group for group in scored if group.responses]


def penalize(groups: Sequence[Group], penalty: float) -> list[Group]:
    """The groups, with the penalty subtracted from the raw reward of truncated responses; methods select by it."""
    return [replace(group, responses=tuple(_penalized(r, penalty) for r in group.responses)) for group in groups]


def _penalized(response: Response, penalty: float) -> Response:
    score = response.scores[REWARD_KEY]
    if score is None or not response.truncated:
        return response
    return replace(response, scores={**response.scores, REWARD_KEY: score - penalty})


def _has_score(response: Response) -> bool:
    return response.scores.get(REWARD_KEY) is not None
