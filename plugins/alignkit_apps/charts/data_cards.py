"""The card of each source that a stage read: how long its texts are, its pairs and their margins, its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.report import Table
from alignkit_apps.charts.curves import Figure, Series, figure
from alignkit_apps.charts.numbers import mapping, number, percentage, short

MOST = 24  # figures
LENGTHS = {"prompt_characters": "prompts", "response_characters": "responses"}


def figures(data: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Histograms of each source; stages that read the same rows share them."""
    found: list[Figure] = []
    seen: list[Any] = []
    for source in data:
        drawn = [one for one in (_lengths(source), _margins(source)) if one is not None]
        same = [{**one, "stage": ""} for one in drawn]
        if same not in seen:
            seen.append(same)
            found += drawn
    return found[:MOST]


def is_histogram(drawn: Figure) -> bool:
    return any(series["style"] == "bars" for series in drawn["series"])


def _lengths(source: Mapping[str, Any]) -> Figure | None:
    known = {name: bins for key, name in LENGTHS.items() if (bins := _bins(source.get(key)))}
    ends = sorted({end for bins in known.values() for end in bins})
    if not ends:
        return None
    series = [
        bars(name, [bins.get(end, 0.0) for end in ends], [_brief(end) for end in ends]) for name, bins in known.items()
    ]
    return _figure(source, "Lengths", "up to this many characters", series)


def _margins(source: Mapping[str, Any]) -> Figure | None:
    pairs = mapping(source.get("pairs"))
    if bins := _bins(pairs.get("margins")):
        labels = [f"{end:.2g}" for end in bins]
        return _figure(source, "Margins", "up to this margin", [bars("pairs", list(bins.values()), labels)])
    counts = {str(level): n for level, count in mapping(pairs.get("levels")).items() if (n := number(count))}
    if not counts:
        return None
    if without := number(pairs.get("without_margin")):
        counts["none"] = without
    return _figure(source, "Margins", "level", [bars("pairs", list(counts.values()), list(counts))])


def _bins(histogram: Any) -> dict[float, float]:
    """End of each bin -> its count; empty for what is no histogram."""
    bins = mapping(histogram).get("bins")
    found: dict[float, float] = {}
    for one in bins if isinstance(bins, list) else ():
        if isinstance(one, list) and len(one) == 2:
            end, count = number(one[0]), number(one[1])
            if end is not None and count is not None:
                found[end] = found.get(end, 0.0) + count  # bins as narrow as rounding share an end
    return found


def bars(name: str, counts: Sequence[float], labels: list[str]) -> Series:
    """Shares in percent, so that prompts and responses can be compared."""
    total = sum(counts) or 1.0
    x = [float(at) for at in range(len(counts))]
    return {"name": name, "style": "bars", "x": x, "y": [100 * count / total for count in counts], "labels": labels}


def _figure(source: Mapping[str, Any], what: str, x_label: str, series: list[Series]) -> Figure:
    title = f"{what} in {brief_name(source.get('name'))}"
    y_label = f"% of {series[0]['name']}" if len(series) == 1 else "%"
    return figure(str(source.get("stage")), title, series, x_label=x_label, y_label=y_label)


def brief_name(name: Any) -> str:
    """The file of a path; anything else as it is."""
    text = str(name)
    return text.rpartition("/")[2] or text if text.startswith(("/", ".")) else text


def _brief(end: float) -> str:
    """`500`, `2k`, `5M`"""
    for size, unit in ((1_000_000, "M"), (1000, "k")):
        if end >= size:
            return f"{end / size:g}{unit}"
    return f"{end:g}"


# Tables


def tables(data: Sequence[Mapping[str, Any]]) -> list[Table]:
    """Lengths, and pairs and labels; empty for runs that did not record them."""
    return [table for table in (_length_table(data), _pair_table(data), _label_table(data)) if table.rows]


def _length_table(data: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [
            str(source["stage"]),
            brief_name(source["name"]),
            what,
            *(short(number(source[key].get(fact))) for fact in ("count", "least", "median", "p95", "most")),
        ]
        for source in data
        for key, what in LENGTHS.items()
        if isinstance(source.get(key), Mapping)
    ]
    columns = ["stage", "source", "of", "count", "shortest", "median", "95% up to", "longest"]
    return Table("lengths in characters", columns, rows, keys=3)


def _pair_table(data: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for source in data:
        pairs = mapping(source.get("pairs"))
        if count := number(pairs.get("count")):
            shares = [percentage(pairs.get(key), count) for key in ("better_longer", "equally_long")]
            rows.append([str(source["stage"]), brief_name(source["name"]), short(count), *shares, _described(pairs)])
    columns = ["stage", "source", "pairs", "better is longer", "equally long", "margins"]
    note = "a reward model learns that longer is better if the better response often is"
    return Table("pairs", columns, rows, keys=2, note=note)


def _described(pairs: Mapping[str, Any]) -> str:
    """`median 0.5, from 0 to 3`, or `better 12, unsure 3`; `none` if no pair has a margin."""
    margins, levels, parts = pairs.get("margins"), pairs.get("levels"), []
    if isinstance(margins, Mapping):
        median, least, most = (short(number(margins.get(key))) for key in ("median", "least", "most"))
        parts.append(f"median {median}, from {least} to {most}")
    if isinstance(levels, Mapping):
        parts += [f"{level} {short(number(count))}" for level, count in levels.items()]
    if parts and (without := number(pairs.get("without_margin"))):
        parts.append(f"without {short(without)}")
    return ", ".join(parts) or "none"


def _label_table(data: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        [str(s["stage"]), brief_name(s["name"]), *(short(number(s["labels"].get(key))) for key in ("good", "bad"))]
        for s in data
        if isinstance(s.get("labels"), Mapping)
    ]
    return Table("labels", ["stage", "source", "good", "bad"], rows, keys=2)


def left_out(item: Mapping[str, Any]) -> str:
    """`3 responses truncated at max_length (6% of 48)`"""
    of = number(item.get("of"))
    share = f" ({percentage(item['rows'], of)} of {short(of)})" if of else ""
    return f"{short(item['rows'])} {item['reason']}{share}"
