"""report.html: the numbers and tables of the page, which report.html.j2 lays out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from alignkit.contract.report import Report, Table
from alignkit.evaluation.statistics import interval_text
from alignkit.recipe.yaml import mapping
from alignkit_plugins.ai_feedback.judge_card import sentence
from alignkit_plugins.cells.earlier import evaluated
from alignkit_plugins.compare.rows import RATED, Row, main_rows, rows_in
from alignkit_plugins.compare.tables import cell, details, over, table
from alignkit_plugins.compare.verdicts import GAINS
from alignkit_plugins.people import agreement
from alignkit_plugins.report import data_card
from alignkit_plugins.report.facts import stage_words
from alignkit_plugins.report.figures import figures_of, intervals, worded
from alignkit_plugins.servers.page import templates
from alignkit_plugins.text.readable import duration, short, size

SIDE_BY_SIDE = 3  # prompts whose answers the first screen shows


def page(facts: Mapping[str, Any] | None, cells: Mapping[str, Any] | None = None) -> str:
    """report.html: one file without scripts that needs no network. cells: see `cells.section`.

    Of a run, of cells, or of both.
    """
    environment = templates(Path(__file__).parent)
    filters = (duration, short, size, stage_words, worded, main_rows, cell, interval_text)
    for each in (*filters, data_card.brief_name, data_card.left_out):
        environment.filters[each.__name__] = each
    if facts is None:
        return environment.get_template("cells.html.j2").render(cells=cells)
    rows, titles, evaluations, others = evaluated(facts), dict[str, str](), list[Any](), list[Any]()
    for stage in facts["stages"]:
        name, words = stage["name"], stage_words(stage["plugin"])
        titles[name] = words if name in (stage["plugin"], "report") else f"{words}: {name}"
    first = _first_screen(facts, rows)
    for item in facts["evaluations"]:
        drawn = bool(first["plot"]) and item["stage"] == first["last"]["stage"]
        evaluations.append(_evaluation(facts, item, rows[item["stage"]], drawn))
    for item in facts["reports"]:
        if item["stage"] not in rows:
            others.append((item["stage"], Report.restored(item["blocks"]).blocks))
    environment.globals |= {"titles": titles, "Table": Table}
    return environment.get_template("report.html.j2").render(
        facts=facts,
        cells=cells,
        first=first,
        evaluations=evaluations,
        others=others,
        figures=figures_of(facts),
        cards=data_card.tables(facts["data"]),
        people=_people(facts["people"]),
    )


def _evaluation(
    facts: Mapping[str, Any], item: Mapping[str, Any], rows: Sequence[Row], drawn: bool
) -> dict[str, Any]:
    """What the page says of an evaluation. rows: with those of earlier results. drawn: whether
    charts show what is rated, which no table repeats.
    """
    evaluation, notes, compared = item["evaluation"], list[str](), [rows]
    for note in evaluation.get("notes") or ():
        if not note.startswith("warning: "):
            notes.append(note)
    for one in facts["cells"]:
        if one["stage"] == item["stage"]:
            compared.append(rows_in(one))
            notes += one["notes"]
    for name, card in mapping(evaluation.get("judge_cards")).items():
        notes.append(sentence(name, card))
    shown = [row for row in main_rows(rows) if not (drawn and row.kind in RATED)]
    return {
        "stage": item["stage"],
        "notes": notes,
        "means": table(shown, over(evaluation)),
        "compared": compared,
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
    """What the page begins with: the last verdict, prompts that show what it says, and charts."""
    none = {"stage": "".join([*rows][-1:]), "policy": "", "baseline": "", "outcome": ""}
    last = [none, *facts["verdicts"]][-1]
    every, note, tables = rows.get(last["stage"], []), "", list[Table]()
    mine = main_rows(every)
    result = last["policy"] or "".join([row.policy for row in mine][-1:])
    for one in facts["cells"]:
        if (one["stage"], one["against"]) == (last["stage"], last["baseline"]):
            every = rows_in(one)  # rows of a comparison with an earlier result
    marks = list[Row]()
    for row in main_rows(every):
        if row.counts and (row.policy, row.baseline) == (result, last["baseline"]):
            marks.append(row)
    for item in facts["evaluations"]:
        if item["stage"] == last["stage"]:
            note = f"{over(item['evaluation']).capitalize()}."
    samples = chosen(facts, last)
    for row in marks:
        if samples and row.metric == samples[0]["reward"]:
            tables += before_and_after(row, every)
    if marks:
        tested = sum(row.p is not None for row in every)
        note += f" Marks: against {last['baseline']}, at 95% for all {tested} comparisons together."
    return {
        "last": last,
        "samples": samples,
        "plot": intervals(mine, result, compared=marks),
        "note": note,
        "tables": tables,
    }


def before_and_after(after: Row, rows: Sequence[Row]) -> list[Table]:
    """How many prompts have a yes before and after, by a metric that is yes or no for each; none by
    another one.
    """
    gained, lost, tied = map(int, after.counts.split("/"))
    if after.lower:
        gained, lost = lost, gained
    count = gained + lost + tied
    yes = count * (after.mean or 0.0)
    kept = round(yes) - gained
    for row in rows:
        if (row.policy, row.metric) == (after.baseline, after.metric) and after.percent:
            was = count * (row.mean or 0.0)
            if math.isclose(yes, kept + gained) and math.isclose(was, kept + lost):
                lines = [
                    [f"{row.policy}: yes", f"{kept} kept", f"{lost} lost"],
                    [f"{row.policy}: no", f"{gained} gained", f"{tied - kept} neither"],
                ]
                heads = ["", f"{after.policy}: yes", f"{after.policy}: no"]
                return [Table(f"{row.metric}, by prompt", heads, lines)]
    return []


def chosen(facts: Mapping[str, Any], verdict: Mapping[str, Any]) -> list[Any]:
    """The samples that show best what a verdict says: of the largest gain or loss, or else one at
    random; then those of the other kinds.
    """
    kinds = {**dict.fromkeys(GAINS.values(), "gain"), "mixed": "gain", "lost": "loss"}
    first, found = kinds.get(verdict["outcome"], "random"), list[Any]()
    seen = Counter[str]()
    for one in facts["samples"]:
        if one["stage"] == verdict["stage"]:
            found.append((seen[one["kind"]], one["kind"] != first, one))
            seen[one["kind"]] += 1
    return [one for *_, one in sorted(found, key=itemgetter(0, 1))[:SIDE_BY_SIDE]]
