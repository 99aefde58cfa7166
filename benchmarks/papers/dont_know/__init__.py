"""Abstention trades invention at a threshold (Schulman 2023; Kalai et al. 2025, section 4.2).

Questions are of kinds that look alike to the model, and whose answers differ: of a kind, the most
common answer is right with a chance that is known, and no policy can do better.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from alignkit import Group, Message, Response
from alignkit.data.group import write_groups
from alignkit_plugins.report import drawing
from alignkit_plugins.rewards.honesty import ABSTAINS, RIGHT, WRONG, Honesty
from benchmarks.papers.claim import Row, lines_of, run_stages
from benchmarks.papers.enumerable import Problem, make

KINDS = "ABCDEFGH"  # of questions; each is a token
UNKNOWN = "idk"
ANSWERS = (*"bcdfghjklmnpqrst", UNKNOWN)
EACH = len(ANSWERS) - 1  # questions of a kind
CHANCES = [(2 * kind + 1) / EACH for kind in range(len(KINDS))]  # of the most common answer


def compute(row: Row, rule: Mapping[str, Any], folder: Path) -> Any:
    """By outcome its exact chance for each kind of question, in order of the chance that the most
    common answer is right; and what the best policy gains above one with the threshold.
    """
    problem = make(folder, ANSWERS, 1, rule["scale"], KINDS, row.seed)
    known = right_answers(row.seed)
    write_data(problem, known, rule["unknown"])
    method = rule["methods"][row.method]
    words, stages = [f"seed={row.seed}"], ["sft"]
    if "abstain" in method:
        stages.append("align")
        words.append(f"stages.align.reward.honesty.abstain={method['abstain']}")
        words.append(f"stages.align.algorithm.grpo.scale_by_std={method.get('scaled', False)}")
        words.append(f"stages.align.learning_rate={row.rate}")
    run_stages("dont_know", folder, folder / "run", stages, words)
    honesty = Honesty(Honesty.Options(abstain=method.get("abstain", 0.0)))
    found: dict[str, Any] = {RIGHT: [], ABSTAINS: [], WRONG: [], "above the threshold": []}
    for kind, answers in known.items():
        token = 3 + len(ANSWERS) + KINDS.index(kind)
        policy = problem.distribution(folder / "run" / stages[-1] / "adapter", (token, 2)).tolist()
        for outcome, chance in outcomes(policy, answers).items():
            found[outcome].append(chance)
        found["above the threshold"].append(gain_above_threshold(honesty, answers))
    return found


def right_answers(seed: int) -> dict[str, list[str]]:
    """By kind the right answer to each of its questions. The most common answer is drawn."""
    draw = random.Random(seed)
    found = dict[str, list[str]]()
    for kind, chance in zip(KINDS, CHANCES, strict=True):
        common, *others = draw.sample(ANSWERS[:EACH], EACH)
        times = round(chance * EACH)
        found[kind] = [common] * times + others[: EACH - times]
    return found


def write_data(problem: Problem, known: Mapping[str, Sequence[str]], unknown: int) -> None:
    """Questions with their right answers, and demonstrations: the same, and for each kind of
    question `unknown` that do not know. The tokenizer drops the numbers of questions.
    """
    questions, shown = list[Group](), list[Group]()
    for kind, answers in known.items():
        for at, answer in enumerate([*answers, *[UNKNOWN] * unknown]):
            name = f"{kind} {at}"
            prompt = (Message(role="user", content=name),)
            said = Response(answer, tokens=problem.ids(answer), truncated=True)
            shown.append(Group(prompt, (said,), id=name))
            if answer != UNKNOWN:
                questions.append(Group(prompt, id=name, meta={"answers": [answer]}))
    write_groups(problem.folder / "demos.jsonl", shown)
    write_groups(problem.folder / "questions.jsonl", questions)


def outcomes(policy: Sequence[float], answers: Sequence[str]) -> dict[str, float]:
    """Chances of the outcomes of a policy [answers] for questions of one kind."""
    chance = dict(zip(ANSWERS, policy, strict=True))
    right = fmean(chance[answer] for answer in answers)
    return {RIGHT: right, ABSTAINS: chance[UNKNOWN], WRONG: 1 - right - chance[UNKNOWN]}


def gain_above_threshold(honesty: Any, answers: Sequence[str]) -> float:
    """What the best answer to all questions of a kind gains, by the reward itself, above the policy
    that says the most common one if it is right often enough.
    """
    gains = {one: fmean(honesty.grade(one, [known]) for known in answers) for one in ANSWERS}
    options = honesty.options
    threshold = (options.abstain - options.wrong) / (options.right - options.wrong)
    common = max(answers, key=answers.count)
    said = common if answers.count(common) / len(answers) > threshold else UNKNOWN
    return max(gains.values()) - gains[said]


# What they say


def measures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, dict[int, float]]:
    """By seed: the reward of each method, how often it abstains, by how much that differs from the
    threshold, how often it invents, and the most that the best policy gains above the threshold.

    The threshold's policy abstains at the share of kinds that lie below it, which are as far from
    each other, so that its mean abstention is the threshold.
    """
    found = dict[str, dict[int, float]]()
    for row in rows:
        name, seed, values = row["method"], row["seed"], row["values"]
        right, abstains, wrong = (fmean(values[one]) for one in (RIGHT, ABSTAINS, WRONG))
        pays = rule["methods"][name].get("abstain", 0.0)
        found.setdefault(name, {})[seed] = right - wrong + pays * abstains
        found.setdefault(f"{name} abstains", {})[seed] = abstains
        found.setdefault(f"{name} off", {})[seed] = abstains - (pays + 1) / 2
        found.setdefault(f"{name} invents", {})[seed] = wrong
        above = found.setdefault("above the threshold", {})
        above[seed] = max([above.get(seed, 0.0), *values["above the threshold"]])
    return found


def figures(
    rows: Sequence[Mapping[str, Any]], rule: Mapping[str, Any]
) -> dict[str, drawing.Drawing]:
    """Abstention against what is known."""
    named = dict[str, Any]()
    for row in rows:
        if name := rule["methods"][row["method"]].get("name"):
            named.setdefault(name, []).append(row["values"][ABSTAINS])
    title = 'Share of "I don\'t know", by the chance that the best answer is right'
    return {title: drawing.curves(lines_of(CHANCES, named), "chance of the best answer")}
