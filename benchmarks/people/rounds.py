"""A run that waits for people, and simulated people who label what it asks, until it is done."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from alignkit.errors import RunFailed
from alignkit.evaluation.statistics import Estimate
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Store
from benchmarks.people.crowd import AGREEMENT, crowd_for

RECIPE = Path(__file__).with_name("people.yaml")
WAITS = 75  # the exit code of a run that needs labels


@dataclass(frozen=True)
class Stop:
    """A stop of the run: how many labels people gave, and in which share of them the better response won."""

    labels: int
    right: float


def reward_gap(item: Item) -> float:
    """How much higher the first response scores, by the reward with which the answers were sampled."""
    first, second = item.meta["reward"]
    return float(first - second)


def run_with_people(run: Callable[[], int], store: Path, seed: int = 0, agreement: float = AGREEMENT) -> list[Stop]:
    """Run, label, and run again until the run ends with 0; what was labeled in between.

    run: the same command each time; returns its exit code. store: where it asks. The people's truth is `reward_gap`.
    Raises RunFailed if the run ends with another code, or waits although nothing is left to label.
    """
    stops: list[Stop] = []
    while code := run():
        if code != WAITS:
            raise RunFailed(f"the run ended with exit code {code} after {len(stops)} stops for people")
        if not (stop := _labeled(store, seed, agreement)).labels:
            raise RunFailed(f"the run waits for labels, but nothing in {store} is left to label")
        stops.append(stop)
    return stops


def command(out: Path, overrides: Sequence[str]) -> Callable[[], int]:
    """`alignkit run` in a process of its own, as a person would call it."""
    words = [sys.executable, "-m", "alignkit", "run", str(RECIPE), *overrides, "--out", str(out)]
    return lambda: subprocess.run(words, check=False).returncode


@dataclass(frozen=True)
class Version:
    """A policy of a finished run. gains: over the first version, prompt by prompt, by reward; empty for the first."""

    name: str
    kl: float
    gains: Mapping[str, Estimate]


def versions(out: Path) -> list[Version]:
    """The policies of a finished run's report, in order."""
    facts = json.loads((out / "report" / "evaluation.json").read_text(encoding="utf-8"))
    return [
        Version(
            name,
            policy["kl"]["mean"],
            {reward: found["difference"] for reward, found in facts["against"].get(name, {}).items()},
        )
        for name, policy in facts["policies"].items()
    ]


def figure(found: Sequence[Version], file: Path) -> None:
    """Draw what each version gains over the first, by each reward, as an SVG. The same numbers make the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure

    rewards = list(found[-1].gains)
    drawn = Figure(figsize=(8, 3.2 * len(rewards)), layout="tight")
    panels = drawn.subplots(len(rewards), 1, squeeze=False)[:, 0]
    for axes, reward in zip(panels, rewards, strict=True):
        axes.axhline(0, color="gray", linewidth=0.8)
        for place, version in enumerate(found):
            gain = version.gains.get(reward, {"mean": 0.0, "low": None, "high": None})
            if gain["low"] is not None:
                axes.plot([place, place], [gain["low"], gain["high"]], color="silver", zorder=1)
            axes.scatter([place], [gain["mean"]], color="tab:blue", zorder=2)
        axes.set_xticks(range(len(found)), [version.name for version in found])
        axes.set_ylabel(f"gain in {reward}")
    with matplotlib.rc_context({"svg.hashsalt": "alignkit", "svg.fonttype": "none"}):
        drawn.savefig(file, format="svg", metadata={"Date": None})


def _labeled(store: Path, seed: int, agreement: float) -> Stop:
    """Let people label what is open."""
    with Store.open(store) as opened:
        asked = [stored.item for stored in opened.items() if not stored.retired]
        gaps = [reward_gap(item) for item in asked]
        crowd = crowd_for(gaps, "equal", agreement, seed)
        before = {event.uuid for event in opened.events()}
        count = crowd.label(opened, reward_gap)
        given = [event for event in opened.events() if event.uuid not in before]
    truth = {item.id: gap for item, gap in zip(asked, gaps, strict=True)}
    right = sum(
        (event.order["AB".index(event.payload["side"])] == 0) == (truth[event.item or ""] > 0) for event in given
    )
    return Stop(count, right / max(1, count))
