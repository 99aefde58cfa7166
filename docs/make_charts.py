"""The README's charts: speed and memory against TRL from `docs/benchmarks/results.json`, and what
methods gain from the cells in `benchmarks/outcomes`. The same numbers always make the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from html import escape
from pathlib import Path

from alignkit_plugins.cells.table import report_of
from alignkit_plugins.compare.rows import rows_in
from alignkit_plugins.report.drawing import CSS, STYLE, Point, rows
from alignkit_plugins.report.figures import Figure, intervals

ROOT = Path(__file__).resolve().parent.parent
MACHINE = "AMD EPYC, family 26"
SPEED = {  # benchmark -> its label, in the order of the chart
    "dpo": "DPO",
    "sft": "SFT",
    "ppo_shared": "PPO",
    "sft_packed": "SFT, TRL packing",
    "reward": "reward model",
}
METHODS = {  # metric -> its part's title and a note
    "right minus wrong refusals": ("right minus wrong refusals", "the line is SFT"),
    "harmful requests refused": ("harmful requests", "refused"),
    "refused though only its form is harmful": (
        "harmless, but worded like a harmful request",
        "refused",
    ),
}
HONESTY = 20  # the first seed
NUMBER = re.compile(r"[-+]?\d+")
WIDTH, TITLE, RIGHT = 960, 44, 24  # pixels of a chart, above each part, and to its right


def charts() -> dict[str, str]:
    """The SVG of each file."""
    figures = {"speed.svg": speed(), "methods.svg": methods(), "honesty.svg": honesty()}
    return {file: drawn(found) for file, found in figures.items()}


def speed() -> list[Figure]:
    """How many times as fast, with the range of rounds, and the share of TRL's memory."""
    file = ROOT / "docs" / "benchmarks" / "results.json"
    machines = json.loads(file.read_text(encoding="utf-8"))["machines"]
    (measured,) = [entry["rows"] for entry in machines if entry["name"] == MACHINE]
    found = {row["name"]: row for row in measured}
    times, shares = dict[str, Point](), dict[str, Point]()
    for name, label in SPEED.items():
        ratio, memory = found[name]["ratio"], found[name]["memory_ratio"]
        times[f"{label} {ratio:.1f}x"] = Point(ratio, *found[name]["ratio_rounds"], style="result")
        shares[f"{label} {memory:.0%}"] = Point(memory, memory, memory, style="result")
    faster = rows(times, bars=True)
    less = rows(shares, percent=True, bars=True)
    return [
        Figure("training speed", faster, "", "TRL = 1, with the range of rounds"),
        Figure("peak memory", less, "", "of TRL's; lower is better"),
    ]


def methods() -> list[Figure]:
    """Each policy of the table of methods, with its interval over prompts and seeds."""
    _, facts = report_of([ROOT / "benchmarks" / "outcomes"])
    (evaluation,) = facts["evaluations"].values()
    figures = {figure.title: figure for figure in intervals(rows_in(evaluation))}
    found = list[Figure]()
    for metric, (title, about) in METHODS.items():
        note = ", ".join([about, figures[metric].note]).rstrip(", ")
        found.append(replace(figures[metric], title=title, note=note))
    return found


def honesty() -> list[Figure]:
    """What GRPO changes in each share of the table of honesty, by seed."""
    page = (ROOT / "docs" / "benchmarks" / "outcomes.md").read_text(encoding="utf-8")
    found, table = list[Figure](), page.partition("\n## Honesty")[2].partition("\n## ")[0]
    for share, *cells in re.findall(r"^\| (.*) \| (.*) \| (.*) \| (.*) \|$", table, re.M)[1:]:
        title, _, note = share.partition(", ")
        points = dict[str, Point]()
        for seed, cell in enumerate(cells, HONESTY):
            difference = cell.rpartition("%, ")[2]
            points[f"seed {seed} {difference}"] = Point(*map(float, NUMBER.findall(difference)))
        found.append(Figure(title, rows(points, bars=True), "", note or "points"))
    return found


def drawn(figures: Sequence[Figure]) -> str:
    """Figures as a file, at most three side by side."""
    columns = 2 if len(figures) > 3 else len(figures)
    height = TITLE + max(figure.drawing.height for figure in figures) + 8
    width, parts = WIDTH / columns, list[str]()
    for at, figure in enumerate(figures):
        own = figure.drawing.left + 6
        x, y = at % columns * width + 8, at // columns * height
        parts.append(
            f'<text x="{x:g}" y="{y + 18:g}" font-weight="650">{escape(figure.title)}</text>'
        )
        parts.append(f'<text x="{x:g}" y="{y + 34:g}">{escape(figure.note)}</text>')
        place = f'x="{x - 8 + own:g}" y="{y + TITLE:g}" width="{width - own - RIGHT:g}"'
        parts.append(f'<svg {place} overflow="visible">{figure.drawing.body}</svg>')
    height *= -(-len(figures) // columns)
    font = "text { font-family: system-ui, sans-serif; } svg { background: var(--paper); }"
    style = f"<style>{STYLE}\n{CSS}\n{font}</style>"
    size = f'width="{WIDTH}" height="{height:g}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" {size}>'
    return f"{head}{style}{''.join(parts)}</svg>\n"


def main() -> None:
    for file, text in charts().items():
        (ROOT / "docs" / "assets" / file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
