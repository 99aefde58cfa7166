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

from copy import deepcopy
from dataclasses import replace
from itertools import chain

from alignkit.errors import did_you_mean
from alignkit.recipe.mistakes import Mistake, problems_of, validated
from alignkit.recipe.schema import BlockKeys
from alignkit.recipe.yaml import Document, Node

NO_REFERENCES = ("algorithm", "step", "objective", "name", "description")  # keys whose texts name no stage
# Name in a block -> what it means before its first round, or nothing, and then its stages of all rounds so far.
Rounds = dict[str, list[str]]


def expand(document: Document) -> Document:
    """The document with every block replaced by the stages of its rounds."""
    stages = document.root.value.get("stages")
    if stages is None or not isinstance(stages.value, dict):
        return document
    blocks = {name: _block(document, name) for name, node in stages.value.items() if _is_block(node)}
    outside: Rounds = {}
    for block in filter(None, blocks.values()):
        for name in block.stages:
            outside[name] = ["", *(f"{name}_{number}" for number in range(1, block.repeat + 1))]
    result = Node({}, stages.mark)
    for name, node in stages.value.items():
        if name not in blocks:
            result.set(name, _rewritten(node, outside, document), stages.keys[name])
        elif repeated := blocks[name]:
            inner = node.value["stages"]
            rounds = dict(outside)
            for stage in repeated.stages:
                first = repeated.start.get(stage, "")
                rounds[stage] = outside.get(first, [first])[-1:]
            for number in range(1, repeated.repeat + 1):
                for stage in repeated.stages:
                    new = f"{stage}_{number}"
                    result.set(new, _rewritten(inner.value[stage], rounds, document), inner.keys[stage])
                    rounds[stage].append(new)
    root = Node({**document.root.value, "stages": result}, document.root.mark, document.root.keys)
    return replace(document, root=root)


def _is_block(node: Node) -> bool:
    return isinstance(node.value, dict) and "repeat" in node.value and not {"algorithm", "step"} & node.value.keys()


def _block(document: Document, name: str) -> BlockKeys | None:
    """The keys of a block; None if they are wrong. The keys of its stages are read later, like all others."""
    stages = document.root.value["stages"].value
    raw = {key: value for key, value in stages[name].plain().items() if value is not None}
    block, mistakes = validated(BlockKeys, raw)
    if block is not None:
        for stage in block.stages:
            if taken := stages.keys() & {stage, *(f"{stage}_{number}" for number in range(1, block.repeat + 1))}:
                message = f"stage '{min(taken)}' is defined twice: a block has '{stage}', '{stage}_1' ..."
                mistakes.append(Mistake(message, "rename one of the two", ("stages", stage), at_key=True))
        for stage in block.start.keys() - block.stages.keys():
            help = did_you_mean(stage, block.stages) or f"stages of the block: {', '.join(block.stages)}"
            mistakes.append(Mistake(f"start: '{stage}' is not a stage of this block", help, ("start", stage), True))
    document.problems += problems_of(document, [mistake.below("stages", name) for mistake in mistakes])
    return block


def _rewritten(node: Node, rounds: Rounds, document: Document) -> Node:
    """A copy of the node with the stages that its names mean: `NAME`, `NAME@VERSION`, and a list for `NAME@all`."""
    result = deepcopy(node)
    for keys, inner in result.walk(("stages",)):
        if isinstance(inner.value, list):
            inner.value = list(chain.from_iterable(_all(child, rounds) for child in inner.value))
            continue
        name, at, version = str(inner.value).partition("@")
        if name not in rounds or keys[-1] in NO_REFERENCES:
            continue
        meant = rounds[name][-1]
        if version == "all":
            inner.value = _all(inner, rounds)
        elif meant:
            inner.value = f"{meant}{at}{version}"
        else:
            help = f"add 'start: {{{name}: STAGE}}' next to 'repeat' to say what '{name}' means in round 1"
            document.problems.append(inner.mark.problem(f"'{name}' does not exist yet in round 1", help))
            inner.value = None
    return result


def _all(node: Node, rounds: Rounds) -> list[Node]:
    """The stages that `NAME@all` means, or the node itself."""
    name, _, version = str(node.value).partition("@")
    if version != "all" or name not in rounds:
        return [node]
    return [Node(stage, node.mark) for stage in rounds[name][1:]]
