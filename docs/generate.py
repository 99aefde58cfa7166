"""Fill the generated parts of the documentation from the code: `python docs/generate.py [--check]`.

A page marks such a part with `<!-- generated: WHAT -->` and `<!-- /generated -->`, each on its own
line. WHAT is one of `recipe`, `model`, `lora`, `settings`, `rollout`, `mix`, `data`, `metrics`,
`server`, `recipes`, `families`, `formats`, `fields`, `migrate`, `methods`, `data sets`, `outcomes`, `gemma`,
`results` and a machine of `benchmarks/results.json`, `what fits`, `commands`, `exit codes`,
`events`, `silent bugs`, a kind and a name (`algorithm ppo`), a kind and several names, which then
have captions (`reward min product`), `example` and a kind for the module that
`alignkit plugins new` writes, names for the reference of public names (`api Group Response`; see
`api_names.py`), a module for the rest of its docstring (`about functional`), or a claim of a paper
(`paper dpo_frontier`, and `papers` for all). It also writes `recipes/recipe.schema.json` and the
pictures of `docs/papers`. With --check nothing is written; stale pages are listed and the exit code
is 1.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import BaseModel

import alignkit_plugins.formats.layouts
import alignkit_plugins.formats.template
from alignkit.contract import hookspecs
from alignkit.contract.report import Table
from alignkit.contract.settings import LoraSpec, Mix, ModelSpec, Rollout, Settings
from alignkit.evaluation.statistics import interval_text
from alignkit.host.plugins import load_plugins, plugins
from alignkit.host.registry import KINDS, Registration
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import TopKeys
from alignkit.recipe.sources import DataSource
from alignkit.recipe.yaml import shipped
from alignkit_plugins.ai_feedback.writer import Server
from alignkit_plugins.authors import new
from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.table import VARY, report_of
from alignkit_plugins.compare.rows import Row, deciding, rows_in
from alignkit_plugins.evals.metrics import Metric
from alignkit_plugins.recipe_tools.gpu_plan import GIB, plan_card
from alignkit_plugins.recipe_tools.init import summary
from alignkit_plugins.recipe_tools.options import (
    OptionRow,
    option_rows,
    schema_text,
    stage_defaults,
)
from benchmarks.catalogue import BENCHMARKS
from benchmarks.markdown import markdown_table
from benchmarks.papers import page as papers
from benchmarks.papers import reports
from benchmarks.papers.claim import by_seed

ROOT = Path(__file__).resolve().parent.parent
MODELS: dict[str, type[BaseModel]] = {
    "recipe": TopKeys,
    "model": ModelSpec,
    "lora": LoraSpec,
    "settings": Settings,
    "rollout": Rollout,
    "mix": Mix,
    "data": DataSource,
    "metrics": Metric,
    "server": Server,
}
PART = re.compile(
    r"^(<!-- generated: (.+?) -->\n)(.*?)^(<!-- /generated -->)$", re.MULTILINE | re.DOTALL
)


SCHEMA = ROOT / "recipes" / "recipe.schema.json"


def pages() -> list[Path]:
    """The pages that may have generated parts."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """The page with every generated part written again. Raises ValueError for a part that does not
    exist.
    """
    if text.count("<!-- generated:") != len(PART.findall(text)):
        raise ValueError(
            "a part is not closed by <!-- /generated -->, or a marker is not on its own line"
        )
    return PART.sub(lambda match: f"{match[1]}{part(match[2])}{match[4]}", text)


def part(what: str) -> str:
    """The Markdown of one generated part."""
    kind, _, name = what.partition(" ")
    if what in MODELS:
        return table(option_rows(MODELS[what]))
    tables = {
        "recipes": recipe_table,
        "formats": format_table,
        "fields": lambda: docstring_table(alignkit_plugins.formats.template),
        "data sets": data_set_table,
        "families": families,
        "outcomes": outcomes,
        "gemma": gemma,
        "seeds": seeds_needed,
        "what fits": what_fits,
        "commands": lambda: str(script("docs", "command_reference").commands()),
        "exit codes": lambda: str(script("docs", "command_reference").exit_codes()),
        "events": event_table,
        "silent bugs": silent_bugs,
        "migrate": lambda: str(script("docs", "migrate_table").text()),
        "methods": lambda: str(script("docs", "method_table").text()),
        "papers": papers.index,
    }
    if what in tables:
        return tables[what]()
    if kind == "api":
        return str(script("docs", "api_names").part(name))
    if kind == "about":
        text = inspect.cleandoc(importlib.import_module(f"alignkit.{name}").__doc__ or "")
        return text.partition("\n\n")[2].partition("\n\nDesign: ")[0] + "\n"
    if kind == "example" and name in KINDS:
        return f"```python\n{new.example(name)}```\n"
    if kind == "results":
        return result_table(name)
    if kind == "paper":
        return papers.page(name)
    names = name.split()
    if kind in KINDS and names and all(plugins().has(kind, each) for each in names):
        return components(kind, [plugins().get(kind, each) for each in names])
    known = [
        *MODELS,
        *tables,
        "api NAMES",
        "about MODULE",
        "example KIND",
        "results MACHINE",
        "paper CLAIM",
        "KIND NAMES",
    ]
    raise ValueError(f"'{what}' cannot be generated; known are {', '.join(known)}")


def components(kind: str, registrations: Sequence[Registration]) -> str:
    """The options of plugins and, of algorithms, the stage-level defaults that they set. Of several,
    each has its name and summary, and what all of them have follows once.
    """
    # docs/recipes.md has `sampling` once, for all steps
    rows = [
        [row for row in option_rows(each.implementation.Options) if row.name != "sampling"]
        for each in registrations
    ]
    defaults = [
        stage_defaults(each.implementation) if kind == "algorithm" else {} for each in registrations
    ]
    if len(registrations) == 1:
        return component(registrations[0].name, rows[0], defaults[0])
    shared = [row for row in rows[0] if all(row in others for others in rows[1:])]
    same = all(each == defaults[0] for each in defaults)
    parts = []
    for each, own, set_here in zip(registrations, rows, defaults, strict=True):
        own = [row for row in own if row not in shared]
        text = component(each.name, own, {} if same else set_here, alone=not shared)
        parts.append(f"**`{each.name}`**: {each.summary}\n\n{text}")
    if shared or (same and defaults[0]):
        caption = f"**{'Both' if len(rows) == 2 else 'All'}** have:\n\n" if shared else ""
        parts.append(
            caption + component("", shared, defaults[0] if same else {}, alone=False).lstrip()
        )
    return "\n".join(part for part in parts if part)


def component(
    name: str, rows: Sequence[OptionRow], defaults: dict[str, Any], *, alone: bool = True
) -> str:
    """One table of options, and the stage-level defaults below it."""
    text = table(rows) if rows else ""
    if not rows and name:
        text = f"`{name}` has no options{'' if alone else ' of its own'}.\n"
    # docs/recipes.md has those of all stages
    usual = {row.name: row.default for row in option_rows(MODELS["settings"])}
    if own := [f"`{key}` {value}" for key, value in defaults.items() if value != usual.get(key)]:
        text += f"\nStage defaults: {', '.join(own)}.\n"
    return text


UNSAID = ("null", "empty", "built-in", "its own defaults")  # defaults that no recipe would write


FEW = 4  # options that need no table


def table(rows: Sequence[OptionRow]) -> str:
    """A row per option, or a list of a few. A default stands at its key as in a recipe, unless it is
    empty.
    """
    lines = list[list[str]]()
    for row in rows:
        key, kind = row.name, row.type_and_range
        if row.default == "required":
            kind = f"{kind}, required"
        elif row.default not in UNSAID:
            key = f"{key}: {row.default}"
        lines.append([f"`{key}`", kind, row.description])
    if len(lines) <= FEW:
        return "".join(f"- {key} ({kind}): {meaning}\n" for key, kind, meaning in lines)
    return markdown(("key: default", "type", "meaning"), lines)


def recipe_table() -> str:
    """The shipped recipes, and what `alignkit init --list` says of them."""
    lines = [
        (f"[{name}](../recipes/{path.name})", summary(path)) for name, path in shipped().items()
    ]
    return markdown(("recipe", "what it shows"), lines)


def event_table() -> str:
    """The hooks that are called at events of a run."""
    lines = []
    for name, hook in vars(hookspecs).items():
        if hasattr(hook, "alignkit_spec") and name != "register":
            text, _, arguments = inspect.cleandoc(hook.__doc__ or "").partition("\nArgs:\n")
            text += " " + re.sub(r"^ {4}(\w+):", r"`\1`:", arguments, flags=re.MULTILINE)
            lines.append((f"`{name}{_arguments(hook)}`", " ".join(text.split())))
    return markdown(("hook", "when"), lines)


def _arguments(hook: Any) -> str:
    return f"({', '.join(inspect.signature(hook).parameters)})"


def format_table() -> str:
    """The formats that come with alignkit, the columns by which they recognize a row, and an
    example.
    """
    formats = [
        entry for entry in plugins().registrations("format") if entry.distribution == "alignkit"
    ]
    formats = [
        entry for entry in formats if entry.name not in alignkit_plugins.formats.layouts.TEMPLATES
    ]
    lines, shown = [], dict[str, str]()
    for entry in sorted(formats, key=lambda entry: entry.name):
        example = f"`{entry.implementation.example}`"
        first = shown.setdefault(example, entry.name)
        example = example if first == entry.name else f"as `{first}`"
        lines.append((f"`{entry.name}`", entry.implementation.wants, example))
    return markdown(("format", "columns", "an example"), lines)


def docstring_table(module: ModuleType) -> str:
    """The table in a module's docstring."""
    lines = [line for line in (module.__doc__ or "").splitlines() if line.startswith("|")]
    header, _, *rows = [line.strip("| ").rsplit(" | ", 1) for line in lines]
    return markdown(header, rows)


def data_set_table() -> str:
    """The public data sets that templates read."""
    templates = alignkit_plugins.formats.layouts.TEMPLATES
    return markdown(
        ("format", "data set"), [(f"`{name}`", each.summary) for name, each in templates.items()]
    )


SEEDS = 10  # of each method, in the end
ALONE = 0.025  # in each direction, of a test that is not one of several


def outcomes() -> str:
    """What each method's policies do by the quick start's metrics, over all seeds, and what that
    says.
    """
    folder = ROOT / "benchmarks" / "outcomes"
    scores, rows, notes = found_in(folder)
    methods = yaml.safe_load((folder / "methods.yaml").read_text(encoding="utf-8"))
    counts = Counter(file.stem.partition("methods=")[2] for file in (folder / "cells").iterdir())
    if left := [f"`{name}`" for name in methods if not counts[name]]:
        notes.append(f"- **Being computed:** {', '.join(left)}.")
    if (seeds := max(counts.values())) < SEEDS:
        notes.append(f"- **{seeds} of {SEEDS} planned seeds are done**; verdicts may change.")
    return "\n".join([scores, gains(rows), *notes, ""])


def gemma() -> str:
    """The quick start on Gemma 3 270M, and what the rule in its recipe makes of it."""
    scores, every, notes = found_in(ROOT / "benchmarks" / "outcomes" / "gemma")
    rows = [every[place] for place in deciding(every).values()]
    texts = [
        f"{row.policy} {interval_text(row.difference, sign=True, percent=True)}" for row in rows
    ]
    (ppo,) = (row for row in rows if row.policy == "ppo")
    verdict = "carries over" if ppo.direction == 1 else "does not carry over"
    if not ppo.excludes_zero:
        verdict = "may or may not carry over"
    first = f"**By its rule, the recipe {verdict}.** Against SFT: {', '.join(texts)}."
    if worse := [f"{row.policy} in {row.metric}" for row in every if row.clear == -1]:
        first += f" Clearly worse: {'; '.join(worse)}."
    return "\n".join([f"{first}\n", scores, *notes[:-1], ""])


def found_in(folder: Path) -> tuple[str, list[Row], list[str]]:
    """The table of the cells in a folder, the rows that it shows, and what is certain of them."""
    report, facts = report_of([folder])
    table = next(block for block in report.blocks if isinstance(block, Table))
    (evaluation,) = facts["evaluations"].values()
    notes = list[str]()
    for note in (*evaluation["notes"], VARY):
        if "not adjusted" not in note:
            notes.append(f"- {note.rstrip('.')}.")
    scores = f"{markdown(table.columns, table.rows)}\n\\{table.note}\n"
    return scores, rows_in(evaluation), notes


def seeds_needed() -> str:
    """By number of seeds, the gain that a test of PPO against SFT sees, if it varies as in the stored
    cells.
    """
    cell = next(reports.CELLS.glob("*,methods=ppo.json")).read_text(encoding="utf-8")
    found = json.loads(cell)["evaluations"]["report"]
    weights = found["measures"][found["headline"]]["parts"]
    by_name = reports.measures(reports.stored(), {"axes": {"headline": weights}})
    gain = 100 * (by_seed(by_name["align, headline"]) - by_seed(by_name["sft, headline"]))
    parts, table = crossed.parts(gain), list[list[str]]()
    low, *_, high = sorted(gain.mean(0))
    of_seeds = math.sqrt(max(0.0, parts.seeds - parts.rest) / parts.size)
    for count in (2, 3, 5, 10, 20):
        error = crossed.spread(reports.with_seeds(parts, count))
        table.append([str(count), f"{crossed.seen(error, ALONE):.0f}"])
    return f"""
In the quick start, PPO's gain over SFT by the headline is {low:.0f} to {high:.0f} points in {parts.runs} seeds, with a
standard deviation of {of_seeds:.0f} points between seeds that no number of prompts removes. With its prompts, one
test sees in 80% of tables a difference of

{markdown(("seeds", "points"), table)}
"""


def gains(rows: Sequence[Row]) -> str:
    """By the headline, what each policy gains over the baseline and how sure that is; where it is
    clearly worse; and whether it may lose more than a margin.
    """
    lines, margins, decisive = list[list[str]](), [""], deciding(rows).values()
    for row in map(rows.__getitem__, decisive):
        own = [one for one in rows if one.policy == row.policy and one.tested]
        worse = "; ".join(one.metric + "\\*" * one.lower for one in own if one.clear == -1)
        limits = [one for one in own if one.margin]
        margins = [f"{one.metric}, margin {100 * one.margin:g} points" for one in limits]
        texts = [interval_text(one.difference, sign=True, percent=True) for one in (row, *limits)]
        lines.append([row.policy, texts[0], f"{row.difference['p']:.2g}", f"{row.p:.2g}", worse])
        lines[-1] += texts[1:]
        headline, baseline = row.metric, row.baseline
    header = [f"against {baseline}", headline, "p alone", f"p among {len(decisive)} methods"]
    return markdown([*header, "clearly worse", *margins], lines)


# Rows of 1,024 tokens, as in `qlora_8b`; half of one is sampled
SAMPLED = ("stages.align.max_length=1024", "stages.align.rollout.max_new_tokens=512")


def what_fits() -> str:
    """The GiB that SFT, DPO and GRPO take on GPUs of several sizes, as `check --gpu` computes them."""
    sizes, lines = (8, 24, 80), list[list[str]]()
    for base in ("Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen3-8B"):
        for weights, quantization in {"bf16": "none", "nf4": "nf4"}.items():
            words = [f"model.base={base}", f"model.quantization={quantization}"]
            changed = {"qlora_8b": words, "sums": [*words, *SAMPLED]}
            recipes = [load_recipe(shipped()[name], each) for name, each in changed.items()]
            cells = list[str]()
            for size in sizes:
                (sft, dpo, _), (grpo, _) = (plan_card(recipe, size)[0] for recipe in recipes)
                peaks = (plan.peak / GIB for plan in (sft, dpo, grpo))
                cells.append(" / ".join(f"{peak:.1f}" if peak <= size else "-" for peak in peaks))
            lines.append([base, weights, *cells])
    return markdown(("model", "base in", *(f"{size} GiB" for size in sizes)), lines)


def result_table(machine: str) -> str:
    """The results that one machine measured: what each round did, and how it compared."""
    machines = json.loads(
        (ROOT / "docs" / "benchmarks" / "results.json").read_text(encoding="utf-8")
    )["machines"]
    (rows,) = [entry["rows"] for entry in machines if entry["name"] == machine]
    lines = []
    for row in rows:
        benchmark = BENCHMARKS[row["name"]]
        rounds = " to ".join(f"{ratio:.2f}" for ratio in row.get("ratio_rounds") or ())
        ratio = f"{row['ratio']:,.2f}" if row["ratio"] < 1000 else f"{row['ratio']:,.0f}"
        lines.append(
            (
                f"`{row['name']}`: {benchmark.description}",
                benchmark.peer_name,
                f"{row['ours']:,.10g} {row['unit']}",
                f"{ratio} [{rounds}]" if rounds else ratio,
                f"{row['ours_gib']:.2f} / {row['peer_gib']:.2f}",
            )
        )
    columns = ("one round", "compared with", "alignkit", "times as fast", "GiB")
    return markdown(columns, lines)


def families() -> str:
    """What was learned from a conversation of each kind, and the families of models for which this
    is so.
    """
    model_table = script("tests/models", "model_table")
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, *cells in model_table.lines():
        alike.setdefault(tuple(cells), []).append(name)
    return markdown(model_table.HEADER, [(", ".join(alike[key]), *key) for key in alike])


def silent_bugs() -> str:
    """What other toolkits got wrong without a word, and the tests that hold it here."""
    table = script("docs", "silent_bugs")
    rows = table.lines()
    count = f"{len(rows)} of the {len(table.faults())} faults that tests guard:"
    return f"{count}\n\n{markdown(table.HEADER, rows)}"


def script(folder: str, name: str) -> Any:
    """A module of a folder that is no package."""
    sys.path.insert(0, str(ROOT / folder))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    return (
        markdown_table(header, ([cell.replace("|", "\\|") for cell in line] for line in lines))
        + "\n"
    )


def main(arguments: Sequence[str]) -> int:
    stale = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        try:
            new = filled(text)
        except ValueError as error:
            raise SystemExit(f"{page.relative_to(ROOT)}: {error}") from None
        if new != text:
            stale.append(str(page.relative_to(ROOT)))
            if "--check" not in arguments:
                page.write_text(new, encoding="utf-8")
    files = {SCHEMA: schema_text(load_plugins()), **papers.files(ROOT / "docs" / "papers")}
    for file, text in files.items():
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            stale.append(str(file.relative_to(ROOT)))
            if "--check" not in arguments:
                file.write_text(text, encoding="utf-8")
    if stale:
        print(f"{'stale' if '--check' in arguments else 'written'}: {', '.join(stale)}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
