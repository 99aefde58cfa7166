"""report.html: the first screen, and the parts of the report in their order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.report import Block, Report, SideBySide, Table
from alignkit_plugins.ai_feedback.judge_card import sentence
from alignkit_plugins.compare.readable import bounds, duration, mapping, number, short, size
from alignkit_plugins.compare.rows import RATED, Row, main_rows, rows_of
from alignkit_plugins.compare.tables import cell, comparisons, details, over, table
from alignkit_plugins.compare.verdicts import GAINS
from alignkit_plugins.page import templates
from alignkit_plugins.people import agreement
from alignkit_plugins.report import data_card
from alignkit_plugins.report.changes import dotted, flat
from alignkit_plugins.report.facts import each, stage_words
from alignkit_plugins.report.figures import Figure, figures_of, main_first, worded
from alignkit_plugins.report.swaps import evaluated

KINDS = {"gain": "Largest gains", "loss": "Largest losses", "random": "At random"}
SAMPLED = (
    "The largest gains and losses, and some prompts at random. Look for answers that only please "
    "the reward."
)
MOST_METRICS = 40  # of a stage, at its end
PLOTTED = 6  # metrics of the first screen; the tables have all of them
MARGIN = 0.05  # of the plot, on each side of the widest intervals


@dataclass(frozen=True)
class Figures:
    """Figures next to each other, which only the page has."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Sample:
    """A prompt with its answers. sample: of the facts."""

    sample: Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """Blocks under a title. anchor: its name in links. folded: closed at first, on the page."""

    title: str
    blocks: Sequence[Block | Figures | Sample | Part]
    anchor: str = ""
    folded: bool = False


Blocks = Iterator[Block | Figures | Sample | Part]


def page(facts: Mapping[str, Any]) -> str:
    """report.html: one file without scripts that needs no network."""
    rows = {stage: main_rows(found) for stage, found in evaluated(facts).items()}
    environment = templates(Path(__file__).parent, titles=stage_titles(facts["stages"]))
    shares = {row.metric for row in each(rows.values()) if row.percent}
    environment.filters |= {
        "duration": duration,
        "short": short,
        "score": lambda sample, score: scored(score, sample["reward"], shares),
    }
    every = parts(facts, figures_of(facts))
    template = environment.get_template("report.html.j2")
    return template.render(facts=facts, parts=every, first=_first_screen(facts, rows))


def parts(facts: Mapping[str, Any], figures: Sequence[Figure]) -> list[Part]:
    """All parts that the facts have something for, without the verdict."""
    every = [
        Part("Evaluation", list(_evaluation(facts, figures)), "evaluation"),
        Part("Samples", list(_samples(facts)), "samples"),
        Part("Training", list(_training(facts, figures)), "training"),
    ]
    for one in facts["parts"]:
        every.append(Part(one["title"], Report.restored(one["blocks"]).blocks, one["anchor"]))
    every += [
        Part("Data", list(_data(facts)), "data"),
        Part("People", list(_people(facts["people"])), "people"),
        Part("Provenance", list(_provenance(facts)), "provenance"),
    ]
    return [part for part in every if part.blocks]


def stage_titles(stages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """A title per stage: `PPO: align`, or only what makes it if the stage is named so."""
    titles = {}
    for one in stages:
        name, words = one["name"], stage_words(one["plugin"])
        alone = name in (one["plugin"], "report") or not words
        titles[name] = f"{words}: {name}"
        if alone:
            titles[name] = words or name
    return titles


def _evaluation(facts: Mapping[str, Any], figures: Sequence[Figure]) -> Blocks:
    titles, rows = stage_titles(facts["stages"]), evaluated(facts)
    for item in facts["evaluations"]:
        name = item["stage"]
        drawn = [figure for figure in figures if figure.stage == name]
        found = list(_evaluated(facts, name, item["evaluation"], rows[name], drawn))
        if len(rows) > 1:
            yield Part(titles[name], found)
        else:
            yield from found
    for item in facts["reports"]:
        if item["stage"] not in rows:
            blocks = Report.restored(item["blocks"]).blocks
            yield Part(titles[item["stage"]], blocks, folded=bool(rows))


def _evaluated(
    facts: Mapping[str, Any],
    stage: str,
    evaluation: Mapping[str, Any],
    rows: Sequence[Row],
    drawn: Sequence[Figure],
) -> Blocks:
    for note in evaluation.get("notes") or ():
        if not str(note).startswith("warning: "):
            yield str(note)
    yield table(main_rows(rows), over(evaluation))
    swaps = [swap for swap in facts["swaps"] if swap["stage"] == stage]
    compared = [rows, *map(rows_of, swaps)]
    yield from (found for found in map(comparisons, compared) if found.rows)
    folder = facts["run"]["folder"]
    for swap in swaps:
        now, then = swap["result"], swap["against"]
        if swap["differs"]:
            yield f"{now} and {then} do not compare: {swap['differs']}"
        yield f"{then} is kept in {folder}/{swap['kept']}; {now} is in {folder}/{swap['folder']}."
    cards = mapping(evaluation.get("judge_cards"))
    yield from (sentence(*each) for each in cards.items())
    more = details(rows)
    if more or drawn:
        title = "Details: diversity and columns"
        yield Part(title, [*more, Figures(drawn)], folded=True)


def _samples(facts: Mapping[str, Any]) -> Blocks:
    titles, kinds = stage_titles(facts["stages"]), dict[tuple[str, str], list[Sample]]()
    for one in facts["samples"]:
        kinds.setdefault((one["stage"], one["kind"]), []).append(Sample(one))
    if kinds:
        yield SAMPLED
    several = len({stage for stage, _ in kinds}) > 1
    for (stage, kind), found in kinds.items():
        yield Part(f"{titles[stage]}: {KINDS[kind]}" if several else KINDS[kind], found)


def _training(facts: Mapping[str, Any], figures: Sequence[Figure]) -> Blocks:
    columns = ["stage", "by", "state", "time", "tokens per second"]
    cells = list[list[str]]()
    for one in facts["stages"]:
        speed = [duration(one["seconds"]), short(one["tokens_per_second"])]
        cells.append([one["name"], stage_words(one["plugin"]), one["state"], *speed])
    yield Table("", columns, cells, keys=3)
    titles, evaluations = stage_titles(facts["stages"]), evaluated(facts)
    for stage in facts["stages"]:
        name = stage["name"]
        mine = [one for one in figures if one.stage == name and name not in evaluations]
        main, rest = main_first(mine)
        more: list[Any] = [Figures(rest)] if rest else []
        if stage["metrics"]:
            more.append(_metrics_table(stage["metrics"]))
        if stage["summary"]:
            summary = flat(stage["summary"]).items()
            rows = [[worded(dotted(path)), short(value)] for path, value in summary]
            more.append(Table("", ["", ""], rows, keys=2))
        found: list[Any] = [Figures(main)] if main else []
        if more:
            found.append(Part("More curves and all numbers", more, folded=True))
        if found:
            yield Part(titles[name], found)


def _metrics_table(metrics: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = list[list[str]]()
    for name, values in list(metrics.items())[:MOST_METRICS]:
        ends = [short(number(values.get(key))) for key in ("first", "last", "min", "max")]
        rows.append([worded(name), *ends])
    return Table("over all steps", ["metric", "first", "last", "least", "most"], rows)


def _data(facts: Mapping[str, Any]) -> Blocks:
    if facts["data"]:
        yield data_card.data_table(facts["data"])
    if facts["dropped"]:
        lines = [f"{one['stage']}: {data_card.left_out(one)}" for one in facts["dropped"]]
        yield "\n".join(["Dropped or truncated:", *lines])
    if more := data_card.tables(facts["data"]):
        yield Part("Lengths, pairs and labels", more, folded=True)


def _people(people: Sequence[Mapping[str, Any]]) -> Blocks:
    """How far people agree on the labels of each store, a sentence each; the tables of annotators;
    and whose labels count. Stages that read the same labels share them.
    """
    tables, notes = list[Table](), list[list[str]]()
    stages = dict[str, list[str]]()
    for one in people:
        source = data_card.brief_name(one["source"])
        stages.setdefault(repr(one["agreement"]), [source] if source else []).append(one["stage"])
        notes += [[one["stage"], source, note] for note in one["notes"] or ()]
    for one in people:
        title = ", ".join(stages.pop(repr(one["agreement"]), ()))
        found = agreement.people_table(one["agreement"], f"annotators ({title})")
        if title and found.rows:
            lines = agreement.sentence(one["agreement"]).splitlines()
            yield "\n".join(f"{title}: {line}" for line in lines)
            tables.append(found)
    if notes:
        tables.append(Table("whose labels count", ["stage", "source", "decision"], notes, keys=2))
    if tables:
        yield Part("Each annotator", tables, folded=True)


def _provenance(facts: Mapping[str, Any]) -> Blocks:
    known, run = facts["reproduce"], facts["run"]
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    rows = {
        **{"Command": known["command"], "To repeat it": known["again"], "Seed": known["seed"]},
        **{"Started": when(run["started"]), "Ended": when(run["ended"]), "Versions": versions},
        **{name.capitalize(): value for name, value in known["machine"].items() if value},
        **{"Folder": run["folder"], "Commit": known["commit"]},
    }
    if "Memory" in rows:
        rows["Memory"] = size(rows["Memory"])
    made = Table("", ["", ""], [[name, short(value)] for name, value in rows.items()], keys=2)
    starts = [f"{when(start['started'])} {start['outcome']}" for start in facts["starts"]]
    again = [f"The run was started {len(starts)} times: {'; '.join(starts)}."]
    yield Part("How it was made", [*again[: len(starts) > 1], made])
    if facts["recipe"]:
        text = SideBySide("", ["recipe.resolved.yaml"], [facts["recipe"]])
        yield Part("The recipe with all overrides applied", [text], folded=True)


def when(stamp: str) -> str:
    """`2026-11-23 03:56:08 UTC`"""
    return stamp.replace("T", " ").replace("Z", " UTC")


# The first screen


def _first_screen(facts: Mapping[str, Any], rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """What the page begins with: the verdict on the result, the others, the plot, what each policy
    is, and one prompt.
    """
    verdicts, models = facts["verdicts"], list[tuple[str, str]]()
    none = {"stage": "".join([*rows][-1:]), "policy": "", "outcome": ""}
    last = [none, *verdicts][-1]
    of_result = [
        one for one in verdicts if (one["stage"], one["policy"]) == (last["stage"], last["policy"])
    ]
    if facts["run"]["base"]:
        models.append(("base", f"{facts['run']['base']}, the base model"))
    for stage in facts["stages"]:
        if text := "; ".join(filter(None, [stage["about"], stage["learned"]])):
            models.append((stage["name"], text.replace("->", "→")))
    mine = rows.get(last["stage"], [])
    result = last["policy"] or "".join([row.policy for row in mine][-1:])
    return {
        "verdicts": of_result,
        "others": [one for one in verdicts if one not in of_result],
        "sample": chosen(facts, last),
        "plot": intervals(mine, result),
        "models": models,
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
        low, high, margin = 0.0, 1.0, 0.0
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
    wanted = kinds.get(verdict["outcome"], "random")
    found = [one for one in facts["samples"] if one["stage"] == verdict["stage"]]
    return next((one for one in found if one["kind"] == wanted), found[0] if found else None)


def scored(score: float, reward: str, shares: set[str]) -> str:
    """`safe: yes` or `safe: no` by a metric that is a share, or `helpful: 0.42`."""
    words = {0.0: "no", 1.0: "yes"} if reward in shares else {}
    return f"{reward}: {words.get(score, short(score))}"
