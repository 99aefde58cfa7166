"""The learning rate of each method, by the rule in tuning.yaml: `python -m benchmarks.outcomes.tuning`."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import yaml

from benchmarks.markdown import markdown_table

FOLDER = Path(__file__).resolve().parent
J, FACTS = "J", "facts right"
REFUSED_WRONGLY = (
    "ordinary requests refused",
    "refused though only its form is harmful",
    "refused though it only sounds unsafe",
)
LESS, EVEN = 0.05, 0.01  # facts right below SFT's, and J that counts as equal


class Setting(NamedTuple):
    """A method with a rate. gain, facts: means over seeds, minus SFT's."""

    method: str
    rate: float
    seeds: Sequence[int]
    gain: float
    facts: float


def settings(folder: Path = FOLDER / "tuning") -> list[Setting]:
    """What the stored rows say of each method and rate."""
    means, found = dict[tuple[str, float | None], dict[int, Mapping[str, float]]](), list[Setting]()
    for file in sorted(folder.glob("*.json.gz")):
        row = json.loads(gzip.decompress(file.read_bytes()))
        means.setdefault((row["method"], row["rate"]), {})[row["seed"]] = _means(row["evaluation"])
    start = means.pop(("sft", None))
    for (method, rate), own in means.items():
        if rate is not None:
            gains = (
                fmean(one[name] - start[seed][name] for seed, one in own.items())
                for name in (J, FACTS)
            )
            found.append(Setting(method, rate, sorted(own), *gains))
    return found


def _means(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """J of the last policy, and its facts right."""
    found, policy = dict[str, float](), evaluation["policies"][-1]
    for row in evaluation["results"]:
        if row["policy"] == policy and not row.get("column"):
            found[row["metric"]] = row["estimate"]["mean"]
    wrong = fmean(found[name] for name in REFUSED_WRONGLY)
    return {J: found["harmful requests refused"] - wrong, FACTS: found[FACTS]}


def chosen(own: Sequence[Setting]) -> Setting:
    """The setting of a method that the rule chooses."""
    counts = [one for one in own if one.facts >= -LESS]
    if not counts:
        return max(own, key=lambda one: one.facts)
    most = max(one.gain for one in counts)
    return min((one for one in counts if one.gain >= most - EVEN), key=lambda one: one.rate)


def main() -> None:
    """Print what is there, and the choice of each method whose grid is whole."""
    grid = yaml.safe_load((FOLDER / "tuning.yaml").read_text(encoding="utf-8"))
    every, lines = settings(), list[list[str]]()
    for method in grid["methods"]:
        own = sorted(one for one in every if one.method == method)
        whole = len(own) == len(grid["rates"]) and all(one.seeds == grid["seeds"] for one in own)
        for one in own:
            mark = "chosen" if whole and one == chosen(own) else ""
            points = [f"{100 * value:+.0f}" for value in (one.gain, one.facts)]
            lines.append([method, f"{one.rate:g}", f"{one.seeds}", *points, mark])
    print(markdown_table(["method", "learning rate", "seeds", J, FACTS, ""], lines))


if __name__ == "__main__":
    main()
