"""Iterated RLHF: a block of stages that a recipe repeats becomes one stage per round, before anything else is read.

    rlhf:
      repeat: 3
      start: {align: sft}
      stages:
        labels: {step: judge_pairs, policy: align, ...}                         # of the round before: align is below
        reward: {algorithm: reward_model, from: sft, data: [human.jsonl, labels@all]}   # labels of all rounds so far
        align: {algorithm: ppo, from: align, reward: reward, ...}

becomes `labels_1`, `reward_1`, `align_1`, `labels_2` and so on. Inside the block, a name means this round's stage if
that stage is above, else the previous round's. `start` sets the meaning of such a name in round 1. Outside the block, a
name means the last round's stage. `NAME@all`, in a list or as data, means the stages of all rounds so far.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from alignkit.errors import did_you_mean
from alignkit.recipe.mistakes import Mistake, problems_of, validated
from alignkit.recipe.schema import BlockKeys
from alignkit.recipe.yaml import Document, Node

MOST_STAGES = 1000


@dataclass
class Names:
    """What the names of blocks' stages mean in one stage. rounds: by name, those of all rounds so far."""

    means: dict[str, str] = field(default_factory=dict)
    rounds: dict[str, list[str]] = field(default_factory=dict)

    def actual(self, reference: str) -> str:
        """The reference with the name of the stage that is meant. Other names are unchanged."""
        name, at, version = reference.partition("@")
        return f"{self.means.get(name, name)}{at}{version}"

    def rewritten(self, node: Node) -> Node:
        """The node with `NAME@all` replaced by the stages that it means."""
        if isinstance(node.value, dict):
            return Node({key: self.rewritten(child) for key, child in node.value.items()}, node.mark, node.keys)
        if isinstance(node.value, list):
            items = []
            for child in node.value:
                stages = self._all(child)
                items += [self.rewritten(child)] if stages is None else stages
            return Node(items, node.mark)
        stages = self._all(node)
        return node if stages is None else Node(stages, node.mark)

    def _all(self, node: Node) -> list[Node] | None:
        name, _, version = node.value.partition("@") if isinstance(node.value, str) else ("", "", "")
        if version != "all" or name not in self.rounds:
            return None
        return [Node(stage, node.mark) for stage in self.rounds[name]]


def expand(document: Document) -> tuple[Document, dict[str, Names]]:
    """Return the document with every block expanded, and what names mean in each stage."""
    names: dict[str, Names] = {}
    stages = document.root.value.get("stages")
    if stages is None or not isinstance(stages.value, dict) or not any(map(_is_block, stages.plain().values())):
        return document, names
    outside = Names()
    written = Node({}, stages.mark)
    for name, node in stages.value.items():
        if not _is_block(node.plain()):
            written.set(name, node, stages.keys[name])
            names[name] = Names()
            continue
        block, wrong = _block(node.plain(), (stages.value.keys() | written.keys) - {name})
        document.problems += problems_of(document, [mistake.below("stages", name) for mistake in wrong])
        if block is not None:
            inside = node.value["stages"]
            for stage, inner, meaning in _rounds(block, outside):
                written.set(stage, inside.value[inner], inside.keys[inner])
                names[stage] = meaning
    for name, node in written.value.items():
        meaning = names[name]
        meaning.means = {**outside.means, **meaning.means}
        meaning.rounds = {**outside.rounds, **meaning.rounds}
        written.value[name] = meaning.rewritten(node)
    root = Node({**document.root.value, "stages": written}, document.root.mark, document.root.keys)
    return replace(document, root=root), names


def stages_of_rounds(stages: Mapping[Any, Any]) -> dict[str, Any]:
    """The stages that have a folder in a run: those of a block once per round. A block that is no block stays one."""
    result: dict[str, Any] = {}
    for name, stage in stages.items():
        inner, repeat = (stage.get("stages"), stage["repeat"]) if _is_block(stage) else (None, 0)
        if isinstance(inner, dict) and isinstance(repeat, int) and 0 < repeat * len(inner) <= MOST_STAGES:
            for number in range(1, repeat + 1):
                result |= {f"{key}_{number}": content for key, content in inner.items()}
        else:
            result[str(name)] = stage
    return result


def _is_block(stage: Any) -> bool:
    return isinstance(stage, dict) and "repeat" in stage and not {"algorithm", "step"} & stage.keys()


def _block(raw: Mapping[str, Any], taken: Collection[str]) -> tuple[BlockKeys | None, list[Mistake]]:
    """Validate a block's own keys. Its stages are validated after expansion, like all others."""
    block, wrong = validated(BlockKeys, {key: value for key, value in raw.items() if value is not None})
    if block is None:
        return None, wrong
    for name in block.stages:
        names = [name, *(f"{name}_{number}" for number in range(1, block.repeat + 1))]
        clash = next((one for one in names if one in taken), None)
        if clash is not None:
            help = f"the block turns '{name}' into {names[1]} ... {names[-1]}; rename one of the two stages"
            wrong.append(Mistake(f"stage '{clash}' is defined twice", help, ("stages", name), at_key=True))
    count = block.repeat * len(block.stages)
    if count > MOST_STAGES:
        text = f"{block.repeat} rounds of {len(block.stages)} stages are {count} stages; the most is {MOST_STAGES}"
        wrong.append(Mistake(text, "", ("repeat",)))
    for name in block.start.keys() - block.stages.keys():
        help = did_you_mean(name, block.stages) or f"stages of the block: {', '.join(block.stages)}"
        wrong.append(Mistake(f"start: '{name}' is not a stage of this block", help, ("start", name), at_key=True))
    return None if wrong else block, wrong


def _rounds(block: BlockKeys, outside: Names) -> Iterator[tuple[str, str, Names]]:
    """Yield each stage of each round, its name in the block, and what names mean in it; then what they mean outside."""
    order = list(block.stages)
    for number in range(1, block.repeat + 1):
        for position, stage in enumerate(order):
            meaning = Names()
            for index, name in enumerate(order):
                last = number if index < position else number - 1
                meaning.rounds[name] = [f"{name}_{k}" for k in range(1, last + 1)]
                meaning.means[name] = name  # in round 1 it means no stage yet
                if last:
                    meaning.means[name] = f"{name}_{last}"
                elif name in block.start:
                    meaning.means[name] = outside.actual(block.start[name])
            yield f"{stage}_{number}", stage, meaning
    for name in order:
        outside.means[name] = f"{name}_{block.repeat}"
        outside.rounds[name] = [f"{name}_{k}" for k in range(1, block.repeat + 1)]
