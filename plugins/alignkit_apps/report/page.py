"""report.html: one file without scripts that needs no network, readable on a phone, on paper, in light and in dark.

Everything that a model, a data set or a recipe wrote is escaped, and its control characters are made visible.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.io.printable import printable
from alignkit_apps.report import curves, data_cards, figures, numbers
from alignkit_apps.report.judging import card_table, heading, orders_note, trust_blocks
from alignkit_apps.report.people import people_tables
from alignkit_apps.report.side_by_side import blocks
from alignkit_apps.report.stages import flat
from alignkit_apps.report.tables import data_table, evaluation_tables, metrics_table, stage_table

MOST_BYTES = 2_000_000
LONG_WORD = re.compile(r"\S{20,}")  # characters that may not fit into a line of a phone
JOINT = re.compile(r"(\S{11,}?[_/@]+)(?=\w)")  # after which one may end
TEMPLATE = "report.html.j2"
# Points per series, characters of a text, samples of a kind, rows of a table: taken in turn until the page fits.
LEVELS = (
    (curves.POINTS, 2000, 5, 1000),
    (400, 1000, 5, 300),
    (150, 500, 3, 100),
    (curves.LEAST_POINTS, 200, 1, 30),
    (0, 100, 1, 10),
)
SECTIONS = (  # id, title, and the part of the facts without which it is not there
    ("verdict", "Verdict", None),
    ("run", "What, when, where", None),
    ("stages", "Stages", None),
    ("curves", "Curves", "figures"),
    ("optimization", "Over-optimization", "fits"),
    ("evaluations", "Evaluation", "evaluations"),
    ("samples", "Samples", "samples"),
    ("data", "Data", "data"),
    ("people", "People", "people"),
    ("judges", "Judges", "judges"),
    ("metrics", "Metrics and resources", None),
    ("incidents", "Incidents", None),
    ("recipe", "Recipe and files", None),
)

Drawn = list[tuple[curves.Figure, str]]  # figures with their SVG


def page(facts: Mapping[str, Any]) -> str:
    """The page of a run's facts, at most MOST_BYTES long in UTF-8; what had to be cut is said in it."""
    before: Sequence[curves.Figure] | None = None
    drawn: Drawn = []
    for points, characters, samples, rows in LEVELS:
        cut = _cut(facts, points, characters, samples, rows)
        if cut["figures"] != before:
            before = cut["figures"]
            drawn = figures.drawn(before)
        text = _render(cut, drawn)
        if len(text.encode()) <= MOST_BYTES:
            return text
    return _render(_least(facts), [])


def _cut(facts: Mapping[str, Any], points: int, characters: int, samples: int, rows: int) -> dict[str, Any]:
    """The facts with less in them. `cut` says so in words."""
    notes = []
    kept, counts = [], dict[tuple[str, str], int]()
    for sample in facts["samples"]:
        key = sample["stage"], sample["kind"]
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= samples:
            kept.append(_shortened(sample, characters))
    if len(kept) < len(facts["samples"]):
        notes.append(f"{len(facts['samples']) - len(kept)} samples")
    if kept and characters < LEVELS[0][1]:
        notes.append(f"texts of samples after {characters} characters")
    tables = {}
    for name in ("files", "incidents", "warnings", "data", "dropped", "starts", "stages"):
        tables[name] = facts[name][:rows]
        if len(facts[name]) > rows:
            notes.append(f"{len(facts[name]) - rows} rows of {name}")
    drawn = curves.thinned(facts["figures"], points) if points else []
    if not points and facts["figures"]:
        notes.append("all figures")
    elif points < curves.POINTS and drawn != facts["figures"]:
        notes.append("points of curves")
    recipe = facts["recipe"]
    if len(recipe) > 200 * characters:
        recipe = recipe[: 200 * characters]
        notes.append("the end of the recipe")
    return {**facts, **tables, "samples": kept, "figures": drawn, "recipe": recipe, "cut": notes}


def _least(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What remains of a run that is too large for any page."""
    names = ["evaluations", "samples", "figures", "fits", "people", "judges", "data", "dropped", "files", "incidents"]
    names += ["starts", "swaps"]
    least = {**_cut(facts, 0, 100, 1, 10), **{name: [] for name in names}, "recipe": ""}
    least["verdicts"], least["stages"] = facts["verdicts"][:50], [{**s, "metrics": {}} for s in least["stages"]]
    return {**least, "cut": ["most of it: the run is too large; report.json has everything"]}


def _shortened(sample: Mapping[str, Any], characters: int) -> dict[str, Any]:
    def short(text: str) -> str:
        return text if len(text) <= characters else f"{text[:characters]}..."

    prompt = [{**turn, "content": short(turn["content"])} for turn in sample["prompt"]]
    answers = [{**answer, "text": short(answer["text"])} for answer in sample["answers"]]
    return {**sample, "prompt": prompt, "answers": answers}


def _breakable(value: object) -> Any:
    """Escaped text with places where a line may break in long names and paths."""
    from markupsafe import Markup, escape

    text = str(escape(printable(str(value))))
    return Markup(LONG_WORD.sub(lambda word: JOINT.sub(r"\1<wbr>", word[0]), text))


def _render(facts: Mapping[str, Any], drawn: Drawn) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def visible(value: Any) -> Any:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": numbers.short,
        "duration": numbers.duration,
        "size": numbers.size,
        "estimate": numbers.shown,
        "flat": flat,
        "left_out": data_cards.left_out,
        "breakable": _breakable,
        "when": lambda stamp: stamp.replace("T", " ").replace("Z", " UTC"),
    }
    by_stage: dict[str, list[tuple[curves.Figure, Markup]]] = {}
    histograms = [(figure, Markup(text)) for figure, text in drawn if data_cards.is_histogram(figure)]
    for figure, text in drawn:
        if data_cards.is_histogram(figure):
            continue
        by_stage.setdefault(figure["stage"], []).append((figure, Markup(text)))
    evaluations = [
        {
            "stage": item["stage"],
            "notes": item["evaluation"].get("notes") or (),
            "tables": evaluation_tables(item["evaluation"]),
            "swaps": blocks(facts["swaps"], facts["run"]["folder"], item["stage"]),
        }
        for item in facts["evaluations"]
    ]
    return environment.get_template(TEMPLATE).render(
        facts=facts,
        by_stage=by_stage,
        evaluations=evaluations,
        stage_table=stage_table(facts["stages"]),
        data_tables=[data_table(facts["data"]), *data_cards.tables(facts["data"])],
        histograms=histograms,
        people_tables=people_tables(facts["people"]),
        judges_heading=heading(facts["judges"]),
        card_table=card_table,
        orders_note=orders_note,
        trust_blocks=trust_blocks,
        metrics_tables={stage["name"]: metrics_table(stage) for stage in facts["stages"]},
        links=_links({**facts, "figures": by_stage, "data": facts["data"] or facts["dropped"]}),
    )


def _links(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    there = [(anchor, title) for anchor, title, part in SECTIONS if part is None or facts[part]]
    return [(anchor, heading(facts["judges"]) if anchor == "judges" else title) for anchor, title in there]
