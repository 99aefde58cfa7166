"""A small run folder without a run: the files as a run leaves them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

import yaml

from alignkit import Group, Response
from alignkit.contract.report import Report, Table
from alignkit.io.digest import digest
from alignkit.io.results import manifest, read_record, write_record
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
    (folder / "run.log").write_text(LOG, encoding="utf-8")
    write_rows(folder / "starts.jsonl", STARTS)
    metrics = {"sft": sft_rows(), "align": align_rows(), **(rows or {})}
    for name in ("sft", "labels", "align", "report"):
        (folder / name).mkdir()
        if name in metrics:
            write_rows(folder / name / "metrics.jsonl", metrics[name])
    write_evaluation(folder / "report")
    plugins = {"sft": "sft", "labels": "judge_pairs", "align": "ppo"}
    for name, plugin in plugins.items():
        write_stage(folder / name, plugin)
    write_stage(folder / "report", "evaluate", report=REPORT.plain(), summary={"results": []})
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


LOG = """\
2026-09-21T14:13:00Z alignkit 0.1.0: small, 4 stages, runs/small
2026-09-21T14:13:01Z warning: an old warning, of the first start
2026-09-21T14:13:20Z alignkit 0.1.0: small, 4 stages, runs/small
2026-09-21T14:13:21Z sft: stage 1 of 4, sft
2026-09-21T14:13:22Z continuing after step 2 of 4
2026-09-21T14:13:23Z a step was skipped, because its loss or gradient was not finite
2026-09-21T14:13:24Z warning: tracker 'x' failed
2026-09-21T14:13:25Z sft: warning: few rows
2026-09-21T14:13:26Z server: warning: it is slow
2026-09-21T14:15:00Z done in 1m40s
"""
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
  without_signal: 2
  trains: whole model
  bad_rows: ["demos.jsonl:7: no prompt", "demos.jsonl:9: no text"]
labels: {labeled: 8, position_bias: 0.25, dropped: {no verdict: 3}, agreement: null}
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
    prompt_characters: {least: 2, median: 50, most: 99}
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
    groups = []
    for at in range(20):
        hostile = HOSTILE if at == 18 else ""
        answers = (
            answer("sft", f"before {at}", 0.0, 0.0, 10),
            answer("align", f"after {at} {hostile}", 1.0 + 0.01 * at, at % 2 - 0.5, 20),
        )
        groups.append(Group((user(f"question {at} {hostile}"),), answers))
    write_rows(folder / "samples.jsonl", groups)
    text = json.dumps(yaml.safe_load(EVALUATION))
    (folder / "evaluation.json").write_text(text, encoding="utf-8")


# The judge had two samples of each prompt: it prefers the baseline, and its order decides often.
EVALUATION = """
prompts: 20
examples: 1200
left_out: 1
sampling: {temperature: 1.0, seed: 3}
notes:
- sampled with temperature 1.0
- "warning: 2 of 20 prompts are training data (2 by sft)"
baseline: sft
headline: helpful
policies: [sft, align]
judge_cards:
  local_judge:
    no_judge: ""
    comparisons: 40
    unjudged: {refused: 3, unreadable: 1}
    inconsistent: {mean: 0.3333333, low: 0.2021462, high: 0.49666, n: 36}
    people: null
    calls: 160
    tokens: null
results:
- {policy: sft, metric: helpful, kind: reward, estimate: &zero {mean: 0.0, low: null, high: null, n: 20},
   trained_on: false, missing: 1}
- policy: align
  metric: helpful
  kind: reward
  estimate: {mean: 1.095, low: 1.067312, high: 1.122688, n: 20}
  baseline: sft
  difference: {mean: 1.095, low: 1.067312, high: 1.122688, n: 20, p: 8.997514e-26}
  equal_length: {mean: -0.4645, low: -3.718207, high: 2.789207, n: 20, near: 12}
  win_rate: {mean: 1.0, low: 0.8388748, high: 1.0, n: 20}
  counts: 20/0/0
  trained_on: false
  tested: true
  p: 9.471068e-26
  missing: 1
- {policy: sft, metric: safety, kind: reward, estimate: *zero}
- policy: align
  metric: safety
  kind: reward
  estimate: {mean: 0.0, low: -0.2400863, high: 0.2400863, n: 20}
  baseline: sft
  difference: {mean: 0.0, low: -0.2400863, high: 0.2400863, n: 20, p: 1.0}
  equal_length: {mean: -1.525, low: -4.670474, high: 1.620474, n: 20, near: 12}
  win_rate: {mean: 0.5, low: 0.299298, high: 0.700702, n: 20}
  counts: 10/10/0
- policy: align
  metric: local_judge
  kind: judge
  estimate: {mean: 0.31, low: 0.22, high: 0.4, n: 19}
  baseline: sft
  difference: {mean: -0.19, low: -0.28, high: -0.1, p: 1.0e-06}
  equal_length: {mean: 0.47, low: 0.37, high: 0.57, n: 19}
  win_rate: {mean: 0.2352941, low: 0.09555044, high: 0.472618, n: 17}
  counts: 4/13/2
  percent: true
  trained_on: true
  tested: true
  p: 1.0e-06
- {policy: sft, metric: "length, tokens", kind: answers, estimate: {mean: 10.0, low: null, high: null, n: 20}}
- {policy: sft, metric: truncated, kind: answers, estimate: {mean: 0.5}, percent: true}
- {policy: sft, metric: "KL, nats", kind: answers, estimate: {mean: 0.0, low: 0.0, high: 0.0, n: 20}, baseline: sft}
- {policy: align, metric: "length, tokens", kind: answers, estimate: {mean: 20.0, low: null, high: null, n: 20}}
- {policy: align, metric: truncated, kind: answers, estimate: {mean: 0.5}, percent: true}
- {policy: align, metric: "KL, nats", kind: answers, estimate: {mean: 30, low: 30, high: 30, n: 20}, baseline: sft}
- {policy: sft, metric: helpful, kind: reward, estimate: &part {mean: 0.5, low: 0.4, high: 0.6, n: 8},
   column: topic, value: cooking}
- {policy: align, metric: helpful, kind: reward, estimate: *part, baseline: sft, difference: *part,
   column: topic, value: cooking}
- {policy: align, metric: helpful, kind: reward, estimate: *part, baseline: sft, difference: *part,
   column: topic, value: sport, missing: 2}
"""
REPORT = Report(
    [
        "sampled with temperature 1.0",
        Table("mean and 95% interval over 20 prompts", ["", "align"], [["of the stage", "1"]]),
    ]
)


def answer(policy: str, text: str, helpful: float, safety: float, tokens: int) -> Response:
    scores = {"helpful": helpful, "safety": safety}
    return Response(text, tokens=(1,) * tokens, scores=scores, source=policy)
