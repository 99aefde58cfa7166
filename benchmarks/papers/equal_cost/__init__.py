"""Methods at equal cost, on questions with one right answer each: HIR against PPO (Zhang et al.
2023), and ReST's second grow step (Gulcehre et al. 2023). Accuracy is exact; cost is the number of
samples, and all methods pass over them equally often.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit import Group, Message
from alignkit.data.group import write_groups
from alignkit_plugins.report import drawing
from benchmarks.papers.claim import Row, lines_of, run_stages
from benchmarks.papers.enumerable import Problem, make

KINDS, INSTRUCTIONS = "ABCDEFGH", "NY"  # of questions; what HIR relabels with
REWARD = """\
def reward(completions, answer):
    pairs = zip(completions, answer)
    return [sum(map(str.__eq__, a.split(), b.split())) / len(b.split()) for a, b in pairs]
"""


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """The exact accuracy of the start, and of the policy after each of the rule's iterations that the
    method has.
    """
    letters, length, scale = rule["answers"]
    problem = make(folder, letters, length, scale, INSTRUCTIONS + KINDS, row.seed)
    right = right_answers(problem)
    write_data(problem, right, rule["each"])
    words = [f"seed={row.seed}", f"stages.{row.method}.learning_rate={row.rate}"]
    run_stages("equal_cost", folder, folder / "run", [row.method], words)
    kept = [folder / "run" / row.method / "kept" / str(at) for at in rule["iterations"]]
    return [accuracy(problem, one, right) for one in (problem.base, *kept) if one.is_dir()]


def right_answers(problem: Problem) -> dict[str, int]:
    """By kind of question the place of its right answer, drawn."""
    draw = random.Random(problem.seed)
    return {kind: draw.randrange(len(problem.answers)) for kind in KINDS}


def write_data(problem: Problem, right: Mapping[str, int], each: int) -> None:
    """`each` prompts of a kind, under the instruction that HIR answers rightly; all methods read
    the same. The tokenizer drops numbers. A reward is the share of letters that are right.
    """
    rows = list[Group]()
    for kind, place in right.items():
        for at in range(each):
            prompt = (Message(role="user", content=f"{INSTRUCTIONS[-1]}\n{kind} {at}"),)
            meta = {"answer": problem.answers[place]}
            rows.append(Group(prompt, id=f"{kind} {at}", meta=meta))
    write_groups(problem.folder / "prompts.jsonl", rows)
    (problem.folder / "reward.py").write_text(REWARD, encoding="utf-8")


def accuracy(problem: Problem, folder: Path, right: Mapping[str, int]) -> float:
    """P(right answer), the mean over kinds."""
    first = 3 + len(problem.letters)
    asked = [(first + 1, first + len(INSTRUCTIONS) + at, 2) for at in range(len(right))]
    found = problem.distributions(folder, asked)
    return round(fmean(float(one[at]) for one, at in zip(found, right.values(), strict=True)), 6)


# What they say


def measures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """By method and seed the accuracy of the last policy, and that of the start."""
    found = dict[str, dict[int, float]]()
    for row in rows:
        found.setdefault("start", {})[row["seed"]] = row["values"][0]
        found.setdefault(row["method"], {})[row["seed"]] = row["values"][-1]
    return found


def figures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, drawing.Drawing]:
    """Accuracy against samples, of methods with as many iterations as the rule has."""
    samples = [0, *(rule["samples"] * at for at in rule["iterations"])]
    found = dict[str, list[Sequence[float]]]()
    for row in rows:
        if len(row["values"]) == len(samples):
            name = rule["methods"][row["method"]]["name"]
            found.setdefault(name, []).append(row["values"])
    drawn = drawing.curves(lines_of(samples, found), "samples")
    return {"Chance of the right answer, against samples": drawn}
