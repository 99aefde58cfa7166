"""Methods at equal cost, on questions with one right answer each: HIR against PPO (Zhang et al.
2023), and ReST's second grow step (Gulcehre et al. 2023). What a policy does is exact; cost is the
number of samples. Both ReST take as many steps, on as many samples each.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from alignkit import Group, Message
from alignkit.data.group import write_groups
from alignkit_plugins.report import drawing
from benchmarks.papers.claim import Row, lines_of, run_stages
from benchmarks.papers.enumerable import Problem, make

KINDS, INSTRUCTIONS = "ABCDEFGH", "NY"  # of questions; what HIR relabels with
REWARDS = """\
def share(completions, answer):
    pairs = zip(completions, answer)
    return [sum(map(str.__eq__, a.split(), b.split())) / len(b.split()) for a, b in pairs]

def right(completions, answer):
    return [float(one == 1) for one in share(completions, answer)]
"""


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """Of the start, and of the policy after each of the rule's iterations that the method has: the
    chance of a right answer and the share of letters that are right, both exact.
    """
    letters, length, scale = rule["answers"]
    problem = make(folder, letters, length, scale, INSTRUCTIONS + KINDS, row.seed)
    right = right_answers(problem)
    write_data(problem, right, rule["each"])
    words = [f"seed={row.seed}", f"stages.{row.method}.learning_rate={row.rate}"]
    run_stages("equal_cost", folder, folder / "run", [row.method], words)
    kept = [folder / "run" / row.method / "kept" / str(at) for at in rule["iterations"]]
    return [measured(problem, one, right) for one in (problem.base, *kept) if one.is_dir()]


def right_answers(problem: Problem) -> dict[str, int]:
    """By kind of question the place of its right answer, drawn."""
    draw = random.Random(problem.seed)
    return {kind: draw.randrange(len(problem.answers)) for kind in KINDS}


def write_data(problem: Problem, right: Mapping[str, int], each: int) -> None:
    """`each` prompts of a kind, under the instruction that HIR answers rightly; all methods read
    the same. The tokenizer drops numbers.
    """
    rows = list[Group]()
    for kind, place in right.items():
        for at in range(each):
            prompt = (Message(role="user", content=f"{INSTRUCTIONS[-1]}\n{kind} {at}"),)
            meta = {"answer": problem.answers[place]}
            rows.append(Group(prompt, id=f"{kind} {at}", meta=meta))
    write_groups(problem.folder / "prompts.jsonl", rows)
    (problem.folder / "reward.py").write_text(REWARDS, encoding="utf-8")


def measured(problem: Problem, folder: Path, right: Mapping[str, int]) -> list[float]:
    """P(right answer), and the expected share of letters that are right, the means over kinds."""
    first, answers = 3 + len(problem.letters), [one.split() for one in problem.answers]
    asked = [(first + 1, first + len(INSTRUCTIONS) + at, 2) for at in range(len(right))]
    chances, shares = list[float](), list[float]()
    for one, at in zip(problem.distributions(folder, asked), right.values(), strict=True):
        alike = [fmean(map(str.__eq__, answer, answers[at])) for answer in answers]
        chances.append(float(one[at]))
        shares.append(float(one @ torch.tensor(alike, dtype=one.dtype)))
    return [round(fmean(chances), 6), round(fmean(shares), 6)]


# What they say


def measures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """By method and seed what the last policy has, and that of the start: of ReST the share of
    letters, which is its reward, of the others the chance of a right answer.
    """
    found = dict[str, dict[int, float]]()
    for row in rows:
        found.setdefault("start", {})[row["seed"]] = row["values"][0][0]
        of_reward = row["method"].startswith("rest")
        found.setdefault(row["method"], {})[row["seed"]] = row["values"][-1][of_reward]
    return found


def figures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, drawing.Drawing]:
    """The chance of a right answer against samples, and ReST's share of letters against its own."""
    samples = [0, *(rule["samples"] * at for at in rule["iterations"])]
    answers, letters = dict[str, list[list[float]]](), dict[str, list[list[float]]]()
    for row in rows:
        found, of_reward = (letters, 1) if row["method"].startswith("rest") else (answers, 0)
        name = rule["methods"][row["method"]]["name"]
        found.setdefault(name, []).append([one[of_reward] for one in row["values"]])
    grown = dict[str, drawing.Line]()
    for name, seeds in letters.items():
        steps = len(seeds[0]) - 1
        at = [rule["grown"] * step / steps for step in range(steps + 1)]
        grown |= lines_of(at, {name: seeds})
    return {
        "Chance of the right answer, against samples": drawing.curves(
            lines_of(samples, answers), "samples"
        ),
        "ReST: share of letters that are right, against samples": drawing.curves(grown, "samples"),
    }
