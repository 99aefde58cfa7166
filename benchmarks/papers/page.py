"""Pages of claims, from their rules, rows and words; docs/generate.py writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from alignkit.evaluation.statistics import decimals, interval_text
from alignkit_plugins.cells import crossed
from alignkit_plugins.report import drawing
from benchmarks.markdown import markdown_table
from benchmarks.papers.claim import (
    HERE,
    LEVEL,
    RECIPES,
    Claim,
    Finding,
    Row,
    by_seed,
    judged,
    needs,
    power,
)

SMALL = 420  # pixels
LONGEST = 56  # characters of a name in a small figure
CONTROL = "positive control"
STORED = """\
Errors and chances are those of the quick start's PPO against SFT on this model."""
RESULTS = """\
What is tested has a rule, committed before anything that it shows was computed: what is measured, the margins, a
positive control, and how each result follows. **Shown here** and **the opposite, here** mean an interval beyond the
margin, and **no clear difference** one that is not, which may still exclude 0; **does not carry over** means that the
control failed. Only exact results may say **contradicts**. {count} rules with rows, each at 5%, expect {false:g} false
results at most. Rows of best of K and of the claims on heads were computed again, after results were known. A test
that turned out to be a bad one is on its page only. Small figures show differences in units of a test's margin, with
lines at it; TOST asks for an interval between them.

`python -m benchmarks.papers NAME` computes rows that are missing, in one thread and float32, and prints all tables.
`--verify ROW` computes a row again, and compares bytes. Pages count computations that were begun, void (the rule
changed) and replaced (code changed, or they were stopped or timed again).
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
    """What people wrote: number, title, scale, claim, effect, reading; of claims with rows, `units` of
    measures; `cannot`: by tests that turned out to be bad ones, what they cannot show; `quotes`: of what
    was computed after the rule, what the page shows, by default all.
    """
    return yaml.safe_load((claim.folder / "words.yaml").read_text("utf-8"))


def page(name: str) -> str:
    """The page of a claim."""
    claim = Claim(name)
    text = words(claim)
    return f"""\
# {text["title"]}

{f"{seeds_of(claim)} seeds. " if complete(claim) else ""}{text["scale"].strip()}

**The claim.** {text["claim"].strip()}

**In the paper.** {text["effect"].strip()}

{shown(claim) if complete(claim) else table(claim)}

{text["reading"].strip()}

{source(claim)}
"""


def shown(claim: Claim) -> str:
    """Figures, what each test says, and cannot say, and what nobody asked before."""
    pictures = (f"{title}.\n\n![]({file})\n" for title, file in pictures_of(claim))
    bad = words(claim).get("cannot", {})
    lines = (f"- {names.replace('control', CONTROL)}: {why.strip()}" for names, why in bad.items())
    parts = [*pictures, table(claim)]
    if bad:
        parts.append("\n".join(["\n\\* What these tests cannot show:\n", *lines]))
    if later := afterwards(claim, words(claim).get("quotes")):
        parts.append(f"\n{later}")
    return "\n".join(parts)


def afterwards(claim: Claim, names: Sequence[str] | None = None) -> str:
    """Means with an interval each, of what no test is about: all, or those of these names."""
    if not hasattr(claim.module, "after"):
        return ""
    lines, found = list[list[str]](), claim.module.after(claim.rows, claim.rule)
    for name in found if names is None else names:
        one = judged(name, {"margin": 0.0}, by_seed(found[name]), LEVEL)
        lines.append([name, text_of(one)])
    if not lines:
        return ""
    here = f"here, {1 - LEVEL:.0%} for each alone"
    return markdown_table(["computed after the rule, from the same rows", here], lines)


def text_of(one: Finding, margin: float = 0.0) -> str:
    """A mean with its interval. An end that would read as 0 or as the margin, and is not, has another
    digit.
    """
    if one.low is None or one.high is None:
        return f"{one.mean:.1e}"
    if min(one.values) == max(one.values):
        return f"{one.mean:.2g} with every seed"
    estimate: Any = {"mean": one.mean, "low": one.low, "high": one.high}
    digits = decimals(estimate)
    near = [(end - limit) for end in (one.low, one.high) for limit in (0.0, margin, -margin)]
    digits += any(gap and abs(gap) < 0.5 * 10.0**-digits for gap in near)
    return interval_text(estimate, sign=True, digits=digits)


def cannot(claim: Claim) -> set[str]:
    """Tests that turned out to be bad ones."""
    return {name for names in words(claim).get("cannot", {}) for name in names.split("; ")}


def seeds_of(claim: Claim) -> int:
    return len(claim.rule["seeds"]["shown"])


def source(claim: Claim) -> str:
    """Where numbers come from, and what they cost."""
    command = f"`python -m benchmarks.papers {claim.name}`"
    if not claim.ruled:
        return f"{command} prints the table."
    recipe, named = "", [f"{claim.name}.yaml", *claim.rule.get("files", ())]
    if files := [name for name in named if name.endswith("yaml") and (RECIPES / name).is_file()]:
        recipe = f", [recipe](../../recipes/papers/{files[0]})"
    rule = f"[Rule](../../benchmarks/papers/{claim.name}/rule.yaml) `{claim.digest[:16]}`{recipe}."
    seeds = seeds_of(claim)
    if not complete(claim):
        found, wanted = claim.done()
        stored = f"{STORED} " if hasattr(claim.module, "expected") else ""
        return f"{stored}{command} computes the rows: {found} of {wanted} are there. {rule}"
    rows, log = claim.rows, claim.log()
    void = sum(line["rule"] != claim.digest for line in log)
    tuning = [row.name for row in claim.planned(tuning=True)]
    again = len(log) - void - len(rows) - len(tuning)
    minutes = sum(row["seconds"] for row in rows) / 60
    machines = ", ".join(sorted({row["processor"] for row in rows}))
    usual = sorted(rows, key=lambda row: float(row["seconds"]))[len(rows) // 2]
    name = Row(*(usual[field] for field in Row._fields)).name
    chosen = ", ".join(f"{method} {rate:g}" for method, rate in claim.rates().items())
    return f"""\
{command}: {len(rows)} rows of {seeds} seeds, {minutes:.2g} minutes, {machines};
{len(tuning)} of tuning{f" (rates: {chosen})" if chosen else ""}; {len(log)} begun, {void} void, {again} replaced.
`--verify {name}`: {usual["seconds"]:.0f} s. {rule}"""


def table(claim: Claim) -> str:
    """What each test says, or will; of a claim without a rule, why none could."""
    if not claim.ruled:
        return str(claim.module.calculation())
    if not complete(claim):
        seeds = seeds_of(claim)
        header = ["test", "needs", "standard error", f"seen by {seeds} seeds", f"by {2 * seeds}"]
        lines = list(planned(claim, seeds))
        return markdown_table(header[: len(lines[0])], lines)
    units, bad, lines = words(claim)["units"], cannot(claim), []
    for one in claim.findings():
        test = claim.tests[one.name]
        quantity = " minus ".join(test[key] for key in ("of", "minus") if key in test)
        if test["of"] in units:
            quantity += f" (in {units[test['of']]})"
        result = f"**{one.result}**" + " \\*" * (one.name in bad)
        line = [
            name_of(one.name),
            quantity,
            one.needs,
            text_of(one, test.get("margin", 0.0)),
            result,
        ]
        lines.append([*line, range_of(one)])
    tost = f", of TOST {1 - 2 * LEVEL:.0%}" * any("within" in test for test in claim.tests.values())
    header = [
        "test",
        f"quantity ({units['other']})",
        "needs",
        f"here, {1 - LEVEL:.0%} jointly{tost}",
    ]
    return markdown_table([*header, "result", "could have shown"], lines)


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
    return CONTROL if test == "control" else test


def index() -> str:
    """A line and a small figure for each claim."""
    count = sum(map(complete, claims()))
    parts = [RESULTS.format(count=count, false=count * LEVEL)]
    for claim in claims():
        link = f"[{words(claim)['title']}]({claim.name}.md)"
        if not claim.ruled:
            parts.append(f"{link}. A calculation says why no figure is here.\n")
        elif complete(claim):
            parts.append(f"{link}. {line_of(claim)}")
        else:
            found, wanted = claim.done()
            parts.append(f"{link}. The rule is there, and {found} of {wanted} rows.\n")
    return "\n".join(parts)


def line_of(claim: Claim) -> str:
    """What the tests say, but for bad ones, with their small figure; without a control that can fail,
    why they say nothing, with the first figure.
    """
    bad = cannot(claim)
    if "control" in bad:
        ((title, file), *_) = pictures_of(claim)
        return f"No result. {words(claim)['cannot']['control'].strip()}\n\n![{title}]({file})\n"
    good = [one for one in claim.findings() if one.name not in bad]
    by_result = dict[str, list[str]]()
    for one in good[1:]:
        by_result.setdefault(one.result, []).append(one.name)
    results = ". ".join(
        f"**{result.capitalize()}**: {'; '.join(names)}" for result, names in by_result.items()
    )
    alt = "; ".join(f"{name_of(one.name)} {text_of(one)}" for one in good if drawn(one))
    return f"{results}.\n\n![{alt.replace('[', '(').replace(']', ')')}]({claim.name}-small.svg)\n"


def drawn(one: Finding) -> bool:
    """Whether a finding has an interval that says something."""
    return one.low is not None and min(one.values) < max(one.values)


def small(claim: Claim) -> drawing.Drawing:
    """Differences of good tests, in units of the test's margin, or the control's where that is 0."""
    points, bad = dict[str, drawing.Point](), cannot(claim)
    for one in claim.findings():
        if one.name not in bad and drawn(one):
            test = claim.tests[one.name]
            unit = test.get("within", test.get("margin")) or claim.rule["control"]["margin"]
            mean, low, high = (float(end or 0) / unit for end in (one.mean, one.low, one.high))
            seeds = [value / unit for value in one.values]
            points[name_of(one.name).replace("`", "")] = drawing.Point(mean, low, high, seeds)
    label = "in margins of the test; 0 is no difference"
    return drawing.rows(points, marks=[-1.0, 0.0, 1.0], label=label, most=LONGEST)


def pictures_of(claim: Claim) -> Iterator[tuple[str, str]]:
    """Titles and names of the files of figures."""
    for at, title in enumerate(claim.module.figures(claim.rows, claim.rule)):
        yield title, f"{claim.name}-{at}.svg"


def files(folder: Path) -> dict[Path, str]:
    """The pictures of all pages."""
    found = dict[Path, str]()
    for claim in filter(complete, claims()):
        every = claim.module.figures(claim.rows, claim.rule).values()
        for at, one in enumerate(every):
            found[folder / f"{claim.name}-{at}.svg"] = drawing.alone(one)
        if "control" not in cannot(claim):
            found[folder / f"{claim.name}-small.svg"] = drawing.alone(small(claim), SMALL)
    return found
