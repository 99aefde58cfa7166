"""Policies that answer in another way: with examples in front of the prompt, or with the best of
several answers.

Examples are the baseline that InstructGPT compared with, GPT-3 with a few-shot prefix (Ouyang et
al. 2022, arXiv:2203.02155, section 3.5). They are drawn once, and are the same for all prompts.
Demonstrations become earlier turns of the conversation; raw texts become text in front of its first
turn. Only the policy reads them: rewards, judges and the reference of the KL see the plain prompt.

The best of N answers by a reward is what WebGPT (Nakano et al. 2021, arXiv:2112.09332, section 3.2)
calls rejection sampling: it needs no training, and N times the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import Any

from pydantic import model_validator

import alignkit
from alignkit import DataError, DataRef, Field, Group, Message, PolicyRef, RewardRef, seeds
from alignkit.data.group import preview, prompts_of, sha256_of
from alignkit_plugins.compare.comparison import short_names
from alignkit_plugins.compare.reward_columns import label


class Variant(alignkit.Options):
    """A policy, and how it answers."""

    policy: PolicyRef = Field(description="who answers: `base`, a stage or `STAGE@k`")
    few_shot: DataRef | None = Field(
        None,
        description="demonstrations to draw examples from, or texts to put in front of the prompts",
    )
    shots: int = Field(4, ge=1, le=1024, description="number of examples in front of each prompt")
    best_of: int = Field(
        1, ge=1, le=1024, description="how many answers `reward` chooses each answer from"
    )
    reward: RewardRef | None = Field(None, description="what chooses among `best_of` answers")
    name: str = Field(
        "",
        description="name of the policy in results; default: such as `sft, best of 4 by helpful`",
    )
    baseline: bool = Field(False, description="compare the other policies with this one")

    @model_validator(mode="after")
    def _differs(self) -> Any:
        if self.best_of > 1 and self.reward is None:
            raise ValueError(f"best_of: {self.best_of} needs a 'reward' that chooses")
        if self.best_of == 1 and self.reward is not None:
            raise ValueError("'reward' chooses among several answers: set best_of to 2 or more")
        if self.few_shot is None and "shots" in self.model_fields_set:
            raise ValueError("'shots' counts examples: name them with 'few_shot'")
        if self.few_shot is None and self.best_of == 1:
            raise ValueError(
                f"it would answer as {self.policy} does: add 'few_shot', or 'best_of' and 'reward'"
            )
        return self

    def title(self, policy: str) -> str:
        """What results call it. policy: what they call the policy itself."""
        shots = (
            f", {self.shots} shot{'s' if self.shots > 1 else ''}"
            if self.few_shot is not None
            else ""
        )
        best = f", best of {self.best_of} by {label(self.reward)}" if self.best_of > 1 else ""
        return self.name or f"{policy}{shots}{best}"

    def chosen_by(self, rater: Any, learned: Callable[[Any, Any], bool | None]) -> bool:
        """Whether a rater shares a single reward with the one that chooses its answers. learned: of
        the context.
        """
        return self.reward is not None and bool(learned(self.reward, rater))


def role_of(policy: str | Variant) -> str:
    """The reference of the model that answers."""
    return policy.policy if isinstance(policy, Variant) else policy


def by_title(policies: Sequence[str | Variant]) -> dict[str, str | Variant]:
    """The policies of a recipe by what its results call them; a reference keeps its name."""
    short = short_names(list(dict.fromkeys(map(role_of, policies))))
    return {p.title(short[p.policy]) if isinstance(p, Variant) else p: p for p in policies}


# --- the best of several answers


def best_places(scores: Sequence[float | None], best_of: int) -> list[int]:
    """The place of the best of each `best_of` scores: the first of equal ones. None is the
    worst.
    """
    known = [float("-inf") if score is None else score for score in scores]
    return [
        max(range(start, start + best_of), key=known.__getitem__)
        for start in range(0, len(known), best_of)
    ]


# --- examples in front of a prompt


@dataclass(frozen=True)
class Examples:
    """Examples that are put in front of every prompt, in this order."""

    groups: Sequence[Group]

    def messages(self, prompt: Sequence[Message]) -> tuple[Message, ...]:
        """What the policy reads. A system message of the prompt stays first; those of examples are
        left out.
        """
        first = 1 if prompt[0]["role"] == "system" else 0
        system, turns = prompt[:first], prompt[first:]
        if turns and not self.groups[0].prompt:
            asked = turns[0].copy()
            texts = (example.responses[0].text for example in self.groups)
            asked["content"] = "\n\n".join([*texts, turns[0].get("content", "")])
            return (*system, asked, *turns[1:])
        return (*system, *(turn for example in self.groups for turn in _turns(example)), *turns)


def draw(
    rows: Iterable[Group], shots: int, seed: int, stage: str = "", prompts: Sequence[Group] = ()
) -> Examples:
    """Examples among rows, by the seed. prompts: those that will be answered, of which no row may
    be one.

    Raises DataError, with an option of Variant, for rows that are no examples or that show a
    prompt, and for too few.
    """
    examples = _different(rows, shots)
    texts = {prompt.prompt[-1].get("content", "").strip() for prompt in prompts} - {""}
    asked = {_words(prompt.prompt) for prompt in prompts}
    if shown := [example for example in examples if _says(example, asked, texts)]:
        raise DataError(
            f"few_shot: {len(shown)} of {len(examples)} examples show a prompt that is evaluated, "
            f"such as {shown[0].origin or 'a row'} ({preview(shown[0])})\n"
            "help: leave these rows out of the examples",
            option=("few_shot",),
        )
    order = seeds.stream(seed, stage, "few_shot").permutation(len(examples))[:shots]
    return Examples([examples[place] for place in order])


def _different(rows: Iterable[Group], shots: int) -> list[Group]:
    """The different examples among rows."""
    found: dict[str, Group] = {}
    for group in rows:
        if fault := _fault(group):
            raise DataError(
                f"few_shot: {group.origin or 'a row'} ({preview(group)}) {fault}\n"
                "help: an example is a prompt with one good response, or a text",
                option=("few_shot",),
            )
        found.setdefault(_words(group.prompt) if group.prompt else group.responses[0].text, group)
    examples = list(found.values())
    if len({bool(group.prompt) for group in examples}) > 1:
        raise DataError(
            "few_shot mixes demonstrations and raw texts\nhelp: use only one kind",
            option=("few_shot",),
        )
    if len(examples) < shots:
        raise DataError(
            f"few_shot has {len(examples)} different examples, but shots is {shots}\n"
            f"help: give more examples, or set shots to {len(examples)} or less",
            option=("shots",),
        )
    return examples


def _fault(group: Group) -> str:
    """Why a group is no example; empty if it is one."""
    count = len(group.responses)
    if count != 1:
        return f"has {count or 'no'} response{'s' if count > 1 else ''}"
    return "is labeled as bad" if group.responses[0].label is False else ""


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


def _says(example: Group, asked: Set[str], texts: Set[str]) -> bool:
    """Whether an example shows a prompt; a dialogue may at each of its questions. asked: the
    `_words` of all prompts.

    texts: what they say last, which a raw text may hold.
    """
    if not example.prompt:
        return any(text in example.responses[0].text for text in texts)
    return not asked.isdisjoint(
        [_words(example.prompt), *(_words(group.prompt) for group in prompts_of([example]))]
    )


def _words(messages: Sequence[Message]) -> str:
    """The same for prompts with the same words; system messages do not count."""
    return sha256_of(
        [[m["role"], m.get("content", "").strip()] for m in messages if m["role"] != "system"]
    )
