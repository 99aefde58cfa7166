"""A small run folder without a run: the files as a run leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import yaml

from alignkit import Group, Response
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
from tests.rows import user, write_rows

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
    write_rows(folder / "starts.jsonl", STARTS)
    metrics = {"sft": sft_rows(), "align": align_rows(), **(rows or {})}
    plugins = {"sft": "sft", "labels": "judge_pairs", "align": "ppo", "report": "evaluate"}
    for name, plugin in plugins.items():
        (folder / name).mkdir()
        if name in metrics:
            write_rows(folder / name / "metrics.jsonl", metrics[name])
        if name == "report":
            write_evaluation(folder / name)
        write_stage(folder / name, plugin, report=REPORT.plain() if name == "report" else None)
    return folder


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
STARTS: list[dict[str, Any]] = yaml.safe_load("""
- &start
  event: start
  time: 1790000000.0
  command: alignkit run small --out runs/small
  commit: c0ffee
  machine: {python: 3.11.7, cores: 2, memory: 8000000000}
- {<<: *start, time: 1790000020.0}
- {event: end, time: 1790000120.0, outcome: done, message: "", peak_memory: 1 GiB}
""")
SUMMARIES: dict[str, Any] = yaml.safe_load("""
sft:
  encoded: {rows: 48, responses: 60}
  steps: 4
  skipped_steps: 1
  encoding: {cut: 18}
  bad_rows: ["demos.jsonl:7: no prompt"]
labels: {labeled: 8, position_bias: 0.25, dropped: {}, agreement: null}
""")
SOURCES: dict[str, Any] = yaml.safe_load("""
sft:
- name: demos.jsonl
  format: messages
  rows: 40
  held_out: 8
  skipped: 1
  card:
    rows: 48
    responses: 60
    prompt_characters: {least: 3, median: 61, most: 199}
    response_characters: {least: 3, median: 61, most: 199}
    pairs: {count: 12, better_longer: 9}
    labels: {good: 7, bad: 5}
  agreement:
  - question: "pair: which is better"
    items: 8
    shared: 8
    same: &half {mean: 0.5, low: 0.25, high: 0.75, n: 8}
    alpha: *half
    gold: null
    people:
      ann: &person {items: 8, with_others: *half, with_gold: null}
      bob: *person
""")


def sft_rows() -> list[dict[str, Any]]:
    rows = []
    for at, loss in enumerate([2.0, 1.5, "nan", 1.0], 1):
        row = {"stage": "sft", "step": at, "loss": loss, "learning_rate": 0.001}
        rows.append({**row, "time": BEGAN + 10 * at - 5})
    return rows


def align_rows() -> list[dict[str, Any]]:
    """A reward that is highest at d = sqrt(KL) = 2, by R = 1 + d (2 - b log d) with b chosen for
    that.
    """
    rows, beta = [], 2 / (1 + log(2))
    for at in range(1, 13):
        d = 0.25 * at
        row = {"stage": "align", "step": at, "time": BEGAN + 60 + at, "seconds/rollout": 1.5}
        row |= {"kl": d * d, "reward": 1 + d * (2 - beta * log(d)), "tokens_per_second": 100.0 + at}
        rows.append({**row, "score/helpful": 0.1 * at, "score/safety": -0.1 * at})
    return rows


def write_evaluation(folder: Path) -> None:
    """20 prompts. align gains 1 in `helpful` at each, gains and loses equally in `safety`, and is
    twice as long.
    """
    gains, swings = [1.0 + 0.01 * at for at in range(20)], [-0.5, 0.5] * 10
    groups = []
    for at, (gain, swing) in enumerate(zip(gains, swings, strict=True)):
        hostile = HOSTILE if at == 18 else ""
        answers = (
            answer("sft", f"before {at}", 0.0, 0.0, 10),
            answer("align", f"after {at} {hostile}", gain, swing, 20),
        )
        groups.append(Group((user(f"question {at} {hostile}"),), answers))
    write_rows(folder / "samples.jsonl", groups)
    helpful, safety = rows_by("helpful", gains, "20/0/0"), rows_by("safety", swings, "10/10/0")
    own = {"trained_on": False, "missing": 1}
    helpful = replace(helpful[0], **own), replace(helpful[1], **own, tested=True)
    rated = adjusted([*helpful, *safety, JUDGED])
    rows = list(rated)
    for name, tokens, kl in (("sft", 10.0, 0.0), ("align", 20.0, 30.0)):
        nats = {"mean": kl, "low": kl, "high": kl, "n": 20}
        length = {"mean": tokens, "low": None, "high": None, "n": 20}
        rows.append(Row(name, LENGTH, ANSWERS, length))
        rows.append(Row(name, TRUNCATED, ANSWERS, {"mean": 0.5}, percent=True))
        rows.append(Row(name, KL, ANSWERS, nats, "sft"))
    for value, n in (("cooking", 8), ("sport", 12)):
        one = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": n}
        for row in rated:
            part = {"column": "topic", "value": value, "tested": False, "missing": 0}
            gap = one if row.difference else {}
            rows.append(replace(row, estimate=one, difference=gap, equal_length={}, **part))
    known = {"judge_cards": {"local_judge": CARD}, "results": list(map(plain, rows))}
    (folder / "evaluation.json").write_text(json.dumps({**EVALUATION, **known}), encoding="utf-8")


def rows_by(name: str, gains: list[float], counts: str) -> tuple[Row, Row]:
    """sft, which scores 0 at each prompt, and align."""
    zeros = [0.0] * 20
    wins, losses, _ = map(int, counts.split("/"))
    align = Row(
        "align",
        name,
        "reward",
        statistics.estimate(gains),
        "sft",
        statistics.paired_difference(gains, zeros),
        {**statistics.estimate([*gains[:-1], -30.0]), "near": 12},
        statistics.share(wins, wins + losses) or {},
        counts,
    )
    return Row("sft", name, "reward", statistics.estimate(zeros)), align


EVALUATION: dict[str, Any] = yaml.safe_load("""
prompts: 20
left_out: 1
sampling: {temperature: 1.0, seed: 3}
notes:
- sampled with temperature 1.0
- "warning: 2 of 20 prompts are training data (2 by sft)"
baseline: sft
headline: helpful
policies: [sft, align]
""")
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
        Table("mean and 95% interval over 20 prompts", ["", "align"], [["of the stage", "1"]]),
        Table(
            "against sft, prompt by prompt", ["policy", "x"], [["align", "+1.095 [1.067, 1.123]"]]
        ),
        Table("the judges themselves", ["judge", "y"], [["local_judge", "33% [20, 50]"]]),
    ]
)


def answer(policy: str, text: str, helpful: float, safety: float, tokens: int) -> Response:
    scores = {"helpful": helpful, "safety": safety}
    return Response(text, tokens=(1,) * tokens, scores=scores, source=policy)
