"""Everything that a report says, as plain data: the contents of report.json (docs/plugins/api/files.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import alignkit
from alignkit.errors import Problem, RecipeError, reason_of
from alignkit.evaluation import judging, verdicts
from alignkit.evaluation.readable import mapping
from alignkit.io.lookup import is_dir, is_file
from alignkit.plugins import plugins
from alignkit.recipe.rounds import stages_of_rounds
from alignkit.report import Report
from alignkit.runs.files import RECIPE
from alignkit_apps.charts import curves, data_cards
from alignkit_apps.policies.source import near_run
from alignkit_apps.report import (
    history,
    overoptimization,
    overview,
    people,
    samples,
    stages,
)
from alignkit_apps.report.files import (
    UNEXPECTED,
    Lines,
    read_lines,
    read_object,
    read_recipe,
    read_stage,
    read_text,
)
from alignkit_apps.report.side_by_side import pairs_of

LOST = 0.2  # share of rows or responses that may be left out or cut without a warning
MACHINE = ("python", "system", "processor", "cores", "memory", "gpu", "threads")

Facts = dict[str, Any]


def facts_of(folder: Path) -> Facts:
    """The facts of a run from its folder, however complete. Raises RecipeError if it is not the folder of a run."""
    if not is_dir(folder):
        help = near_run(folder) or "name the folder of a run, such as runs/quickstart"
        what = f"{folder} is a file" if is_file(folder) else f"there is no folder {folder}"
        raise RecipeError([Problem(what, help=help)])
    if not is_file(folder / RECIPE):
        help = f"it is in a run: alignkit show {folder.parent}" if is_file(folder.parent / RECIPE) else near_run(folder)
        raise RecipeError([Problem(f"{folder} is not the folder of a run: it has no {RECIPE}", help=help)])
    return _Gathering(folder).facts()


class _Gathering:
    """Collects the facts. What cannot be read becomes a warning, so that one damaged file does not hide the others."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.recipe = read_recipe(folder)
        self.warnings: list[dict[str, str]] = []
        self.written: dict[str, Any] = stages_of_rounds(mapping(self.recipe.get("stages")))
        if not self.written:
            self.written = {path.parent.name: {} for path in sorted(folder.glob("*/stage.json"))}
            self.warn("", f"{RECIPE} is damaged; the stages are those that have a folder")
        self.records: dict[str, Mapping[str, Any]] = {}
        self.lines: dict[str, Lines] = {}
        for name in self.written:
            with self.reading(name, "stage.json"):
                self.records[name] = read_stage(folder / name)[0]
            self.lines[name] = read_lines(folder / name / "metrics.jsonl")
        self.starts = history.starts_of(folder)

    def facts(self) -> Facts:
        evaluations = self.evaluations()
        found = [verdict for name, summary in evaluations.items() for verdict in self.verdicts(name, summary)]
        stage_rows = self.stages()
        self.warn_of_stages(stage_rows)
        figures, fits = self.figures(evaluations)
        data = self.each(lambda name: stages.data_facts(name, self.records.get(name, {})))
        last = self.starts[-1] if self.starts else {}
        text = read_text(self.folder / RECIPE)
        facts: Facts = {
            "alignkit": alignkit.__version__,
            "run": self.run(stage_rows, last),
            "verdicts": found,
            "warnings": self.warnings,  # all are found by now, but those of samples
            "reproduce": {
                "command": str(last.get("command") or ""),
                "again": f"alignkit run {self.folder.resolve() / RECIPE} --out NEW-FOLDER",
                "recipe_sha256": hashlib.sha256(text.encode()).hexdigest(),
                "seed": self.recipe.get("seed", 0),
                "versions": self.versions(),
                "machine": {name: last[name] for name in MACHINE if last.get(name) is not None},
                "commit": last.get("commit"),
            },
            "starts": [{key: start.get(key) for key in STARTED} for start in self.starts],
            "stages": stage_rows,
            "figures": curves.thinned(figures),
            "fits": fits,
            "swaps": self.each(lambda name: pairs_of(self.folder, name), evaluations),
            "evaluations": [{"stage": name, "evaluation": summary} for name, summary in evaluations.items()],
            "samples": self.each(
                lambda name: samples.samples(name, self.folder / name, evaluations[name]), evaluations
            ),
            "data": data,
            "people": self.each(lambda name: people.people_of(name, self.records.get(name, {}), self.folder / name)),
            "dropped": self.each(lambda name: stages.dropped(name, self.records.get(name, {}))),
            "reports": self.each(self.reports),
            "parts": self.parts_of_plugins(),
            "incidents": history.incidents(self.folder, self.starts),
            "recipe": text,
            "files": stages.files_of(self.folder, self.records),
        }
        return facts

    # Reading

    def warn(self, stage: str, text: str) -> None:
        if {"stage": stage, "text": text} not in self.warnings:
            self.warnings.append({"stage": stage, "text": text})

    @contextmanager
    def reading(self, stage: str, what: str) -> Iterator[None]:
        try:
            yield
        except UNEXPECTED as error:
            self.warn(stage, f"{what} cannot be read and is left out ({type(error).__name__}: {error})")

    def each(self, read: Callable[[str], list[Any]], names: Any = None) -> list[Any]:
        """What `read` gives for each stage, one after the other."""
        found: list[Any] = []
        for name in self.written if names is None else names:
            with self.reading(name, "a part of its results"):
                found += read(name)
        return found

    def part(self, name: str) -> Mapping[str, Any]:
        """A stage's part of the recipe."""
        return mapping(self.written[name])

    # Parts

    def run(self, stage_rows: list[dict[str, Any]], last: Mapping[str, Any]) -> dict[str, Any]:
        states = [row["state"] for row in stage_rows]
        done = sum(state in ("done", "reused") for state in states)
        outcome = last.get("outcome") or ("done" if done == len(states) else "incomplete")
        return {
            "name": str(self.recipe.get("name") or self.folder.resolve().name),
            "folder": str(self.folder.resolve()),
            "outcome": str(outcome),
            "message": str(last.get("message") or ""),
            "started": self.starts[0]["started"] if self.starts else "",
            "ended": last.get("ended") or "",
            "stages": len(states),
            "stages_done": done,
            "seconds": sum(row["seconds"] or 0.0 for row in stage_rows),
            "peak_memory": self.peak_memory(len(states)),
        }

    def peak_memory(self, stages: int) -> str:
        """Of the last start that did some work: one that reuses all stages needs little."""
        working = [start for start in self.starts if len(start.get("reused") or ()) < stages]
        return next((str(start["peak_memory"]) for start in reversed(working) if start.get("peak_memory")), "")

    def stages(self) -> list[dict[str, Any]]:
        reused = (self.starts[-1].get("reused") if self.starts else None) or ()
        rows = []
        for name in self.written:
            with self.reading(name, "its folder"):
                rows.append(stages.stage_facts(name, self.folder / name, self.part(name), self.lines[name], reused))
        return rows

    def warn_of_stages(self, rows: list[dict[str, Any]]) -> None:
        reported = self.each(lambda name: [(name, text) for text in stages.warnings(self.records.get(name, {}))])
        for stage, text in history.warnings_of(self.folder):
            # At its end, a run prints the stages' reports, with long lines wrapped.
            if stage or not any(whole.startswith(text) for _, whole in reported):
                self.warn(stage if stage in self.written else "", text)
        for stage, text in reported:
            self.warn(stage, text)
        for row in rows:
            name = row["name"]
            if row["state"] == "damaged":
                self.warn(name, "stage.json is damaged; a run would repeat the stage")
            if row["damaged_lines"]:
                self.warn(name, f"{row['damaged_lines']} lines of metrics.jsonl are damaged and left out")
            if skipped := row["summary"].get("skipped_steps"):
                self.warn(name, f"{skipped} steps were skipped, because their loss or gradient was not finite")
            for metric, count in curves.not_finite(self.lines[name].rows).items():
                self.warn(name, f"{metric} was not a finite number {count} times")
        for name in self.written:
            with self.reading(name, "the cards of judges"):
                cards = [
                    read_object(self.folder / name / file) for file in ("evaluation.json", "reward_evaluation.json")
                ]
                for text in [text for one in cards for text in judging.no_judges(one)]:
                    self.warn(name, text)
        for item in self.each(lambda name: stages.dropped(name, self.records.get(name, {}))):
            if item["reason"].startswith("bad rows"):
                self.warn(item["stage"], f"{item['rows']} {item['reason']}")
            elif item["of"] and item["rows"] > LOST * item["of"]:
                self.warn(item["stage"], data_cards.left_out(item))

    def evaluations(self) -> dict[str, dict[str, Any]]:
        found = {name: read_object(self.folder / name / "evaluation.json") for name in self.written}
        for name, summary in found.items():
            if not summary and (self.folder / name / "evaluation.json").is_file():
                self.warn(name, "evaluation.json is damaged and left out")
        combined = dict(stages.combinations(self.written, set(self.written)))
        return {name: {**summary, "combinations": combined} for name, summary in found.items() if summary}

    def verdicts(self, name: str, summary: Mapping[str, Any]) -> list[verdicts.Verdict]:
        found: list[verdicts.Verdict] = []
        for raters in (verdicts.verdicts, judging.verdicts):
            with self.reading(name, "evaluation.json"):
                found += raters(name, summary)
        with self.reading(name, "evaluation.json"):
            found = [{**one, "judged": overview.judged_by(summary, one, self.written)} for one in found]
        for doubts in (verdicts.doubts, judging.doubts):
            with self.reading(name, "evaluation.json"):
                for doubt in doubts(summary, found):
                    self.warn(name, doubt)
        return found

    def reports(self, name: str) -> list[dict[str, Any]]:
        """What the stage itself reports, if that can be laid out."""
        blocks = self.records.get(name, {}).get("report") or []
        Report.restored(blocks).text()
        return [{"stage": name, "blocks": blocks}] if blocks else []

    def parts_of_plugins(self) -> list[dict[str, Any]]:
        """What plugins add to the report. One that fails becomes a warning, and the others stay."""
        plugins().registry.complete()
        manager = plugins().manager
        found: list[dict[str, Any]] = []
        for hook in manager.hook.report_parts.get_hookimpls():
            others = [plugin for plugin in manager.get_plugins() if plugin is not hook.plugin]
            ask = manager.subset_hook_caller("report_parts", others)
            try:
                for told in ask(folder=self.folder, records=[*self.records.values()]):
                    for title, report in told.items():
                        blocks = json.loads(json.dumps(report.plain()))
                        Report.restored(blocks).text()  # else the page would fail
                        found.append({"title": str(title), "anchor": f"part-{len(found) + 1}", "blocks": blocks})
            except (Exception, SystemExit) as error:
                why = f"return an alignkit.Report under each title ({reason_of(error)})"
                self.warn("", f"a part of plugin '{hook.plugin_name}' is left out: report_parts must {why}")
        return found

    def figures(self, evaluations: Mapping[str, Any]) -> tuple[list[curves.Figure], list[overoptimization.Fit]]:
        restarts = [start["time"] for start in self.starts[1:] if start["time"] is not None]
        figures, fits = [], []
        for name, lines in self.lines.items():
            with self.reading(name, "metrics.jsonl"):
                figures += curves.panels(name, lines.rows, restarts)
                if trained := overoptimization.training(name, lines.rows):
                    figures.append(trained[0])
                    fits += [trained[1]] if trained[1] else []
                if compared := overoptimization.gold(name, lines.rows):
                    figures.append(compared)
        for name, summary in evaluations.items():
            with self.reading(name, "figure.json"):
                if drawn := curves.alignment_path(name, read_object(self.folder / name / "figure.json")):
                    figures.append(drawn)
            with self.reading(name, "evaluation.json"):
                for figure, fit in overoptimization.evaluated(name, summary):
                    figures.append(figure)
                    fits += [fit] if fit else []
        for fit in fits:
            if fit["passed"]:
                self.warn(fit["stage"], fit["sentence"])
        return figures, fits

    def versions(self) -> dict[str, str]:
        """Of the packages that the stages used; `several` where they differ."""
        found: dict[str, set[str]] = {}
        for record in self.records.values():
            for name, version in mapping(record.get("versions")).items():
                found.setdefault(str(name), set()).add(str(version))
        return {name: " and ".join(sorted(versions)) for name, versions in found.items()}


STARTED = ("started", "ended", "outcome", "message", "command", "reused", "peak_memory")
