"""An evaluation as a flat table, a row per number: what screens, reports, cards and comparisons of
runs are made of.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from alignkit.evaluation.statistics import CONFIDENCE, holm
from alignkit_plugins.compare.readable import bounds, mapping, number

BASE_MODEL = "the base model"
RATED = ("metric", "reward", "judge")  # kinds of what says how good a policy is
ANSWERS = "answers"  # the kind of what describes the answers
LENGTH, TRUNCATED, KL = "length, tokens", "truncated", "KL, nats"
# The order in which metrics decide, by whether the policy was trained on them
TRUST = (False, None, True)
STANDARD_ERRORS = 1.96  # of half an interval of 95%
FALLS = "self-BLEU"  # the metric of diversity that is lower for more diverse answers
ENDS = ("mean", "low", "high")
NAMES = ("policy", "baseline", "metric", "kind", "column", "value")
FACTS = ("p_adjusted", "clear", "better", "percent", "trained_on", "won/lost/tied")


@dataclass(frozen=True)
class Row:
    """A number of a policy, and how far it is from the same number of another policy.

    kind: one of RATED; ANSWERS; or `win rate`, `equal length`, `Elo`, `diversity` or `order` (how
    often the order of two answers decides for a judge, and how often it prefers the first).
    estimate: `mean`, `low`, `high` and `n`; of a judge, of the probability that the policy's answer
    is better. difference: the same prompt by prompt, with `p`; of a judge, from one half. Empty if
    nothing is compared. column, value: of the prompts that count; empty for all. lower: whether
    lower is better. trained_on: whether the policy learned from it; None if that is not known.
    tested: whether a verdict may claim something of the difference. p: adjusted for all that the
    evaluation tests. counts: prompts won, lost and tied.
    """

    policy: str
    metric: str
    kind: str
    estimate: Mapping[str, Any]
    baseline: str = ""
    difference: Mapping[str, Any] = field(default_factory=dict)
    column: str = ""
    value: str = ""
    percent: bool = False
    lower: bool = False
    trained_on: bool | None = None
    tested: bool = False
    p: float | None = None
    counts: str = ""

    @property
    def clear(self) -> int | None:
        """1 if the policy is clearly better than the baseline, -1 if clearly worse, else 0; None if
        unknown.

        Clear is what stays so with all other comparisons of the evaluation (`statistics.holm`).
        Without a p value, as in files of an older alignkit, the interval decides.
        """
        mean = bounds(self.difference)[0]
        if mean is None or not self.tested:
            return None
        clear = self.excludes_zero if self.p is None else self.p < 1 - CONFIDENCE
        above = mean < 0 if self.lower else mean > 0
        return 0 if not clear or mean == 0 else 1 if above else -1

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval of the difference, which nothing adjusts, lies on one side of 0."""
        _, low, high = bounds(self.difference)
        return low is not None and high is not None and not low <= 0 <= high


def rows_of(summary: Mapping[str, Any]) -> list[Row]:
    """The rows of an evaluation.json, those of RATED first."""
    policies = summary["policies"]
    means = {policy: measured.get("rewards") or {} for policy, measured in policies.items()}
    compared = {**mapping(summary.get("against")), **mapping(summary.get("judged"))}
    rows = list(_rated(summary, means, summary))
    rows += [row for policy in policies for row in _diversity(summary, policy, policy in compared)]
    rows = _adjusted(rows, list(compared))
    for policy, measured in policies.items():
        rows += _of_answers(summary, policy, measured)
    rows += _details(summary)
    for column, values in mapping(summary.get("by")).items():
        for value, found in values.items():
            at = _rated(summary, found["policies"], found)
            rows += [replace(row, column=column, value=value, tested=False) for row in at]
    return rows


def main_rows(rows: Iterable[Row]) -> list[Row]:
    """The rows of the table of policies by metrics."""
    return [
        row
        for row in rows
        if row.kind in (*RATED, ANSWERS) and not row.column and row.baseline != BASE_MODEL
    ]


def _rated(
    summary: Mapping[str, Any], means: Mapping[str, Mapping[str, Any]], found: Mapping[str, Any]
) -> Iterator[Row]:
    """How good each policy is. found: the evaluation, or its part at a value of a column."""
    metrics, baseline = mapping(summary.get("metrics")), str(summary.get("baseline"))
    for policy, scores in means.items():
        own, results = (
            mapping(mapping(summary.get("trained_on")).get(policy)),
            mapping(found.get("against")),
        )
        results = mapping(results.get(policy))
        decide = {*own, *metrics}.intersection(results) or {str(summary.get("headline"))}
        over_base = mapping(mapping(found.get("against_base")).get(policy))
        for name in dict.fromkeys([*scores, *results]):
            metric = mapping(metrics.get(name))
            row = Row(
                policy,
                name,
                "metric" if name in metrics else "reward",
                mapping(scores.get(name)),
                percent=bool(metric.get("percent")),
                lower=metric.get("better") == "lower",
                trained_on=own.get(name),
            )
            if result := results.get(name):
                counts = "/".join(str(result.get(key)) for key in ("wins", "losses", "ties"))
                compared = replace(
                    row, baseline=baseline, difference=result["difference"], counts=counts
                )
                row = replace(compared, tested=name in decide)
            yield row
            if name in over_base:
                yield replace(
                    row, baseline=BASE_MODEL, difference=over_base[name], counts="", tested=True
                )
        for name, result in mapping(mapping(found.get("judged")).get(policy)).items():
            preference = result.get("preference", result)
            gap = {key: None if preference[key] is None else preference[key] - 0.5 for key in ENDS}
            gap |= {"p": preference.get("p")}
            yield Row(
                policy,
                name,
                "judge",
                preference,
                baseline,
                gap,
                percent=True,
                trained_on=own.get(name),
                tested=True,
                counts="/".join(str(result.get(key, "")) for key in ("wins", "losses", "ties")),
            )


def _diversity(summary: Mapping[str, Any], policy: str, tested: bool) -> Iterator[Row]:
    for name, estimate in mapping(summary["policies"][policy].get("diversity")).items():
        difference = mapping(estimate.get("difference"))
        row = Row(policy, name, "diversity", estimate, lower=name == FALLS)
        if difference:
            row = replace(
                row, baseline=str(summary.get("baseline")), difference=difference, tested=tested
            )
        yield row


def _adjusted(rows: Sequence[Row], compared: Sequence[str]) -> list[Row]:
    """The rows with adjusted p values. The headline is the last policy's, by the metric that
    decides first.
    """
    tested = {
        place: row.difference["p"]
        for place, row in enumerate(rows)
        if row.tested
        and row.difference.get("p") is not None
        and row.difference.get("mean") is not None
    }
    lead = [
        place
        for place in tested
        if compared and rows[place].policy == compared[-1] and decides(rows[place])
    ]
    headline = min(lead, key=lambda place: TRUST.index(rows[place].trained_on), default=None)
    adjusted = holm(tested, headline)
    return [replace(row, p=adjusted.get(place)) for place, row in enumerate(rows)]


def decides(row: Row) -> bool:
    """Whether a verdict goes by a row: a comparison with the baseline, by what says how good a
    policy is.
    """
    return row.tested and row.kind in RATED and row.baseline != BASE_MODEL


def _of_answers(
    summary: Mapping[str, Any], policy: str, measured: Mapping[str, Any]
) -> Iterator[Row]:
    cut, cost = number(measured.get("truncated")), mapping(measured.get("tokens"))
    if measured.get("length"):
        yield Row(policy, LENGTH, ANSWERS, measured["length"])
    if cut is not None:
        yield Row(policy, TRUNCATED, ANSWERS, {"mean": cut}, percent=True)
    if measured.get("kl"):
        yield Row(policy, KL, ANSWERS, measured["kl"], str(summary.get("reference")))
    for what in ("read", "written") if summary.get("variants") else ():
        yield Row(policy, f"tokens {what}", ANSWERS, {"mean": cost.get(what)})


def _details(summary: Mapping[str, Any]) -> Iterator[Row]:
    """Win rates, what is left at equal length, Elo points, and what the order does to judges."""
    baseline = str(summary.get("baseline"))
    for policy, results in mapping(summary.get("against")).items():
        for name, result in results.items():
            percent = bool(mapping(mapping(summary.get("metrics")).get(name)).get("percent"))
            yield Row(
                policy, name, "win rate", mapping(result.get("win_rate")), baseline, percent=True
            )
            if equal := result.get("at_equal_length"):
                yield Row(policy, name, "equal length", {}, baseline, equal, percent=percent)
    for policy, judges in mapping(summary.get("judged")).items():
        for name, result in judges.items():
            yield Row(
                policy, name, "win rate", mapping(result.get("win_rate")), baseline, percent=True
            )
            if (rate := result.get("length_controlled")) is not None:
                half = STANDARD_ERRORS * rate["standard_error"]
                estimate = {**rate, "low": rate["mean"] - half, "high": rate["mean"] + half}
                yield Row(policy, name, "equal length", estimate, baseline, percent=True)
            for what, key in (
                ("order decides", "inconsistent"),
                ("prefers the first", "first_position"),
            ):
                yield Row(
                    policy,
                    f"{name}: {what}",
                    "order",
                    mapping(result.get(key)),
                    baseline,
                    percent=True,
                )
    for name, policies in mapping(summary.get("ranking")).items():
        for policy, found in policies.items():
            yield Row(policy, name, "Elo", found["elo"])


def as_csv(rows: Iterable[Row]) -> str:
    """The text of results.csv. Unknown numbers are empty."""
    out = io.StringIO()
    file = csv.writer(out, lineterminator="\n")
    ends = [f"difference_{key}" for key in ENDS[1:]]
    file.writerow([*NAMES, "n", *ENDS, "difference", *ends, "p", *FACTS])
    for row in rows:
        estimate, difference = row.estimate, row.difference
        numbers = [estimate.get(key) for key in ("n", *ENDS)] + [
            difference.get(key) for key in (*ENDS, "p")
        ]
        better = "lower" if row.lower else "higher"
        facts = [row.p, row.clear, better, row.percent, row.trained_on, row.counts]
        file.writerow([*(getattr(row, name) for name in NAMES), *numbers, *facts])
    return out.getvalue()
