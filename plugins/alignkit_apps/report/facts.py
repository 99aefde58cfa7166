"""Everything that a report says, as plain data: the contents of report.json (docs/plugins/api/files.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import alignkit
from alignkit.errors import Problem, RecipeError, reason_of
from alignkit.io.results import RECIPE, check_results
from alignkit.io.text import is_dir, is_file
from alignkit.plugins import plugins
from alignkit.report import Report
from alignkit_apps.charts import curves, data_cards
from alignkit_apps.policies.source import near_run
from alignkit_apps.report import (
    history,
    overoptimization,
    people,
    samples,
    stages,
)
from alignkit_apps.report.files import each_object, read_object, read_recipe, read_text
from alignkit_apps.report.side_by_side import pairs_of
from alignkit_plugins.evaluate import judging, verdicts
from alignkit_plugins.evaluate.readable import mapping

LOST = 0.2  # share of rows or responses that may be left out or cut without a warning
MACHINE = ("python", "system", "processor", "cores", "memory", "gpu", "threads")

Facts = dict[str, Any]


def facts_of(folder: Path) -> Facts:
    """The facts of a run from its folder, however complete.

    Raises RecipeError if it is not the folder of a run, DataError for a damaged file, and RunFailed for a
    result that is not as its stage wrote it.
    """
    if not is_dir(folder):
        help = near_run(folder) or "name the folder of a run, such as runs/quickstart"
        what = f"{folder} is a file" if is_file(folder) else f"there is no folder {folder}"
        raise RecipeError([Problem(what, help=help)])
    if not is_file(folder / RECIPE):
        help = f"it is in a run: alignkit show {folder.parent}" if is_file(folder.parent / RECIPE) else near_run(folder)
        raise RecipeError([Problem(f"{folder} is not the folder of a run: it has no {RECIPE}", help=help)])
    gathering = _Gathering(folder)
    check_results(folder, gathering.written)
    return gathering.facts()


class _Gathering:
    """Collects the facts of a run. Raises DataError for a damaged file."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.recipe = read_recipe(folder)
        self.warnings: list[dict[str, str]] = []
        self.written = mapping(self.recipe.get("stages"))
        self.records = {name: read_object(folder / name / "stage.json") for name in self.written}
        self.rows = {name: list(each_object(folder / name / "metrics.jsonl")) for name in self.written}
        self.starts = history.starts_of(folder)

    def facts(self) -> Facts:
        evaluations = {}
        for name in self.written:
            if summary := read_object(self.folder / name / "evaluation.json"):
                evaluations[name] = summary
        found = [verdict for name, summary in evaluations.items() for verdict in self.verdicts(name, summary)]
        stage_rows = self.stages()
        dropped = self.each(lambda name: stages.dropped(name, self.records[name]))
        self.warn_of_stages(stage_rows, dropped)
        last = self.starts[-1] if self.starts else {}
        text = read_text(self.folder / RECIPE)
        return {
            "alignkit": alignkit.__version__,
            "run": self.run(stage_rows, last),
            "verdicts": found,
            "warnings": self.warnings,
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
            "figures": curves.thinned(self.figures(evaluations)),
            "swaps": [pair for name in evaluations for pair in pairs_of(self.folder, name)],
            "evaluations": [{"stage": name, "evaluation": summary} for name, summary in evaluations.items()],
            "samples": [
                one
                for name, summary in evaluations.items()
                for one in samples.samples(name, self.folder / name, summary)
            ],
            "data": self.each(lambda name: stages.data_facts(name, self.records[name])),
            "people": self.each(lambda name: people.people_of(name, self.records[name], self.folder / name)),
            "dropped": dropped,
            "reports": self.each(self.reports),
            "parts": self.parts_of_plugins(),
            "recipe": text,
            "files": stages.files_of(self.folder, self.records),
        }

    def warn(self, stage: str, text: str) -> None:
        if {"stage": stage, "text": text} not in self.warnings:
            self.warnings.append({"stage": stage, "text": text})

    def each(self, read: Callable[[str], list[Any]]) -> list[Any]:
        """What `read` gives for each stage, one after the other."""
        return [item for name in self.written for item in read(name)]

    # Parts

    def run(self, stage_rows: list[dict[str, Any]], last: Mapping[str, Any]) -> dict[str, Any]:
        states = [row["state"] for row in stage_rows]
        done = sum(state in ("done", "reused") for state in states)
        # The peak of the last start that did some work: one that reuses all stages needs little.
        working = [start for start in self.starts if len(start.get("reused") or ()) < len(states)]
        peaks = [start["peak_memory"] for start in working if start.get("peak_memory")]
        return {
            "name": str(self.recipe.get("name") or self.folder.resolve().name),
            "folder": str(self.folder.resolve()),
            "outcome": last.get("outcome") or ("done" if done == len(states) else "incomplete"),
            "message": last.get("message") or "",
            "started": self.starts[0]["started"] if self.starts else "",
            "ended": last.get("ended") or "",
            "stages": len(states),
            "stages_done": done,
            "seconds": sum(row["seconds"] or 0.0 for row in stage_rows),
            "peak_memory": peaks[-1] if peaks else "",
        }

    def stages(self) -> list[dict[str, Any]]:
        reused = (self.starts[-1].get("reused") if self.starts else None) or ()
        return [
            stages.stage_facts(self.folder / name, mapping(part), self.records[name], self.rows[name], reused)
            for name, part in self.written.items()
        ]

    def warn_of_stages(self, rows: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> None:
        reported = self.each(lambda name: [(name, text) for text in stages.warnings(self.records[name])])
        for stage, text in history.warnings_of(self.folder):
            # At its end, a run prints the stages' reports, with long lines wrapped.
            if stage or not any(whole.startswith(text) for _, whole in reported):
                self.warn(stage if stage in self.written else "", text)
        for stage, text in reported:
            self.warn(stage, text)
        for row in rows:
            name = row["name"]
            if skipped := row["summary"].get("skipped_steps"):
                self.warn(name, f"{skipped} steps were skipped, because their loss or gradient was not finite")
            for metric, count in curves.not_finite(self.rows[name]).items():
                self.warn(name, f"{metric} was not a finite number {count} times")
            for file in ("evaluation.json", "reward_evaluation.json"):
                for text in judging.no_judges(read_object(self.folder / name / file)):
                    self.warn(name, text)
        for item in dropped:
            if item["reason"].startswith("bad rows"):
                self.warn(item["stage"], f"{item['rows']} {item['reason']}")
            elif item["of"] and item["rows"] > LOST * item["of"]:
                self.warn(item["stage"], data_cards.left_out(item))

    def verdicts(self, name: str, summary: Mapping[str, Any]) -> list[verdicts.Verdict]:
        found = [*verdicts.verdicts(name, summary), *judging.verdicts(name, summary)]
        for doubt in [*verdicts.doubts(summary, found), *judging.doubts(summary, found)]:
            self.warn(name, doubt)
        return found

    def reports(self, name: str) -> list[dict[str, Any]]:
        """What the stage itself reports."""
        blocks = self.records[name].get("report")
        return [{"stage": name, "blocks": blocks}] if blocks else []

    def parts_of_plugins(self) -> list[dict[str, Any]]:
        """What plugins add to the report. One that fails becomes a warning, and the others stay."""
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
                self.warn("", f"a part of {hook.plugin_name} is left out: report_parts must {why}")
        return found

    def figures(self, evaluations: Mapping[str, Any]) -> list[curves.Figure]:
        restarts = [start["time"] for start in self.starts[1:]]
        found: list[curves.Figure | None] = []
        for name, rows in self.rows.items():
            found += curves.panels(name, rows, restarts)
            found.append(overoptimization.gold(name, rows))
        for name in evaluations:
            found.append(curves.alignment_path(name, read_object(self.folder / name / "figure.json")))
        return [figure for figure in found if figure is not None]

    def versions(self) -> dict[str, str]:
        """Of the packages that the stages used, with all that differ."""
        found: dict[str, set[str]] = {}
        for record in self.records.values():
            for name, version in (record.get("versions") or {}).items():
                found.setdefault(name, set()).add(version)
        return {name: " and ".join(sorted(versions)) for name, versions in found.items()}


STARTED = ("started", "ended", "outcome", "message", "command", "reused", "peak_memory")
