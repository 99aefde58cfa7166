"""Comparisons by the principles of a constitution (Bai et al. 2022, arXiv:2212.08073, section 4.1).

Each pair is judged by principles drawn at random, and its label is the mean of their probabilities:
an ensemble, which is more robust than one principle.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignkit import CheckedJudge, RunFailed, Verdict
from alignkit.data.group import sha256_of
from alignkit.evaluation import statistics
from alignkit.judges import Item
from alignkit_plugins.ai_feedback.constitution import Principle, drawn


@dataclass(frozen=True)
class Asked:
    """A comparison. pair: its number. row: prompt, first and second, and with a principle what it
    says.

    principle: its name.
    """

    pair: int
    row: list[Any]
    principle: str = ""


def check(judge: Any, constitution: Sequence[Principle], count: int) -> None:
    """Raise RunFailed if pairs cannot be judged like this."""
    known = [principle for principle in constitution if principle.compare is not None]
    if not known:
        raise RunFailed("no principle of the constitution has 'compare'")
    if count > len(known):
        have = "1 principle has" if len(known) == 1 else f"{len(known)} principles have"
        raise RunFailed(f"principles_per_pair is {count}, but only {have} 'compare'")
    try:
        CheckedJudge.check_compares(judge, known[0].compare or "")
    except RunFailed as error:
        raise RunFailed(
            f"{error}\n"
            "help: a constitution needs a judge that reads, such as openai_judge or local_judge"
        ) from None


def by_principles(
    items: Sequence[Item], constitution: Sequence[Principle], count: int, seed: int, stage: str
) -> list[Asked]:
    """Each pair with `count` principles, which depend on the seed and the pair's texts, not on
    other pairs.

    Comparisons by the same principle are next to each other, so that a judge gets them at once.
    """
    known = [principle for principle in constitution if principle.compare is not None]
    asked = []
    for number, item in enumerate(items):
        for principle in drawn(
            known, count, seed, stage, sha256_of([list(item[0]), *sorted(item[1:])])
        ):
            asked.append(Asked(number, [*item, principle.compare], principle.name))
    places = {principle.name: place for place, principle in enumerate(known)}
    return sorted(asked, key=lambda each: places[each.principle])


def compared(judge: CheckedJudge, rows: Sequence[Sequence[Any]]) -> list[Verdict]:
    """The verdicts on rows of `Asked`, in order."""
    verdicts: list[Verdict] = []
    for rubric, alike in itertools.groupby(rows, lambda row: row[3] if len(row) > 3 else ""):
        verdicts += judge.compare([(row[0], row[1], row[2]) for row in alike], rubric)
    return verdicts


def joined(asked: Sequence[Asked], found: Sequence[Verdict], pairs: int) -> list[Verdict]:
    """One verdict on each pair: the mean over its principles. Principles without a verdict do not
    count.
    """
    of_pair: list[list[Verdict]] = [[] for _ in range(pairs)]
    for each, verdict in zip(asked, found, strict=True):
        of_pair[each.pair].append(verdict)
    return [verdicts[0] if len(verdicts) == 1 else _mean(verdicts) for verdicts in of_pair]


def _mean(verdicts: Sequence[Verdict]) -> Verdict:
    usable = [verdict for verdict in verdicts if verdict.p_first is not None]
    calls, tokens = (
        _total(verdict.calls for verdict in verdicts),
        _total(verdict.tokens for verdict in verdicts),
    )
    if not usable:
        return Verdict(None, mass=0.0, reason=verdicts[0].reason, calls=calls, tokens=tokens)
    orders = [verdict.p_orders for verdict in usable if verdict.p_orders]
    known = len(orders) == len(usable)
    both = [statistics.mean(column) for column in zip(*orders, strict=True)]
    mean = Verdict(
        statistics.mean([verdict.p_first or 0.0 for verdict in usable]),
        (both[0], both[1]) if known else None,
        statistics.mean([verdict.mass for verdict in usable]),
        bounded=any(verdict.bounded for verdict in usable),
        calls=calls,
        tokens=tokens,
    )
    return replace(mean, p_first=0.5) if mean.tied else mean


def _total(counts: Any) -> int | None:
    known = list(counts)
    return None if None in known else sum(known)


def tally(
    asked: Sequence[Asked], found: Sequence[Verdict], joint: Sequence[Verdict]
) -> dict[str, dict[str, Any]]:
    """For each principle: its comparisons, those without a verdict, its mean certainty, and how
    often it decides as the mean over all principles of the pair does. Empty without a
    constitution.
    """
    facts: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(each.principle for each in asked if each.principle):
        own = [
            (v, joint[each.pair])
            for each, v in zip(asked, found, strict=True)
            if each.principle == name
        ]
        usable = [(v.p_first, mean.p_first or 0.0) for v, mean in own if v.p_first is not None]
        decided = [(p > 0.5) == (mean > 0.5) for p, mean in usable if 0.5 not in (p, mean)]
        facts[name] = {
            "comparisons": len(own),
            "unusable": len(own) - len(usable),
            "certainty": statistics.mean([abs(p - 0.5) * 2 for p, _ in usable]) if usable else None,
            "with_the_mean": sum(decided) / len(decided) if decided else None,
        }
    return facts
