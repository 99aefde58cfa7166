"""Policies that answer in another way: with examples in front of the prompt, or with the best of
several answers.

Examples are the baseline that InstructGPT compared with, GPT-3 with a few-shot prefix (Ouyang et
al. 2022, arXiv:2203.02155, section 3.5). They are the same for all prompts: earlier turns of the
conversation. Only the policy reads them: rewards, judges and the reference of the KL see the plain
prompt.

The best of N answers by a reward is what WebGPT (Nakano et al. 2021, arXiv:2112.09332, section 3.2)
calls rejection sampling: it needs no training, and N times the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import model_validator

import alignkit
from alignkit import DataError, DataRef, Field, Group, Message, PolicyRef, RewardRef
from alignkit.data.group import preview, prompts_of, sha256_of, why_not_demonstration
from alignkit.reward import REWARD_KEY
from alignkit_plugins.compare.comparison import Prompted, short_names
from alignkit_plugins.compare.reward_columns import bare, label


class Variant(alignkit.Options):
    """A policy, and how it answers."""

    policy: PolicyRef = Field(description="who answers: `base`, a stage or `STAGE@k`")
    few_shot: DataRef | None = Field(
        None,
        description=(
            "demonstrations to put in front of each prompt, all of them: `limit: 4` takes the first"
        ),
    )
    best_of: int = Field(
        1, ge=1, le=1024, description="how many answers `reward` chooses each answer from"
    )
    reward: RewardRef | None = Field(None, description="what chooses among `best_of` answers")
    name: str = Field(
        "",
        description="name of the policy in results; default: such as `sft, best of 4 by helpful`",
    )

    @model_validator(mode="after")
    def _differs(self) -> Any:
        if (self.best_of > 1) != (self.reward is not None):
            raise ValueError(
                "best_of and reward belong together: `best_of: 4` answers, and what chooses "
                "among them"
            )
        if self.few_shot is None and self.best_of == 1:
            raise ValueError(
                f"it would answer as {self.policy} does: add 'few_shot', or 'best_of' and 'reward'"
            )
        return self

    def title(self, policy: str) -> str:
        """What results call it. policy: what they call the policy itself."""
        shots = ", few-shot" if self.few_shot is not None else ""
        best = f", best of {self.best_of} by {label(self.reward)}" if self.best_of > 1 else ""
        return self.name or f"{policy}{shots}{best}"


def role_of(policy: str | Variant) -> str:
    """The reference of the model that answers."""
    return policy.policy if isinstance(policy, Variant) else policy


def by_title(policies: Sequence[str | Variant]) -> list[tuple[str, str | Variant]]:
    """The policies of a recipe with what its results call them."""
    short = short_names(list(dict.fromkeys(map(role_of, policies))))
    return [(p.title(short[p.policy]) if isinstance(p, Variant) else short[p], p) for p in policies]


def answering(policy: str | Variant, shots: Sequence[Group], scorer: Any) -> Prompted:
    """How a policy answers. shots: of `shots_of`. scorer: of the reward that chooses."""
    if not isinstance(policy, Variant):
        return Prompted(policy)
    turns = list[Message]()
    for example in shots:
        turns += _turns(example)

    def read(group: Group) -> Group:
        first = 1 if group.prompt[0]["role"] == "system" else 0
        return replace(group, prompt=(*group.prompt[:first], *turns, *group.prompt[first:]))

    def choose(groups: list[Group]) -> list[Group]:
        answered = [group for group in groups if group.responses]
        scored = iter(scorer.score(bare(answered)) if answered else ())
        return [
            _best(group, next(scored), policy.best_of) if group.responses else group
            for group in groups
        ]

    if policy.best_of == 1:
        return Prompted(policy.policy, read)
    return Prompted(policy.policy, read, policy.best_of, choose)


def _best(group: Group, scored: Group, best_of: int) -> Group:
    """The group with the best of each `best_of` drafts: those of the first answer come first."""
    places = best_places([response.scores[REWARD_KEY] for response in scored.responses], best_of)
    # Without log-probabilities: those of a draft are not those of the best of several.
    return replace(
        group, responses=tuple(replace(group.responses[place], logprobs=None) for place in places)
    )


def best_places(scores: Sequence[float | None], best_of: int) -> list[int]:
    """The place of the best of each `best_of` scores: the first of equal ones. None is the
    worst.
    """
    known = [float("-inf") if score is None else score for score in scores]
    return [
        max(range(start, start + best_of), key=known.__getitem__)
        for start in range(0, len(known), best_of)
    ]


def shots_of(rows: Sequence[Group], prompts: Sequence[Group]) -> list[Group]:
    """The examples among rows. prompts: those that will be answered, of which no row may be one.

    Raises DataError, with an option of Variant, for rows that are no demonstrations, or that show a
    prompt.
    """
    asked = {_words(prompt.prompt) for prompt in prompts}
    for group in rows:
        fault = why_not_demonstration(group)
        if not fault and not asked.isdisjoint(
            [_words(group.prompt), *(_words(one.prompt) for one in prompts_of([group]))]
        ):
            fault = "shows a prompt that is evaluated; leave it out of the examples"
        if fault:
            text = f"few_shot: {group.origin or 'a row'} ({preview(group)}) {fault}"
            raise DataError(text, option=("few_shot",))
    return list(rows)


def _turns(example: Group) -> list[Message]:
    """A demonstration as turns, without system messages and without marks of what is learned."""
    response = example.responses[0]
    turns = [
        *example.prompt,
        *(response.messages or (Message(role="assistant", content=response.text),)),
    ]
    kept = [turn.copy() for turn in turns if turn["role"] != "system"]
    for turn in kept:
        turn.pop("train", None)
    return kept


def _words(messages: Sequence[Message]) -> str:
    """The same for prompts with the same words; system messages do not count."""
    return sha256_of(
        [[m["role"], m.get("content", "").strip()] for m in messages if m["role"] != "system"]
    )
