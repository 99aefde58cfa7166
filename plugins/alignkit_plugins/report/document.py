"""report.html: the numbers and tables of the page, which report.html.j2 lays out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.contract.report import Report, Table
from alignkit_plugins.ai_feedback.judge_card import sentence
from alignkit_plugins.cells.earlier import evaluated
from alignkit_plugins.compare.rows import RATED, Row, main_rows, rows_in
from alignkit_plugins.compare.tables import cell, comparisons, details, over, table
from alignkit_plugins.compare.verdicts import GAINS
from alignkit_plugins.people import agreement
from alignkit_plugins.report import data_card
from alignkit_plugins.report.facts import stage_words
from alignkit_plugins.report.figures import figures_of, worded
from alignkit_plugins.servers.page import templates
from alignkit_plugins.text.readable import bounds, duration, mapping, short, size

PLOTTED = 6  # metrics of the first screen; the tables have all of them
MARGIN = 0.05  # share of the plot on each side of the widest intervals


def page(facts: Mapping[str, Any]) -> str:
    """report.html: one file without scripts that needs no network."""
    rows, titles, evaluations, others = evaluated(facts), dict[str, str](), list[Any](), list[Any]()
    for stage in facts["stages"]:
        name, words = stage["name"], stage_words(stage["plugin"])
        titles[name] = words if name in (stage["plugin"], "report") else f"{words}: {name}"
    for item in facts["evaluations"]:
        evaluations.append(_evaluation(facts, item, rows[item["stage"]]))
    for item in facts["reports"]:
        if item["stage"] not in rows:
            others.append((item["stage"], Report.restored(item["blocks"]).blocks))
    environment = templates(Path(__file__).parent, titles=titles)
    own = (data_card.brief_name, data_card.left_out)
    filters = (duration, short, size, stage_words, worded, *own)
    environment.filters |= {each.__name__: each for each in filters}
    return environment.get_template("report.html.j2").render(
        facts=facts,
        first=_first_screen(facts, rows),
        evaluations=evaluations,
        others=others,
        figures=figures_of(facts),
        cards=data_card.tables(facts["data"]),
        people=_people(facts["people"]),
    )


def _evaluation(
    facts: Mapping[str, Any], item: Mapping[str, Any], rows: Sequence[Row]
) -> dict[str, Any]:
    """What the page says of an evaluation. rows: with those of earlier results."""
    evaluation, notes, compared = item["evaluation"], list[str](), [comparisons(rows)]
    for note in evaluation.get("notes") or ():
        if not note.startswith("warning: "):
            notes.append(note)
    for one in facts["cells"]:
        if one["stage"] == item["stage"]:
            compared.append(comparisons(rows_in(one)))
            notes += one["notes"]
    for name, card in mapping(evaluation.get("judge_cards")).items():
        notes.append(sentence(name, card))
    means = table(main_rows(rows), over(evaluation))
    return {
        "stage": item["stage"],
        "notes": notes,
        "tables": [means, *(each for each in compared if each.rows)],
        "details": details(rows),
    }


def _people(people: Sequence[Mapping[str, Any]]) -> list[tuple[str, Table]]:
    """How far people agree on the labels of each store, in words, and the table of annotators.
    Stages that read the same labels share them.
    """
    names, labels = dict[str, list[str]](), dict[str, Any]()
    for one in people:
        key, source = repr(one["agreement"]), data_card.brief_name(one["source"])
        labels[key] = one["agreement"]
        names.setdefault(key, [source] if source else []).append(one["stage"])
    found = list[tuple[str, Table]]()
    for key, agreed in labels.items():
        title = ", ".join(names[key])
        words = f"{title}: {agreement.sentence(agreed)}"
        found.append((words, agreement.people_table(agreed, f"annotators ({title})", {})))
    return found


# The first screen


def _first_screen(facts: Mapping[str, Any], rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What the page begins with: the verdict on the result, the others, the plot, what each policy
    is, and one prompt.
    """
    last = {"stage": "".join([*rows][-1:]), "policy": "", "outcome": ""}
    for verdict in facts["verdicts"]:
        last = verdict
    of_result, others = list[Any](), list[Any]()
    for verdict in facts["verdicts"]:
        same = (verdict["stage"], verdict["policy"]) == (last["stage"], last["policy"])
        (of_result if same else others).append(verdict)
    mine = main_rows(rows.get(last["stage"], []))
    result = last["policy"] or "".join([row.policy for row in mine][-1:])
    return {
        "verdicts": of_result,
        "others": others,
        "sample": chosen(facts, last),
        "plot": intervals(mine, result),
    }


def intervals(rows: Sequence[Row], result: str) -> list[dict[str, Any]]:
    """A panel per metric: its name, a note, and a row per policy with its estimate in words and in
    % of the width.

    middle: where a judge has no preference, in %, or None. result: the policy that the evaluation
    is about.
    """
    panels: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind in RATED and row.estimate.get("mean") is not None:
            panels.setdefault(row.metric, []).append(row)
    return [_panel(found, result) for found in list(panels.values())[:PLOTTED]]


def _panel(rows: Sequence[Row], result: str) -> dict[str, Any]:
    first, ends = rows[0], [_ends(row) for row in rows]
    notes = ["lower is better"] * first.lower
    if any(row.policy == result and row.trained_on for row in rows):
        notes.append("trained on it: no proof")
    low, high = min(map(min, ends)), max(map(max, ends))
    margin = MARGIN * (high - low) or 1.0
    if first.percent:
        low, high, margin = min(0.0, low), 1.0, 0.0
    placed = list[dict[str, Any]]()
    for row, three in zip(rows, ends, strict=True):
        shares = [(end - low + margin) / (high - low + 2 * margin) for end in three]
        mean, left, right = (round(100 * min(1.0, max(0.0, share)), 1) for share in shares)
        style = {result: "result", "base": "base"}.get(row.policy, "")
        where = {"left": left, "width": round(right - left, 1), "mean": mean}
        placed.append({"label": row.policy, "style": style, "text": cell(row), **where})
    panel: dict[str, Any] = {
        "middle": None,
        "title": first.metric,
        "note": ", ".join(notes),
        "rows": placed,
    }
    if first.kind == "judge":
        panel |= {"title": f"preferred to {first.baseline} by {first.metric}", "middle": 50}
    return panel


def _ends(row: Row) -> tuple[float, float, float]:
    """The mean of a row, and its interval, or the mean again."""
    mean, low, high = bounds(row.estimate)
    point = mean or 0.0
    return point, point if low is None else low, point if high is None else high


def chosen(facts: Mapping[str, Any], verdict: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The sample that shows best what a verdict says: of the largest gain or loss, or else one at
    random.
    """
    kinds = {**dict.fromkeys(GAINS.values(), "gain"), "mixed": "gain", "lost": "loss"}
    found = [one for one in facts["samples"] if one["stage"] == verdict["stage"]]
    for one in found:
        if one["kind"] == kinds.get(verdict["outcome"], "random"):
            return one
    return found[0] if found else None
