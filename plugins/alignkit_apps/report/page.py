"""report.html: one file without scripts that needs no network, readable on a phone, on paper, in light and in dark.

Everything that a model, a data set or a recipe wrote is escaped, and its control characters are made visible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.evaluation import readable as numbers
from alignkit_apps.charts import curves, figures
from alignkit_apps.charts.page import templates
from alignkit_apps.report import overview
from alignkit_apps.report.files import UNEXPECTED
from alignkit_apps.report.parts import cut, parts, when
from alignkit_apps.report.tables import stage_titles

MOST_BYTES = 2_000_000
TEMPLATE = "report.html.j2"
# Points per series, characters of a text, samples of a kind, rows of a table: taken in turn until the page fits.
LEVELS = (
    (curves.POINTS, 2000, 5, 1000),
    (400, 1000, 5, 300),
    (150, 500, 3, 100),
    (curves.LEAST_POINTS, 200, 1, 30),
    (0, 100, 1, 10),
)


def page(facts: Mapping[str, Any]) -> str:
    """The page of a run's facts, at most MOST_BYTES long in UTF-8; what had to be cut is said in it."""
    before: Sequence[curves.Figure] | None = None
    drawn: list[tuple[curves.Figure, str]] = []
    for level in LEVELS:
        less = cut(facts, *level)
        if less["figures"] != before:
            before = less["figures"]
            drawn = figures.drawn(before)
        text = _render({**less, "figures": before}, drawn)
        if len(text.encode()) <= MOST_BYTES:
            return text
    return _render(_least(facts), [])


def _least(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What remains of a run that is too large for any page."""
    names = ["evaluations", "samples", "figures", "fits", "people", "reports", "parts", "data", "dropped", "files"]
    names += ["incidents", "starts", "swaps"]
    least = {**cut(facts, 0, 100, 1, 10), **{name: [] for name in names}, "recipe": ""}
    least["verdicts"], least["stages"] = facts["verdicts"][:50], [{**s, "metrics": {}} for s in least["stages"]]
    return {**least, "cut": ["most of it: the run is too large; report.json has everything"]}


def _clauses(sentence: str) -> list[tuple[str, str]]:
    """A conclusion in its clauses, each as what it says and the numbers for it, and what follows them."""
    first, _, rest = sentence.removesuffix(".").partition(". ")
    named, *more = first.split("; ")  # the first clause begins with the name of a policy or a judge
    clauses = [clause.partition(": ") for clause in (named, *(clause[:1].upper() + clause[1:] for clause in more))]
    return [(lead + colon.strip(), text) for lead, colon, text in clauses] + ([("", f"{rest}.")] if rest else [])


def _overview(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the page begins with: the verdicts on the result, the others, the plot and one prompt; less of odd files."""
    summaries = {item["stage"]: item["evaluation"] for item in facts["evaluations"]}
    last = facts["verdicts"][-1] if facts["verdicts"] else {}
    of_result = [one for one in facts["verdicts"] if (one["stage"], one["policy"]) == (last["stage"], last["policy"])]
    found: dict[str, Any] = {
        "verdicts": of_result,
        "others": [one for one in facts["verdicts"] if one not in of_result],
        "plot": [],
        "sample": None,
        "changes": "",
    }
    stage = last.get("stage") or next(reversed(summaries), None)
    if stage in summaries:
        pairs = [pair for pair in facts["swaps"] if pair["stage"] == stage]
        try:
            found["plot"] = overview.intervals(summaries[stage], pairs)
            found["sample"] = overview.chosen(facts, of_result[0] if of_result else {"stage": stage, "outcome": ""})
            found["changes"] = overview.changes(found["sample"], summaries[stage]) if found["sample"] else ""
        except UNEXPECTED:
            pass  # a warning says that the file is odd
    return found


def _render(facts: Mapping[str, Any], drawn: Sequence[tuple[curves.Figure, str]]) -> str:
    summaries = {item["stage"]: item["evaluation"] for item in facts["evaluations"]}
    environment = templates(Path(__file__).parent, facts["figures"], drawn)
    environment.filters |= {
        "duration": numbers.duration,
        "clauses": _clauses,
        "when": when,
        "score": lambda sample, score: overview.scored(score, sample["reward"], summaries.get(sample["stage"], {})),
    }
    return environment.get_template(TEMPLATE).render(
        facts=facts,
        titles=stage_titles(facts["stages"]),
        parts=parts(facts),
        overview=_overview(facts),
    )
