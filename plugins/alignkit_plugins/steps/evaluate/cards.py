"""The cards of the raters in an evaluation: how far to trust what they prefer (`alignkit.evaluation.judge_card`)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit import CheckedJudge, Group, StepContext, Verdict, seeds
from alignkit.data.spoken import all_turns
from alignkit.evaluation.comparison import answers_of
from alignkit.evaluation.judge_card import PEOPLE, ask_again, card, circular, mapped
from alignkit.evaluation.judge_quality import Judgment, judgment, no_judge, side, times_longer
from alignkit.judges import Item
from alignkit_plugins.steps.evaluate.judged import Judged
from alignkit_plugins.steps.evaluate.people import Said

Ratings = dict[tuple[int, str, int], int]  # (prompt, policy, sample) -> 1 if the policy's answer is better, -1


@dataclass(frozen=True)
class Cards:
    """What the cards rest on. verdicts: policy -> rater -> its comparisons. judges: by name. said: by people."""

    groups: Sequence[Group]
    baseline: str
    verdicts: Mapping[str, Mapping[str, Judged]]
    judges: Mapping[str, CheckedJudge]
    context: StepContext
    said: Said | None = None
    lower: frozenset[str] = frozenset()  # measures whose lower scores are better

    def all(self, rewards: Sequence[str], repeats: int, repeat_pairs: int, triad_prompts: int) -> dict[str, Any]:
        """A card for each rater. rewards: which else rate the answers. For the rest see the step's options."""
        people = [PEOPLE] if self.said is not None else []
        ratings = {name: self._judged(name) for name in (*people, *self.judges)}
        ratings |= {reward: self._scored(reward) for reward in rewards}
        cards = {PEOPLE: self._of_people(self.said, self._with_others(PEOPLE, ratings))} if self.said else {}
        for name, judge in self.judges.items():
            judgments, items = self._asked(name)
            asked = list(zip(items, (each.verdict for each in judgments), strict=True))
            again = ask_again(judge.component, name, self.context, asked, repeats, repeat_pairs)
            sides, more = self._triads(name, triad_prompts)
            others = self._with_others(name, ratings)
            both = len(ratings[name].keys() & ratings.get(PEOPLE, {}).keys())
            known = {"questions": both, **others[PEOPLE]} if both else None
            cards[name] = card(
                judgments, again=again, more=more, people=known, circles=circular(sides), agreement=others
            )
        return cards

    def _compared(self) -> Iterator[tuple[int, str, int, str, str]]:
        """Every two different answers: prompt, policy, sample, the policy's words and the baseline's."""
        for policy in self.verdicts:
            for place, group in enumerate(self.groups):
                pairs = zip(answers_of(group, policy), answers_of(group, self.baseline), strict=True)
                for sample, (ours, theirs) in enumerate(pairs):
                    if all_turns(ours) != all_turns(theirs):
                        yield place, policy, sample, all_turns(ours), all_turns(theirs)

    def _asked(self, name: str) -> tuple[list[Judgment], list[Item]]:
        judgments: list[Judgment] = []
        items: list[Item] = []
        for place, policy, sample, ours, theirs in self._compared():
            if (verdict := self.verdicts[policy][name].of(place, sample)) is not None:
                judgments.append(judgment(place, verdict, ours, theirs, policy))
                items.append((list(self.groups[place].prompt), ours, theirs))
        return judgments, items

    def _of_people(self, said: Said, others: Mapping[str, Any]) -> dict[str, Any]:
        """Their card. A pair is shown once to each of them, so `named_first` counts labels."""
        judgments = [
            Judgment(place, verdict, times_longer(ours, theirs), said.named_first(place, policy), policy)
            for place, policy, sample, ours, theirs in self._compared()
            if (verdict := self.verdicts[policy][PEOPLE].of(place, sample)) is not None
        ]
        found = card(judgments, annotators=said.agreement(self.context.seed), agreement=others)
        known = {**found, "repeated": said.repeated(), "calls": said.facts()["labels"]}
        return {**known, "no_judge": no_judge(known)}

    # Other raters

    def _judged(self, name: str) -> Ratings:
        return {
            (place, policy, sample): found
            for place, policy, sample, *_ in self._compared()
            if (verdict := self.verdicts[policy][name].of(place, sample)) is not None
            and (found := side(verdict.p_first)) is not None
        }

    def _scored(self, reward: str) -> Ratings:
        found: Ratings = {}
        for place, policy, sample, *_ in self._compared():
            group = self.groups[place]
            ours, theirs = (answers_of(group, who)[sample].scores[reward] for who in (policy, self.baseline))
            if ours is not None and theirs is not None and ours != theirs:
                found[place, policy, sample] = 1 if (ours > theirs) != (reward in self.lower) else -1
        return found

    def _with_others(self, name: str, ratings: Mapping[str, Ratings]) -> dict[str, Mapping[str, Any]]:
        return {other: self._agreement(ratings[name], theirs) for other, theirs in ratings.items() if other != name}

    def _agreement(self, ours: Ratings, theirs: Ratings) -> Mapping[str, Any]:
        from alignkit.evaluation.agreement import two_raters  # imports numpy

        units: list[list[tuple[int, int]]] = [[] for _ in self.groups]
        for key, rating in ours.items():
            if key in theirs:
                units[key[0]].append((rating, theirs[key]))
        return two_raters([unit for unit in units if unit], seed=self.context.seed, stream="judges")

    # Triads

    def _triads(self, name: str, count: int) -> tuple[list[dict[tuple[str, str], int | None]], list[Verdict]]:
        """Of some prompts, who is better of every two policies by their first answers; and the verdicts that it took.

        Comparisons with the baseline are there already.
        """
        policies = list(self.verdicts)
        if len(policies) < 2 or not count:
            return [], []
        drawn = seeds.stream(self.context.seed, "triads").permutation(len(self.groups))[:count]
        places = sorted(int(place) for place in drawn)
        asked = [(place, a, b) for place in places for a, b in itertools.combinations(policies, 2)]
        texts = [(self._first(place, a), self._first(place, b)) for place, a, b in asked]
        items = [
            (list(self.groups[place].prompt), *both)
            for (place, *_), both in zip(asked, texts, strict=True)
            if both[0] != both[1]
        ]
        self.context.say(f"{self.context.out.name}: {name} compares {len(items)} pairs of other policies for triads")
        new = mapped(self.judges[name].compare, f"{name}-triads", self.context.map)(items)
        verdicts = iter(new)
        sides: dict[int, dict[tuple[str, str], int | None]] = {place: {} for place in places}
        for (place, a, b), both in zip(asked, texts, strict=True):
            sides[place][a, b] = None if both[0] == both[1] else side(next(verdicts).p_first)
        for place, policy in itertools.product(places, policies):
            sides[place][policy, self.baseline] = side(self.verdicts[policy][name].verdicts[place][0].p_first)
        return list(sides.values()), new

    def _first(self, place: int, policy: str) -> str:
        return all_turns(answers_of(self.groups[place], policy)[0])
