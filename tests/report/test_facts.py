"""report.json: what it holds, that every key is documented, and which damage is named."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from made import BEGAN, make_run, write_stage

from alignkit.errors import RecipeError, path_text
from alignkit_plugins.cells.changes import changes, flat
from alignkit_plugins.report.facts import _next, facts_of, stage_words
from tests.documented_keys import documented, paths
from tests.rows import write_rows

# Parts whose keys are names of metrics, packages and the like, or are documented elsewhere.
OPEN = """
    evaluations.evaluation stages.summary stages.metrics reproduce.versions reproduce.machine
    reports.blocks data.prompt_characters data.response_characters people.agreement
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run")


def states(facts: dict[str, Any]) -> list[str]:
    return [stage["state"] for stage in facts["stages"]]


# All but the recipe, the evaluation itself, its samples and what is said of people; `RUN` is the
# run's folder
FACTS = """
run: {name: small, folder: RUN, base: '', outcome: done, message: '', started: '2026-09-21T14:13:40Z',
  ended: '2026-09-21T14:15:20Z', stages: 4, stages_done: 4, seconds: 246.0, peak_memory: 1 GiB}
stages:
- name: sft
  kind: algorithm
  plugin: sft
  state: done
  about: the base model after SFT
  seconds: 61.5
  tokens_per_second: null
  metrics:
    loss: {first: 2.0, last: 1.0}
    learning_rate: {first: 0.001, last: 0.001}
  summary:
    encoded: {rows: 48, responses: 60}
    steps: 4
    skipped_steps: 1
    encoding: {cut: 18}
    without_signal: 2
    trains: whole model
    bad_rows: ['demos.jsonl:7: no prompt', 'demos.jsonl:9: no text']
  learned: ''
  weak: ''
  diagnosis: []
- name: labels
  kind: step
  plugin: judge_pairs
  state: done
  about: ''
  seconds: 61.5
  tokens_per_second: null
  metrics: {}
  summary:
    labeled: 8
    position_bias: 0.25
    dropped: {no verdict: 3}
    agreement: null
  learned: ''
  weak: ''
  diagnosis: []
- name: align
  kind: algorithm
  plugin: ppo
  state: done
  about: sft after PPO
  seconds: 61.5
  tokens_per_second: 106.5
  metrics:
    seconds/rollout: {first: 1.5, last: 1.5}
    kl: {first: 0.062, last: 9.0}
    reward: {first: 1.909, last: 3.107}
    tokens_per_second: {first: 101.0, last: 112.0}
    score/helpful: {first: 0.1, last: 1.2}
    score/safety: {first: -0.1, last: -1.2}
  summary: {}
  learned: reward 1.91 -> 3.11 on the prompts that it learned from
  weak: ''
  diagnosis: []
- name: report
  kind: step
  plugin: evaluate
  state: done
  about: ''
  seconds: 61.5
  tokens_per_second: null
  metrics: {}
  summary: {}
  learned: ''
  weak: ''
  diagnosis: []
cells: []
data:
- stage: sft
  name: demos.jsonl
  format: messages
  rows: 40
  held_out: 8
  skipped: 1
  responses: 60
  prompt_characters: {least: 2, median: 50, most: 99}
  response_characters: {least: 3, median: 61, most: 199}
  pairs: {count: 12, better_longer: 9}
  labels: {good: 7, bad: 5}
dropped:
- {stage: sft, reason: 'rows left out: the algorithm learns nothing from them', rows: 2, of: 48}
- {stage: sft, reason: responses truncated at max_length, rows: 18, of: 60}
- {stage: sft, reason: 'bad rows, the first: demos.jsonl:7: no prompt', rows: 2, of: null}
- {stage: labels, reason: no verdict, rows: 3, of: null}
reports:
- stage: report
  blocks:
  - sampled with temperature 1.0
  - title: mean and 95% interval over 20 prompts
    columns: ['', align]
    rows:
    - [of the stage, '1']
    keys: 1
    note: ''
warnings:
- {stage: report, text: 2 of 20 prompts are training data (2 by sft)}
- {stage: report, text: 'between equally long answers, no difference between align and sft in helpful
    is clear'}
- {stage: report, text: 'helpful and local_judge contradict each other on align: one of them may be fooled'}
- {stage: report, text: 'between equally long answers, no difference between align and sft in local_judge
    is clear'}
- {stage: report, text: 'answers of align are 100% longer than those of sft, and rewards and judges often
    depend on length'}
- {stage: report, text: 1 answers of sft have no helpful and do not count}
- {stage: report, text: 1 answers of align have no helpful and do not count}
- {stage: report, text: 'many answers are truncated: 50% of sft, 50% of align'}
- {stage: sft, text: '1 steps were skipped, because their loss or gradient was not finite'}
- {stage: sft, text: 18 responses truncated at max_length (30% of 60)}
- {stage: sft, text: '2 bad rows, the first: demos.jsonl:7: no prompt'}
- {stage: '', text: tracker 'x' failed}
- {stage: sft, text: few rows}
- {stage: '', text: it is slow}
next: {told: '', chat: alignkit chat RUN/align}
reproduce:
  command: alignkit run small --out runs/small
  seed: 3
  commit: c0ffee
  versions: {alignkit: 0.1.0, torch: 2.9.0}
  machine: {python: 3.11.7, cores: 2, memory: 8000000000}
"""


def test_what_is_known_is_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each warning comes from another part: rows, the log, the evaluation, its verdicts."""
    monkeypatch.delattr("time.localtime")  # all times are in UTC
    facts = facts_of(run)
    kept = {key: facts[key] for key in yaml.safe_load(FACTS)}
    text = json.dumps(kept).replace(str(run), "RUN")
    assert json.loads(text, parse_float=lambda x: round(float(x), 3)) == yaml.safe_load(FACTS)
    (verdict,) = facts["verdicts"]
    assert (verdict["policy"], verdict["metric"], verdict["outcome"]) == (
        "align",
        "helpful",
        "mixed",
    )


def test_every_key_is_documented(run: Path) -> None:
    facts = json.loads(json.dumps(facts_of(run)))
    assert paths(facts, {}, closed=OPEN.split()) == documented("report.json").keys()


# Bad input


def test_what_is_no_run_is_an_error(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing", tmp_path / ("x" * 5000), tmp_path / "nul\0"):
        with pytest.raises(RecipeError, match="folder"):
            facts_of(folder)


def test_a_run_that_stopped_halfway_says_where(run: Path) -> None:
    message = "error: out of memory\n  in stage 'align'"
    end = {"event": "end", "time": BEGAN + 50, "outcome": "failed", "message": message}
    write_rows(run / "starts.jsonl", [{"event": "start", "time": BEGAN}, end])
    for stage in ("labels", "report"):
        shutil.rmtree(run / stage)
    write_stage(run / "align", "ppo", complete=False, seconds=None, versions={"x": "1"})
    facts = facts_of(run)
    assert facts["run"]["outcome"] == "failed" and "out of memory" in facts["run"]["message"]
    assert states(facts) == ["done", "not begun", "begun", "not begun"]
    assert facts["verdicts"] == [] and facts["run"]["stages_done"] == 1
    assert facts["reproduce"]["versions"] == {"alignkit": "0.1.0", "torch": "2.9.0", "x": "1"}


def test_a_run_without_any_result_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "recipe.resolved.yaml").write_text("name: x\nstages: {sft: {algorithm: sft}}\n")
    facts = facts_of(tmp_path)
    assert (facts["run"]["outcome"], states(facts)) == ("incomplete", ["not begun"])
    assert facts["stages"][0]["about"] == ""


def test_plain_data_are_flattened() -> None:
    found = flat({"a": {"b": [1, {"c": 2}], "d": {}}, "e": None})
    named = {path_text(path): value for path, value in found.items()}
    assert named == {"a.b.0": 1, "a.b.1.c": 2, "e": None}
    assert changes({"a": [1, 2]}, {"a": [1]}) == [(("a", 1), 2, None)]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("sft/stage.json", b"\xff\xfe{\n{}\n"),
        ("align/metrics.jsonl", b"\xff\xfe{\n{}\n"),
        ("report/evaluation.json", b"{}"),
        ("report/samples.jsonl", None),
    ],
)
def test_a_damaged_stage_is_named_and_the_others_are_shown(
    name: str, damage: bytes | None, run: Path
) -> None:
    (run / name).unlink()
    if damage is not None:
        (run / name).write_bytes(damage)
    stage = name.partition("/")[0]
    facts = facts_of(run)
    assert [one["name"] for one in facts["stages"] if one["state"] == "damaged"] == [stage]
    (text,) = [one["text"] for one in facts["warnings"] if str(run / name) in one["text"]]
    assert facts["warnings"][0] == {"stage": stage, "text": text} and "run the recipe again" in text
    assert bool(facts["verdicts"]) == (stage != "report") and facts["run"]["stages_done"] == 3


def test_the_last_line_of_a_killed_process_may_be_unfinished(run: Path) -> None:
    (run / "sft" / "stage.json").unlink()
    write_stage(run / "align", "ppo", complete=False, files={})
    with (run / "align" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 13, "rew')
    facts = facts_of(run)
    assert states(facts) == ["begun", "done", "begun", "done"]
    assert facts["stages"][2]["metrics"]["kl"]["last"] == 9.0


def test_the_best_policy_is_talked_to() -> None:
    """Not a reward model nor an unfinished stage, and the baseline if the result lost."""
    stages: list[Any] = []
    for name, plugin in (("sft", "sft"), ("align", "ppo"), ("gold", "reward_model"), ("dpo", "")):
        state = "done" if plugin else "begun"
        facts = {"record": {}, "kind": "algorithm", "state": state, "plugin": plugin}
        stages.append(SimpleNamespace(name=name, **facts))
    lost = {"outcome": "lost", "baseline": "sft", "policy": "align"}
    won = {**lost, "outcome": "gained", "policy": "align@ppo"}
    even = {**won, "outcome": "nothing clear"}
    found = [_next(Path("run"), stages, one) for one in ([], [lost], [won], [lost, even])]
    names = ("align", "sft", "align@ppo", "align@ppo")
    assert [one["chat"] for one in found] == [f"alignkit chat run/{name}" for name in names]
    stages[0].record["text"] = "next: add a.b=c to the command"
    told = [_next(Path("run"), stages, [], command)["told"] for command in ("run", "run a.b=c")]
    assert told == ["add a.b=c to the command", ""]
    assert [*map(stage_words, ("grpo", "reward_model"))] == ["GRPO", "Reward model"]
