"""The alignment tax, and pre-training text that gives it back (Ouyang et al. 2022, section 4.2, figures
29 and 33): what the quick start's PPO costs in facts, and the chance to see it given back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from alignkit.evaluation.statistics import interval_text
from alignkit_plugins.cells import crossed
from benchmarks.markdown import markdown_table
from benchmarks.papers import reports
from benchmarks.papers.claim import LEVEL, by_seed, power

TAIL = LEVEL / 2  # one test, in both directions
AXES = {"facts": {"facts right": 1}}
# SQuAD 2 with examples, 175B: F1 of GPT-3 and of SFT minus that of PPO; table 14
PAPER = {"base": 0.178, "sft": 0.140}


def calculation() -> str:
    """What PPO costs against base and SFT, and the power of a test with as many seeds that pre-training
    text gives back all of it, by how PPO minus SFT varies.
    """
    measured = reports.measures(reports.stored(), {"axes": AXES})
    by_policy = {name: by_seed(measured[f"{name}, facts"]) for name in ("base", "sft", "align")}
    error = crossed.spread(crossed.parts(by_policy["align"] - by_policy["sft"]))
    lines = list[list[str]]()
    for name, paper in PAPER.items():
        lines.append(
            [f"{name} minus PPO", *_line(by_policy[name] - by_policy["align"], error, paper)]
        )
    header = (
        "facts right",
        "here",
        "standard error",
        "in the paper",
        "chance to see a cost of this size",
        "of the paper's",
    )
    return markdown_table(header, lines)


def _line(tax: crossed.Array, error: crossed.Spread, paper: float) -> list[str]:
    found = crossed.parts(tax)
    every = crossed.spread(found)
    mean, half = float(found.mean), float(crossed.half_width(every))
    ends: Mapping[str, float] = {"mean": mean, "low": mean - half, "high": mean + half}
    return [
        interval_text(ends, sign=True),
        f"{math.sqrt(every.variance):.3f}",
        f"{paper:+.3f}",
        f"{power(mean, error, TAIL):.0%}, at most {power(mean + half, error, TAIL):.0%}",
        f"{power(paper, error, TAIL):.0%}",
    ]
