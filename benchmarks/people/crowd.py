"""People whose taste is known: they label a store through the interface that the page uses, and err as often as asked.

If each of two annotators is right with probability p, whatever the pair, they agree with probability p² + (1 - p)²,
so a crowd that agrees on a share a of the pairs is right with p = (1 + √(2a - 1)) / 2: for 73%, p = 83.9%.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from alignkit import seeds
from alignkit_plugins.people.assignment import Assignment, next_item
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.labels import SIDES
from alignkit_plugins.people.store import Event, Store

AGREEMENT = 0.73  # InstructGPT (Ouyang et al. 2022, arXiv:2203.02155, section 3.4): 72.6% and 77.3%
MARGINS = ("unsure", "slightly", "better", "significantly")
Gap = Callable[[Item], float]  # how much better the first response is, in truth
Noise = Literal["none", "equal", "near"]


def accuracy_of(agreement: float) -> float:
    """How often each annotator is right if two agree this often and all pairs are equally hard."""
    return (1 + math.sqrt(2 * agreement - 1)) / 2


def steepness_of(agreement: float, gaps: Sequence[float]) -> float:
    """The k with which annotators who are right with probability σ(k |gap|) agree this often."""
    from scipy.optimize import brentq
    from scipy.special import expit

    sizes = np.abs(gaps)

    def too_often(k: float) -> float:
        right = expit(k * sizes)
        return float(np.mean(right**2 + (1 - right) ** 2)) - agreement

    return float(brentq(too_often, 0, 1e3 / float(np.median(sizes))))


@dataclass(frozen=True)
class Crowd:
    """Annotators with one taste.

    noise: `equal`: everybody is wrong about any pair with the same probability; `near`: more often about responses that
    are nearly as good (Bradley and Terry 1952); `none`: never. scale: what a gap is multiplied by before logistic noise
    is added. cuts: sizes of the scaled gap that separate Llama 2's four margins. guessing: who answers at random.
    """

    names: tuple[str, ...] = ("ann", "bob", "cleo")
    noise: Noise = "equal"
    agreement: float = AGREEMENT
    scale: float = 1.0
    cuts: tuple[float, ...] = (0.5, 1.0, 1.5)
    seed: int = 0
    guessing: tuple[str, ...] = ()

    def seen(self, gap: float, luck: float) -> float:
        """The gap that an annotator sees: positive if the first response looks better. luck: uniform from 0 to 1."""
        if self.noise == "near":
            return self.scale * gap + math.log(luck / (1 - luck))
        right = self.noise == "none" or luck < accuracy_of(self.agreement)
        return self.scale * gap if right else -self.scale * gap

    def label(self, store: Store, gap: Gap) -> int:
        """Label everything that the store has for these annotators, who take turns; the number of labels."""
        done, working = 0, list(self.names)
        while working:
            for name in tuple(working):
                given = next_item(store, name)
                if given is None:
                    working.remove(name)
                    continue
                store.submit(self._event(given, name, gap(given.stored.item)))
                done += 1
        return done

    def _event(self, given: Assignment, name: str, gap: float) -> Event:
        """The label, in the order in which the page shows the responses."""
        item = given.stored.item
        number = seeds.number(self.seed, "luck", name, item.id, given.occasion)
        luck = (number + 0.5) / 2**63
        size = self.seen(gap, luck) if name not in self.guessing else math.copysign(gap, luck - 0.5)
        side = SIDES[given.order.index(0 if size > 0 else 1)]
        margin = MARGINS[sum(abs(size) > cut for cut in self.cuts)]
        unique = str(uuid.UUID(int=seeds.number(self.seed, "event", name, item.id, given.occasion)))
        return Event(
            unique,
            name,
            "label",
            {"side": side, "margin": margin},
            item.id,
            revision=given.stored.revision,
            order=given.order,
            occasion=given.occasion,
            seconds=3.0,
        )


def crowd_for(gaps: Sequence[float], noise: Noise = "equal", agreement: float = AGREEMENT, seed: int = 0) -> Crowd:
    """A crowd that agrees this often on pairs with these gaps; a quarter of them has each margin."""
    scale = steepness_of(agreement, gaps) if noise == "near" else 1.0
    low, middle, high = (float(cut) for cut in np.quantile(scale * np.abs(gaps), (0.25, 0.5, 0.75)))
    return Crowd(noise=noise, agreement=agreement, scale=scale, cuts=(low, middle, high), seed=seed)


def labeled_store(path: Path, items: Sequence[Item], crowd: Crowd, gap: Gap, overlap: int = 1) -> Path:
    """A new store with these items, each labeled by as many annotators as `overlap`."""
    from alignkit_plugins.people.records import Plan

    with Store.open(path, new=True) as store:
        store.set_plan(Plan(seed=crowd.seed, overlap=overlap))
        store.add(items)
        crowd.label(store, gap)
    return path
