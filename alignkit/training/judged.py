"""What an iteration's rewards asked judges: what it cost, and why some responses have no score."""

from __future__ import annotations

from typing import TypeVar

from alignkit.judges import costs
from alignkit.training.scoring import Scorer

T = TypeVar("T")


def spent(scorer: Scorer) -> dict[str, float]:
    """Questions, tokens and cost of the last scoring, as metrics; stored replies count, too. Empty without judges.

    Of all processes, which call this together.
    """
    found = costs(_everywhere(scorer, [each for _, leaf in scorer.leaves() for each in leaf.spent]))
    names = {"calls": "judge/questions", "tokens": "judge/tokens", "cost": "judge/cost"}
    return {names[name]: value for name, value in found.items() if value is not None}


def why_unscored(scorer: Scorer) -> str:
    """The first reason of each judge that gave no rating or verdict, to end a sentence with; empty without one.

    Of all processes, which call this together.
    """
    found = _everywhere(scorer, [each for _, leaf in scorer.leaves() for each in leaf.reasons.items()])
    reasons: dict[str, str] = {}
    for judge, reason in found:
        if reason:
            reasons.setdefault(judge, reason)
    return "".join(f"; {judge}: {reason}" for judge, reason in reasons.items())


def _everywhere(scorer: Scorer, here: list[T]) -> list[T]:
    return [each for part in scorer.reducer.gather(here) for each in part]
