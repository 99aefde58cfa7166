"""What a file holds: lengths, languages, categories, repetition, refusals, stock phrases, margins, agreement."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignkit.data.describe import said
from alignkit.data.group import Group
from alignkit.data.reading import RowReader
from alignkit.data.spoken import all_turns
from alignkit.errors import BadRow
from alignkit.extras import check_extra
from alignkit.io.atomic import write_text
from alignkit.io.printable import printable
from alignkit.plugins import plugins
from alignkit.report import Block, Report, Table
from alignkit.runs.stage_record import card, histogram
from alignkit_apps.charts import data_cards, figures
from alignkit_apps.charts.curves import Figure, figure
from alignkit_apps.cleaning import near
from alignkit_apps.cleaning.near import Units
from alignkit_apps.cleaning.rules import STOCK, language_of
from alignkit_apps.data.corpus import Corpus, parsed, recipe_of, units
from alignkit_apps.feedback.agreement_summary import agreement, agreement_tables
from alignkit_apps.feedback.database import SUFFIX

CATEGORIES = ("category", "categories", "use_case", "topic", "task", "task_type", "subset", "source", "domain", "type")
SHOWN = 12  # languages, categories
COLUMNS = {name: "int64" for name in ("at", "response", "turns", "tokens", "refuses", "stock")} | {"language": "string"}
WITHOUT = "none"  # the language of a text that is too short to tell


def stats(corpus: Corpus, model: str | None, threshold: float | None, by: str | None) -> dict[str, Any]:
    """The facts as plain JSON. model: whose tokens are counted; None: only characters. by: the column of categories."""
    check_extra("alignkit data stats", "data", "rensa", "py3langid")
    columns = corpus.mapped(
        "measuring texts",
        _measured,
        COLUMNS,
        model,
        readers=corpus.readers,
        tokenizer=None if model is None else _tokenizer(model),
        refusal=plugins().registry.get("reward", "refusal").implementation,
    ).data
    table = {name: columns.column(name).to_numpy() for name in COLUMNS if name != "language"}
    said_by = table["response"] == 1
    languages = Counter(columns.column("language").filter(_mask(said_by if said_by.any() else ~said_by)).to_pylist())
    bad: list[str] = []
    categories: Counter[str] = Counter()
    facts: dict[str, Any] = {"file": corpus.name, "format": corpus.readers[0].format_name, "rows": len(corpus.rows)}
    facts |= card(_counted(corpus, bad, categories, by)) | {"rows": len(corpus.rows), "unread": len(bad)}
    facts["first_unread"] = bad[0] if bad else ""
    answers = max(1, int(said_by.sum()))
    facts |= {
        "turns": histogram(Counter(table["turns"][table["turns"] > 0].tolist())),
        "languages": dict(languages.most_common()),
        "categories": dict(categories.most_common()),
        "refusals": int(table["refuses"].sum()) / answers,
        "stock_phrases": int(table["stock"].sum()) / answers,
        **_repetition(corpus, threshold),
    }
    if model is not None:
        counts = {"prompt_tokens": ~said_by, "response_tokens": said_by}
        facts |= {name: histogram(Counter(table["tokens"][rows].tolist())) for name, rows in counts.items()}
        facts["model"] = model
    return {**facts, "agreement": _agreement(corpus)}


def _mask(rows: Any) -> Any:
    import pyarrow

    return pyarrow.array(rows)


def _counted(corpus: Corpus, bad: list[str], categories: Counter[str], by: str | None) -> Iterator[Group]:
    """All groups, and on the way what is wrong with rows that cannot be read, and the categories."""
    for at, groups in corpus.groups():
        if isinstance(groups, BadRow):
            bad.append("" if bad else f"{':'.join(map(str, corpus.where(at)))}: {groups}")
            continue
        for group in groups:
            name = by if by is not None else next((name for name in CATEGORIES if name in group.meta), None)
            value = group.meta.get(name) if name is not None else None
            categories.update(map(str, value) if isinstance(value, list) else [str(value)] if value is not None else [])
            yield group


def _measured(
    batch: Mapping[str, Any], indices: Sequence[int], readers: Sequence[RowReader], tokenizer: Any, refusal: Any
) -> dict[str, Any]:
    """A line for each prompt and each response of the rows of a batch."""
    texts: list[str] = []
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    judge = refusal(refusal.Options())
    for at, groups in parsed(batch, indices, readers):
        for group in groups if not isinstance(groups, BadRow) else ():
            asked = [turn for turn in group.prompt if turn["role"] != "system"]
            more = max((len(response.messages or "1") for response in group.responses), default=0)
            lines = [(0, said(group.prompt), len(asked) + more, 0, 0)] if group.prompt else []
            refused = judge.score([group])[""]
            for response, refuses in zip(group.responses, refused, strict=True):
                answer = all_turns(response)
                lines.append((1, answer, 0, int(refuses or 0), int(STOCK.search(answer) is not None)))
            for is_response, text, turns, refuses, stock in lines:
                texts.append(text)
                # Telling languages takes longest, and those of prompts are only asked for if there are no responses.
                language = "" if group.responses and not is_response else language_of(text) or WITHOUT
                row = (at, is_response, turns, 0, refuses, stock, language)
                for name, value in zip(COLUMNS, row, strict=True):
                    columns[name].append(value)
    if tokenizer is not None and texts:
        columns["tokens"] = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    return columns


def _tokenizer(model: str) -> Any:
    """The tokenizer of a model by a recipe's name for it."""
    from alignkit.io.progress import Reporter
    from alignkit.models.loading import load_tokenizer
    from alignkit.recipe.schema import BASE
    from alignkit.runs.bases import RunBases

    recipe = recipe_of([{"text": __file__}], model)
    found = RunBases(recipe, Path("runs"), Reporter())[BASE]
    return load_tokenizer(recipe.model, found.source, found.commit)


def _repetition(corpus: Corpus, threshold: float | None) -> dict[str, Any]:
    """Rows and prompts that repeat an earlier one."""
    texts = units(corpus)
    whole = near.repeated(Units.of(texts, "row", texts.text), threshold)
    asked = Units.of(texts, "prompt", texts.text)
    prompts = asked.keys[asked.turns == 0]
    return {
        "equal_rows": sum(match.similarity == 1 for match in whole),
        "near_rows": sum(match.similarity < 1 for match in whole),
        "repeated_prompts": len(prompts) - len(np.unique(prompts)),
    }


def _agreement(corpus: Corpus) -> list[dict[str, Any]]:
    """How far the people of stores of feedback agree; empty for other files."""
    from alignkit_apps.feedback.effective_labels import labeled
    from alignkit_apps.feedback.store import Store

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
    blocks: list[Block] = [
        Table(f"{facts['file']} ({facts['format']})", ["", "number", "share"], counts, note=facts["first_unread"])
    ]
    lengths = [
        [name.replace("_", ", "), *(f"{found[key]:,}" for key in ("count", "least", "median", "p95", "most"))]
        for name in ("turns", "prompt_characters", "response_characters", "prompt_tokens", "response_tokens")
        if (found := facts.get(name))
    ]
    blocks.append(Table("lengths", ["of", "count", "shortest", "median", "95% up to", "longest"], lengths))
    for table in data_cards.tables([{"stage": "", "name": facts["file"], **facts}])[1:]:
        rest = [row[2:] for row in table.rows]
        blocks.append(Table(table.title, table.columns[2:], rest, keys=0, note=table.note))
    for name, what in (("languages", "of responses, else of prompts"), ("categories", "")):
        if found := facts[name]:
            total, more = sum(found.values()), len(found) - SHOWN
            cells = [[value, *_share(count, total)] for value, count in [*found.items()][:SHOWN]]
            blocks.append(Table(name, [what, "number", "share"], cells, note=f"and {more} more" if more > 0 else ""))
    return [*blocks, *agreement_tables(facts["agreement"])]


def _share(count: int, total: int) -> list[str]:
    return [f"{count:,}", f"{count / total:.1%}"]


def write_page(facts: Mapping[str, Any], out: Path) -> None:
    """One file with the tables and histograms, without scripts, in light and in dark."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    drawn = [(one["title"], Markup(svg), one["note"]) for one, svg in figures.drawn(_figures(facts))]
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, Path(figures.__file__).parent]),
        autoescape=True,
        finalize=lambda value: printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("stats.html.j2").render(title=facts["file"], blocks=tables(facts), figures=drawn)
    write_text(out, text)


def _figures(facts: Mapping[str, Any]) -> list[Figure]:
    """Histograms of lengths and margins, and bars of languages and categories."""
    source = {"stage": facts["format"], "name": facts["file"], **facts}
    drawn = data_cards.figures([source])
    if facts.get("model"):
        counts = {f"{name}_characters": facts[f"{name}_tokens"] for name in ("prompt", "response")}
        in_tokens = data_cards.figures([{"stage": facts["model"], "name": facts["file"], **counts}])
        drawn += [{**one, "title": "Lengths in tokens", "x_label": "up to this many tokens"} for one in in_tokens]
    for name in ("languages", "categories"):
        if found := dict([*facts[name].items()][:SHOWN]):
            bars = data_cards.bars(name, list(map(float, found.values())), list(found))
            drawn.append(figure(facts["format"], name.capitalize(), [bars], x_label="", y_label="%"))
    return drawn


def as_json(facts: Mapping[str, Any]) -> str:
    return json.dumps(facts, indent=1, ensure_ascii=False)


def as_text(facts: Mapping[str, Any], width: int) -> str:
    return Report(tables(facts)).text(width)
