"""Where a model comes from: the stages that trained it, their data, and its evaluations, read from its run's folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from alignkit.data.sources import DataSpec
from alignkit.errors import AlignkitError
from alignkit.io.stage_results import EARLIER, read_record
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe, fields_of, specs
from alignkit.report import Report, Table
from alignkit.runs.files import RECIPE
from alignkit_apps.policies.source import Source

ALWAYS = ("learning_rate", "lr_scheduler_type", "warmup_ratio", "batch_size", "epochs", "max_length")
ONLINE = ("iterations", "prompts_per_iteration")
ROLLOUT = ("samples_per_prompt", "max_new_tokens", "temperature")
_CELL = re.compile(r"(?<!\\)\|")  # the end of a cell
_LICENSE = re.compile(r"(?m)^license:\s*[\"']?([\w.-]+)")


@dataclass(frozen=True)
class DataFacts:
    """A source of data. rows: what was learned from it, if that is recorded. digest: SHA-256 of a file."""

    use: str
    name: str
    rows: str
    license: str = ""
    origin: str = ""
    digest: str = ""
    hub: str | None = None


@dataclass(frozen=True)
class StageFacts:
    """A stage that trained the model. start: what it started from. changed: its record is of another result."""

    name: str
    method: str
    start: str
    settings: Mapping[str, Any]
    data: Sequence[DataFacts]
    results: Mapping[str, Any]
    changed: bool = False


def recipe_of(run: Path) -> Recipe | None:
    """The recipe of a run; None if it needs files or plugins that are no longer here."""
    try:
        return load_recipe(run / RECIPE)
    except AlignkitError:
        return None


def lineage(source: Source, recipe: Recipe | None) -> list[StageFacts]:
    """The stages that trained a model, the first one first."""
    found: list[StageFacts] = []
    record, expected = source.record, source.record.get("hash")
    name = source.stage
    while record and name not in [facts.name for facts in found]:
        found.append(_stage(name, record, recipe, changed=record.get("hash") != expected))
        start = str(record["depends_on"]["settings"].get("from_") or "")
        expected = record["depends_on"].get("upstream", {}).get(start.partition("@")[0])
        name = start.partition("@")[0]
        record = read_record(source.run / name) if name and not Path(start).is_absolute() else {}
        while record.get("policy"):  # a step that selected a policy
            name = str(record["policy"]).partition("@")[0]
            record = read_record(source.run / name) if not Path(name).is_absolute() else {}
            expected = record.get("hash")
    return found[::-1]


def _stage(name: str, record: Mapping[str, Any], recipe: Recipe | None, changed: bool) -> StageFacts:
    settings, component = record["depends_on"]["settings"] or {}, record["depends_on"]["component"]
    start = str(settings.get("from_") or "the base model")
    start = Path(start).name if Path(start).is_absolute() else start
    summary = record.get("summary") or {}
    shown = {key: settings[key] for key in ALWAYS if settings.get(key) is not None}
    shown |= {key: value["name"] for key, value in shown.items() if isinstance(value, Mapping)}  # without options
    if "learning_rate" in summary:
        shown = {"learning_rate": summary["learning_rate"], **shown}
    if settings.get("prompts"):
        shown |= {key: settings[key] for key in ONLINE if settings.get(key) is not None}
        rollout = settings.get("rollout") or {}
        shown |= {key: rollout[key] for key in ROLLOUT if rollout.get(key) is not None}
    if settings.get("reward"):
        shown["reward"] = _reward(settings["reward"])
    shown |= {key: value for key, value in (component.get("options") or {}).items() if _is_plain(value)}
    shown["seed"] = record["depends_on"].get("seed")
    results = {key: value for key, value in summary.items() if _is_number(value) and key not in ("learning_rate",)}
    held_out = summary.get("validation")
    if isinstance(held_out, Mapping):
        results |= {f"held-out {key}": value for key, value in held_out.items() if _is_number(value)}
    data = list(_data(settings, summary, recipe, name))
    return StageFacts(name, str(record.get("plugin")), start, portable(shown), data, results, changed)


def _reward(spec: Mapping[str, Any]) -> str:
    """`llama2(helpful, safety)`: a reward in words."""
    name = Path(str(spec.get("name"))).name
    children = spec.get("children") or {}
    return f"{name}({', '.join(map(_reward, children.values()))})" if children else name


def _data(
    settings: Mapping[str, Any], summary: Mapping[str, Any], recipe: Recipe | None, stage: str
) -> Iterator[DataFacts]:
    """The sources of a stage's data. recipe: knows the names of the files, of which the record has digests."""
    known = recipe.stages.get(stage) if recipe is not None else None
    for use, counted in (("data", "groups"), ("prompts", "prompts"), ("validation", ""), ("mix", "")):
        recorded = _sources(settings.get(use))
        entry = getattr(known.settings, use, None) if known is not None and known.settings is not None else None
        named = [source for spec in specs(entry, DataSpec) for source in spec.sources]
        rows = str(summary[counted]) if counted in summary and len(recorded) == 1 else ""
        for index, source in enumerate(recorded):
            same = named[index] if len(named) == len(recorded) else None
            yield _source(use, source, same.path if same is not None else None, rows)


def _sources(entry: Any) -> list[Mapping[str, Any]]:
    """All sources inside recorded settings."""
    if isinstance(entry, Mapping):
        if "sources" in entry:
            return list(entry["sources"])
        return [source for value in entry.values() for source in _sources(value)]
    return [source for value in entry for source in _sources(value)] if isinstance(entry, list) else []


def _source(use: str, source: Mapping[str, Any], path: Path | None, rows: str) -> DataFacts:
    rows = rows or (f"at most {source['limit']}" if source.get("limit") else "")
    if source.get("stage"):
        return DataFacts(use, f"made by stage {source['stage']}", rows)
    if hub := source.get("hub"):
        local = Path(hub).is_absolute() or Path(hub).exists()
        part = "".join(f", {source[key]}" for key in ("config", "split", "revision") if source.get(key))
        return DataFacts(use, Path(hub).name + part if local else hub + part, rows, hub=None if local else hub)
    license, origin = licensed(path) if path is not None else ("", "")
    return DataFacts(use, path.name if path else "a file", rows, license, origin, str(source.get("path") or ""))


def licensed(path: Path) -> tuple[str, str]:
    """License and origin of a data file: a table in a LICENSES.md next to it may list them by the file's name."""
    try:
        lines = (path.parent / "LICENSES.md").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return "", ""
    columns: list[str] = []
    for line in lines:
        cells = [cell.strip() for cell in _CELL.split(line)[1:-1]] if line.startswith("|") else []
        if "license" in [cell.lower() for cell in cells]:
            columns = [cell.lower() for cell in cells]
        elif columns and cells and cells[0].strip("`") == path.name:
            row = dict(zip(columns, cells, strict=False))
            return row.get("license", ""), row.get("source", "").replace("\\|", "|")
    return "", ""


def base_license(folder: Path | None) -> str | None:
    """The license that a base model's folder states; None if it states none."""
    if folder is None:
        return None
    try:
        if (folder / "README.md").is_file():
            header = (folder / "README.md").read_text(encoding="utf-8").split("---")
            if len(header) > 2 and (found := _LICENSE.search(header[1])):
                return found[1].lower()
        if (folder / "alignkit_source.json").is_file():
            stated = json.loads((folder / "alignkit_source.json").read_text(encoding="utf-8")).get("license")
            return str(stated).lower() if stated else None
    except (OSError, ValueError):
        return None
    return None


def evaluations(source: Source) -> list[tuple[str, str]]:
    """The steps that evaluated this very result, each with the tables of its report as Markdown."""
    found = []
    earlier = (source.run / EARLIER).glob("*/[!.]*") if EARLIER in source.folder.parts else ()
    for folder in (*sorted(source.run.glob("*")), *sorted(earlier)):
        record = read_record(folder)
        if not record.get("complete") or not record.get("report"):
            continue
        if source.record.get("hash") in record["depends_on"].get("upstream", {}).values():
            blocks = Report.restored(record["report"]).blocks
            tables = [block for block in blocks if isinstance(block, Table | str)]
            found.append((record["name"], Report(tables).markdown().strip()))
    return found


def differs(source: Source, recipe: Recipe | None) -> bool:
    """Whether the run's recipe was changed after the stage was trained."""
    if recipe is None:
        return False
    stage = recipe.stages.get(source.stage)
    if stage is None or stage.settings is None or stage.component.name != source.record.get("plugin"):
        return True
    recorded = source.depends_on["settings"] or {}
    now = fields_of(stage.settings)
    return any(_is_plain(value) and key != "from_" and now.get(key) != value for key, value in recorded.items())


# A path of at least two parts, or a whole text that is one; an address such as http://host/a is none.
_PATH = re.compile(r"(?<![\w:/.~<])~?/(?:[^\s'\"/]+/)+([^\s'\"/]*)")


def portable(value: Any) -> Any:
    """Plain data with the last part of every absolute path in its place, so that they tell nothing of this machine."""
    if isinstance(value, Mapping):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [portable(item) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith(("/", "~/")) and "\n" not in value and len(value) < 4096:
        return Path(value).name
    return _PATH.sub(r"\1", value)


def recipe_text(source: Source, changed: bool) -> str:
    """The recipe of the run as a file that can be shared: files are named without their folders."""
    from alignkit.io.credentials import redacted

    plain = portable(yaml.safe_load((source.run / RECIPE).read_text(encoding="utf-8")))
    lines = ["# The recipe of the run. Files are named without their folders: put them next to this file."]
    if changed:
        lines.append(f"# It was changed after stage '{source.stage}' was trained; README.md has that stage's settings.")
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=1000)
    return "\n".join(lines) + "\n" + redacted(text)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
