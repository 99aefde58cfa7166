"""How policies with options answer: with which examples in front, which of several answers is
theirs, at what cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from alignkit import Group, Response, StepContext
from alignkit.data.group import length, write_groups
from alignkit.evaluation import statistics
from alignkit.reward import REWARD_KEY
from alignkit_plugins.compare.comparison import Prompted, answers_of, short_names
from alignkit_plugins.compare.reward_columns import bare, label
from alignkit_plugins.evaluate.variant import Examples, Variant, best_places, draw

EXAMPLES = "examples.jsonl"  # those of all policies, with the column `policy`


class Answering:
    """The policies with options of an evaluation. samples: answers of each policy to each prompt.

    A reward that cannot work fails here, before anything is sampled.
    """

    def __init__(self, variants: Mapping[str, Variant], samples: int, context: StepContext):
        self._variants, self._samples, self._context = variants, samples, context
        self._scorers = {
            name: context.scorer(one.reward)
            for name, one in variants.items()
            if one.reward is not None
        }
        self._examples: dict[str, Examples] = {}
        # Tokens of all drafts of a best of N, by the prompt's id
        self._written: dict[str, dict[str, int]] = {}

    def draw(self, prompts: Sequence[Group]) -> None:
        """Draw the examples of all policies and write them down. Raises DataError as `variant.draw`
        does.
        """
        context = self._context
        for name, one in self._variants.items():
            if one.few_shot is not None:
                rows = context.load(one.few_shot)
                self._examples[name] = draw(rows, one.shots, context.seed, context.stage, prompts)
        shown = [
            (name, group) for name, examples in self._examples.items() for group in examples.groups
        ]
        if shown:
            rows = [replace(group, meta={**group.meta, "policy": name}) for name, group in shown]
            write_groups(context.out / EXAMPLES, rows)

    @property
    def prompted(self) -> dict[str, Prompted]:
        """How each of them answers."""
        return {name: self._prompted(name, one) for name, one in self._variants.items()}

    def _prompted(self, name: str, one: Variant) -> Prompted:
        found = Prompted(one.policy)
        if (examples := self._examples.get(name)) is not None:
            found = replace(
                found, read=lambda group: replace(group, prompt=examples.messages(group.prompt))
            )
        if one.best_of > 1:
            found = replace(
                found, drafts=one.best_of, choose=lambda groups: self._chosen(name, groups)
            )
        return found

    def _chosen(self, name: str, groups: Sequence[Group]) -> list[Group]:
        """The groups with the best of each `best_of` drafts: those of the first answer come
        first.
        """
        best_of = self._variants[name].best_of
        self._context.say(
            f"{self._context.out.name}: {label(self._variants[name].reward)} chooses for {name}"
        )
        self._written[name] = {group.id: sum(map(length, group.responses)) for group in groups}
        asked = [group for group in groups if group.responses]
        scored = iter(self._scorers[name].score(bare(asked)) if asked else ())

        def chosen(group: Group) -> Iterator[Response]:
            scores = [response.scores[REWARD_KEY] for response in next(scored).responses]
            for place in best_places(scores, best_of):
                # Without log-probabilities: those of a draft are not those of the best of several.
                yield replace(group.responses[place], logprobs=None)

        return [
            replace(group, responses=tuple(chosen(group))) if group.responses else group
            for group in groups
        ]

    def tokens(self, policy: str, groups: Sequence[Group]) -> dict[str, float]:
        """The mean cost of an answer in tokens: the prompt that the policy reads, and all that it
        writes for it.
        """
        asked = self.prompted.get(policy) or Prompted(policy)
        read = self._context.models[asked.role].prompt_lengths(
            [asked.read(group) for group in groups]
        )
        # Also of prompts that are left out, for another policy has no room
        drafts = self._written.get(policy)
        written = [
            drafts[g.id] if drafts else sum(map(length, answers_of(g, policy))) for g in groups
        ]
        return {"read": statistics.mean(read), "written": statistics.mean(written) / self._samples}

    def facts(self, name: str) -> dict[str, Any]:
        """For evaluation.json."""
        one = self._variants[name]
        return {
            "policy": short_names([one.policy])[one.policy],
            "shots": len(self._examples[name].groups) if name in self._examples else 0,
            "best_of": one.best_of,
            "reward": None if one.reward is None else label(one.reward),
        }

    def notes(self, reference: str | None) -> list[str]:
        """What a reader of the results must know."""
        notes = []
        if any(
            turn["role"] == "system"
            for e in self._examples.values()
            for g in e.groups
            for turn in g.prompt
        ):
            notes.append("system messages of examples are left out; that of a prompt stays first")
        best = {name: one.best_of for name, one in self._variants.items() if one.best_of > 1}
        if best and reference is not None:
            notes.append(
                f"KL of {'; '.join(best)}: at most this, with log N - (N - 1)/N for the choice"
            )
        return notes
