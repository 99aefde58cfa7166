"""A claim of a paper: its rule, the rows that it needs, and what they say.

A claim is a package here, with these files. `rule.yaml` is written, and committed, before any row
that is shown: seeds, what varies, tests with their margins, and the positive control. It names the
digests of the files of recipes/papers that rows depend on. `rows/` has a small file for each row,
with the digests of the rule and of the code that computes it, from before it was computed; a row of
another rule or of other code is void. (Rows from before the second digest stay as they are.) It has
a digest of all weights that it trained, in folders run*. `runs.jsonl`
has a line for each row that was begun, also of tuning, and of rules that are no more. `words.yaml`
is what people wrote: at most 200 words. The module itself has

- `compute(row, rule, folder)`: the values of a row, as plain data;
- `measures(rows, rule)`: by name and seed, a number, or a list with one for each prompt;
- `after(rows, rule)`, perhaps: as measures, by a name with its unit: what nobody asked before the
  rows were there, and no test is about;
- `figures(rows, rule)`: drawings, by title.

Until its rows are there, a page says what they could show: `expected(rule, seeds)` are, by test, the
parts of stored differences that should vary as these will with so many seeds. A claim that cannot be
shown here has no rule, and its module `calculation()` instead: a table that says why.

Where methods have rates, each is tuned on the tuning seeds: the rate with the highest mean of the
measure that is called as the method counts, and only this one is computed for the seeds that are
shown.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import json
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from scipy import special

from alignkit.evaluation.statistics import estimate
from alignkit.io.atomic import write_json, write_text
from alignkit.io.digest import digest, file_digest
from alignkit_plugins.cells import crossed
from alignkit_plugins.report import drawing

HERE = Path(__file__).parent
RECIPES = HERE.parents[1] / "recipes" / "papers"
CODE = __package__, "alignkit_plugins.rewards"  # where a row's code may void it
LEVEL = 0.05  # of a rule's tests together, in both directions
SHOWN, OPPOSITE, UNCLEAR, FAILED, CONTRADICTS = (
    "shown here",
    "the opposite, here",
    "no clear difference",
    "does not carry over",
    "contradicts",
)


class Row(NamedTuple):
    """What is computed at once. tuning: whether it only chooses a rate, and is never shown."""

    method: str
    seed: int
    rate: float | None = None
    tuning: bool = False

    @property
    def name(self) -> str:
        rate = "" if self.rate is None else f"-{self.rate:g}"
        return f"{self.method}{rate}-{self.seed}"


class Finding(NamedTuple):
    """What a test of the rule says. needs: what is shown, in words. low, high: ends of the interval;
    exact tests have none, and their mean is the worst value. values: by seed. seen: the smallest
    difference that had an 80% chance of being shown: the least, the most likely and the most that
    it may be; of tests with a margin.
    """

    name: str
    needs: str
    result: str
    mean: float
    values: Sequence[float]
    low: float | None = None
    high: float | None = None
    seen: Sequence[float] = ()


@dataclass(frozen=True)
class Claim:
    """A claim in a folder of this package."""

    name: str

    @property
    def folder(self) -> Path:
        return HERE / self.name

    @property
    def ruled(self) -> bool:
        return (self.folder / "rule.yaml").is_file()

    @cached_property
    def rule(self) -> Mapping[str, Any]:
        if not self.ruled:
            raise SystemExit(f"{self.name}: this claim has no rule and no rows, only a calculation")
        found: Mapping[str, Any] = yaml.safe_load((self.folder / "rule.yaml").read_text("utf-8"))
        for name, sha256 in found.get("files", {}).items():
            if file_digest(RECIPES / name) != sha256:
                raise SystemExit(
                    f"{self.name}: recipes/papers/{name} is not the file that the rule names: restore "
                    "it, or write its SHA-256 into rule.yaml, which voids all rows"
                )
        return found

    @cached_property
    def digest(self) -> str:
        return file_digest(self.folder / "rule.yaml")

    @cached_property
    def module(self) -> Any:
        return importlib.import_module(f"{__package__}.{self.name}")

    @cached_property
    def code(self) -> str:
        return code_of(self.module.compute)

    def planned(self, tuning: bool) -> Iterator[Row]:
        """The rows of one kind of seeds. Those that are shown need all rows of tuning."""
        rates = {} if tuning else self.rates()
        methods = self.rule["methods"]
        tunes = any("rates" in method for method in methods.values())
        if tuning and not tunes:
            return
        for seed in self.rule["seeds"]["tuning" if tuning else "shown"]:
            for name, method in methods.items():
                for rate in method.get("rates", [None]) if tuning else [rates.get(name)]:
                    yield Row(name, seed, rate, tuning)

    def stored(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Those of these rows that are there, complete, and of this rule and code."""
        found = list[dict[str, Any]]()
        for row in rows:
            file = self.folder / "rows" / f"{row.name}.json"
            if file.is_file():
                one = json.loads(file.read_text("utf-8"))
                known = one["rule"], one.get("code", self.code)
                if known == (self.digest, self.code) and "values" in one:
                    found.append(one)
        return found

    def rates(self) -> dict[str, float]:
        """The rate of each method that the tuning seeds choose."""
        tried = list(self.planned(tuning=True))
        rows = self.stored(tried)
        if len(rows) < len(tried):
            raise SystemExit(f"{self.name}: {len(tried) - len(rows)} rows of tuning are missing")
        found = dict[str, float]()
        for name, method in self.rule["methods"].items():
            gains = dict[float, float]()
            for rate in method.get("rates", ()):
                own = [row for row in rows if row["method"] != name or row["rate"] == rate]
                gains[rate] = by_seed(self.module.measures(own, self.rule)[name]).mean()
            if gains:
                found[name] = max(gains, key=gains.__getitem__)
        return found

    def compute(self, work: Path, part: int, parts: int) -> None:
        """Compute the rows of a part that are missing, each in a folder of its own in `work`."""
        for tuning in (True, False):
            for row in list(self.planned(tuning))[part - 1 :: parts]:
                if not self.stored([row]):
                    self._compute(row, work / row.name)

    def _compute(self, row: Row, folder: Path) -> None:
        facts = {"rule": self.digest, "code": self.code, **row._asdict()}
        facts |= {"processor": processor(), "threads": 1}
        file, log = self.folder / "rows" / f"{row.name}.json", self.folder / "runs.jsonl"
        write_json(file, facts)
        with log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"rule": self.digest, "row": row.name}) + "\n")
        found = self._computed(row, folder)
        write_text(file, json.dumps({**facts, **found}) + "\n")
        print(f"{self.name}: {row.name} in {found['seconds']:.0f} s", flush=True)

    def _computed(self, row: Row, folder: Path) -> dict[str, Any]:
        import torch

        torch.set_num_threads(1)
        began = time.process_time()
        values = self.module.compute(row, self.rule, folder)
        seconds = round(time.process_time() - began, 1)
        weights = sorted(map(file_digest, folder.glob("run*/**/*.safetensors")))
        return {"seconds": seconds, "weights": digest(weights)[:16], "values": values}

    def verify(self, name: str, work: Path) -> str:
        """Compute a row again, and say that its weights and values have equal bytes. Raises
        `SystemExit` if they do not.
        """
        rows = {row.name: row for tuning in (True, False) for row in self.planned(tuning)}
        if name not in rows or not (stored := self.stored([rows[name]])):
            raise SystemExit(f"{self.name}: no row '{name}'; they are {', '.join(rows)}")
        (old,) = stored
        new = {**old, **self._computed(rows[name], work / name)}
        other = [part for part in ("weights", "values") if part in old and old[part] != new[part]]
        where = f"computed on {old['processor']}, now on {processor()}"
        if other:
            raise SystemExit(f"{self.name}: {name} has other {' and '.join(other)}; {where}")
        return f"{self.name}: {name} has equal bytes; {where}"

    def done(self) -> tuple[int, int]:
        """How many rows are there, also of tuning, and of how many."""
        tried, rule = list(self.planned(tuning=True)), self.rule
        found = len(self.stored(tried))
        shown = len(rule["seeds"]["shown"]) * len(rule["methods"])
        if found == len(tried):  # else it is open which rate is shown
            found += len(self.stored(list(self.planned(tuning=False))))
        return found, len(tried) + shown

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The rows that are shown. Raises `SystemExit` where one is missing."""
        wanted = list(self.planned(tuning=False))
        found = self.stored(wanted)
        if len(found) < len(wanted):
            missing = len(wanted) - len(found)
            command = f"python -m benchmarks.papers {self.name}"
            raise SystemExit(f"{self.name}: {missing} rows are missing or void: {command}")
        return found

    def log(self) -> list[dict[str, Any]]:
        """All rows that were begun, by any rule."""
        lines = (self.folder / "runs.jsonl").read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @property
    def tests(self) -> dict[str, Mapping[str, Any]]:
        """The positive control first."""
        return {"control": self.rule["control"], **self.rule["tests"]}

    @property
    def level(self) -> float:
        """What each test that is not exact has of `LEVEL`."""
        return LEVEL / sum("tolerance" not in test for test in self.rule["tests"].values())

    def findings(self) -> list[Finding]:
        """What the tests of the rule say."""
        measured = self.module.measures(self.rows, self.rule)
        found = list[Finding]()
        for name, test in self.tests.items():
            values = by_seed(measured[test["of"]])
            if "minus" in test:
                values = values - by_seed(measured[test["minus"]])
            found.append(judged(name, test, values, self.level))
        if found[0].result != SHOWN:
            for at, one in enumerate(found[1:], 1):
                if "tolerance" not in self.tests[one.name]:
                    found[at] = one._replace(result=FAILED)
        return found


def code_of(function: Any) -> str:
    """A digest of the source of a function, of the functions and classes of claims and of rewards that
    it names, of those that these name, and of their numbers and names.
    """
    sources, left = dict[str, str](), [function]
    while left:
        one = left.pop()
        name = f"{one.__module__}.{one.__qualname__}"
        if name in sources:
            continue
        sources[name] = inspect.getsource(one)
        known = vars(sys.modules[one.__module__])
        nodes = ast.walk(ast.parse(textwrap.dedent(sources[name])))
        for used in {node.id for node in nodes if isinstance(node, ast.Name)}:
            found = known.get(used)
            if isinstance(found, str | int | float | tuple | list | dict):
                sources[f"{one.__module__}.{used}"] = repr(found)
            named = inspect.isroutine(found) or inspect.isclass(found)
            if named and found.__module__.startswith(CODE):
                left.append(found)
    return digest(sources)[:16]


def processor() -> str:
    """Its class, which rounding depends on."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def by_seed(values: Mapping[int, Any]) -> crossed.Array:
    """[prompts, seeds], where a number of a seed is that of one prompt."""
    return np.array([np.atleast_1d(values[seed]) for seed in sorted(values)], float).T


def needs(test: Mapping[str, Any]) -> str:
    """What a test needs, in words."""
    if "tolerance" in test:
        return f"at most {test['tolerance']:g}"
    return f"within {test['within']:g}, TOST" if "within" in test else f"above {test['margin']:g}"


def judged(name: str, test: Mapping[str, Any], values: crossed.Array, level: float) -> Finding:
    """What a test says of values [prompts, seeds].

    tolerance: exact, of every value: at most this, or it contradicts. margin: the interval must lie
    above it; below minus the margin is the opposite. within: it must lie within, by two one-sided
    tests (Schuirmann 1987); outside is the opposite.
    """
    seeds = values.mean(0).tolist()
    if "tolerance" in test:
        worst = float(values.max())
        result = SHOWN if worst <= test["tolerance"] else CONTRADICTS
        return Finding(name, needs(test), result, worst, seeds)
    found = crossed.parts(values)
    if len(values) == 1:  # seeds alone are drawn
        found = found._replace(free=10**9)
    every = crossed.spread(found)
    tail = level if "within" in test else level / 2
    half = float(special.stdtrit(every.free, 1 - tail) * np.sqrt(every.variance))
    mean = float(found.mean)
    low, high = mean - half, mean + half
    if "within" in test:
        margin, seen = test["within"], list[float]()
        shown = -margin < low and high < margin
        opposite = low > margin or high < -margin
    else:
        margin = test["margin"]
        alike = np.ptp(values) == 0  # nothing says what else could have come out
        seen = [] if alike else [margin + one for one in crossed.visible(found, tail)]
        shown, opposite = low > margin, high < -margin
    result = SHOWN if shown else OPPOSITE if opposite else UNCLEAR
    return Finding(name, needs(test), result, mean, seeds, low, high, seen)


def power(difference: float, error: crossed.Spread, tail: float) -> float:
    """The chance that an interval lies above 0, if this is the difference: the noncentral t."""
    critical = special.stdtrit(error.free, 1 - tail)
    shift = difference / np.sqrt(error.variance)
    return 1 - float(special.nctdtr(error.free, shift, critical))


# What claims share


def run_stages(
    name: str, folder: Path, run: Path, stages: Sequence[str], words: Sequence[str]
) -> None:
    """Run stages of recipes/papers/NAME.yaml, which is copied next to its data."""
    recipe = folder / f"{name}.yaml"
    shutil.copyfile(RECIPES / recipe.name, recipe)
    _run(recipe, run, stages, words)


def run_in_place(name: str, run: Path, words: Sequence[str]) -> None:
    """Run recipes/papers/NAME.yaml, whose data are the project's."""
    _run(RECIPES / f"{name}.yaml", run, (), words)


def _run(recipe: Path, run: Path, stages: Sequence[str], words: Sequence[str]) -> None:
    from alignkit.host.plugins import load_plugins
    from alignkit.recipe.load import load_recipe
    from alignkit.runs.run import run_recipe

    load_plugins(sorted(RECIPES.glob("*.py")), [])
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        run_recipe(replace(load_recipe(recipe, words), chosen=tuple(stages)), run)


def over_seeds(values: Sequence[float]) -> drawing.Point:
    """A mean with its 95% interval; without one, if there is none."""
    one: Any = estimate(values)
    low, high = (one["mean"] if one[end] is None else one[end] for end in ("low", "high"))
    return drawing.Point(one["mean"], low, high, values)


def lines_of(
    at: Sequence[float], values: Mapping[str, Sequence[Sequence[float]]]
) -> dict[str, drawing.Line]:
    """Means over seeds with 95% intervals; values: by name and seed, one at each x, or at the first."""
    found = dict[str, drawing.Line]()
    for name, seeds in values.items():
        y, band = list[float](), list[tuple[float, float]]()
        for column in np.array(seeds, float).T.tolist():
            one = over_seeds(column)
            y.append(one.mean)
            band.append((one.low, one.high))
        found[name] = drawing.Line(at[: len(y)], y, band if len(seeds) > 1 else ())
    return found


def chart(
    at: Sequence[float],
    values: Mapping[str, Sequence[Sequence[float]]],
    label: str,
    up: str,
    ticks: Mapping[float, str] | None = None,
    *,
    doublings: bool = False,
) -> drawing.Drawing:
    """Lines over x; see `lines_of`. label, up: of x and y. doublings: whether x are 1, 2, 4 ..."""
    if doublings:
        ticks = {float(np.log2(one)): f"{one:g}" for one in at}
        at = [*ticks]
    lines = lines_of(at, values)
    return drawing.curves(lines, label, ticks=ticks or drawing.Scale(at, 0).named(), up=up)
