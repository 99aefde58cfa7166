"""The cards of the raters in an evaluation: how far to trust what they prefer (see
`judge_card`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit import Group, StepContext
from alignkit_plugins.ai_feedback.judge_card import Judgment, card, judgment, raters_agree, side
from alignkit_plugins.compare.comparison import answers_of
from alignkit_plugins.evaluate.judged import Judged
from alignkit_plugins.formats.spoken import all_turns

Place = tuple[int, str, int]  # prompt, policy, sample
Ratings = dict[Place, int]  # 1 if the policy's answer is better, else -1


@dataclass(frozen=True)
class Cards:
    """What the cards rest on. verdicts: policy -> rater -> its comparisons. judges: their names."""

    groups: Sequence[Group]
    baseline: str
    verdicts: Mapping[str, Mapping[str, Judged]]
    judges: Sequence[str]
    context: StepContext
    lower: frozenset[str] = frozenset()  # metrics whose lower scores are better

    def all(self, rewards: Sequence[str]) -> dict[str, Any]:
        """A card for each rater. rewards: which else rate the answers."""
        judged = {name: self._judgments(name) for name in self.judges}
        ratings = {}
        for name, found in judged.items():
            sides = {key: side(each.verdict.p_first) for key, each in found.items()}
            ratings[name] = {key: better for key, better in sides.items() if better is not None}
        ratings |= {reward: self._scored(reward) for reward in rewards}
        with_others = {name: self._with_others(name, ratings) for name in judged}
        return {
            name: card(list(found.values()), agreement=with_others[name])
            for name, found in judged.items()
        }

    def _compared(self) -> Iterator[Place]:
        """Where the policy's answer and the baseline's differ."""
        for policy in self.verdicts:
            for place, group in enumerate(self.groups):
                pairs = zip(
                    answers_of(group, policy), answers_of(group, self.baseline), strict=True
                )
                for sample, (ours, theirs) in enumerate(pairs):
                    if all_turns(ours) != all_turns(theirs):
                        yield place, policy, sample

    def _judgments(self, name: str) -> dict[Place, Judgment]:
        found = {}
        for place, policy, sample in self._compared():
            verdict = self.verdicts[policy][name].of(place, sample)
            if verdict is not None:
                found[place, policy, sample] = judgment(place, verdict)
        return found

    # Other raters

    def _scored(self, reward: str) -> Ratings:
        found: Ratings = {}
        for place, policy, sample in self._compared():
            group = self.groups[place]
            ours, theirs = (
                answers_of(group, who)[sample].scores[reward] for who in (policy, self.baseline)
            )
            if ours is not None and theirs is not None and ours != theirs:
                found[place, policy, sample] = (
                    1 if (ours > theirs) != (reward in self.lower) else -1
                )
        return found

    def _with_others(
        self, name: str, ratings: Mapping[str, Ratings]
    ) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for other, theirs in ratings.items():
            if other != name:
                both = [
                    (key[0], ours, theirs[key])
                    for key, ours in ratings[name].items()
                    if key in theirs
                ]
                found[other] = raters_agree(both, self.context.seed)
        return found
