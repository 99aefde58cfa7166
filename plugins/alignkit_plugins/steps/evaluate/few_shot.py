"""Policies with examples in front of each prompt: the baseline that InstructGPT compared with, prompted GPT-3.

The examples are drawn once, with the seed of the samples, and are the same for all prompts (Ouyang et al. 2022,
arXiv:2203.02155, section 3.5: GPT-3 with a few-shot prefix). Demonstrations become earlier turns of the conversation;
raw texts become text in front of its first turn. A prompt never sees itself: an example with its words is left out, and
another takes its place. Only the policy reads the examples. Rewards, judges and the reference of the KL see the plain
prompt.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import field_validator

import alignkit
from alignkit import DataError, DataRef, Field, Group, Message, PolicyRef, StepContext, seeds
from alignkit.data.group import preview, prompts_of, sha256_of
from alignkit.evaluation.comparison import Prompted, check_unique, short_names


class FewShot(alignkit.Options):
    """Policies that also answer with examples in front of each prompt."""

    policies: list[PolicyRef] = Field(
        min_length=1, description="policies that also answer with examples in front; results are named `base+4`"
    )
    examples: DataRef = Field(description="demonstrations to draw the examples from, or texts to put in front")
    shots: int = Field(4, ge=1, le=1024, description="examples in front of each prompt")
    baseline: bool = Field(False, description="compare the others with the first of these policies, with its examples")

    @field_validator("policies")
    @classmethod
    def _unique(cls, value: list[str]) -> list[str]:
        for name in value:
            check_no_examples(name)
        check_unique("policies", value)
        return value

    def named(self, others: Sequence[str]) -> dict[str, str]:
        """The references of the policies, by their names with examples. others: the policies without examples."""
        short = short_names(list(dict.fromkeys([*others, *self.policies])))
        return {f"{short[policy]}+{self.shots}": policy for policy in self.policies}


def check_no_examples(policy: str, *, is_baseline: bool = False) -> None:
    """Raise ValueError if a stage is named as results name a policy with examples, such as `sft+4`."""
    if match := re.fullmatch(r"([\w-]+(?:@\d+)?)\+(\d+)", policy):
        name, shots = match.groups()
        keys = f"policies: [{name}], examples: DATA, shots: {shots}{', baseline: true' if is_baseline else ''}"
        raise ValueError(
            f"'{policy}' is no stage: results call {name} so with {shots} examples in front of each prompt; "
            f"ask for it with `few_shot: {{{keys}}}`"
        )


@dataclass(frozen=True)
class Examples:
    """Examples in the order in which they were drawn. shots: how many are put in front of a prompt."""

    drawn: Sequence[Group]
    shots: int

    @property
    def first(self) -> list[Group]:
        """The examples of every prompt that is none of them."""
        return list(self.drawn[: self.shots])

    def of(self, prompt: Group) -> list[Group]:
        """The examples of a prompt: the first ones that do not say its words."""
        others = (example for example in self.drawn if not _says(example, prompt))
        return list(itertools.islice(others, self.shots))

    def messages(self, prompt: Group) -> tuple[Message, ...]:
        """What the policy reads: the examples and the prompt. A system message of the prompt stays first."""
        examples = self.of(prompt)
        first = 1 if prompt.prompt[0]["role"] == "system" else 0
        system, turns = prompt.prompt[:first], prompt.prompt[first:]
        if turns and examples and not examples[0].prompt:
            text = "\n\n".join([*(example.responses[0].text for example in examples), turns[0].get("content", "")])
            asked = turns[0].copy()
            asked["content"] = text
            return (*system, asked, *turns[1:])
        return (*system, *(turn for example in examples for turn in _turns(example)), *turns)

    def notes(self, names: Iterable[str], prompts: Sequence[Group]) -> list[str]:
        """What a reader of the results must know."""
        count = self.own(prompts)
        own = f"; at {count} prompts their own words were left out and the next example was used" if count else ""
        notes = [f"{', '.join(names)}: {self.shots} examples in front of each prompt{own}"]
        if lacking := sum(len(self.of(prompt)) < self.shots for prompt in prompts):
            notes.append(f"{lacking} prompts have fewer than {self.shots} examples, because no other one was left")
        if any(turn["role"] == "system" for example in self.first for turn in example.prompt):
            notes.append("system messages of examples are left out; that of a prompt stays first")
        return notes

    def own(self, prompts: Sequence[Group]) -> int:
        """The number of prompts whose own words are among the examples that the others have."""
        return sum(self.of(prompt) != self.first for prompt in prompts)

    def summary(self, names: Iterable[str], prompts: Sequence[Group]) -> dict[str, Any]:
        """For evaluation.json. names: of the policies with examples."""
        without = {name: name.removesuffix(f"+{self.shots}") for name in names}
        return {"policies": without, "shots": self.shots, "own_words": self.own(prompts)}

    def prompted(self, role: str) -> Prompted:
        """The policy with these examples in front of each prompt."""
        return Prompted(role, self.messages)


def draw(options: FewShot, context: StepContext) -> Examples:
    """The examples of an evaluation. Raises DataError as `different` does."""
    examples = different(options, context.load(options.examples))
    order = seeds.stream(context.seed, context.stage, "few_shot").permutation(len(examples))
    return Examples([examples[place] for place in order], options.shots)


def different(options: FewShot, rows: Iterable[Group]) -> list[Group]:
    """The different examples among rows. Raises DataError if they are too few, or for rows that are none."""
    found: dict[str, Group] = {}
    for group in rows:
        if fault := _fault(group):
            raise DataError(
                f"few_shot.examples: {group.origin or 'a row'} ({preview(group)}) {fault}\n"
                "help: an example is a prompt with one good response, or a text",
                option=("few_shot", "examples"),
            )
        found.setdefault(_words(group.prompt) if group.prompt else group.responses[0].text, group)
    examples = list(found.values())
    if len({bool(group.prompt) for group in examples}) > 1:
        raise DataError(
            "few_shot.examples mixes demonstrations and raw texts\nhelp: use only one kind",
            option=("few_shot", "examples"),
        )
    if len(examples) < options.shots:
        raise DataError(
            f"few_shot.examples has {len(examples)} different examples, but shots is {options.shots}\n"
            f"help: give more examples, or set shots to {len(examples)} or less",
            option=("few_shot", "shots"),
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
    turns = [*example.prompt, *(response.messages or (Message(role="assistant", content=response.text),))]
    kept = [turn.copy() for turn in turns if turn["role"] != "system"]
    for turn in kept:
        turn.pop("train", None)
    return kept


def _says(example: Group, prompt: Group) -> bool:
    """Whether an example would show the prompt itself."""
    if not example.prompt:
        return prompt.prompt[-1].get("content", "").strip() in example.responses[0].text
    own = [example.prompt, *(group.prompt for group in prompts_of([example]))]
    return _words(prompt.prompt) in map(_words, own)


def _words(messages: Sequence[Message]) -> str:
    """The same for prompts with the same words; system messages do not count."""
    return sha256_of([[m["role"], m.get("content", "").strip()] for m in messages if m["role"] != "system"])
