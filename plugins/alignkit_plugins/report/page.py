"""report.html: one file without scripts that needs no network, readable on a phone, on paper, in
light and in dark.

Everything that a model, a data set or a recipe wrote is escaped, and its control characters are
made visible.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit_plugins.compare import readable as numbers
from alignkit_plugins.evaluate.rows import Row, main_rows
from alignkit_plugins.page import templates
from alignkit_plugins.report import overview
from alignkit_plugins.report.figures import drawn
from alignkit_plugins.report.parts import parts
from alignkit_plugins.report.side_by_side import evaluated
from alignkit_plugins.report.tables import stage_titles

TEMPLATE = "report.html.j2"


def page(facts: Mapping[str, Any]) -> str:
    """The page of a run's facts."""
    rows = {stage: main_rows(found) for stage, found in evaluated(facts).items()}
    environment = templates(Path(__file__).parent)
    pictures = dict(zip(map(id, facts["figures"]), drawn(facts["figures"]), strict=True))
    environment.filters |= {
        "duration": numbers.duration,
        "picture": lambda figure: pictures[id(figure)],
        "short": numbers.short,
        "score": lambda sample, score: overview.scored(
            score, sample["reward"], rows.get(sample["stage"], [])
        ),
    }
    return environment.get_template(TEMPLATE).render(
        facts=facts,
        titles=stage_titles(facts["stages"]),
        parts=parts(facts),
        overview=_overview(facts, rows),
    )


def _overview(facts: Mapping[str, Any], rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What the page begins with: the verdict on the result, the others, the plot and one prompt."""
    verdicts = facts["verdicts"]
    last = (
        verdicts[-1]
        if verdicts
        else {"stage": [*rows, ""][len(rows) - 1], "policy": "", "outcome": ""}
    )
    of_result = [
        one for one in verdicts if (one["stage"], one["policy"]) == (last["stage"], last["policy"])
    ]
    others = [one for one in verdicts if one not in of_result]
    found: dict[str, Any] = {
        "verdicts": of_result,
        "others": others,
        "sample": overview.chosen(facts, last),
        "plot": [],
    }
    found["models"] = (
        [("base", f"{facts['run']['base']}, the base model")] if facts["run"]["base"] else []
    )
    for stage in facts["stages"]:
        if text := "; ".join(filter(None, [stage["about"], stage["learned"].replace("->", "→")])):
            found["models"].append((stage["name"], text))
    if own := rows.get(last["stage"]):
        found["plot"] = overview.intervals(own, last["policy"] or own[-1].policy)
    return found
