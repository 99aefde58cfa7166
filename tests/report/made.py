"""A small run folder without a run: the files as a run leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit.evaluation import statistics
from alignkit.io.digest import digest
from alignkit.io.results import manifest, read_record, write_record
from alignkit.report import Report, Table
from alignkit_plugins.compare.rows import (
    ANSWERS,
    KL,
    LENGTH,
    TRUNCATED,
    Row,
    adjusted,
    plain,
)

HOSTILE = '<script>alert(1)</script>\x1b[31m\u202eevil & "quotes" $x_1^2$ `code` |'
RECIPE = """name: small
seed: 3
stages:
  sft: {algorithm: sft, data: demos.jsonl, epochs: 2}
  labels: {step: judge_pairs, judge: {local_judge: {min_mass: 0.1}}, groups: demos.jsonl}
  align: {algorithm: ppo, from: sft, prompts: prompts.jsonl, reward: helpful, iterations: 12}
  report:
    step: evaluate
    policies: [sft, align]
    rewards: [helpful, safety]
    judges: [local_judge]
    prompts: heldout.jsonl
"""
BEGAN = 1_790_000_000.0


def make_run(folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]] | None = None) -> Path:
    """Write the run. rows: metrics of stages, instead of the usual ones."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.resolved.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "run.log").write_text("\n".join(LOG) + "\n", encoding="utf-8")
    lines(folder / "starts.jsonl", STARTS)
    metrics = {"sft": sft_rows(), "align": align_rows(), **(rows or {})}
    for name, plugin in {
        "sft": "sft",
        "labels": "judge_pairs",
        "align": "ppo",
        "report": "evaluate",
    }.items():
        (folder / name).mkdir()
        if name in metrics:
            lines(folder / name / "metrics.jsonl", metrics[name])
        if name == "report":
            write_evaluation(folder / name)
        write_stage(folder / name, plugin, report=REPORT.plain() if name == "report" else None)
    return folder


def lines(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_stage(folder: Path, plugin: str, **values: Any) -> None:
    record = {
        "hash": digest(folder.name),
        "complete": True,
        "name": folder.name,
        "plugin": plugin,
        "seconds": 61.5,
        "summary": SUMMARIES.get(folder.name, {}),
        "data": SOURCES.get(folder.name, []),
        "versions": {"alignkit": "0.1.0", "torch": "2.9.0"},
        "depends_on": {"settings": {"data": {"sources": [{"content": "ab" * 32}]}}},
        "files": manifest(folder),
        **values,
    }
    write_record(folder, record)


def rewritten(folder: Path) -> None:
    """Let stage.json say what the files of a stage are now."""
    write_record(folder, {**read_record(folder), "files": manifest(folder)})


LOG = [
    "2026-09-21T14:13:00Z alignkit 0.1.0: small, 4 stages, runs/small",
    "2026-09-21T14:13:01Z warning: an old warning, of the first start",
    "2026-09-21T14:13:20Z alignkit 0.1.0: small, 4 stages, runs/small",
    "2026-09-21T14:13:21Z sft: stage 1 of 4, sft",
    "2026-09-21T14:13:22Z continuing after step 2 of 4",
    "2026-09-21T14:13:23Z a step was skipped, because its loss or gradient was not finite",
    "2026-09-21T14:13:24Z warning: tracker 'x' failed",
    "2026-09-21T14:15:00Z done in 1m40s",
]
FACTS = {
    "command": "alignkit run small --out runs/small",
    "commit": "c0ffee",
    "machine": {"python": "3.11.7", "cores": 2, "memory": 8_000_000_000},
}
STARTS = [
    {"event": "start", "time": BEGAN, **FACTS},
    {"event": "start", "time": BEGAN + 20, **FACTS},
    {
        "event": "end",
        "time": BEGAN + 120,
        "outcome": "done",
        "message": "",
        "peak_memory": "1 GiB",
    },
]


def lengths() -> dict[str, Any]:
    return {"least": 3, "median": 61, "most": 199}


SUMMARIES: dict[str, Any] = {
    "sft": {
        "encoded": {"rows": 48, "responses": 60},
        "steps": 4,
        "skipped_steps": 1,
        "encoding": {"cut": 18},
        "bad_rows": ["demos.jsonl:7: no prompt"],
    },
    "labels": {"labeled": 8, "position_bias": 0.25, "dropped": {}, "agreement": None},
}
HALF = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 8}
AGREED = {
    **{
        "question": "pair: which is better",
        "items": 8,
        "shared": 8,
        "same": HALF,
        "alpha": HALF,
        "gold": None,
    },
    "people": {who: {"items": 8, "with_others": HALF, "with_gold": None} for who in ("ann", "bob")},
}
SOURCES = {
    "sft": [
        {
            **{
                "name": "demos.jsonl",
                "format": "messages",
                "rows": 40,
                "held_out": 8,
                "skipped": 1,
            },
            "card": {
                "rows": 48,
                "responses": 60,
                "prompt_characters": lengths(),
                "response_characters": lengths(),
                "pairs": {"count": 12, "better_longer": 9},
                "labels": {"good": 7, "bad": 5},
            },
            "agreement": [AGREED],
        }
    ],
}


def sft_rows() -> list[dict[str, Any]]:
    losses = [2.0, 1.5, "nan", 1.0]
    return [
        {
            "stage": "sft",
            "step": at,
            "loss": loss,
            "learning_rate": 0.001,
            "time": BEGAN + 10 * at - 5,
        }
        for at, loss in enumerate(losses, 1)
    ]


def align_rows() -> list[dict[str, Any]]:
    """A reward that is highest at d = sqrt(KL) = 2, by R = 1 + d (2 - b log d) with b chosen for
    that.
    """
    from math import log

    beta = 2 / (1 + log(2))
    distances = [0.25 * at for at in range(1, 13)]
    return [
        {
            "stage": "align",
            "step": at,
            "kl": d * d,
            "reward": 1 + d * (2 - beta * log(d)),
            "score/helpful": 0.1 * at,
            "score/safety": -0.1 * at,
            "tokens_per_second": 100.0 + at,
            "seconds/rollout": 1.5,
            "time": BEGAN + 60 + at,
        }
        for at, d in enumerate(distances, 1)
    ]


def write_evaluation(folder: Path) -> None:
    """20 prompts. align gains 1 in `helpful` at each, gains and loses equally in `safety`, and is
    twice as long.
    """
    groups, gains = [], [1.0 + 0.01 * at for at in range(20)]
    for at, gain in enumerate(gains):
        swing = 0.5 if at % 2 else -0.5
        groups.append(
            {
                "alignkit": 1,
                "prompt": [
                    {"role": "user", "content": f"question {at} {HOSTILE if at == 18 else ''}"}
                ],
                "responses": [
                    answer("sft", f"before {at}", 0.0, 0.0, 10),
                    answer("align", f"after {at} {HOSTILE if at == 18 else ''}", gain, swing, 20),
                ],
            }
        )
    lines(folder / "samples.jsonl", groups)
    values = {"helpful": gains, "safety": [0.5 if at % 2 else -0.5 for at in range(20)]}
    rows = []
    for name, counts in (("helpful", (20, 0)), ("safety", (10, 10))):
        mean = statistics.estimate([0.0] * 20)
        missing = int(name == "helpful")
        sft = Row(
            "sft", name, "reward", mean, trained_on=False if missing else None, missing=missing
        )
        equal = {**statistics.estimate([*values[name][:-1], -30.0]), "near": 12}
        align = Row(
            "align",
            name,
            "reward",
            statistics.estimate(values[name]),
            "sft",
            statistics.paired_difference(values[name], [0.0] * 20),
            equal,
            statistics.share(counts[0], sum(counts)) or {},
            f"{counts[0]}/{counts[1]}/0",
            trained_on=sft.trained_on,
            tested=name == "helpful",
            missing=missing,
        )
        rows += [sft, align]
    rows = adjusted([*rows, JUDGED])
    for name, tokens, kl in (("sft", 10.0, 0.0), ("align", 20.0, 30.0)):
        nats = {"mean": kl, "low": kl, "high": kl, "n": 20}
        length = {"mean": tokens, "low": None, "high": None, "n": 20}
        rows.append(Row(name, LENGTH, ANSWERS, length))
        rows.append(Row(name, TRUNCATED, ANSWERS, {"mean": 0.5}, percent=True))
        rows.append(Row(name, KL, ANSWERS, nats, "sft"))
    for value in ("cooking", "sport"):
        one = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 12 if value == "sport" else 8}
        for row in rows[:5]:
            part = {"column": "topic", "value": value, "tested": False, "missing": 0}
            gap = one if row.difference else {}
            rows.append(replace(row, estimate=one, difference=gap, equal_length={}, **part))
    summary = {
        "prompts": 20,
        "left_out": 1,
        "sampling": {"temperature": 1.0, "seed": 3},
        "notes": [
            "sampled with temperature 1.0",
            "warning: 2 of 20 prompts are training data (2 by sft)",
        ],
        "baseline": "sft",
        "headline": "helpful",
        "policies": ["sft", "align"],
        "judge_cards": {"local_judge": CARD},
        "results": list(map(plain, rows)),
    }
    (folder / "evaluation.json").write_text(json.dumps(summary), encoding="utf-8")


# 20 prompts with two samples each: the judge prefers the baseline, and its order decides often.
JUDGED = Row(
    "align",
    "local_judge",
    "judge",
    {"mean": 0.31, "low": 0.22, "high": 0.4, "n": 19},
    "sft",
    {"mean": -0.19, "low": -0.28, "high": -0.1, "p": 1e-6},
    {"mean": 0.47, "low": 0.37, "high": 0.57, "n": 19},
    statistics.share(4, 17) or {},
    "4/13/2",
    percent=True,
    trained_on=True,
    tested=True,
)
CARD: dict[str, Any] = {
    "no_judge": "",
    "comparisons": 40,
    "unjudged": {"refused": 3, "unreadable": 1},
    "inconsistent": statistics.share(12, 36),
    "people": None,
    "calls": 160,
    "tokens": None,
}
REPORT = Report(
    [
        "sampled with temperature 1.0",
        Table(
            "mean and 95% interval over 20 prompts",
            ["", "sft", "align"],
            [["of the stage", "0", "1"]],
        ),
        Table(
            "against sft, prompt by prompt",
            ["policy", "difference"],
            [["align", "+1.095 [1.067, 1.123]"]],
        ),
        Table(
            "the judges themselves", ["judge", "order decides"], [["local_judge", "33% [20, 50]"]]
        ),
    ]
)


def answer(policy: str, text: str, helpful: float, safety: float, tokens: int) -> dict[str, Any]:
    scores = {"helpful": helpful, "safety": safety}
    return {
        "text": text,
        "scores": scores,
        "tokens": [1] * tokens,
        "truncated": False,
        "source": policy,
    }
