"""What an evaluation says of each policy in plain sentences, and what should make its reader doubt
it.

A policy that was trained to please a reward gains by it even if people see no gain. Only a metric
that it did not learn from can say that it is better, so the first of these decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignkit.evaluation.statistics import bought_with_length
from alignkit.recipe.schema import BASE
from alignkit_plugins.compare.readable import bounds, mapping, shown
from alignkit_plugins.compare.rows import (
    BASE_MODEL,
    KL,
    LENGTH,
    RATED,
    TRUNCATED,
    TRUST,
    Row,
    decides,
    rows_of,
)

PAIRS = "pairs right"
LONGER_IS_BETTER, SHORTER_IS_BETTER = f"{PAIRS}, better is longer", f"{PAIRS}, better is shorter"
COIN = 0.5
LONGER = 0.2  # share by which lengths may differ without a warning
HIGH_KL = 20.0  # nats per response
CUT = 0.2  # share of answers that may be truncated without a warning
# By whether the policy learned from what it gains by.
GAINS = {False: "gained", True: "gained by its own reward", None: "gained, not verified"}
NO_PROOF = {
    True: "It was trained on this reward or chosen by it, so this is no independent proof.",
    None: "It is not known whether it was trained on this, so this may be no independent proof.",
}
MORE = "More examples or more training may show one."


@dataclass(frozen=True)
class Verdict:
    """What all metrics together say of a policy.

    outcome: what the headline says, the first metric that the policy did not learn from: `gained`,
    `lost` or `nothing clear`; `only length`, if all that it gained is a preference for longer
    responses; `mixed`, if it gained and is clearly worse by another one, or than the base model;
    `gained by its own reward`, if it learned from all of them; `gained, not verified`, if it is not
    known what it learned from; or `unknown` without scores. sentences: the first says the headline.
    """

    policy: str
    baseline: str
    metric: str
    outcome: str
    sentences: Sequence[str]


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """A verdict per policy that an evaluation compares with its baseline."""
    policies = dict.fromkeys(row.policy for row in rows if decides(row))
    return [_verdict(rows, policy) for policy in policies]


def _verdict(rows: Sequence[Row], policy: str) -> Verdict:
    own = [row for row in rows if row.policy == policy and row.kind in RATED and row.tested]
    against = [row for row in own if row.baseline != BASE_MODEL and row.clear is not None]
    if not against:
        baseline = next(row.baseline for row in own if decides(row))
        text = f"{policy} and {baseline} cannot be compared: no prompt has a score for both."
        return Verdict(policy, baseline, "", "unknown", [text])
    head = min(against, key=lambda row: TRUST.index(row.trained_on))
    others = [row for row in against if row is not head]
    below = [row for row in own if row.baseline == BASE_MODEL and row.clear == -1]
    told = [_headline(head, rows)]
    if head.clear == 1 and head.trained_on is not False:
        told[0] += f" {NO_PROOF[head.trained_on]}"
    if head.clear == 0:
        told.append(MORE)
    told += _bought(head, rows)
    outcome = {0: "nothing clear", -1: "lost", 1: GAINS[head.trained_on]}[head.clear or 0]
    if length := _of_length(rows, policy) if head.metric == PAIRS else "":
        told = [length] if head.clear == 1 else [*told, length]
        outcome = "only length" if head.clear == 1 else outcome
    for way, words in ((1, "Also better"), (-1, "Worse")):
        if found := [_difference(row) for row in others if row.clear == way]:
            told.append(f"{words}: {', '.join(found)}.")
    if below:
        told.append(f"Worse than {BASE_MODEL}: {', '.join(map(_difference, below))}.")
    if unclear := [row.metric for row in others if row.clear == 0]:
        told.append(f"No clear difference in {_and(unclear)}.")
    if outcome == "gained" and (below or any(row.clear == -1 for row in others)):
        outcome = "mixed"
    return Verdict(policy, head.baseline, head.metric, outcome, told)


def _of_length(rows: Sequence[Row], policy: str) -> str:
    """That a policy only prefers longer responses, if the pairs that it has right say so."""
    shares = {row.metric: row.estimate for row in rows if row.policy == policy and not row.column}
    longer, shorter = (shares.get(name, {}) for name in (LONGER_IS_BETTER, SHORTER_IS_BETTER))
    low, high = bounds(longer)[1], bounds(shorter)[2]
    if low is None or high is None or low <= high or shorter["mean"] >= COIN:
        return ""
    right = [shown({"mean": one["mean"]}, percent=True) for one in (longer, shorter)]
    return (
        f"{policy} prefers longer responses, which is no gain: it has {right[0]} of pairs right "
        f"where the better one is longer, and {right[1]} where it is shorter."
    )


def _headline(row: Row, rows: Sequence[Row]) -> str:
    """The comparison that decides, as a sentence."""
    policy, baseline = row.policy, row.baseline
    if row.kind == "judge":
        return _preferred(row)
    metric = f"the reward {row.metric}" if row.kind == "reward" else row.metric
    metric += " (lower is better)" if row.lower else ""
    if row.clear == 0:
        return f"No clear difference between {policy} and {baseline} in {metric}: {_shown(row)}."
    same = (baseline, row.metric, row.column)
    theirs = next(
        (one.estimate for one in rows if (one.policy, one.metric, one.column) == same), {}
    )
    both = [shown({"mean": bounds(one)[0]}, percent=row.percent) for one in (row.estimate, theirs)]
    numbers = (
        f"{both[0]} against {both[1]}, difference {_shown(row)}" if "-" not in both else _shown(row)
    )
    return (
        f"{policy} is {'better' if row.clear == 1 else 'worse'} than {baseline} in {metric}: "
        f"{numbers}."
    )


def _preferred(row: Row) -> str:
    """What a judge prefers, as a sentence."""
    policy, baseline, share = row.policy, row.baseline, row.estimate
    if row.clear == 0:
        text = f"{row.metric} has no clear preference between {policy} and {baseline}: {policy}"
        return f"{text} in {shown(share, percent=True)} of comparisons{_adjusted(row)}."
    better, worse = (policy, baseline) if row.clear == 1 else (baseline, policy)
    if row.clear == -1:
        mean, low, high = (None if value is None else 1 - value for value in bounds(share))
        share = {"mean": mean, "low": high, "high": low}
    return (
        f"{row.metric} prefers {better} to {worse}: in {shown(share, percent=True)} of "
        f"comparisons{_adjusted(row)}."
    )


def _difference(row: Row) -> str:
    """`facts right +20 points [4, 36]`, for a list."""
    if row.kind == "judge":
        return f"preferred by {row.metric} {shown(row.estimate, percent=True)}{_adjusted(row)}"
    return f"{row.metric} {_shown(row)}{' (trained on it)' if row.trained_on else ''}"


def _shown(row: Row) -> str:
    return shown(row.difference, sign=True, percent=row.percent).replace(
        "%", " points"
    ) + _adjusted(row)


def _adjusted(row: Row) -> str:
    """The p value where the interval, which nothing adjusts, says something else."""
    if row.p is None or bool(row.clear) == row.excludes_zero:
        return ""
    return f", p {row.p:.1g} after adjusting for all comparisons"


def _and(names: Sequence[str]) -> str:
    if any("," in name for name in names):
        return "; ".join(names)
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _bought(row: Row, rows: Sequence[Row]) -> Iterator[str]:
    """What most of a gain was bought with, if that is length."""
    longer = longer_by(rows, row.policy, row.baseline)
    if (
        row.kind == "reward"
        and longer
        and bought_with_length(row.difference, row.equal_length or None)
    ):
        what = f"Most of this gain comes with {'longer' if longer > 0 else 'shorter'} answers"
        yield f"{what}: between equally long ones it is {shown(row.equal_length, sign=True)}."


def longer_by(rows: Sequence[Row], policy: str, baseline: str) -> float | None:
    """The share by which a policy's answers are longer than the baseline's; None if unknown."""
    lengths = {row.policy: bounds(row.estimate)[0] for row in rows if row.metric == LENGTH}
    ours, theirs = lengths.get(policy), lengths.get(baseline)
    return None if ours is None or not theirs else ours / theirs - 1


# What to doubt, the most important first


def doubts(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Warnings about an evaluation, in plain words."""
    rows = [row for row in rows_of(evaluation) if not row.column]
    yield from no_judges(evaluation)
    for note in evaluation.get("notes") or ():
        if note.startswith("warning: "):
            yield note.removeprefix("warning: ")
    for row in rows:
        if row.kind == "judge" and row.clear:
            yield from _of_preference(row, rows)
    for verdict in verdicts(rows):
        yield from _of_verdict(verdict, rows)
    yield from _of_answers(rows)
    if left_out := evaluation.get("left_out"):
        yield f"{left_out} prompts do not count, because they and their answers do not fit"


def no_judges(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Why judges are none, from their cards in an evaluation.json or a reward_evaluation.json."""
    for name, card in mapping(evaluation.get("judge_cards")).items():
        if card.get("no_judge"):
            yield f"{name}: {card['no_judge']}"


def _of_preference(row: Row, rows: Sequence[Row]) -> Iterator[str]:
    """Where rewards contradict a judge, and where its preference ends at equal length."""
    policy, judge, other_way = row.policy, row.metric, -(row.clear or 0)
    for other in rows:
        if (
            other.policy == policy
            and decides(other)
            and other.kind != "judge"
            and other.clear == other_way
        ):
            better, worse = (policy, row.baseline) if other.clear == 1 else (row.baseline, policy)
            yield (
                f"{other.metric} prefers {better}, but {judge} prefers {worse}: one of them may "
                "be fooled"
            )
    if _contains(row.equal_length, COIN):
        yield f"between equally long answers, {judge} has no clear preference"
    elif row.equal_length and (row.equal_length["mean"] > COIN) != (row.clear == 1):
        yield (
            f"between equally long answers, {judge} prefers the other policy: length decides for it"
        )


def _of_verdict(verdict: Verdict, rows: Sequence[Row]) -> Iterator[str]:
    policy, baseline = verdict.policy, verdict.baseline
    own = {row.metric: row for row in rows if row.policy == policy and row.baseline != BASE_MODEL}
    head = own.get(verdict.metric)
    clear = verdict.outcome not in ("nothing clear", "unknown")
    if head is not None and clear and _contains(head.equal_length, 0.0):
        yield (
            f"between equally long answers, no difference between {policy} and {baseline} is clear"
        )
    longer = longer_by(rows, policy, baseline)
    if longer is not None and abs(longer) > LONGER:
        than = f"{'longer' if longer > 0 else 'shorter'} than those of {baseline}"
        yield (
            f"answers of {policy} are {abs(longer):.0%} {than}, and rewards and judges often "
            "depend on length"
        )
    kl = bounds(own[KL].estimate)[0] if KL in own else None
    if kl is not None and kl > HIGH_KL and policy != BASE:
        yield (
            f"{policy} is {kl:.3g} nats from {own[KL].baseline}; so far away, a reward model is "
            "often fooled"
        )


def _contains(estimate: Any, value: float) -> bool:
    _, low, high = bounds(estimate)
    return low is not None and high is not None and low <= value <= high


def _of_answers(rows: Sequence[Row]) -> Iterator[str]:
    """Answers that have no score, or are truncated."""
    for row in rows:
        if row.missing and row.kind in ("metric", "reward") and row.baseline != BASE_MODEL:
            yield (
                f"{row.missing} answers of {row.policy} have no score by {row.metric} and do not "
                "count"
            )
    cut = {row.policy: row.estimate["mean"] for row in rows if row.metric == TRUNCATED}
    many = [f"{share:.0%} of {policy}" for policy, share in cut.items() if share > CUT]
    if many:
        yield f"many answers are truncated: {', '.join(many)}"
