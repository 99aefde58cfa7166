"""What an evaluation says of each policy in plain sentences, and what should make its reader doubt
it.

A policy that was trained to please a reward gains by it even if people see no gain. Only a metric
that it did not learn from can say that it is better, so the first of these decides. Any can say
that it is worse, which is said first where there is no gain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.evaluation.statistics import bought_with_length, interval_text
from alignkit.recipe.yaml import mapping
from alignkit_plugins.compare.rows import (
    BASE_MODEL,
    COIN,
    LENGTH,
    PAIRS,
    RATED,
    TOKENS,
    TRUNCATED,
    Row,
    decides,
    deciding,
    rows_in,
)
from alignkit_plugins.text.readable import bounds

LONGER_IS_BETTER, SHORTER_IS_BETTER = f"{PAIRS}, better is longer", f"{PAIRS}, better is shorter"
LONGER = 0.2  # share by which lengths may differ without a warning
CUT = 0.2  # share of answers that may be truncated without a warning
# Keys say whether the policy learned from what it gains by.
GAINS = {False: "gained", True: "gained by its own reward", None: "gained, not verified"}
NO_PROOF = {
    True: "It was trained on this reward or chosen by it, so this is no independent proof.",
    None: "It is not known whether it was trained on this, so this may be no independent proof.",
}
MORE = "More examples or more training may show one."
NO_ANSWERS = "Whether its answers are better, people or a judge can say."
TIED = "Both are equal on every example, so these examples cannot tell them apart."


@dataclass(frozen=True)
class PolicyVerdict:
    """What all metrics together say of a policy.

    outcome: what the headline says, the first metric that the policy did not learn from: `gained`,
    `lost` or `nothing clear`; `lost` as well, if it says nothing clear and another one is clearly
    worse; `only length`, if all that it gained is a preference for longer
    responses; `mixed`, if it gained and is clearly worse by another one, or than the base model;
    `gained by its own reward`, if it learned from all of them; `gained, not verified`, if it is not
    known what it learned from; or `unknown` without scores. metric: of the first sentence, which says
    what decides. of_others: the sentences that only say how it does by each other metric.
    """

    policy: str
    baseline: str
    metric: str
    outcome: str
    sentences: Sequence[str]
    of_others: Sequence[str] = ()


def verdicts(rows: Sequence[Row]) -> list[PolicyVerdict]:
    """A verdict per policy that an evaluation compares with its baseline."""
    found = dict[str, PolicyVerdict]()
    for row in rows:
        if decides(row) and row.policy not in found:
            found[row.policy] = _verdict(rows, row.policy)
    return list(found.values())


def _verdict(rows: Sequence[Row], policy: str) -> PolicyVerdict:
    own = [row for row in rows if row.policy == policy and row.kind in RATED and row.tested]
    against = [row for row in own if row.baseline != BASE_MODEL and row.clear is not None]
    if not against:
        baseline = next(row.baseline for row in own if decides(row))
        text = f"{policy} and {baseline} cannot be compared: no prompt has a score for both."
        return PolicyVerdict(policy, baseline, "", "unknown", [text])
    head = own[deciding(own)[policy]]
    sides: dict[Any, list[Row]] = {1: [], -1: [], 0: []}
    below = list[Row]()
    for row in own:
        if row.baseline == BASE_MODEL and row.clear == -1:
            below.append(row)
        elif row in against and row is not head:
            sides[row.clear].append(row)
    first, outcome = head, "nothing clear"
    if not head.clear and sides[-1]:
        first = min(sides[-1], key=lambda row: row.p or 0.0)
        sides[-1].remove(first)
        sides[0].insert(0, head)
    sentences, of_others = [_headline(first, rows)], list[str]()
    if head.clear == 1:
        outcome = GAINS[head.trained_on]
        if head.trained_on is not False:
            sentences.append(NO_PROOF[head.trained_on])
        elif sides[-1] or below:
            outcome = "mixed"
        sentences += _bought(head, rows)
    elif first.clear == -1:
        outcome = "lost"
    else:
        tied = head.difference.get("low") == head.difference.get("high") == 0
        sentences.append(TIED if tied else MORE)
    if first.metric in (PAIRS, TOKENS):
        sentences.append(NO_ANSWERS)
    if head.metric == PAIRS and (length := _of_length(rows, policy)):
        sentences.append(length)
        if head.clear == 1:
            sentences, outcome = [length], "only length"
    for what, others in (
        ("Also worse" if first.clear == -1 else "Worse", sides[-1]),
        (f"Worse than {BASE_MODEL}", below),
        ("Also better" if first.clear == 1 else "Better", sides[1]),
    ):
        if others:
            sentences.append(f"{what}: {'; '.join(_difference(row, rows) for row in others)}.")
            if others is not below:
                of_others.append(sentences[-1])
    for row in against:
        if row.margin:
            margin = f"{100 * row.margin:g} points" if row.percent else f"{row.margin:g}"
            how = "loses less" if row.within_margin else "may lose more"
            change = interval_text(row.difference, sign=True, percent=row.percent)
            sentences.append(f"In {row.metric}, it {how} than the margin of {margin}: {change}.")
    unclear = list[str]()
    for row in sides[0]:
        shown = row is head or row.excludes_zero
        unclear.append(_difference(row, rows) if shown else row.metric)
    if unclear:
        sentences.append(f"No clear difference in {'; '.join(unclear)}.")
        of_others.append(sentences[-1])
    return PolicyVerdict(policy, head.baseline, first.metric, outcome, sentences, of_others)


def _of_length(rows: Sequence[Row], policy: str) -> str:
    """A sentence if a policy only prefers longer responses, by the pairs that it gets right."""
    shares = {row.metric: row.estimate for row in rows if row.policy == policy and not row.column}
    longer, shorter = shares.get(LONGER_IS_BETTER), shares.get(SHORTER_IS_BETTER)
    low, (mean, _, high) = bounds(longer)[1], bounds(shorter)
    if low is None or mean is None or high is None or low <= high or mean >= COIN:
        return ""
    return (
        f"{policy} prefers longer responses, which is no gain: it has "
        f"{interval_text(longer, percent=True)} of pairs right where the better one is longer, and "
        f"{interval_text(shorter, percent=True)} where it is shorter."
    )


def _headline(row: Row, rows: Sequence[Row]) -> str:
    """The comparison that decides, as a sentence."""
    policy, baseline, text = row.policy, row.baseline, _difference(row, rows)
    if any((one.policy, one.metric) == (baseline, row.metric) and one.chance for one in rows):
        how = {1: "better", -1: "worse"}.get(row.clear or 0, "not clearly better")
        share = interval_text(row.estimate, percent=True)
        _, _, which = row.metric.partition(", better is ")
        where = which and f" where the better one is {which}"
        return f"{policy} orders held-out pairs{where} {how} than chance: {share} are right."
    if not row.clear:
        return f"No clear difference between {policy} and {baseline} in {text}."
    for one in rows:
        if (one.policy, one.metric, one.column) == (baseline, row.metric, row.column):
            means = (interval_text({"mean": each.mean}, percent=row.percent) for each in (row, one))
            text += f": {' against '.join(means)}"
    return f"{policy} is {'better' if row.clear == 1 else 'worse'} than {baseline} in {text}."


def _difference(row: Row, rows: Sequence[Row]) -> str:
    """`facts right, +20 points [4, 36]`, with p values where they do not say what its interval says."""
    name, difference = row.metric, interval_text(row.difference, sign=True, percent=row.percent)
    if row.kind == "reward":
        name = f"the {name}" if "reward" in name else f"the reward {name}"
    if row.lower:
        name += " (lower is better)"
    if row.trained_on:
        name += " (trained on it)"
    text = f"{name}, {difference}"
    if row.kind == "judge":
        text = f"{name}, which prefers it in {interval_text(row.estimate, percent=True)} of comparisons"
    if row.p is not None and bool(row.clear) != row.excludes_zero:
        count, what = sum(one.p is not None for one in rows), {1: "gains", -1: "losses"}
        alone, among = f"{row.difference['p']:.1g}", f"{row.p:.1g} among {count} possible "
        text += f", p {alone} alone, {'' if row.clear else 'but '}{among}"
        text += what.get(row.direction, "differences")
    return text


def _bought(row: Row, rows: Sequence[Row]) -> Iterator[str]:
    """What most of a gain was bought with, if that is length."""
    longer = longer_by(rows, row.policy, row.baseline)
    equal = row.equal_length or None
    if row.kind == "reward" and longer and bought_with_length(row.difference, equal):
        what = f"Most of this gain comes with {_longer(longer)} answers"
        yield f"{what}: between equally long ones it is {interval_text(equal, sign=True)}."


def _longer(share: float) -> str:
    if share > 0:
        return "longer"
    return "shorter"


def longer_by(rows: Sequence[Row], policy: str, baseline: str) -> float | None:
    """The share by which a policy's answers are longer than the baseline's; None if unknown."""
    lengths = {row.policy: row.mean for row in rows if row.metric == LENGTH}
    ours, theirs = lengths.get(policy), lengths.get(baseline)
    return None if ours is None or not theirs else ours / theirs - 1


# What to doubt, the most important first


def doubts(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about an evaluation, in plain words."""
    rows = [row for row in rows_in(evaluation) if not row.column]
    yield from no_judges(evaluation)
    for note in evaluation.get("notes") or ():
        if note.startswith("warning: "):
            yield note.removeprefix("warning: ")
    for row in rows:
        if row.clear and decides(row):
            yield from _of_gain(row, rows)
    for verdict in verdicts(rows):
        longer = longer_by(rows, verdict.policy, verdict.baseline)
        if longer is not None and abs(longer) > LONGER:
            yield (
                f"answers of {verdict.policy} are {abs(longer):.0%} {_longer(longer)} than those "
                f"of {verdict.baseline}, and rewards and judges often depend on length"
            )
    truncated = list[str]()
    for row in rows:
        if row.missing and row.baseline != BASE_MODEL and row.kind != "judge":
            yield f"{row.missing} answers of {row.policy} have no {row.metric} and do not count"
        if row.metric == TRUNCATED and (row.mean or 0.0) > CUT:
            truncated.append(f"{row.estimate['mean']:.0%} of {row.policy}")
    if truncated:
        yield f"many answers are truncated: {', '.join(truncated)}"


def no_judges(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Why judges are none, from their cards in an evaluation.json or a reward_evaluation.json."""
    for name, card in mapping(evaluation.get("judge_cards")).items():
        if card.get("no_judge"):
            yield f"{name}: {card['no_judge']}"


def _of_gain(row: Row, rows: Sequence[Row]) -> Iterator[str]:
    """Where rewards contradict a judge, and where a difference ends at equal length."""
    for other in rows:
        if row.kind != "judge" or other.policy != row.policy or other.kind == "judge":
            continue
        if decides(other) and other.clear == -(row.clear or 0):
            yield (
                f"{other.metric} and {row.metric} contradict each other on {row.policy}: one of "
                "them may be fooled"
            )
    _, low, high = bounds(row.equal_length)
    equal = COIN if row.kind == "judge" else 0.0
    if low is not None and high is not None and low <= equal <= high:
        yield (
            f"between equally long answers, no difference between {row.policy} and {row.baseline} "
            f"in {row.metric} is clear"
        )
