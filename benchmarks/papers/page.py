"""Pages of claims, from their rules, rows and words; docs/generate.py writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from alignkit.evaluation.statistics import interval_text
from alignkit_plugins.cells import crossed
from alignkit_plugins.report import drawing
from benchmarks.markdown import markdown_table
from benchmarks.papers.claim import HERE, LEVEL, RECIPES, Claim, Finding, Row, needs, power

SMALL = 420  # pixels
STORED = """\
Errors and chances are those of the quick start's PPO (`benchmarks/outcomes/cells`), if each test's gain were what PPO
gained over SFT."""
RESULTS = """\
What is tested has a rule, committed before anything that it shows was computed: what is measured, the margins, a
positive control, and how each result follows. **Shown here**, **the opposite, here**, and **no clear difference**, with
the smallest that could have been seen, are what a rule may say; **does not carry over** means that the control failed.
Only exact results may say **contradicts**. Eleven rules at 5% expect 0.55 false results.
"""


def claims() -> list[Claim]:
    """Those that have words, in order."""
    found = [Claim(file.parent.name) for file in HERE.glob("*/words.yaml")]
    return sorted(found, key=lambda claim: int(words(claim)["number"]))


def complete(claim: Claim) -> bool:
    """Whether there is a rule, and all its rows."""
    if not claim.ruled:
        return False
    found, wanted = claim.done()
    return found == wanted


def words(claim: Claim) -> Any:
    """What people wrote: number, title, scale, claim, effect, reading."""
    return yaml.safe_load((claim.folder / "words.yaml").read_text("utf-8"))


def page(name: str) -> str:
    """The page of a claim."""
    claim = Claim(name)
    text = words(claim)
    return f"""\
# {text["title"]}

{text["scale"].strip()}

**The claim.** {text["claim"].strip()}

**In the paper.** {text["effect"].strip()}

{shown(claim) if complete(claim) else table(claim)}

{text["reading"].strip()}

{source(claim)}
"""


def shown(claim: Claim) -> str:
    """Figures, and what each test says."""
    pictures = (f"{title}.\n\n![{title}]({file})\n" for title, file in pictures_of(claim))
    return "\n".join([*pictures, table(claim)])


def source(claim: Claim) -> str:
    """Where numbers come from, and what they cost."""
    command = f"`python -m benchmarks.papers {claim.name}`"
    if not claim.ruled:
        return f"{command} prints the table."
    recipe = ""
    if (RECIPES / f"{claim.name}.yaml").is_file():
        recipe = f", [recipe](../../recipes/papers/{claim.name}.yaml)"
    rule = (
        f"Rule: `benchmarks/papers/{claim.name}/rule.yaml`, SHA-256 `{claim.digest[:16]}`{recipe}."
    )
    seeds = len(claim.rule["seeds"]["shown"])
    if not complete(claim):
        found, wanted = claim.done()
        stored = f"{STORED} " if hasattr(claim.module, "expected") else ""
        return f"{stored}{command} computes the rows: {found} of {wanted} are there. {rule}"
    rows, log = claim.rows, claim.log()
    void = sum(line["rule"] != claim.digest for line in log)
    tuning = [row.name for row in claim.planned(tuning=True)]
    minutes = sum(row["seconds"] for row in rows) / 60
    machines = ", ".join(sorted({row["processor"] for row in rows}))
    usual = sorted(rows, key=lambda row: float(row["seconds"]))[len(rows) // 2]
    again = Row(*(usual[field] for field in Row._fields)).name
    rates = ", ".join(f"{method} {rate:g}" for method, rate in claim.rates().items())
    chosen = f", which chose the rates {rates}" if rates else ""
    return f"""\
{command} computes {len(rows)} rows that are shown, of {seeds} seeds
({minutes:.0f} minutes of one thread, {machines}, float32), and {len(tuning)} of tuning{chosen}.
{len(log)} were begun; {void} are void, because the rule changed. `--verify {again}` computes
one again ({usual["seconds"]:.0f} s), and compares bytes. {rule}"""


def table(claim: Claim) -> str:
    """What each test says, or will; of a claim without a rule, why none could."""
    if not claim.ruled:
        return str(claim.module.calculation())
    if not complete(claim):
        seeds = len(claim.rule["seeds"]["shown"])
        header = ["test", "needs", "standard error", f"seen by {seeds} seeds", f"by {2 * seeds}"]
        lines = list(planned(claim, seeds))
        return markdown_table(header[: len(lines[0])], lines)
    lines = []
    for one in claim.findings():
        estimate: Any = {"mean": one.mean, "low": one.low, "high": one.high}
        here = f"{one.mean:.1e}" if one.low is None else interval_text(estimate, sign=True)
        if one.low is not None and min(one.values) == max(one.values):
            here = f"{one.mean:.2g} with every seed"
        lines.append([name_of(one.name), one.needs, here, f"**{one.result}**", range_of(one)])
    here = f"here, {1 - LEVEL:.0%} for all together"
    return markdown_table(["test", "needs", here, "result", "could have shown"], lines)


def planned(claim: Claim, seeds: int) -> Iterator[list[str]]:
    """What each test needs, and the chance that so many seeds, or twice as many, show what stored runs
    gained.
    """
    expects = getattr(claim.module, "expected", None)
    expected = [expects(claim.rule, runs) for runs in (seeds, 2 * seeds)] if expects else []
    for name, test in claim.tests.items():
        line = [name_of(name), needs(test)]
        found = [each[name] for each in expected if name in each]
        if found and "margin" in test:
            errors = [crossed.spread(each) for each in found]
            above = float(found[0].mean) - test["margin"]
            line.append(f"{np.sqrt(errors[0].variance):.3f}")
            line += [f"{power(above, error, claim.level / 2):.0%}" for error in errors]
        yield [*line, "", "", ""][:5] if expected else line


def range_of(one: Finding) -> str:
    return f"{one.seen[0]:.2g} to {one.seen[2]:.2g}" if one.seen else ""


def name_of(test: str) -> str:
    return "positive control" if test == "control" else test


def index() -> str:
    """A line and a small figure for each claim."""
    parts = [RESULTS]
    for claim in claims():
        link = f"[{words(claim)['title']}]({claim.name}.md)"
        if not claim.ruled:
            parts.append(f"{link}. A calculation says why no figure is here.\n")
        elif complete(claim):
            results = "; ".join(f"{one.name}: **{one.result}**" for one in claim.findings()[1:])
            parts.append(f"{link}. {results}.\n")
            parts.append(f"![Differences with intervals]({claim.name}-small.svg)\n")
        else:
            found, wanted = claim.done()
            parts.append(f"{link}. The rule is there, and {found} of {wanted} rows.\n")
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
                name = name_of(one.name).replace("`", "")
                points[name] = drawing.Point(one.mean, one.low, one.high, one.values)
        small = drawing.alone(drawing.rows(points), SMALL)
        found[folder / f"{claim.name}-small.svg"] = small
    return found
