"""Everything that a report says, as plain data: the contents of report.json
(docs/plugins/api/files.md).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

import alignkit
from alignkit.errors import reason_of, refuse
from alignkit.evaluation import held_out
from alignkit.io.results import AGREEMENT, RECIPE, damage_of, read_record
from alignkit.plugins import plugins
from alignkit.report import Report
from alignkit.tokens.encoder import DROP_REASONS
from alignkit_plugins.compare import verdicts
from alignkit_plugins.compare.readable import mapping, number, shown
from alignkit_plugins.compare.rows import BASE_MODEL, rows_of
from alignkit_plugins.models.find import find_run
from alignkit_plugins.report.changes import flat
from alignkit_plugins.report.data_card import left_out
from alignkit_plugins.report.figures import series_of
from alignkit_plugins.report.history import json_lines, read_object, starts_of, warnings_of
from alignkit_plugins.report.samples import samples
from alignkit_plugins.report.swaps import Swap, swaps_of, with_earlier

LOST = 0.2  # share of rows or responses that may be left out or cut without a warning
COMPLETE = ("done", "reused")  # states of stages
MACHINE = ("python", "system", "processor", "cores", "memory", "gpu", "threads")
STARTED = ("started", "ended", "outcome", "message", "command", "reused", "peak_memory")
DEMONSTRATIONS = ("sft", "lm", "distillation")  # algorithms that learn single responses
COIN = 0.5  # share of pairs
ACRONYM = 4  # characters of a name that is one, such as `ppo`
DATA = ("name", "format", "rows", "held_out", "skipped")  # of a source
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
    recipe = load_yaml((folder / RECIPE).read_text(encoding="utf-8"))
    starts = starts_of(folder)
    last: dict[str, Any] = [{}, *starts][-1]
    reused, stages = last.get("reused") or (), list[Stage]()
    for name, written in mapping(recipe.get("stages")).items():
        stages.append(Stage(folder / name, mapping(written), name in reused))
    evaluations = [stage for stage in stages if stage.evaluation]
    swaps, verdicts = list[Any](), list[Any]()
    for stage in evaluations:
        swaps += swaps_of(folder, stage.name)
        verdicts += _verdicts(stage, swaps)
    parts, problems = _parts_of_plugins(folder, stages)
    told = [stage.facts() for stage in stages]
    warnings = dict[tuple[str, str], bool]()
    for name, text, logged in [*_warnings(folder, stages), *problems]:
        warnings.setdefault((name, text), logged)
    return {
        "alignkit": alignkit.__version__,
        "run": _run(folder, recipe, starts, stages, told),
        "verdicts": verdicts,
        "warnings": [
            {"stage": name, "text": text, "logged": logged}
            for (name, text), logged in warnings.items()
        ],
        "next": _next(folder, stages, verdicts),
        "reproduce": _reproduce(folder, recipe, last, stages),
        "starts": [_start(start) for start in starts],
        "stages": told,
        "swaps": swaps,
        "evaluations": [{"stage": one.name, "evaluation": one.evaluation} for one in evaluations],
        "samples": each(samples(one.name, one.folder, one.evaluation) for one in evaluations),
        "data": each(stage.data() for stage in stages),
        "people": each(stage.people() for stage in stages),
        "dropped": each(stage.dropped() for stage in stages),
        "reports": [
            {"stage": stage.name, "blocks": stage.record["report"]}
            for stage in stages
            if stage.record.get("report")
        ],
        "parts": parts,
        "recipe": (folder / RECIPE).read_text(encoding="utf-8"),
    }


def _start(start: Mapping[str, Any]) -> dict[str, Any]:
    return {key: start.get(key) for key in STARTED}


def load_yaml(text: str) -> dict[str, Any]:
    """The mapping that a resolved recipe holds."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return dict(yaml.load(text, loader))


def each(lists: Iterable[Iterable[Any]]) -> list[Any]:
    """All items of several lists."""
    return list(chain.from_iterable(lists))


@dataclass(frozen=True)
class Stage:
    """The files of a stage. written: its part of the recipe. reused: by the last start."""

    folder: Path
    written: Mapping[str, Any]
    reused: bool

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
        return read_object(self.folder / "evaluation.json")

    @property
    def summary(self) -> Mapping[str, Any]:
        return mapping(self.record.get("summary"))

    @property
    def sources(self) -> list[Mapping[str, Any]]:
        """What it read, as its record says."""
        return list(self.record.get("data") or ())

    @property
    def kind(self) -> str:
        return next((kind for kind in ("algorithm", "step") if kind in self.written), "")

    @property
    def plugin(self) -> str:
        written = self.written.get(self.kind) or ""
        if isinstance(written, Mapping):
            written = next(iter(written), "")
        return str(self.record.get("plugin") or written)

    @property
    def state(self) -> str:
        if self.damage:
            return "damaged"
        if self.record.get("complete"):
            return "reused" if self.reused else "done"
        if waits := self.record.get("waits_for"):
            return f"waiting for {waits['labels']} label{'s' * (waits['labels'] != 1)}"
        if self.record or self.rows:
            return "begun"
        return "not begun"

    def facts(self) -> dict[str, Any]:
        """What report.json says of it."""
        metrics, speed, series = dict[str, Any](), None, series_of(self.rows)
        if "tokens_per_second" in series:
            speed = statistics.median(series["tokens_per_second"][1])
        for name, (_, y) in series.items():
            metrics[name] = {"first": y[0], "last": y[-1], "min": min(y), "max": max(y)}
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
        }

    def _weak(self) -> str:
        """That a reward model is no better than a coin, or that it learned nothing; else empty."""
        accuracy = mapping(mapping(self.summary.get("held_out")).get("accuracy"))
        right = mapping(accuracy.get("result"))
        low = number(right.get("low"))
        if "reward" in self.plugin and low is not None and low <= COIN:
            share = shown(right, percent=True)
            text = "is no better than a coin: it has"
            return f"{self.name} {text} {share} of its held-out pairs right."
        doubt, _, _ = held_out.doubt(self.summary, self.rows).partition(";")
        return f"{self.name}: {doubt}." if doubt else ""

    def _about(self) -> str:
        """What a trained model is: `sft after PPO on 603 prompts`; empty for a step."""
        if self.kind != "algorithm" or not self.record:
            return ""
        noun, on = "examples", ""
        if "prompts" in self.summary:
            noun = "prompts"
        elif self.plugin in DEMONSTRATIONS:
            noun = "demonstrations"
        elif any(mapping(source.get("card")).get("pairs") for source in self.sources):
            noun = "pairs"
        count = self.summary.get("prompts", self.summary.get("groups"))
        if isinstance(count, int):
            on = f" on {count:,} {noun}"
        start = self.written.get("from") or BASE_MODEL
        if "reward" in self.plugin:
            return f"a reward model from {start}{on}"
        return f"{start} after {stage_words(self.plugin)}{on}"

    def data(self) -> list[dict[str, Any]]:
        """The sources that it read, with the digests of files."""
        values = flat(self.record.get("depends_on") or {}).items()
        digests = [value for path, value in values if "sources" in path and path[-1] == "content"]
        digests += [None] * len(self.sources)
        found = list[dict[str, Any]]()
        for source, digest in zip(self.sources, digests, strict=False):
            card = mapping(source.get("card"))
            read = {key: source.get(key) for key in DATA} | {key: card.get(key) for key in CARD}
            found.append({"stage": self.name, **read, "digest": digest})
        return found

    def people(self) -> list[dict[str, Any]]:
        """The stores that it read, and the labels that it asked for, with how far people agree."""
        found = list[dict[str, Any]]()
        for source in self.sources:
            if "agreement" in source:
                facts = {key: source.get(key) for key in ("agreement", "notes")}
                found.append({"stage": self.name, "source": source.get("name"), **facts})
        asked = read_object(self.folder / AGREEMENT).get("questions")
        if asked:
            one = {"stage": self.name, "source": "", "agreement": asked, "notes": None}
            found.append(one)
        return found

    def dropped(self) -> list[dict[str, Any]]:
        """Rows that it left out or changed, by reason: `{stage, reason, rows, of}`."""
        encoded = mapping(self.summary.get("encoded"))
        rows = encoded.get("rows", 0)
        pairs = [mapping(mapping(source.get("card")).get("pairs")) for source in self.sources]
        totals = {"row": rows, "document": rows, "response": encoded.get("responses", 0)}
        totals["pair"] = sum(one.get("count", 0) for one in pairs)
        found = list[tuple[str, int, int]]()
        for name, count in mapping(self.summary.get("encoding")).items():
            noun, happened = DROP_REASONS.get(str(name), ("text", str(name)))
            found.append((f"{noun}s {happened}", count, totals.get(noun, 0)))
        found.append((NO_SIGNAL, self.summary.get("without_signal") or 0, totals["row"]))
        if bad := self.summary.get("bad_rows"):
            found.append((f"bad rows, the first: {bad[0]}", len(bad), 0))
        for reason, count in mapping(self.summary.get("dropped")).items():
            found.append((str(reason), count, 0))
        items = list[dict[str, Any]]()
        for reason, count, total in found:
            if count:
                item = {"stage": self.name, "reason": reason, "rows": count, "of": None}
                if count <= total:  # else a text was counted twice
                    item["of"] = total
                items.append(item)
        return items

    def warnings(self) -> Iterator[str]:
        """What it and its own report warn of, and what it lost."""
        if doubt := held_out.doubt(self.summary, self.rows):
            yield doubt
        texts = [block for block in self.record.get("report") or () if isinstance(block, str)]
        for line in "\n".join(texts).splitlines():
            if line.startswith("warning: "):
                yield line.removeprefix("warning: ")
        if skipped := self.summary.get("skipped_steps"):
            text = "because their loss or gradient was not finite"
            yield f"{skipped} steps were skipped, {text}"
        yield from verdicts.no_judges(read_object(self.folder / "reward_evaluation.json"))
        for item in self.dropped():
            if item["reason"].startswith("bad rows"):
                yield f"{item['rows']} {item['reason']}"
            elif item["of"] and item["rows"] > LOST * item["of"]:
                yield left_out(item)


def stage_words(plugin: str) -> str:
    """`PPO`, `Reward model` or `Evaluation`, for what makes a stage."""
    words = {"evaluate": "evaluation"}.get(plugin, plugin.replace("_", " "))
    if len(words) <= ACRONYM:
        return words.upper()
    return words[:1].upper() + words[1:]


def _run(
    folder: Path,
    recipe: Mapping[str, Any],
    starts: Sequence[Mapping[str, Any]],
    stages: Sequence[Stage],
    told: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    first, last = [*starts, {}][0], [{}, *starts][-1]
    done = sum(stage.state in COMPLETE for stage in stages)
    memory, tokens = "", 0.0
    for start in starts:  # of the last that did some work: one that reuses all stages needs little
        if len(start.get("reused") or ()) < len(stages):
            memory = start.get("peak_memory") or memory
    for one in told:
        tokens += (one["seconds"] or 0.0) * (one["tokens_per_second"] or 0.0)
    return {
        "name": str(recipe.get("name") or folder.resolve().name),
        "folder": str(folder.resolve()),
        "base": str(mapping(recipe.get("model")).get("base") or ""),
        "outcome": last.get("outcome") or ("done" if done == len(stages) else "incomplete"),
        "message": last.get("message") or "",
        "started": first.get("started") or "",
        "ended": last.get("ended") or "",
        "stages": len(stages),
        "stages_done": done,
        "seconds": sum(one["seconds"] or 0.0 for one in told),
        "peak_memory": memory,
        "tokens": int(float(f"{tokens:.2g}")),
    }


def _warnings(folder: Path, stages: Sequence[Stage]) -> Iterator[tuple[str, str, bool]]:
    """Stage, text and whether only the log has it, the most important first."""
    for stage in stages:
        if stage.damage:
            text = f"{stage.damage}: run the recipe again, which repeats the stage"
            yield stage.name, text, False
    for stage in stages:
        if stage.evaluation:
            for text in verdicts.doubts(stage.evaluation):
                yield stage.name, text, False
    reported = list[str]()
    for stage in stages:
        for text in stage.warnings():
            reported.append(text)
            yield stage.name, text, False
    names = [stage.name for stage in stages]
    for name, text in warnings_of(folder):
        # At its end, a run prints the stages' reports, with long lines wrapped.
        if not any(whole.startswith(text) for whole in reported):
            yield name if name in names else "", text, True


def _verdicts(stage: Stage, swaps: Sequence[Swap]) -> list[dict[str, Any]]:
    """What an evaluation says of each policy, and of current results against earlier ones."""
    mine = [swap for swap in swaps if swap["stage"] == stage.name]
    found = verdicts.verdicts(with_earlier(stage.evaluation, mine))
    for swap in mine:
        found += verdicts.verdicts(rows_of(swap))
    return [{"stage": stage.name, **asdict(verdict)} for verdict in found]


def _next(folder: Path, stages: Sequence[Stage], verdicts: Sequence[Any]) -> dict[str, str]:
    """What the recipe says to try next, and the command that talks to the best policy; empty
    without any.
    """
    texts = [str(stage.record.get("text") or "") for stage in stages]
    tried = [text.removeprefix("next: ") for text in texts if text.startswith("next: ")]
    done = [one for one in stages if one.kind == "algorithm" and one.state in COMPLETE]
    best = [stage.name for stage in done if "reward" not in stage.plugin][-1:]
    for verdict in verdicts:
        best = [verdict["baseline" if verdict["outcome"] == "lost" else "policy"]]
    names = [stage.name for stage in stages]
    chat = ""
    for name in best:
        if name.partition("@")[0] in names:
            chat = f"alignkit chat {folder / name}"
    return {"told": "".join(tried[-1:]), "chat": chat}


def _reproduce(
    folder: Path, recipe: Mapping[str, Any], last: Mapping[str, Any], stages: Sequence[Stage]
) -> dict[str, Any]:
    versions = dict[str, dict[str, None]]()  # of the packages that the stages used
    for stage in stages:
        for name, version in (stage.record.get("versions") or {}).items():
            versions.setdefault(name, {})[version] = None
    return {
        "command": str(last.get("command") or ""),
        "again": f"alignkit run {folder.resolve() / RECIPE} --out NEW-FOLDER",
        "seed": recipe.get("seed", 0),
        "versions": {name: " and ".join(found) for name, found in versions.items()},
        "machine": {name: last[name] for name in MACHINE if last.get(name) is not None},
        "commit": last.get("commit"),
    }


def _parts_of_plugins(
    folder: Path, stages: Sequence[Stage]
) -> tuple[list[dict[str, Any]], list[tuple[str, str, bool]]]:
    """What plugins add to the report. One that fails becomes a warning, and the others stay."""
    found, problems = list[dict[str, Any]](), list[tuple[str, str, bool]]()
    values = {"folder": folder, "records": [stage.record for stage in stages]}
    for hook in plugins().manager.hook.report_parts.get_hookimpls():
        try:
            told: Any = hook.function(*[values[name] for name in hook.argnames])
            for title, report in (told or {}).items():
                blocks = json.loads(json.dumps(report.plain()))
                Report.restored(blocks).text()  # else the page would fail
                anchor = f"part-{len(found) + 1}"
                found.append({"title": str(title), "anchor": anchor, "blocks": blocks})
        except (Exception, SystemExit) as error:
            why = f"return an alignkit.Report under each title ({reason_of(error)})"
            text = f"a part of {hook.plugin_name} is left out: report_parts must {why}"
            problems.append(("", text, False))
    return found, problems
