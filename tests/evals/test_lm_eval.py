"""The step `lm_eval`: its options and errors everywhere; where the package is installed, real tasks
with local data.
"""

from __future__ import annotations

import importlib.util
import os
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from alignkit import RunFailed
from alignkit.runs.services import resumable_map
from alignkit_plugins.evals import lm_eval
from alignkit_plugins.evals.lm_eval import LmEval
from tests.by_role import ByRole
from tests.evals.scripted import context, lines, said
from tests.rows import Said, cells, read_json, run, write_recipe, write_rows

CONSENT = ["--confirm_run_unsafe_code"]
INSTALLED = importlib.util.find_spec("lm_eval") is not None
_skip = pytest.mark.skipif(not INSTALLED, reason="needs the extra lm-eval")


def real(test: Any) -> Any:
    """A test that runs the harness, which takes it seconds to start."""
    return pytest.mark.slow(_skip(test))


def options(**more: Any) -> LmEval.Options:
    return LmEval.Options(**{"policies": ["base", "sft"], "tasks": ["even"], **more})


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="duplicates: x"):
        options(tasks=["x", "x"])


ROWS = [{"q": f"Is {i} even?", "choices": ["yes", "no"], "a": i % 2} for i in range(6)]
TASK = """
task: even
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: a
metric_list: [{metric: acc}]
"""


def run_bench(folder: Path, more: str = "", code: int = 0, **step: Any) -> Path:
    """Run a recipe whose step `bench` runs a task with local data; returns the step's folder."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    (folder / "tasks" / "even.yaml").write_text(TASK + more, encoding="utf-8")
    write_rows(folder / "rows.jsonl", ROWS)
    bench = {"policies": ["base", "sft"], "include_path": "tasks", "tasks": ["even"]}
    sft = {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 3, "learning_rate": 0.02}
    stages = {"sft": sft, "bench": {"step": "lm_eval", **bench, "args": CONSENT, **step}}
    return run(write_recipe(folder, stages), code=code) / "bench"


def test_without_the_package_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    find = importlib.util.find_spec

    def hidden(name: str, *more: Any) -> Any:
        return None if name == "lm_eval" else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    assert not (run_bench(tmp_path, code=2).parent / "sft").exists()
    assert "stage 'bench': step 'lm_eval' needs the package lm_eval" in said()


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Another program in place of the harness, given as code; `arguments` is its command line."""

    def replace(code: str) -> None:
        start = "import json, os, sys\nfrom pathlib import Path\narguments = sys.argv[1:]\n"
        start += "assert sys.flags.safe_path\n"
        monkeypatch.setattr(lm_eval, "COMMAND", (*lm_eval.COMMAND[:-2], "-c", start + code))
        monkeypatch.setattr(lm_eval, "check_extra", lambda *names: None)

    return replace


def test_tasks_are_validated_before_training_and_those_of_the_user_need_consent(
    tmp_path: Path, harness: Any
) -> None:
    harness("print('Tasks not found: evem', arguments); sys.exit('gone' in arguments)")
    LmEval(options(include_path=tmp_path, args=CONSENT)).check(tmp_path)
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"include_path": tmp_path}, "help: read them, then add --confirm_run_unsafe_code"),
        ({"include_path": tmp_path / "gone"}, "include_path is no folder"),
        ({"tasks": ["gone"]}, "(?s)refuses the tasks:.*evem.*validate.*'--tasks', 'gone'"),
    ]
    for more, words in mistakes:
        with pytest.raises(RunFailed, match=words):
            LmEval(options(**more)).check(tmp_path)


RESULTS = """
{"results": {
   "even": {"alias": "even", "acc,none": 0.75, "acc_stderr,none": 0.1,
            "bleu,none": 3, "bleu_stderr,none": "N/A"},
   "gsm": {"exact_match,strict": 0.0, "exact_match_stderr,strict": 0.0,
           "flag,none": true, "x,none": NaN}},
 "groups": {"all": {"acc,none": 0.5, "acc_stderr,none": 0.25}},
 "n-samples": {"even": {"original": 9, "effective": 4}},
 "higher_is_better": {"even": {"acc": true, "bleu": false}},
 "lm_eval_version": "0.4.99"}
"""
# Writes its results as the harness does: in a folder of the model's, with the time in the name.
ANSWERS = f"""
out = Path(arguments[arguments.index("--output_path") + 1]) / "model"
out.mkdir(parents=True)
out.joinpath("results_2026.json").write_text({RESULTS!r})
out.joinpath("asked.json").write_text(json.dumps([arguments, os.getcwd(), os.environ["DO_NOT_TRACK"]]))
"""


class Models(ByRole):
    def __init__(self) -> None:
        self.exported: list[str] = []

    def save(self, role: str, folder: Path) -> list[str]:
        self.exported.append(role)
        folder.mkdir(parents=True)
        return [f"{role} is rounded"]


def bench(folder: Path, models: Models | None = None, **more: Any) -> Any:
    """The artifact of the step."""

    def stored(name: str, rows: Any, f: Any) -> Any:
        return resumable_map(folder / "map" / f"{name}.jsonl", rows, partial(map, f))

    around = context(models or Models(), folder, map=stored, stage="bench")
    return LmEval(options(**more)).run(around)


def test_the_command_line_of_the_harness(tmp_path: Path, harness: Any) -> None:
    harness(ANSWERS)
    args = ["--num_fewshot", "2", "--limit", "4"]
    bench(tmp_path, policies=["sft"], args=args, include_path=tmp_path)
    file = tmp_path / "out/results/1-sft/model/asked.json"
    asked, folder, quiet = read_json(file)
    assert (folder, quiet) == (str(tmp_path), "1")
    start = ["run", "--model", "hf", "--model_args", f"pretrained={tmp_path / 'out' / 'model'}"]
    assert asked[:5] == start and "--confirm_run_unsafe_code" not in asked
    device = "cuda" if torch.cuda.is_available() else "cpu"
    more = {("--tasks", "even"), ("--device", device), ("--include_path", str(tmp_path))}
    assert {*more, *pairwise(args)} - {("2", "--limit")} < set(pairwise(asked))


def test_a_finished_policy_is_not_repeated(tmp_path: Path, harness: Any) -> None:
    """The harness fails at the second policy. The first one's results are kept."""
    fails = f"Path({str(tmp_path / 'fails')!r}).exists() and 'sft' in str(out) and sys.exit(3)"
    harness(ANSWERS + fails)
    (tmp_path / "fails").touch()
    models = Models()
    with pytest.raises(RunFailed, match=r"exit code 3:(?s:.*)lm_eval\.log has more"):
        bench(tmp_path, models)
    assert models.exported == ["base", "sft"] and not (tmp_path / "out" / "model").exists()
    (tmp_path / "fails").unlink()
    artifact = bench(tmp_path, models)
    assert models.exported == ["base", "sft", "sft"]
    found = dict(artifact.summary or {})
    assert found == read_json(tmp_path / "out" / "lm_eval.json")
    assert {"base: base is rounded", "base: gsm: x is nan and left out"} < set(found["notes"])


def test_a_run_that_is_stopped_leaves_no_process(
    tmp_path: Path, harness: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        if (tmp_path / "child").exists() and (tmp_path / "child").read_text():
            raise KeyboardInterrupt

    harness(f"Path({str(tmp_path / 'child')!r}).write_text(str(os.getpid()))\nwhile True: pass")
    monkeypatch.setattr(lm_eval, "should_stop", stop)
    with pytest.raises(KeyboardInterrupt):
        bench(tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "child").read_text()), 0)


# The means with their intervals; a lower bleu is better, and nothing has no interval
NUMBERS = """
sft even: acc |  | 0.75 0.5239 0.891 4 |  |  | 0
sft even: bleu |  | 3 - - 4 |  |  | 0
sft gsm: exact_match,strict |  | 0 - - - |  |  | 0
sft all: acc |  | 0.5 0.15 0.85 - |  |  | 0
"""


def test_numbers_and_table(tmp_path: Path, harness: Any) -> None:
    harness(ANSWERS)
    artifact = bench(tmp_path, policies=["sft"], args=["--limit", "4"])
    assert lines(artifact.summary or {}) == NUMBERS.strip().splitlines()
    text = said(artifact)
    assert "lm-evaluation-harness 0.4.99" in text and "0.75 [0.52, 0.89]" in text
    assert "even: bleu*" in text and "* lower is better" in text


# A metric, its mean, its standard error, documents, and its interval: Wilson's of a share, of as many
# documents as have the error; of others 1.96 standard errors, without what cannot be
INTERVALS = """
acc                | 0.02  | 0.014 | 101  | 0.0055 0.0700
acc_norm           | 0.99  | 0.01  | 100  | 0.9451 0.9982
exact_match        | 0.05  | 0.05  |      | 0.0086 0.2428
pass@1             | 0.5   | 0.1   | 26   | 0.3175 0.6825
mine               | 0.1   | 0.2   | 50   | -0.2920 0.4920
mcc                | 0.1   | 0.08  | 100  | -0.0568 0.2568
bleu_diff          | 0.4   | 0.3   | 100  | -0.1880 0.9880
bleu               | 0.2   | 0.2   | 100  | 0.0000 0.5920
word_perplexity    | 30    | 20    | 100  | 0.0000 69.1993
bits_per_byte      | 0.98  | 0.01  | 100  | 0.9604 0.9996
likelihood         | -3    | 1     | 100  | -4.9600 -1.0400
"""


@pytest.mark.parametrize(("name", "mean", "error", "n", "interval"), cells(INTERVALS))
def test_an_interval_ends_where_the_metric_does(
    name: str, mean: str, error: str, n: str, interval: str
) -> None:
    values = {f"{name},none": float(mean), f"{name}_stderr,none": float(error)}
    results = {"results": {"t": values}, "n-samples": {"t": {"effective": int(n) if n else None}}}
    (row,) = lm_eval.rows_by_metric("sft", results)
    assert f"{row.estimate['low']:.4f} {row.estimate['high']:.4f}" == interval


# With the package


@real
def test_the_harness_runs_the_code_that_the_recipe_allows(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    code = "def first(docs):\n    return docs.select([0, 2, 4])\n"
    (tmp_path / "tasks" / "utils.py").write_text(code)
    allowed, args = "process_docs: !function utils.first\n", [*CONSENT, "--limit", "2"]
    folder = run_bench(tmp_path, more=allowed, args=args)
    found = lines(read_json(folder / "lm_eval.json"))
    assert [" 2 |" in line for line in found] == [True, True] and not (folder / "model").exists()
