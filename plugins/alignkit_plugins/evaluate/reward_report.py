"""The report of `evaluate_reward`: one table per question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from alignkit.evaluation import statistics
from alignkit.evaluation.statistics import shown
from alignkit.report import Block, Report, Table
from alignkit_plugins.ai_feedback.judge_card import sentence
from alignkit_plugins.compare.pair_metrics import NO_MODEL
from alignkit_plugins.evaluate.rewardbench2 import TIES

Found = Mapping[str, Any]  # what was measured of one reward


def report(summary: Mapping[str, Any]) -> Report:
    """All of it."""
    rewards: Mapping[str, Found] = summary["rewards"]
    blocks: list[Block] = ["\n".join(summary["notes"])] if summary["notes"] else []
    blocks.append(_overview(summary))
    blocks += _best_of_n(
        {name: found["best_of_n"] for name, found in rewards.items() if found["best_of_n"]}
    )
    blocks += _breakdown(
        "people's margin", {name: found["by_margin"] for name, found in rewards.items()}
    )
    for column in next(iter(rewards.values()))["by"]:
        blocks += _breakdown(column, {name: found["by"][column] for name, found in rewards.items()})
    sections = {name: found["sections"] for name, found in rewards.items() if found["sections"]}
    if sections:
        heads = list(dict.fromkeys(section for found in sections.values() for section in found))
        rows = [
            [name, *(_percent(found.get(head)) for head in heads)]
            for name, found in sections.items()
        ]
        blocks.append(Table("RewardBench's sections", ["reward", *heads], rows))
    blocks.append(_length(rewards))
    blocks += _calibration(rewards)
    if summary["agreement"]:
        rows = [
            [both, shown(found["same"], percent=True), _number(found["correlation"])]
            for both, found in summary["agreement"].items()
        ]
        blocks.append(
            Table("raters among themselves", ["raters", "same winner", "rank correlation"], rows)
        )
    cards = summary["judge_cards"]
    return Report(
        [*blocks, *(["\n".join(sentence(*each) for each in cards.items())] if cards else [])]
    )


def _best_of_n(found: Mapping[str, Found]) -> Iterable[Table]:
    """RewardBench 2's results; nothing without them."""
    names = list(dict.fromkeys(name for each in found.values() for name in each["subsets"]))
    if not found:
        return
    rows, unscored = [], 0
    for reward, each in found.items():
        tied = each["ties"] or {"score": None, "unscored": 0}
        cells = [shown(each["subsets"][name]["accuracy"], percent=True) for name in names]
        rows.append([reward, *cells, _percent(tied["score"]), _percent(each["average"])])
        unscored += tied["unscored"] + sum(
            subset["unscored"] for subset in each["subsets"].values()
        )
    yield Table(
        "RewardBench 2: how often the chosen response scores highest",
        ["reward", *names, TIES, "average of all"],
        rows,
        note=f"{unscored} prompts without all scores are left out" if unscored else "",
    )


def _overview(summary: Mapping[str, Any]) -> Table:
    title = (
        f"accuracy and {statistics.CONFIDENCE:.0%} interval on {summary['pairs']} pairs of "
        f"{summary['prompts']} prompts"
    )
    ties = f", without {summary['ties']} that the data call a tie" if summary["ties"] else ""
    rows = []
    for name, found in summary["rewards"].items():
        unscored = summary["pairs"] - summary["ties"] - found["pairs"]
        rows.append(
            [name, shown(found["accuracy"], percent=True), str(found["ties"]), str(unscored)]
        )
    return Table(
        title + ties,
        ["rater", "accuracy", "equal scores", "unscored"],
        rows,
        note="equal scores count as wrong"
        if any(found["ties"] for found in summary["rewards"].values())
        else "",
    )


def _breakdown(what: str, found: Mapping[str, Mapping[str, Found]]) -> Iterable[Table]:
    """Accuracy at each value; nothing without values."""
    values = list(dict.fromkeys(value for rows in found.values() for value in rows))
    if not values:
        return
    rows = []
    for value in values:
        cells = [rows_of.get(value) for rows_of in found.values()]
        count = max(cell["pairs"] for cell in cells if cell)
        rows.append(
            [
                value,
                str(count),
                *("-" if c is None else shown(c["accuracy"], percent=True) for c in cells),
            ]
        )
    yield Table(f"accuracy by {what}", [what, "pairs", *found], rows)


def _length(rewards: Mapping[str, Found]) -> Table:
    rows = []
    for name, found in rewards.items():
        length = found["length"]
        rows.append(
            [
                name,
                _number(length["correlation"]),
                shown(length["longer"]["accuracy"], percent=True),
                shown(length["shorter"]["accuracy"], percent=True),
            ]
        )
    longer = next(iter(rewards.values()))["length"]["chosen_longer"]
    note = (
        f"the chosen response is longer in {shown(longer, percent=True)} of pairs" if longer else ""
    )
    heads = ["rater", "rank correlation", "accuracy if chosen is longer", "if shorter"]
    return Table("score and length, in characters", heads, rows, note=note)


def _calibration(rewards: Mapping[str, Found]) -> Iterable[Block]:
    known = {name: found["calibration"] for name, found in rewards.items() if found["calibration"]}
    why = {name: found["uncalibrated"] for name, found in rewards.items()}
    others = [f"{name}: {reason}" for name, reason in why.items() if reason not in ("", NO_MODEL)]
    left_out = f"not read as probabilities: {'; '.join(others)}" if others else ""
    if known:
        rows = [
            [name, shown(found["error"]), f"{found['log_loss']:.3f}"]
            for name, found in known.items()
        ]
        note = "0.693 nats is chance; the bins are in reward_evaluation.json"
        heads = ["reward model", "calibration error", "log loss, nats"]
        yield Table(
            "scores as probabilities", heads, rows, note="; ".join(filter(None, [note, left_out]))
        )
    elif left_out:
        yield left_out


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:+.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
