"""Blocks of stages that a recipe repeats (iterated RLHF). They become one stage per round, before
anything else of the recipe is read:

    rlhf:
      repeat: 3
      start: {align: sft}
      stages:
        # The policy is that of the round before, because `align` is below.
        labels: {step: judge_pairs, policy: align, ...}
        # These are the labels of all rounds so far.
        reward: {algorithm: reward_model, from: sft, data: [human.jsonl, labels@all]}
        align: {algorithm: ppo, from: align, reward: reward, ...}

becomes `labels_1`, `reward_1`, `align_1`, `labels_2` and so on. Inside the block, a name means this
round's stage if that stage is above, else the previous round's. `start` sets the meaning of such a
name in round 1. Below the block, a name means the last round's stage. `NAME@all`, in a list or as
data, means the stages of all rounds so far.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from alignkit.contract.options import Field, Options
from alignkit.recipe.load import KINDS, stages_of
from alignkit.recipe.mistakes import Mistake, problems_of, validated
from alignkit.recipe.yaml import Document, Keys, children, rewritten

MAX_ROUNDS = 100
# Keys whose texts name no stage
NO_REFERENCES = ("algorithm", "step", "objective", "name", "description")


class BlockKeys(Options):
    """The keys of a block of stages that a recipe repeats."""

    repeat: int = Field(
        ge=1, le=MAX_ROUNDS, description="number of rounds; each runs every stage of the block once"
    )
    start: dict[str, str] = Field(
        {},
        (
            "round 1 only: the stage to use for a block stage that has not run yet, such as "
            "{align: sft}"
        ),
    )
    stages: dict[str, Any] = Field(
        min_length=1, description="stages of one round; in round k, STAGE is named STAGE_k"
    )


def expand(document: Document) -> None:
    """Replace every block of a recipe by the stages of its rounds."""
    _Blocks(document).expand()


@dataclass
class _Blocks:
    """The blocks of a recipe.

    rounds: name in a block -> what it means before its first round, or nothing, and then its stages
    of all rounds so far.
    """

    document: Document
    rounds: dict[str, list[str]] = field(default_factory=dict)

    def expand(self) -> None:
        stages = {}
        for name, content in stages_of(self.document.data).items():
            keys: Keys = ("stages", name)
            if "repeat" not in children(content) or content.keys() & KINDS:
                stages[name] = rewritten(content, self._meant, keys)
            elif block := self._block(content, keys):
                firsts = {stage: block.start.get(stage, "") for stage in block.stages}
                self.rounds |= {
                    stage: self.rounds.get(first, [first])[-1:] for stage, first in firsts.items()
                }
                for number in range(1, block.repeat + 1):
                    for stage, inner in block.stages.items():
                        new, place = f"{stage}_{number}", (*keys, "stages", stage)
                        stages[new] = rewritten(inner, self._meant, place)
                        self._copy_places(place, ("stages", new))
                        self.rounds[stage].append(new)
        if stages:
            self.document.data["stages"] = stages

    def _copy_places(self, start: Keys, new: Keys) -> None:
        """Let what is copied from `start` to `new` have the places of the original."""
        copied = {
            (*new, *keys[len(start) :]): at
            for keys, at in self.document.places.items()
            if keys[: len(start)] == start
        }
        # A stage that is written with this name keeps its own.
        self.document.places = copied | self.document.places

    def _block(self, content: Any, keys: Keys) -> BlockKeys | None:
        """The keys of a block; None if they are wrong. The keys of its stages are read later, like
        all others.
        """
        block, mistakes = validated(
            BlockKeys, {key: value for key, value in content.items() if value is not None}
        )
        if block is not None:
            taken = stages_of(self.document.data).keys() | self.rounds.keys()
            for stage in block.stages:
                if twice := taken & {
                    stage,
                    *(f"{stage}_{number}" for number in range(1, block.repeat + 1)),
                }:
                    message = (
                        f"stage '{min(twice)}' is defined twice: a block has '{stage}', "
                        f"'{stage}_1' ..."
                    )
                    mistakes.append(
                        Mistake(message, "rename one of the two", ("stages", stage), at_key=True)
                    )
        self.document.problems += problems_of(
            self.document, [mistake.below(*keys) for mistake in mistakes]
        )
        return block

    def _meant(self, value: str, keys: Keys) -> Any:
        """The stages that a text means: `NAME`, `NAME@VERSION`, and a list for `NAME@all`."""
        name, at, version = value.partition("@")
        if name not in self.rounds or keys[-1] in NO_REFERENCES:
            return value
        if version == "all":
            return self.rounds[name][1:]
        if latest := self.rounds[name][-1]:
            return f"{latest}{at}{version}"
        help = (
            f"add 'start: {{{name}: STAGE}}' next to 'repeat' to say what '{name}' means in round 1"
        )
        self.document.problems.append(
            self.document.problem(keys, f"'{name}' does not exist yet in round 1", help=help)
        )
        return None
