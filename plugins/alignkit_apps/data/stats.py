"""What a file holds: lengths, languages, categories, repetition, refusals, stock phrases, margins, agreement."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignkit.data.describe import said
from alignkit.data.reading import RowReader
from alignkit.data.spoken import all_turns
from alignkit.errors import BadRow
from alignkit.extras import check_extra
from alignkit.io.atomic import write_text
from alignkit.plugins import plugins
from alignkit.report import Block, Table
from alignkit_apps.charts import data_cards, figures
from alignkit_apps.charts.curves import Figure, Series, figure
from alignkit_apps.charts.page import templates
from alignkit_apps.charts.tally import card_of, histogram, tally
from alignkit_apps.data.corpus import Corpus, parsed, text_of, units, unread_text
from alignkit_plugins.data import near
from alignkit_plugins.data.near import Units
from alignkit_plugins.data.rules import STOCK, language_of
from alignkit_plugins.people.agreement import agreement, agreement_tables
from alignkit_plugins.people.database import SUFFIX

CATEGORIES = ("category", "categories", "use_case", "topic", "task", "task_type", "subset", "source", "domain", "type")
SHOWN = 12  # languages, categories
WITHOUT = "none"  # the language of a text that is too short to tell
NEAR = 0.8  # as alike as that, one row repeats the other
COLUMNS = {"counts": "large_string", "prompts": "large_binary"}  # of a batch: JSON, and hashes of prompts


def stats(corpus: Corpus, model: str | None) -> dict[str, Any]:
    """The facts as plain JSON. model: whose tokens are counted; None: only characters."""
    check_extra("alignkit data stats", "data", "rensa", "py3langid")
    tokenizer = None if model is None else text_of(model)[0]
    measured = corpus.mapped("measuring texts", _measured, COLUMNS, model, tokenizer=tokenizer)
    counts: dict[str, Counter[Any]] = defaultdict(Counter)
    for batch in measured["counts"]:
        for name, pairs in json.loads(batch.as_py()).items():
            for value, count in pairs:
                counts[name][value] += count
    prompts = np.frombuffer(b"".join(measured["prompts"].to_pylist()), dtype=np.int64)
    rows = units(corpus, ["row"])
    repeated = near.repeated(Units.of(rows, "row"), NEAR)
    bad = Units.of(rows, "unread")
    answers = max(1, counts["responses"].total())
    return {
        "file": corpus.name,
        "format": corpus.readers[0].format_name,
        **card_of(counts),
        "rows": len(corpus.rows),
        "unread": len(bad.rows),
        "first_unread": unread_text(len(bad.rows), corpus.where(int(bad.rows[0])), bad.text(0))
        if len(bad.rows)
        else "",
        "turns": histogram(counts["turns"]),
        "languages": dict(counts["languages"].most_common()),
        "categories": dict(counts["categories"].most_common()),
        "refusals": counts["sizes"]["refusals"] / answers,
        "stock_phrases": counts["sizes"]["stock_phrases"] / answers,
        "equal_rows": sum(match.similarity == 1 for match in repeated),
        "near_rows": sum(match.similarity < 1 for match in repeated),
        "repeated_prompts": len(prompts) - len(np.unique(prompts)),
        "model": model,
        "prompt_tokens": histogram(counts["prompt_tokens"]),
        "response_tokens": histogram(counts["response_tokens"]),
        "agreement": _agreement(corpus),
    }


def _measured(
    batch: Mapping[str, Any], indices: Sequence[int], readers: Sequence[RowReader], tokenizer: Any
) -> dict[str, Any]:
    """The counts of a batch, each as pairs of a value and its count, and a hash of each prompt."""
    groups = [group for _, row in parsed(batch, indices, readers) if not isinstance(row, BadRow) for group in row]
    counts: dict[str, Counter[Any]] = defaultdict(Counter, tally(groups))
    asked = [group.prompt for group in groups if group.prompt]
    answers = [all_turns(response) for group in groups for response in group.responses]
    for group in groups:
        if group.prompt:
            longest = max((len(response.messages or "1") for response in group.responses), default=0)
            counts["turns"][sum(turn["role"] != "system" for turn in group.prompt) + longest] += 1
        name = next((name for name in CATEGORIES if name in group.meta), "")
        value = group.meta.get(name)
        counts["categories"].update(
            map(str, value if isinstance(value, list) else [value] if value is not None else ())
        )
        texts = map(all_turns, group.responses) if group.responses else [said(group.prompt)]
        counts["languages"].update(language_of(text) or WITHOUT for text in texts)
    judge = plugins().registry.get("reward", "refusal").implementation
    refused = judge(judge.Options()).score(groups)[""]
    counts["sizes"]["refusals"] = sum(map(bool, refused))
    counts["sizes"]["stock_phrases"] = sum(STOCK.search(answer) is not None for answer in answers)
    for name, texts in ("prompt_tokens", [*map(said, asked)]), ("response_tokens", answers):
        if tokenizer is not None and texts:
            counts[name].update(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    told = (said([turn for turn in prompt if turn["role"] != "system"]) for prompt in asked)
    prompts = np.array([near.key(near.normalized(text)) for text in told], dtype=np.int64)
    return {
        "counts": [json.dumps({name: [*counter.items()] for name, counter in counts.items()})],
        "prompts": [prompts.tobytes()],
    }


def _agreement(corpus: Corpus) -> list[dict[str, Any]]:
    """How far the people of stores of feedback agree; empty for other files."""
    from alignkit_plugins.people.effective_labels import labeled
    from alignkit_plugins.people.store import Store

    found: list[dict[str, Any]] = []
    for source in corpus.spec.sources:
        if source.path is not None and source.path.suffix == SUFFIX:
            with Store.open(source.path, write=False) as store:
                found += agreement(labeled(store))
    return found


# As tables and as a page


def tables(facts: Mapping[str, Any]) -> list[Block]:
    rows = max(1, facts["rows"])
    counts = [
        ["rows", f"{facts['rows']:,}", ""],
        ["that cannot be read", *_share(facts["unread"], rows)],
        ["equal to an earlier row", *_share(facts["equal_rows"], rows)],
        ["nearly equal to an earlier row", *_share(facts["near_rows"], rows)],
        ["prompts that were there before", *_share(facts["repeated_prompts"], rows)],
        ["responses", f"{facts['responses']:,}", ""],
        ["of these refusals, by their words", "", f"{facts['refusals']:.1%}"],
        ["of these with a stock phrase", "", f"{facts['stock_phrases']:.1%}"],
    ]
    lengths = [
        [name.replace("_", ", "), *(f"{facts[name][fact]:,}" for fact in ("count", "least", "median", "p95", "most"))]
        for name in ("turns", "prompt_characters", "response_characters", "prompt_tokens", "response_tokens")
        if facts[name]
    ]
    blocks: list[Block] = [
        Table(f"{facts['file']} ({facts['format']})", ["", "number", "share"], counts, note=facts["first_unread"]),
        Table("lengths", ["of", "count", "shortest", "median", "95% up to", "longest"], lengths),
    ]
    for table in data_cards.tables([{"stage": "", "name": facts["file"], **facts}])[1:]:
        rest = [row[2:] for row in table.rows]
        blocks.append(Table(table.title, table.columns[2:], rest, note=table.note))
    for name, what in (("languages", "of responses, else of prompts"), ("categories", "")):
        total, more = sum(facts[name].values()), len(facts[name]) - SHOWN
        cells = [[value, *_share(count, total)] for value, count in [*facts[name].items()][:SHOWN]]
        if cells:
            blocks.append(Table(name, [what, "number", "share"], cells, note=f"and {more} more" if more > 0 else ""))
    return [*blocks, *agreement_tables(facts["agreement"])]


def _share(count: int, total: int) -> list[str]:
    return [f"{count:,}", f"{count / total:.1%}"]


def write_page(facts: Mapping[str, Any], out: Path) -> None:
    """One file with the tables and histograms, without scripts, in light and in dark."""
    shown = _figures(facts)
    page = templates(Path(__file__).parent, shown, figures.drawn(shown)).get_template("stats.html.j2")
    write_text(out, page.render(title=facts["file"], blocks=tables(facts), drawn=shown))


def _figures(facts: Mapping[str, Any]) -> list[Figure]:
    """Histograms of lengths and margins, and bars of languages and categories."""
    drawn = [_lengths(facts, unit) for unit in ("characters", "tokens")]
    pairs = facts["pairs"] or {"levels": {}, "margins": None, "without_margin": 0}
    margins = pairs["margins"] or {"bins": []}
    numbers = Counter[str]()
    for end, count in margins["bins"]:  # bins as narrow as rounding share an end
        numbers[f"{end:.2g}"] += count
    without = {"none": pairs["without_margin"]} if pairs["levels"] and pairs["without_margin"] else {}
    drawn.append(
        _bars("Margins", "up to this margin" if numbers else "level", {"pairs": numbers or pairs["levels"] | without})
    )
    drawn += [
        _bars(name.capitalize(), "", {name: dict([*facts[name].items()][:SHOWN])})
        for name in ("languages", "categories")
    ]
    return [one for one in drawn if one["series"]]


def _lengths(facts: Mapping[str, Any], unit: str) -> Figure:
    """How long prompts and responses are, with the same bins."""
    found = {
        f"{name}s": dict(facts[f"{name}_{unit}"]["bins"]) for name in ("prompt", "response") if facts[f"{name}_{unit}"]
    }
    ends = sorted({end for bins in found.values() for end in bins})
    counts = {name: {_brief(end): bins.get(end, 0) for end in ends} for name, bins in found.items()}
    return _bars(f"Lengths in {unit}", f"up to this many {unit}", counts)


def _bars(title: str, x_label: str, counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Bars of shares in percent, so that prompts and responses can be compared. counts: by series and label."""
    series: list[Series] = [
        {
            "name": name,
            "style": "bars",
            "x": [float(at) for at in range(len(own))],
            "y": [100 * count / (sum(own.values()) or 1) for count in own.values()],
            "labels": list(own),
        }
        for name, own in counts.items()
        if own
    ]
    y_label = f"% of {series[0]['name']}" if len(series) == 1 and x_label else "%"
    return figure("", title, series, x_label=x_label, y_label=y_label)


def _brief(end: int) -> str:
    """`500`, `2k`, `5M`"""
    size, unit = next(((size, unit) for size, unit in ((1_000_000, "M"), (1000, "k")) if end >= size), (1, ""))
    return f"{end / size:g}{unit}"
