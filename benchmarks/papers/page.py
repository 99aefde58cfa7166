"""Pages of claims, from their rules, rows and words; docs/generate.py writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from alignkit.evaluation.statistics import interval_text
from alignkit_plugins.report import drawing
from benchmarks.markdown import markdown_table
from benchmarks.papers.claim import HERE, LEVEL, RECIPES, Claim, Finding, Row

SMALL = 420  # pixels
RESULTS = """\
Each claim has a rule, committed before anything that it shows was computed: what is measured, the margins, a positive
control, and how each result follows. **Shown here**, **the opposite, here**, and **no clear difference**, with the
smallest that could have been seen, are what a rule may say; **does not carry over** means that the control failed.
Only exact results may say **contradicts**. Twelve rules at 5% expect 0.6 false results.
"""


def claims() -> list[Claim]:
    """Those that have words, in order."""
    found = [Claim(file.parent.name) for file in HERE.glob("*/words.yaml")]
    return sorted(found, key=lambda claim: int(words(claim)["number"]))


def complete(claim: Claim) -> bool:
    """Whether all rows are there."""
    found, wanted = claim.done()
    return found == wanted


def words(claim: Claim) -> Any:
    """What people wrote: number, title, scale, claim, effect, reading."""
    return yaml.safe_load((claim.folder / "words.yaml").read_text("utf-8"))


def page(name: str) -> str:
    """The page of a claim."""
    claim = Claim(name)
    text, rows, log = words(claim), claim.rows, claim.log()
    pictures = "".join(f"{title}.\n\n![{title}]({file})\n\n" for title, file in pictures_of(claim))
    void = sum(line["rule"] != claim.digest for line in log)
    tuning = [row.name for row in claim.planned(tuning=True)]
    minutes = sum(row["seconds"] for row in rows) / 60
    machines = sorted({row["processor"] for row in rows})
    usual = sorted(rows, key=lambda row: float(row["seconds"]))[len(rows) // 2]
    again = Row(*(usual[field] for field in Row._fields)).name
    rates = ", ".join(f"{method} {rate:g}" for method, rate in claim.rates().items())
    chosen = f" The rates that they chose: {rates}." if rates else ""
    recipe = ""
    if (RECIPES / f"{name}.yaml").is_file():
        recipe = f"; the recipe is\n[{name}.yaml](../../recipes/papers/{name}.yaml)"
    return f"""\
# {text["title"]}

{text["scale"].strip()}

**The claim.** {text["claim"].strip()}

**In the paper.** {text["effect"].strip()}

{pictures}{table(claim)}

{text["reading"].strip()}

`python -m benchmarks.papers {name}` computes what is missing of {len(rows)} rows that are shown
({minutes:.0f} minutes of one thread, {", ".join(machines)}, float32) and {len(tuning)} that choose
settings.{chosen} {len(log)} rows were begun in all; {void} are void, because the rule changed after
them. `--verify {again}` computes one again ({usual["seconds"]:.0f} s), and compares bytes.
Bands and intervals are over {len(claim.rule["seeds"]["shown"])} seeds.
The rule is `benchmarks/papers/{name}/rule.yaml`, SHA-256 `{claim.digest[:16]}`{recipe}.
"""


def table(claim: Claim) -> str:
    """What each test says."""
    lines = list[list[str]]()
    for one in claim.findings():
        estimate: Any = {"mean": one.mean, "low": one.low, "high": one.high}
        here = f"{one.mean:.1e}" if one.low is None else interval_text(estimate, sign=True)
        if one.low is not None and min(one.values) == max(one.values):
            here = f"{one.mean:.2g} with every seed"
        seen = f"{one.seen[0]:.2g} to {one.seen[2]:.2g}" if one.seen else ""
        lines.append([name_of(one), one.needs, here, f"**{one.result}**", seen])
    here = f"here, {1 - LEVEL:.0%} for all together"
    return markdown_table(["test", "needs", here, "result", "could have shown"], lines)


def name_of(one: Finding) -> str:
    return "positive control" if one.name == "control" else one.name


def index() -> str:
    """A line and a small figure for each claim."""
    parts = [RESULTS]
    for claim in claims():
        title = words(claim)["title"]
        if not complete(claim):
            found, wanted = claim.done()
            parts.append(f"{title}: under way, {found} of {wanted} rows.\n")
            continue
        results = "; ".join(f"{one.name}: **{one.result}**" for one in claim.findings()[1:])
        parts.append(f"[{title}]({claim.name}.md). {results}.\n")
        parts.append(f"![Differences with intervals]({claim.name}-small.svg)\n")
    return "\n".join(parts)


def pictures_of(claim: Claim) -> Iterator[tuple[str, str]]:
    """Titles and names of the files of figures."""
    for at, title in enumerate(claim.module.figures(claim.rows, claim.rule)):
        yield title, f"{claim.name}-{at}.svg"


def files(folder: Path) -> dict[Path, str]:
    """The pictures of all pages."""
    found = dict[Path, str]()
    for claim in filter(complete, claims()):
        drawn = [*claim.module.figures(claim.rows, claim.rule).values()]
        for at, one in enumerate(drawn):
            found[folder / f"{claim.name}-{at}.svg"] = drawing.alone(one)
        points = dict[str, drawing.Point]()
        for one in claim.findings():
            if one.low is not None and one.high is not None:
                name = name_of(one).replace("`", "")
                points[name] = drawing.Point(one.mean, one.low, one.high, one.values)
        small = drawing.alone(drawing.rows(points), SMALL)
        found[folder / f"{claim.name}-small.svg"] = small
    return found
