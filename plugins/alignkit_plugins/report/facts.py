"""Everything that a report says, as plain data: the contents of report.json
(docs/plugins/api/files.md).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import alignkit
from alignkit.errors import DataError, reason_of, refuse
from alignkit.evaluation import held_out
from alignkit.io.results import RECIPE, damage_of
from alignkit.plugins import plugins
from alignkit.report import Report
from alignkit_plugins.compare.readable import mapping
from alignkit_plugins.evaluate import verdicts
from alignkit_plugins.evaluate.rows import rows_of
from alignkit_plugins.models.find import find_run
from alignkit_plugins.report import (
    curves,
    data_cards,
    history,
    overoptimization,
    people,
    samples,
    stages,
)
from alignkit_plugins.report.files import each_object, read_object, read_recipe, read_text
from alignkit_plugins.report.side_by_side import Pair, pairs_of, with_earlier

LOST = 0.2  # share of rows or responses that may be left out or cut without a warning
COMPLETE = ("done", "reused")  # states of stages
MACHINE = ("python", "system", "processor", "cores", "memory", "gpu", "threads")

Facts = dict[str, Any]


def facts_of(folder: Path) -> Facts:
    """The facts of a run from its folder, however complete.

    A stage whose files are damaged has the state `damaged` and a warning, and the others have their
    facts. Raises RecipeError if it is not the folder of a run, and DataError if its recipe or its
    history is damaged.
    """
    run, stage = find_run(folder)
    if stage:
        refuse(f"{folder} is a stage, not a run", f"it is in a run: alignkit show {run}")
    return _Gathering(folder).facts()


class _Gathering:
    """Collects the facts of a run."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.recipe = read_recipe(folder)
        self.warnings: list[dict[str, Any]] = []
        self.written = mapping(self.recipe.get("stages"))
        self.records: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = {}
        self.evaluations: dict[str, dict[str, Any]] = {}
        self.damaged: list[str] = []
        self.starts = history.starts_of(folder)
        for name in self.written:
            self.read(name)

    def read(self, name: str) -> None:
        """Read the files of a stage, or none if they are damaged."""
        place, damage = self.folder / name, None
        try:
            if (place / "stage.json").exists():
                damage = damage_of(place)
            record, summary = (
                read_object(place / "stage.json"),
                read_object(place / "evaluation.json"),
            )
            rows = list(each_object(place / "metrics.jsonl"))
        except DataError as error:
            damage = str(error).partition("\n")[0]
        if damage:
            record, rows, summary = {}, [], {}
            self.damaged.append(name)
            self.warn(name, f"{damage}: run the recipe again, which repeats the stage")
        self.records[name], self.rows[name] = record, rows
        if summary:
            self.evaluations[name] = summary

    def facts(self) -> Facts:
        evaluations, swaps = self.evaluations, self.swaps()
        found = [verdict for name in evaluations for verdict in self.verdicts(name, swaps)]
        stage_rows = self.stages()
        dropped = self.each(lambda name: stages.dropped(name, self.records[name]))
        self.warn_of_stages(stage_rows, dropped)
        last = self.starts[-1] if self.starts else {}
        return {
            "alignkit": alignkit.__version__,
            "run": self.run(stage_rows, last),
            "verdicts": found,
            "warnings": self.warnings,
            "next": self.next_steps(found, stage_rows),
            "reproduce": {
                "command": str(last.get("command") or ""),
                "again": f"alignkit run {self.folder.resolve() / RECIPE} --out NEW-FOLDER",
                "seed": self.recipe.get("seed", 0),
                "versions": self.versions(),
                "machine": {name: last[name] for name in MACHINE if last.get(name) is not None},
                "commit": last.get("commit"),
            },
            "starts": [{key: start.get(key) for key in STARTED} for start in self.starts],
            "stages": stage_rows,
            "figures": curves.thinned(self.figures(evaluations)),
            "swaps": swaps,
            "evaluations": [
                {"stage": name, "evaluation": summary} for name, summary in evaluations.items()
            ],
            "samples": [
                one
                for name, summary in evaluations.items()
                for one in samples.samples(name, self.folder / name, summary)
            ],
            "data": self.each(lambda name: stages.data_facts(name, self.records[name])),
            "people": self.each(
                lambda name: people.people_of(name, self.records[name], self.folder / name)
            ),
            "dropped": dropped,
            "reports": self.each(self.reports),
            "parts": self.parts_of_plugins(),
            "recipe": read_text(self.folder / RECIPE),
            "files": stages.files_of(self.folder, self.records),
        }

    def warn(self, stage: str, text: str, logged: bool = False) -> None:
        """logged: whether only the log has it, so that a run that reuses the stage does not say
        it.
        """
        if (stage, text) not in [(one["stage"], one["text"]) for one in self.warnings]:
            self.warnings.append({"stage": stage, "text": text, "logged": logged})

    def each(self, read: Callable[[str], list[Any]]) -> list[Any]:
        """What `read` gives for each stage, one after the other."""
        return [item for name in self.written for item in read(name)]

    # Parts

    def run(self, stage_rows: list[dict[str, Any]], last: Mapping[str, Any]) -> dict[str, Any]:
        states = [row["state"] for row in stage_rows]
        done = sum(state in COMPLETE for state in states)
        # The peak of the last start that did some work: one that reuses all stages needs little.
        working = [start for start in self.starts if len(start.get("reused") or ()) < len(states)]
        peaks = [start["peak_memory"] for start in working if start.get("peak_memory")]
        return {
            "name": str(self.recipe.get("name") or self.folder.resolve().name),
            "folder": str(self.folder.resolve()),
            "base": str(mapping(self.recipe.get("model")).get("base") or ""),
            "outcome": last.get("outcome") or ("done" if done == len(states) else "incomplete"),
            "message": last.get("message") or "",
            "started": self.starts[0]["started"] if self.starts else "",
            "ended": last.get("ended") or "",
            "stages": len(states),
            "stages_done": done,
            "seconds": sum(row["seconds"] or 0.0 for row in stage_rows),
            "peak_memory": peaks[-1] if peaks else "",
            "tokens": int(float(f"{sum(map(stages.tokens, stage_rows)):.2g}")),
        }

    def stages(self) -> list[dict[str, Any]]:
        reused = (self.starts[-1].get("reused") if self.starts else None) or ()
        return [
            stages.stage_facts(
                self.folder / name,
                mapping(part),
                self.records[name],
                self.rows[name],
                reused,
                name in self.damaged,
            )
            for name, part in self.written.items()
        ]

    def warn_of_stages(self, rows: list[dict[str, Any]], dropped: list[dict[str, Any]]) -> None:
        for name, record in self.records.items():
            if doubt := held_out.doubt(mapping(record.get("summary")), self.rows[name]):
                self.warn(name, doubt)
        reported = self.each(
            lambda name: [(name, text) for text in stages.warnings(self.records[name])]
        )
        for stage, text in history.warnings_of(self.folder):
            # At its end, a run prints the stages' reports, with long lines wrapped.
            if stage or not any(whole.startswith(text) for _, whole in reported):
                self.warn(stage if stage in self.written else "", text, logged=True)
        for stage, text in reported:
            self.warn(stage, text)
        for row in rows:
            name = row["name"]
            if skipped := row["summary"].get("skipped_steps"):
                self.warn(
                    name,
                    f"{skipped} steps were skipped, because their loss or gradient was not finite",
                )
            for metric, count in curves.not_finite(self.rows[name]).items():
                self.warn(name, f"{metric} was not a finite number {count} times")
            if self.records[name]:
                for text in verdicts.no_judges(
                    read_object(self.folder / name / "reward_evaluation.json")
                ):
                    self.warn(name, text)
        for item in dropped:
            if item["reason"].startswith("bad rows"):
                self.warn(item["stage"], f"{item['rows']} {item['reason']}")
            elif item["of"] and item["rows"] > LOST * item["of"]:
                self.warn(item["stage"], data_cards.left_out(item))

    def swaps(self) -> list[Pair]:
        """Current results against earlier ones; none of those whose files are damaged."""
        found: list[Pair] = []
        for name in self.evaluations:
            try:
                found += pairs_of(self.folder, name)
            except (DataError, KeyError, TypeError, ValueError) as error:
                self.warn(
                    name, f"an earlier result is damaged and not compared: {reason_of(error)}"
                )
        return found

    def verdicts(self, name: str, swaps: list[Pair]) -> list[dict[str, Any]]:
        """What an evaluation says of each policy, and of current results against earlier ones."""
        summary, own = self.evaluations[name], [pair for pair in swaps if pair["stage"] == name]
        rows = rows_of(summary)
        for doubt in verdicts.doubts(summary, rows, verdicts.verdicts(rows, summary)):
            self.warn(name, doubt)
        found = verdicts.verdicts(with_earlier(summary, own), summary)
        for pair in own:
            found += (
                verdicts.verdicts(rows_of(pair["evaluation"]), summary)
                if pair["evaluation"]
                else []
            )
        return [{"stage": name, **asdict(verdict)} for verdict in found]

    def next_steps(
        self, found: list[dict[str, Any]], stage_rows: list[dict[str, Any]]
    ) -> dict[str, str]:
        """What the recipe says to try next, and the command that talks to the best policy; empty
        without any.
        """
        told = [str(record.get("text") or "") for record in self.records.values()]
        tried = [text.removeprefix("next: ") for text in told if text.startswith("next: ")]
        done = [
            row["name"]
            for row in stage_rows
            if row["kind"] == "algorithm" and row["state"] in COMPLETE
        ]
        policies = [name for name in done if not _is_reward(self.folder / name / "adapter")]
        best = policies[-1:]
        for verdict in found:
            best = [verdict["baseline" if verdict["outcome"] == "lost" else "policy"]]
        here = [name for name in best if name.partition("@")[0] in self.written]
        return {
            "told": "".join(tried[-1:]),
            "chat": f"alignkit chat {self.folder / here[0]}" if here else "",
        }

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
                        found.append(
                            {
                                "title": str(title),
                                "anchor": f"part-{len(found) + 1}",
                                "blocks": blocks,
                            }
                        )
            except (Exception, SystemExit) as error:
                why = f"return an alignkit.Report under each title ({reason_of(error)})"
                self.warn("", f"a part of {hook.plugin_name} is left out: report_parts must {why}")
        return found

    def figures(self, evaluations: Mapping[str, Any]) -> list[curves.Figure]:
        restarts = [start["time"] for start in self.starts[1:]]
        found: list[curves.Figure] = []
        for name, rows in self.rows.items():
            found += curves.panels(name, rows, restarts)
            found += overoptimization.gold(name, rows)
        for name, summary in evaluations.items():
            found += curves.alignment_path(name, rows_of(summary))
        return found

    def versions(self) -> dict[str, str]:
        """Of the packages that the stages used, with all that differ."""
        found: dict[str, set[str]] = {}
        for record in self.records.values():
            for name, version in (record.get("versions") or {}).items():
                found.setdefault(name, set()).add(version)
        return {name: " and ".join(sorted(versions)) for name, versions in found.items()}


def _is_reward(adapter: Path) -> bool:
    """Whether a trained model is a reward model, by its settings."""
    texts = [read_text(adapter / name) for name in ("adapter_config.json", "config.json")]
    return any(sign in text for text in texts for sign in ("SEQ_CLS", "ForSequenceClassification"))


STARTED = ("started", "ended", "outcome", "message", "command", "reused", "peak_memory")
