"""Pairs of people's preferences with the scores that a reward gives both responses."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from alignkit import Group, Pair, Response
from alignkit import functional as F
from alignkit.data.group import resolved_pairs, turns_of
from alignkit_plugins.formats.spoken import all_turns


@dataclass(frozen=True)
class Comparison:
    """One pair. row: its place among the rows. prompt: that of the first row with the same prompt.

    chosen, rejected: scores, the people's choice first. longer: how many characters the chosen
    response is longer. p: the probability that it is the better one.
    """

    row: int
    prompt: int
    group: Group
    pair: Pair
    chosen: float
    rejected: float
    longer: int
    p: float

    @property
    def gap(self) -> float:
        """How much higher the chosen response scores; 0 if the scores differ only by rounding."""
        return 0.0 if F.nearly_equal(self.chosen, self.rejected) else self.chosen - self.rejected


@dataclass(frozen=True)
class Choice:
    """A pair with a better response. better, worse: by people; p: how likely that is. row, prompt:
    as in Comparison.
    """

    row: int
    prompt: int
    group: Group
    pair: Pair
    better: Response
    worse: Response
    p: float

    def scored(self, chosen: float, rejected: float) -> Comparison:
        """With the scores of both responses."""
        longer = len(all_turns(self.better)) - len(all_turns(self.worse))
        return Comparison(
            self.row, self.prompt, self.group, self.pair, chosen, rejected, longer, self.p
        )


def choices(groups: Sequence[Group]) -> Iterator[Choice]:
    """All pairs, in order, without those that the data call a tie. One with `p` below 0.5 is turned
    around.
    """
    prompts = prompts_of(groups)
    for place, group in enumerate(groups):
        for pair in resolved_pairs(group):
            if pair.p != 0.5:
                better, worse = group.responses[pair.better], group.responses[pair.worse]
                if pair.p < 0.5:
                    better, worse = worse, better
                yield Choice(
                    place, prompts[place], group, pair, better, worse, max(pair.p, 1 - pair.p)
                )


def comparisons(groups: Sequence[Group], column: str) -> list[Comparison]:
    """The choices of which both responses have this score."""
    found = []
    for choice in choices(groups):
        chosen, rejected = choice.better.scores[column], choice.worse.scores[column]
        if chosen is not None and rejected is not None:
            found.append(choice.scored(chosen, rejected))
    return found


def prompts_of(groups: Sequence[Group]) -> list[int]:
    """For each row, the first row with the same prompt: many data sets have a row per pair. Raw
    texts have none.
    """
    first: dict[str, int] = {}
    return [
        first.setdefault(json.dumps(turns_of(group.prompt)), place) if group.prompt else place
        for place, group in enumerate(groups)
    ]
