"""Iterated RLHF: a block of stages that a recipe repeats becomes one stage per round.

    rlhf:
      repeat: 3
      start: {align: sft}
      stages:
        labels: {step: judge_pairs, policy: align, ...}                            # the round before's: align is below
        reward: {algorithm: reward_model, from: sft, data: [human.jsonl, labels@all]}   # labels of all rounds so far
        align: {algorithm: ppo, from: align, reward: reward, ...}

gives `labels_1`, `reward_1`, `align_1`, `labels_2` and so on. Inside the block a name means this round's stage if that
stands above, else the round before's; `start` says what that is in the first round. Outside it means the last round's.
`NAME@all`, in a list or as data, means every round's so far.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from alignkit.errors import Problem, did_you_mean
from alignkit.recipe.document import Document, Keys

MOST_ROUNDS = 100
T = TypeVar("T")
BLOCK_KEYS = ("repeat", "start", "stages")


@dataclass
class Rounds:
    """What names mean, by the stage in which they stand ('' : in any stage outside of blocks)."""

    means: dict[str, dict[str, str]] = field(default_factory=dict)
    every: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    missing: dict[str, dict[str, str]] = field(default_factory=dict)  # stage -> name -> why it means nothing yet

    def named(self, stage: str, reference: str) -> str:
        """The reference with its stage's real name; what no block declares stays as it is."""
        name, at, version = reference.partition("@")
        found = self._of(self.means, stage, name) or name
        return f"{found}@{version}" if at else found

    def why_missing(self, stage: str, reference: str) -> str:
        return self.missing.get(stage, {}).get(reference.partition("@")[0], "")

    def all(self, stage: str, reference: Any) -> list[str] | None:
        """The stages that `NAME@all` stands for; None where the reference is something else."""
        if not isinstance(reference, str) or not reference.endswith("@all"):
            return None
        return self._of(self.every, stage, reference.removesuffix("@all"))

    def _of(self, table: Mapping[str, Mapping[str, T]], stage: str, name: str) -> T | None:
        """What the stage's own block means by a name, else what it means outside of blocks."""
        own = table.get(stage, {})
        return own.get(name) if name in own or name in self.missing.get(stage, {}) else table.get("", {}).get(name)


def expand(document: Document) -> tuple[Document, Rounds, list[Problem]]:
    """The document with every block's stages written out, what names mean, and what is wrong with the blocks."""
    rounds = Rounds()
    problems: list[Problem] = []
    stages = document.data.get("stages")
    blocks = {n: b for n, b in stages.items() if _is_block(b)} if isinstance(stages, dict) else {}
    if not blocks:
        return document, rounds, problems
    places = dict(document.places)
    written: dict[str, Any] = {}
    for name, stage in stages.items():
        if name not in blocks:
            written[name] = stage
            continue
        found = _faults(document, ("stages", name), stage, set(stages) - {name} | set(written))
        problems += found
        if found:
            continue
        for number in range(1, stage["repeat"] + 1):
            _declare(rounds, stage, number)
            for inner, content in stage["stages"].items():
                real = f"{inner}_{number}"
                written[real] = copy.deepcopy(content)
                _copy_places(places, ("stages", name, "stages", inner), ("stages", real))
        _declare_outside(rounds, stage)
    return Document(document.path, {**document.data, "stages": written}, places), rounds, problems


def _is_block(stage: Any) -> bool:
    return isinstance(stage, dict) and "repeat" in stage and not {"algorithm", "step"} & stage.keys()


def _faults(document: Document, keys: Keys, block: Mapping[str, Any], taken: set[str]) -> list[Problem]:
    """What is wrong with a block itself; its stages are judged like all others once they are written out."""
    wrong = [
        document.problem((*keys, key), f"unknown key '{key}'", at_key=True, help=_help(key))
        for key in block
        if key not in BLOCK_KEYS
    ]
    count, inner, start = block["repeat"], block.get("stages"), block.get("start")
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST_ROUNDS:
        message = f"{'.'.join(map(str, keys))}.repeat: expected a whole number from 1 to {MOST_ROUNDS}, got {count!r}"
        wrong.append(document.problem((*keys, "repeat"), message))
        return wrong
    if not isinstance(inner, dict) or not inner:
        wrong.append(document.problem((*keys, "stages"), f"'{keys[-1]}' repeats stages, and has none"))
        return wrong
    for name in inner:
        clash = next((real for k in range(1, count + 1) if (real := f"{name}_{k}") in taken), "")
        if name in taken or clash:
            message = f"stage '{clash or name}' is there twice"
            wrong.append(document.problem((*keys, "stages", name), message, at_key=True))
    if start is not None and not (isinstance(start, dict) and all(isinstance(v, str) for v in start.values())):
        wrong.append(document.problem((*keys, "start"), "start: expected 'stage of the block: stage before it'"))
    elif start is not None:
        for name in start:
            if name not in inner:
                message = f"start: '{name}' is no stage of the block"
                wrong.append(
                    document.problem((*keys, "start", name), message, at_key=True, help=did_you_mean(name, inner))
                )
    return wrong


def _help(key: str) -> str:
    return did_you_mean(key, BLOCK_KEYS) or f"a block of repeated stages has {', '.join(BLOCK_KEYS)}"


def _declare(rounds: Rounds, block: Mapping[str, Any], number: int) -> None:
    """What the block's names mean in the stages of one round."""
    order = list(block["stages"])
    for position, stage in enumerate(order):
        means: dict[str, str] = {}
        every: dict[str, list[str]] = {}
        missing: dict[str, str] = {}
        for place, name in enumerate(order):
            last = number if place < position else number - 1
            every[name] = [f"{name}_{k}" for k in range(1, last + 1)]
            if last:
                means[name] = f"{name}_{last}"
            elif name in (block.get("start") or {}):
                means[name] = rounds.named("", block["start"][name])
            else:
                missing[name] = f"the first round has no '{name}' yet"
        real = f"{stage}_{number}"
        rounds.means[real], rounds.every[real], rounds.missing[real] = means, every, missing


def _declare_outside(rounds: Rounds, block: Mapping[str, Any]) -> None:
    count = block["repeat"]
    for name in block["stages"]:
        rounds.means.setdefault("", {})[name] = f"{name}_{count}"
        rounds.every.setdefault("", {})[name] = [f"{name}_{k}" for k in range(1, count + 1)]


def _copy_places(places: dict[Keys, Any], source: Keys, target: Keys) -> None:
    for keys, marks in list(places.items()):
        if keys[: len(source)] == source:
            places[(*target, *keys[len(source) :])] = marks
