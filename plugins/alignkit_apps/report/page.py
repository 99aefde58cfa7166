"""report.html: one file without scripts that needs no network, readable on a phone, on paper, in light and in dark.

Everything that a model, a data set or a recipe wrote is escaped, and its control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit_apps.charts.page import templates
from alignkit_apps.report import overview
from alignkit_apps.report.parts import parts
from alignkit_apps.report.tables import stage_titles
from alignkit_plugins.evaluate import readable as numbers

TEMPLATE = "report.html.j2"


def page(facts: Mapping[str, Any]) -> str:
    """The page of a run's facts."""
    summaries = {item["stage"]: item["evaluation"] for item in facts["evaluations"]}
    environment = templates(Path(__file__).parent, facts["figures"])
    environment.filters |= {
        "duration": numbers.duration,
        "clauses": _clauses,
        "score": lambda sample, score: overview.scored(score, sample["reward"], summaries.get(sample["stage"], {})),
    }
    return environment.get_template(TEMPLATE).render(
        facts=facts, titles=stage_titles(facts["stages"]), parts=parts(facts), overview=_overview(facts)
    )


def _clauses(sentence: str) -> list[tuple[str, str]]:
    """A conclusion in its clauses, each as what it says and the numbers for it, and what follows them."""
    first, _, rest = sentence.removesuffix(".").partition(". ")
    named, *more = first.split("; ")  # the first clause begins with the name of a policy or a judge
    clauses = [clause.partition(": ") for clause in (named, *(clause[:1].upper() + clause[1:] for clause in more))]
    return [(lead + colon.strip(), text) for lead, colon, text in clauses] + ([("", f"{rest}.")] if rest else [])


def _overview(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the page begins with: the verdicts on the result, the others, the plot and one prompt."""
    summaries = {item["stage"]: item["evaluation"] for item in facts["evaluations"]}
    last = facts["verdicts"][-1] if facts["verdicts"] else {}
    of_result = [one for one in facts["verdicts"] if (one["stage"], one["policy"]) == (last["stage"], last["policy"])]
    others = [one for one in facts["verdicts"] if one not in of_result]
    found: dict[str, Any] = {"verdicts": of_result, "others": others, "plot": [], "sample": None}
    stage = last.get("stage") or next(reversed(summaries), None)
    if stage in summaries:
        pairs = [pair for pair in facts["swaps"] if pair["stage"] == stage]
        found["plot"] = overview.intervals(summaries[stage], pairs)
        found["sample"] = overview.chosen(facts, of_result[0] if of_result else {"stage": stage, "outcome": ""})
    return found
