"""The facts of each stage of a run: its state, time, metrics, data, judge and files."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from alignkit.evaluation import held_out
from alignkit.io.digest import file_digest
from alignkit.io.results import RECIPE
from alignkit.tokens.encoder import DROP_REASONS
from alignkit_plugins.compare.readable import mapping, number, shown
from alignkit_plugins.evaluate.rows import BASE_MODEL
from alignkit_plugins.report import curves

PHASES = "seconds/"  # metrics that say what an iteration took, part by part
KINDS = ("algorithm", "step")
DEMONSTRATIONS = ("sft", "lm", "distillation")  # algorithms that learn single responses
COIN = 0.5  # share of pairs
ACRONYM = 4  # characters of a name that is one, such as `ppo`
# Of a source's card
CARD = ("responses", "prompt_characters", "response_characters", "pairs", "labels")
NO_SIGNAL = "rows left out: the algorithm learns nothing from them"
OF_PEOPLE = "such as pairs with as many votes on both sides: adjudicate them, or set `votes: each`"


def stage_facts(
    folder: Path,
    written: Mapping[str, Any],
    record: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    reused: Sequence[str],
    damaged: bool = False,
) -> dict[str, Any]:
    """What is known of a stage. written: its part of the recipe. record: its stage.json. rows: its
    metrics.
    """
    kind = next((kind for kind in KINDS if kind in written), "")
    plugin = written.get(kind)
    plugin = next(iter(plugin), "") if isinstance(plugin, Mapping) else plugin
    rates = [rate for row in rows if (rate := number(row.get("tokens_per_second"))) is not None]
    return {
        "name": folder.name,
        "kind": kind,
        "plugin": str(record.get("plugin") or plugin or ""),
        "state": "damaged" if damaged else _state(record, rows, folder.name in reused),
        "about": _about(written, record, kind),
        "seconds": number(record.get("seconds")),
        "bytes": size_of(folder),
        "lines": len(rows),
        "tokens_per_second": statistics.median(rates) if rates else None,
        "phases": _phases(rows),
        "metrics": curves.ends(rows),
        "summary": without_evaluation(record),
        "learned": "".join(held_out.learned(mapping(record.get("summary")), rows)[:1]),
        "weak": weak(folder.name, record, rows),
    }


def weak(name: str, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """That a reward model is no better than a coin, or that a stage learned nothing; else empty."""
    summary = mapping(record.get("summary"))
    right = mapping(mapping(mapping(summary.get("held_out")).get("accuracy")).get("result"))
    low = number(right.get("low"))
    if "reward" in str(record.get("plugin")) and low is not None and low <= COIN:
        share = shown(right, percent=True)
        return f"{name} is no better than a coin: it has {share} of its held-out pairs right."
    doubt, _, _ = held_out.doubt(summary, rows).partition(";")
    return f"{name}: {doubt}." if doubt else ""


def size_of(folder: Path) -> int:
    """The bytes of all files in a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def tokens(stage: Mapping[str, Any]) -> float:
    """About how many tokens a stage saw, by its speed."""
    return (stage["seconds"] or 0.0) * (stage["tokens_per_second"] or 0.0)


def _state(record: Mapping[str, Any], rows: Sequence[Any], reused: bool) -> str:
    if record.get("complete"):
        return "reused" if reused else "done"
    waits = record.get("waits_for")
    if waits:
        return f"waiting for {waits['labels']} label{'s' * (waits['labels'] != 1)}"
    return "begun" if record or rows else "not begun"


def _about(written: Mapping[str, Any], record: Mapping[str, Any], kind: str) -> str:
    """What a trained model is, in words: `sft after PPO on 603 prompts`; empty for a step."""
    if kind != "algorithm" or not record:
        return ""
    summary, plugin = mapping(record.get("summary")), str(record.get("plugin"))
    pairs = any(mapping(source.get("card")).get("pairs") for source in sources_of(record))
    noun = "demonstrations" if plugin in DEMONSTRATIONS else "pairs" if pairs else "examples"
    count, noun = (
        (summary["prompts"], "prompts") if "prompts" in summary else (summary.get("groups"), noun)
    )
    on, start = (
        f" on {count:,} {noun}" if isinstance(count, int) else "",
        written.get("from") or BASE_MODEL,
    )
    return (
        f"a reward model from {start}{on}"
        if "reward" in plugin
        else f"{start} after {stage_words(plugin)}{on}"
    )


def stage_words(plugin: str) -> str:
    """`PPO`, `Reward model` or `Evaluation`, for what makes a stage."""
    words = "evaluation" if plugin == "evaluate" else plugin.replace("_", " ")
    return words.upper() if len(words) <= ACRONYM else words[:1].upper() + words[1:]


def without_evaluation(record: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's summary, without what its evaluation.json says as well."""
    summary = mapping(record.get("summary"))
    return {} if "policies" in summary and "rewards" in summary else dict(summary)


def _phases(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    sums: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(PHASES) and (seconds := number(value)) is not None:
                sums[name.removeprefix(PHASES)] = round(
                    sums.get(name.removeprefix(PHASES), 0.0) + seconds, 3
                )
    return sums


def data_facts(name: str, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sources that a stage read, as its stage.json says, with the digests of files."""
    read = sources_of(record)
    digests = [source.get("content") for source in _sources(record.get("depends_on"))]
    known: Sequence[Any] = digests if len(digests) == len(read) else [None] * len(read)
    keys = ("name", "format", "rows", "held_out", "skipped")
    facts = [{"stage": name, **{key: source.get(key) for key in keys}} for source in read]
    cards = [{key: mapping(source.get("card")).get(key) for key in CARD} for source in read]
    return [
        {**one, "digest": digest, **card}
        for one, digest, card in zip(facts, known, cards, strict=True)
    ]


def sources_of(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The sources that a stage read, as its stage.json says."""
    return list(record.get("data") or ())


def _sources(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every data source in what a stage depends on."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            if key == "sources" and isinstance(below, list):
                yield from below
            else:
                yield from _sources(below)
    elif isinstance(value, list):
        for below in value:
            yield from _sources(below)


def dropped(name: str, record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows that a stage left out or changed, by reason: `{stage, reason, rows, of}`."""
    summary = mapping(record.get("summary"))
    totals = _totals(record, summary)
    labeled = any(source.get("format") == "feedback" for source in sources_of(record))
    unlearned = f"{NO_SIGNAL}, {OF_PEOPLE}" if labeled else NO_SIGNAL
    found: list[tuple[str, Any, int | None]] = []
    for reason, count in mapping(summary.get("encoding")).items():
        noun, happened = DROP_REASONS.get(str(reason), ("text", str(reason)))
        found.append((f"{noun}s {happened}", count, totals.get(noun)))
    found.append((unlearned, summary.get("without_signal"), totals["row"]))
    bad = summary.get("bad_rows")
    if bad:
        found.append((f"bad rows, the first: {bad[0]}", len(bad), None))
    found += [
        (str(reason), count, None) for reason, count in mapping(summary.get("dropped")).items()
    ]
    return [
        # A text that was counted twice has no total.
        {
            "stage": name,
            "reason": reason,
            "rows": count,
            "of": total if total and count <= total else None,
        }
        for reason, count, total in found
        if count
    ]


def warnings(record: Mapping[str, Any]) -> list[str]:
    """What a stage's report warns of, in whole lines."""
    texts = [block for block in record.get("report") or [] if isinstance(block, str)]
    lines = "\n".join(texts).splitlines()
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def _totals(record: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, int]:
    """The totals of the nouns of DROP_REASONS in what the stage encoded; pairs are those of its
    sources.
    """
    encoded = mapping(summary.get("encoded"))
    rows, responses = (encoded.get(key, 0) for key in ("rows", "responses"))
    pairs = [mapping(mapping(source.get("card")).get("pairs")) for source in sources_of(record)]
    compared = sum(one.get("count", 0) for one in pairs)
    return {"row": rows, "document": rows, "response": responses, "pair": compared}


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Nested plain data by dotted keys: `{"rollout.temperature": 1.0}`."""
    if isinstance(value, Mapping) and value:
        items: Any = value.items()
    elif isinstance(value, list) and value:
        items = enumerate(value)
    else:
        return {path: value} if path else {}
    return {
        name: leaf
        for key, below in items
        for name, leaf in flat(below, f"{path}.{key}" if path else str(key)).items()
    }


def files_of(folder: Path, records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A run's files with their sizes and SHA-256; those of stages as they were when the stage was
    done.
    """
    found = []  # run.log still grows
    if (folder / RECIPE).is_file():
        found.append((RECIPE, file_digest(folder / RECIPE)))
    for stage, record in records.items():
        found += [
            (f"{stage}/{name}", str(file["sha256"]))
            for name, file in mapping(record.get("files")).items()
        ]
    return [{"name": name, "bytes": _bytes(folder / name), "sha256": sha} for name, sha in found]


def _bytes(path: Path) -> int | None:
    """The size of a file; None if it is gone."""
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None
