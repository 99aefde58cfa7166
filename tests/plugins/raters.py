"""Policies whose answers do not name them, and people who compare them in the step `evaluate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from labelers import Decide, label_all, number
from test_evaluate import Scripted, context, prompts, said, step

from alignkit import Group, Judge, Response, StepContext, Verdict
from alignkit.runs.durable_map import durable_map
from alignkit.stopping import StageWaits
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.waiting import STORE

COUNT = 20
POLICIES = ["sft", "align"]
WIDTH = 200


class Blind(Scripted):
    """As many prompts as a test wants. Answers do not name their policies."""

    def __init__(self, count: int = COUNT, texts: str = "answer {i} of {letter}", policies: Any = POLICIES):
        names = ["base", *policies]
        super().__init__({p: [float(i % 2 if p == "align" else 0.5) for i in range(count)] for p in names}, {}, texts)
        self.lengths = {policy: [5 + i % 3 for i in range(count)] for policy in names}
        self.per_token = dict.fromkeys(names, -2.0)

    def _answer(self, role: str, i: int, k: int) -> Response:
        letter = {"base": "X", "sft": "Y", "align": "Z"}.get(role, "W")
        return Response(self.texts.format(i=i, letter=letter), tokens=(k,) * self.lengths[role][i], truncated=i == 0)


def kept(models: Any, folder: Path, groups: list[Group]) -> StepContext:
    """A context whose maps are on disk, as in a run."""
    made = context(models, folder, groups)
    return replace(made, map=lambda name, rows, f: durable_map(made.out / "map" / f"{name}.jsonl", rows, f))


def evaluated(
    folder: Path, decide: Decide, *, who: tuple[str, ...] = ("ann",), count: int = COUNT, **options: Any
) -> tuple[dict[str, Any], str]:
    """The summary and the report when people have labeled everything; `sft` is the baseline of `align`."""
    models, groups = options.pop("models", None) or Blind(count), options.pop("groups", None) or prompts(count)
    options = {"policies": POLICIES, "rewards": [], "people": {}, **options}
    there = kept(models, folder, groups)
    with pytest.raises(StageWaits):
        step(**options).run(there)
    for name in who:
        label_all(folder / STORE, decide, name)
    artifact = step(**options).run(there)
    return dict(artifact.summary or {}), said(artifact, WIDTH)


def mostly_align(item: Item) -> str:
    """`align` at 80% of the prompts."""
    return "sft" if number(item) % 5 == 0 else "align"


class Told(Judge):
    """Gives P(align is better) as `options.of` says by the number of the prompt; `options.asked` counts."""

    def compare(self, items: Any) -> list[Verdict]:
        self.options.asked += len(items)
        found = [self.options.of(int(prompt[-1]["content"].split()[-1])) for prompt, *_ in items]
        return [Verdict(p, (p, p)) for p in found]


def told(of: Callable[[int], float]) -> SimpleNamespace:
    """What a judge says; `judge_component(Told, told(...))` is one."""
    return SimpleNamespace(of=of, asked=0)
