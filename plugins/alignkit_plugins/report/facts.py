"""Everything that a report says, as plain data: the contents of report.json
(docs/plugins/api/files.md).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import alignkit
from alignkit.errors import refuse
from alignkit.evaluation import held_out
from alignkit.evaluation.statistics import interval_text
from alignkit.io.results import AGREEMENT, RECIPE, damage_of, json_lines, read_record
from alignkit.io.text import listed, redacted
from alignkit.models.saved import read_json
from alignkit.recipe.yaml import mapping, plain_data
from alignkit.tokens.counts import DROP_REASONS
from alignkit_plugins.cells.earlier import ONE_SEED, Change, changed, with_earlier
from alignkit_plugins.command_line.find import find_run
from alignkit_plugins.compare import verdicts
from alignkit_plugins.compare.rows import BASE_MODEL, COIN, rows_in
from alignkit_plugins.report.data_card import left_out
from alignkit_plugins.report.diagnosis import diagnosis
from alignkit_plugins.report.figures import series_of
from alignkit_plugins.report.history import starts_of, warnings_of
from alignkit_plugins.report.samples import samples
from alignkit_plugins.text.readable import number

LOST = 0.2  # share of rows or responses that may be left out or cut without a warning
ACRONYM = 4  # characters of a name that is one, such as `ppo`
DATA = ("name", "format", "rows", "held_out", "skipped")  # facts of a source
CARD = ("responses", "prompt_characters", "response_characters", "pairs", "labels")
NO_SIGNAL = "rows left out: the algorithm learns nothing from them"

Facts = dict[str, Any]


def facts_of(folder: Path) -> Facts:
    """The facts of a run from its folder, however complete. A stage whose files are damaged has the
    state `damaged`, and no facts.

    Raises RecipeError if it is not the folder of a run.
    """
    run, part = find_run(folder)
    if part:
        refuse(f"{folder} is a stage, not a run", f"it is in a run: alignkit show {run}")
    text = (folder / RECIPE).read_text("utf-8")
    recipe, stages = plain_data(text, str(folder / RECIPE)), list[Stage]()
    for name, written in mapping(recipe.get("stages")).items():
        stages.append(Stage(folder / name, mapping(written)))
    last: dict[str, Any] = [{}, *starts_of(folder)][-1]
    facts: Facts = {"alignkit": alignkit.__version__, "run": _run(folder, recipe, last, stages)}
    parts = ("verdicts", "stages", "cells", "evaluations", "samples", "data", "people", "dropped")
    facts |= {part: [] for part in (*parts, "reports")}
    versions = dict[str, str]()
    for stage in stages:
        facts["stages"].append(stage.facts())
        facts["data"] += stage.data()
        facts["people"] += stage.people()
        facts["dropped"] += stage.dropped()
        versions |= stage.record.get("versions") or {}
        if report := stage.record.get("report"):
            facts["reports"].append({"stage": stage.name, "blocks": report})
        if stage.evaluation:
            cells = changed(folder, stage.name)
            facts["cells"] += cells
            facts["evaluations"].append({"stage": stage.name, "evaluation": stage.evaluation})
            facts["samples"] += samples(stage.name, stage.folder, stage.evaluation)
            facts["verdicts"] += _verdicts(stage, cells)
    facts["warnings"] = list(_warnings(folder, stages))
    facts["next"] = _next(folder, stages, facts["verdicts"], last.get("command", ""))
    facts["reproduce"] = {
        "command": last.get("command", ""),
        "seed": recipe.get("seed", 0),
        "commit": last.get("commit", ""),
        "versions": versions,
        "machine": last.get("machine", {}),
    }
    return redacted({**facts, "recipe": text})


@dataclass(frozen=True)
class Stage:
    """The files of a stage. written: its part of the recipe."""

    folder: Path
    written: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def damage(self) -> str | None:
        """What is wrong with its result, in words."""
        if not (self.folder / "stage.json").exists():
            return None
        return damage_of(self.folder)

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """Its stage.json."""
        if self.damage:
            return {}
        return read_record(self.folder)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """Its metrics."""
        if self.damage:
            return []
        return json_lines(self.folder / "metrics.jsonl")

    @cached_property
    def evaluation(self) -> Mapping[str, Any]:
        """Its evaluation.json."""
        if self.damage:
            return {}
        return read_json(self.folder / "evaluation.json", optional=True)

    @property
    def summary(self) -> Mapping[str, Any]:
        return mapping(self.record.get("summary"))

    @property
    def sources(self) -> list[Mapping[str, Any]]:
        """What it read, as its record says."""
        return list(self.record.get("data") or ())

    @property
    def kind(self) -> str:
        return "algorithm" if "algorithm" in self.written else "step"

    @property
    def plugin(self) -> str:
        written = self.written.get(self.kind) or ""
        return str(self.record.get("plugin") or next(iter(mapping(written)), written))

    @property
    def state(self) -> str:
        if self.damage:
            return "damaged"
        if self.record.get("complete"):
            return "done"
        if waits := self.record.get("waits_for"):
            return f"waiting for {waits['labels']} label{'s' * (waits['labels'] != 1)}"
        if self.record or self.rows:
            return "begun"
        return "not begun"

    def facts(self) -> dict[str, Any]:
        """What report.json says of it."""
        metrics, speed = dict[str, Any](), None
        for name, (_, y) in series_of(self.rows).items():
            metrics[name] = {"first": y[0], "last": y[-1]}
            if name == "tokens_per_second":
                speed = statistics.median(y)
        return {
            "name": self.name,
            "kind": self.kind,
            "plugin": self.plugin,
            "state": self.state,
            "about": self._about(),
            "seconds": number(self.record.get("seconds")),
            "tokens_per_second": speed,
            "metrics": metrics,
            "summary": {} if self.evaluation else dict(self.summary),
            "learned": "".join(held_out.learned(self.summary, self.rows)[:1]),
            "weak": self._weak(),
            "diagnosis": self._diagnosis(),
        }

    def _about(self) -> str:
        """What a trained model is: `sft after PPO on 603 prompts`; empty for a step."""
        if self.kind != "algorithm" or not self.record:
            return ""
        start = self.written.get("from") or BASE_MODEL
        text = f"{start} after {stage_words(self.plugin)}"
        if "reward" in self.plugin:
            text = f"a reward model from {start}"
        if "prompts" in self.summary:
            return f"{text} on {self.summary['prompts']:,} prompts"
        if "groups" in self.summary:
            return f"{text} on {self.summary['groups']:,} examples"
        return text

    def _weak(self) -> str:
        """A sentence if a reward model is no better than a coin or learned nothing; else empty."""
        accuracy = mapping(mapping(self.summary.get("held_out")).get("accuracy"))
        right = mapping(accuracy.get("result"))
        low = number(right.get("low"))
        if "reward" in self.plugin and low is not None and low <= COIN:
            share = interval_text(right, percent=True)
            text = "is no better than a coin: it has"
            return f"{self.name} {text} {share} of its held-out pairs right."
        doubt, _, _ = held_out.doubt(self.summary, self.rows).partition(";")
        return f"{self.name}: {doubt}." if doubt else ""

    def _diagnosis(self) -> list[str]:
        """What its curves say is wrong; nothing of a step."""
        if self.kind != "algorithm":
            return []
        options = mapping(mapping(self.written["algorithm"]).get(self.plugin))
        return diagnosis(self.rows, options)

    def data(self) -> Iterator[dict[str, Any]]:
        """The sources that it read."""
        for source in self.sources:
            card = mapping(source.get("card"))
            read = {key: source.get(key) for key in DATA} | {key: card.get(key) for key in CARD}
            yield {"stage": self.name, **read}

    def people(self) -> Iterator[dict[str, Any]]:
        """The stores that it read, and the labels that it asked for, with how far people agree."""
        for source in self.sources:
            if agreement := source.get("agreement"):
                yield {"stage": self.name, "source": source["name"], "agreement": agreement}
        if questions := read_json(self.folder / AGREEMENT, optional=True).get("questions"):
            yield {"stage": self.name, "source": "", "agreement": questions}

    def dropped(self) -> Iterator[dict[str, Any]]:
        """Rows that it left out or changed, by reason: `{stage, reason, rows, of}`."""
        encoded = mapping(self.summary.get("encoded"))
        totals = {"row": encoded.get("rows", 0), "response": encoded.get("responses", 0)}
        counts = {(NO_SIGNAL, totals["row"]): self.summary.get("without_signal") or 0}
        for name, count in mapping(self.summary.get("encoding")).items():
            noun, happened = DROP_REASONS.get(name, ("text", name))
            counts[f"{noun}s {happened}", totals.get(noun, 0)] = count
        if bad := self.summary.get("bad_rows"):
            counts[f"bad rows, the first: {bad[0]}", 0] = len(bad)
        for reason, count in mapping(self.summary.get("dropped")).items():
            counts[reason, 0] = count
        for (reason, total), count in counts.items():
            if count:  # more than all: a text was counted twice
                of = total if count <= total else None
                yield {"stage": self.name, "reason": reason, "rows": count, "of": of}

    def warnings(self) -> Iterator[str]:
        """What it and its own report warn of, and what it lost."""
        if self.damage:
            yield f"{self.damage}: run the recipe again, which repeats the stage"
        yield from verdicts.doubts(self.evaluation)
        if doubt := held_out.doubt(self.summary, self.rows):
            yield doubt
        for block in self.record.get("report") or ():
            for line in block.splitlines() if isinstance(block, str) else ():
                if line.startswith("warning: "):
                    yield line.removeprefix("warning: ")
        if skipped := self.summary.get("skipped_steps"):
            text = "because their loss or gradient was not finite"
            yield f"{skipped} steps were skipped, {text}"
        rated = read_json(self.folder / "reward_evaluation.json", optional=True)
        yield from verdicts.no_judges(rated)
        for item in self.dropped():
            lost = item["of"] and item["rows"] > LOST * item["of"]
            if lost or item["reason"].startswith("bad rows"):
                yield left_out(item)


def stage_words(plugin: str) -> str:
    """`PPO`, `Reward model` or `Evaluation`, for what makes a stage."""
    words = {"evaluate": "evaluation"}.get(plugin, plugin.replace("_", " "))
    if len(words) <= ACRONYM:
        return words.upper()
    return words[:1].upper() + words[1:]


def _run(
    folder: Path, recipe: Mapping[str, Any], last: Mapping[str, Any], stages: Sequence[Stage]
) -> dict[str, Any]:
    done, seconds = 0, 0.0
    for stage in stages:
        done += stage.state == "done"
        seconds += number(stage.record.get("seconds")) or 0.0
    return {
        "name": str(recipe.get("name") or folder.resolve().name),
        "folder": str(folder.resolve()),
        "base": str(mapping(recipe.get("model")).get("base") or ""),
        "outcome": last.get("outcome") or ("done" if done == len(stages) else "incomplete"),
        "message": last.get("message", ""),
        "started": last.get("started", ""),
        "ended": last.get("ended", ""),
        "stages": len(stages),
        "stages_done": done,
        "seconds": seconds,
        "peak_memory": last.get("peak_memory", ""),
    }


def _warnings(folder: Path, stages: Sequence[Stage]) -> Iterator[dict[str, str]]:
    """Stage and text, the most important first, and at last those of the log."""
    texts = list[str]()
    for stage in sorted(stages, key=lambda stage: (not stage.damage, not stage.evaluation)):
        for text in stage.warnings():
            if text not in texts:
                texts.append(text)
                yield {"stage": stage.name, "text": text}
    names = [stage.name for stage in stages]
    for name, text in warnings_of(folder):
        # At its end, a run prints the stages' reports, with long lines wrapped.
        if not any(whole.startswith(text) for whole in texts):
            yield {"stage": name if name in names else "", "text": text}


def _verdicts(stage: Stage, cells: Sequence[Change]) -> list[dict[str, Any]]:
    """What an evaluation says of each policy, and of current results against earlier ones."""
    found, alone = list[verdicts.PolicyVerdict](), {one["policy"]: one["notes"] for one in cells}
    for verdict in verdicts.verdicts(with_earlier(stage.evaluation, cells)):
        notes = alone.get(verdict.policy, ())  # those of a policy without a result to compare
        found.append(replace(verdict, sentences=[*verdict.sentences, *notes]))
    for one in cells:
        for verdict in verdicts.verdicts(rows_in(one)):
            first, *others = verdict.sentences
            apart = f" They differ in {listed(one['settings'])}." if one["settings"] else ""
            sentences = [f"{first}{apart} {ONE_SEED}", *one["notes"], *others]
            found.append(replace(verdict, sentences=sentences))
    return [{"stage": stage.name, **asdict(verdict)} for verdict in found]


def _next(
    folder: Path, stages: Sequence[Stage], verdicts: Sequence[Any], command: str = ""
) -> dict[str, str]:
    """What the recipe says to try next, unless the command of the run has done it, and the command
    that talks to the newest policy, or to its baseline if it lost; empty without any.
    """
    suggestion, best, names = "", "", list[str]()
    for stage in stages:
        names.append(stage.name)
        text = str(stage.record.get("text") or "")
        if text.startswith("next: "):
            tried = any("=" in word and word in command for word in text.split())
            suggestion = "" if tried else text.removeprefix("next: ")
        if stage.kind == "algorithm" and stage.state == "done" and "reward" not in stage.plugin:
            best = stage.name
    for verdict in verdicts:
        best = verdict["baseline" if verdict["outcome"] == "lost" else "policy"]
    chat = f"alignkit chat {folder / best}" if best.partition("@")[0] in names else ""
    return {"told": suggestion, "chat": chat}
