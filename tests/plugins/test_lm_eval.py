"""The step `lm_eval`: its options and errors everywhere; where the package is installed, real tasks with local data."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from patience import PATIENCE
from pydantic import ValidationError

from alignkit import RunFailed, StepContext
from alignkit.cli import main
from alignkit.runs.durable_map import durable_map
from alignkit_plugins.steps.lm_eval import LmEval, harness, summary
from alignkit_plugins.steps.lm_eval.harness import code_in
from alignkit_plugins.steps.lm_eval.process import device_of

INSTALLED = importlib.util.find_spec("lm_eval") is not None
_skip = pytest.mark.skipif(not INSTALLED, reason="needs the extra lm-eval")


def real(test: Any) -> Any:
    """A test that runs the harness, which takes it seconds to start."""
    return pytest.mark.slow(_skip(test))


def options(**more: Any) -> LmEval.Options:
    return LmEval.Options(**{"policies": ["base", "sft"], "tasks": ["even"], **more})


# --- options


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"policies": []}, "at least 1"),
        ({"policies": ["sft", "sft"]}, "duplicates: sft; names must be unique"),
        ({"tasks": ["even", "even"]}, "duplicates: even"),
        ({"tasks": []}, "at least 1"),
        ({"limit": 0}, "greater than 0"),
        ({"limit": 1.5}, "a whole number of documents, or a share below 1"),
        ({"num_fewshot": -1}, "greater than or equal to 0"),
        ({"batch_size": "most"}, "batch_size"),
    ],
)
def test_options_that_cannot_be(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        options(**more)


@pytest.mark.parametrize(("limit", "expected"), [(None, None), (5, 5), (0.5, 0.5), (1, 1)])
def test_the_limit_is_a_number_of_documents_or_a_share(limit: float | None, expected: float | None) -> None:
    found = options(limit=limit).request()["limit"]
    assert found == expected and type(found) is type(expected)


ROWS = [{"q": f"Is {i} even?", "choices": ["yes", "no"], "a": i % 2} for i in range(6)]
TASK: dict[str, Any] = {
    "task": "even",
    "dataset_path": "json",
    "dataset_kwargs": {"data_files": {"test": "rows.jsonl"}},
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "{{q}}\nAnswer:",
    "doc_to_choice": "choices",
    "doc_to_target": "a",
    "metric_list": [{"metric": "acc"}],
}
LOCAL = {"include_path": "tasks", "tasks": ["even"]}


def recipe(folder: Path, task: Mapping[str, Any] | None = None, **step: Any) -> Path:
    """A recipe whose step `bench` runs a task with local data."""
    (folder / "tasks").mkdir(parents=True, exist_ok=True)
    (folder / "tasks" / "even.yaml").write_text(yaml.safe_dump({**TASK, **(task or {})}), encoding="utf-8")
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    demos = [{"prompt": row["q"], "completion": "no"} for row in ROWS]
    (folder / "demos.jsonl").write_text("\n".join(map(json.dumps, demos)), encoding="utf-8")
    stages = {
        "sft": {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 3, "batch_size": 1, "learning_rate": 0.02},
        "bench": {"step": "lm_eval", "policies": ["base", "sft"], **LOCAL, **step},
    }
    model = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}
    text = yaml.safe_dump({"model": model, "stages": stages}, sort_keys=False)
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return folder / "recipe.yaml"


def run(folder: Path) -> int:
    return main(["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")])


def test_a_wrong_key_shows_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(tmp_path, num_few_shot=2)
    assert run(tmp_path) == 2
    said = capsys.readouterr().err
    assert "unknown key 'num_few_shot'" in said and "^^^^" in said and "did you mean 'num_fewshot'?" in said


@pytest.mark.parametrize("command", ["run", "check"])
def test_without_the_package_nothing_is_trained(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else find(name, *more)
    )
    out = ["--out", str(tmp_path / "run")] if command == "run" else []
    assert main([command, str(path), *out]) == 2
    said = capsys.readouterr().err
    assert "stage 'bench': step 'lm_eval' needs the package lm_eval" in said
    assert "'lm-eval>=" in said.replace("lm_eval>=", "lm-eval>=")
    assert not (tmp_path / "run" / "sft").exists()


# --- code of tasks


FUNCTION = "task: a\nprocess_docs: !function utils.f\n"


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"tasks/a.yaml": "task: a\ndoc_to_text: 'never !function'\n"}, []),
        ({"tasks/a.yaml": FUNCTION}, ["tasks/a.yaml:2"]),
        ({"tasks/deep/a.yaml": "task: a\nlist:\n- x: [!function utils.f]\n"}, ["tasks/deep/a.yaml:3"]),
        ({"tasks/a.yaml": "include: ../other.txt\n", "other.txt": FUNCTION}, ["other.txt:2"]),
        ({"tasks/a.yaml": "include: [b.yaml, gone.yaml]\n", "tasks/b.yaml": FUNCTION}, ["tasks/b.yaml:2"]),
        ({"tasks/a.yaml": "%TAG !x! !func\n---\ntask: !x!tion utils.f\n"}, ["tasks/a.yaml:3"]),
        ({"tasks/a.yaml": "a: [\n"}, []),
        ({"tasks/a.yaml": "<<: {include: b.txt}\n", "tasks/b.txt": FUNCTION}, ["tasks/b.txt:2"]),
        ({"tasks/a.yaml": "include: c.txt\ninclude: b.txt\n", "tasks/b.txt": FUNCTION}, ["tasks/b.txt:2"]),
        ({"tasks/a.yaml": "task: a\nx: !!python/object/apply:os.getcwd []\n"}, ["tasks/a.yaml:2"]),
        ({"tasks/a.yaml": "x: &around [!function utils.f, *around]\n"}, ["tasks/a.yaml:1"]),
    ],
)
def test_code_is_found_without_running_it(files: dict[str, str], found: list[str], tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert code_in(tmp_path / "tasks") == [str(tmp_path / place) for place in found]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_code_is_found_in_every_encoding_of_yaml(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(FUNCTION, encoding=encoding)
    assert code_in(tmp_path) == [f"{tmp_path / 'a.yaml'}:2"]


def test_code_is_refused_until_the_recipe_allows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(harness, "check_tasks", lambda request, folder: asked.append(request["tasks"]))
    (tmp_path / "a.yaml").write_text(FUNCTION, encoding="utf-8")
    with pytest.raises(RunFailed, match=r"a\.yaml:2\nhelp: read it, then set 'confirm_run_unsafe_code: true'"):
        LmEval(options(include_path=tmp_path)).check(tmp_path)
    assert asked == []
    LmEval(options(include_path=tmp_path, confirm_run_unsafe_code=True)).check(tmp_path)
    assert asked == [["even"]]


def test_include_path_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    (tmp_path / "a.yaml").write_text("task: a\n", encoding="utf-8")
    with pytest.raises(RunFailed, match=r"include_path is no folder: .*a\.yaml\nhelp: name the folder"):
        LmEval(options(include_path=tmp_path / "a.yaml")).check(tmp_path)


# --- the harness's process

FAMILY = """
import subprocess, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("child", "w").write(str(child.pid))
while True:
    time.sleep(1)
"""


def fake(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Another program in place of the harness's process; `request` is what it was asked."""
    start = "import json, os, sys\nrequest = json.load(open(sys.argv[1]))\n"
    monkeypatch.setattr(harness, "COMMAND", ("-c", start + code))


def test_telemetry_is_off_and_paths_start_at_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    fake(
        monkeypatch,
        f"said = [os.environ.get(name) for name in {names}] + [os.getcwd(), request['what']]\n"
        "json.dump({'results': json.dumps(said)}, open(request['answer'], 'w'))",
    )
    folder = tmp_path / "recipe"
    folder.mkdir()
    found = json.loads(harness.evaluate({}, folder, tmp_path))
    assert found == ["1", "1", str(folder), "evaluate"]


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet is a zombie."""
    end = time.monotonic() + PATIENCE
    status = Path(f"/proc/{pid}/stat")
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_a_run_that_is_stopped_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop() -> None:
        if (tmp_path / "child").exists() and (tmp_path / "child").read_text():
            raise KeyboardInterrupt

    fake(monkeypatch, FAMILY)
    monkeypatch.setattr(harness, "should_stop", stop)
    with pytest.raises(KeyboardInterrupt):
        harness.check_data({}, tmp_path, tmp_path)
    assert is_gone(int((tmp_path / "child").read_text()))


def test_a_run_that_is_killed_leaves_no_process(tmp_path: Path) -> None:
    """Its input is closed then. The thread that waits for that is the only part of the module here."""
    code = "from alignkit_plugins.steps.lm_eval import process\nimport sys, threading\n"
    code += "threading.Thread(target=process._end_with_the_run, daemon=True).start()\n" + FAMILY
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, cwd=tmp_path, start_new_session=True)
    assert parent.stdin is not None
    while not ((tmp_path / "child").exists() and (tmp_path / "child").read_text()):
        time.sleep(0.05)
    parent.stdin.close()
    assert parent.wait(timeout=PATIENCE) != 0 and is_gone(int((tmp_path / "child").read_text()))


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print('no space'); sys.exit(3)", "its process ended with exit code 3:\nno space"),
        ("os.kill(os.getpid(), 9)", "its process was killed by signal 9"),
        ("json.dump({'problem': 'no task\\nhelp: x'}, open(request['answer'], 'w'))", "lm_eval: no task\nhelp: x"),
    ],
)
def test_a_process_that_fails(code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(monkeypatch, code)
    with pytest.raises(RunFailed, match=said):
        harness.check_data({}, tmp_path, tmp_path)


class Models:
    def __init__(self) -> None:
        self.exported: list[str] = []

    def export(self, role: str, folder: Path, *, bases: bool = False) -> list[str]:
        assert bases
        self.exported.append(role)
        folder.mkdir(parents=True)
        return [f"{role} is rounded"]


RESULTS: dict[str, Any] = {
    "results": {
        "even": {"alias": "even", "acc,none": 0.75, "acc_stderr,none": 0.1, "bleu,none": 3, "bleu_stderr,none": "N/A"},
        "gsm": {"exact_match,strict": 0.0, "exact_match_stderr,strict": 0.0, "flag,none": True, "x,none": float("nan")},
    },
    "groups": {"all": {"acc,none": 0.5, "acc_stderr,none": 0.25}},
    "n-samples": {"even": {"original": 9, "effective": 4}},
    "n-shot": {"even": 2, "gsm": 0},
    "higher_is_better": {"even": {"acc": True, "bleu": False}},
    "lm_eval_version": "0.4.99",
}


def context(folder: Path, models: Models) -> StepContext:
    (folder / "out").mkdir(exist_ok=True)
    return StepContext(
        models=models,  # type: ignore[arg-type]
        cache=folder,
        folder=folder,
        seed=0,
        out=folder / "out",
        load=lambda spec: [],
        scorer=lambda spec: None,
        map=lambda name, rows, f: durable_map(folder / "map" / f"{name}.jsonl", rows, f),
        log=lambda **values: None,
        say=lambda text: None,
        stage="bench",
    )


def test_a_finished_policy_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at the second policy. The first one's results are taken over, and written as the harness wrote them."""
    asked, fails = [], [True]

    def evaluate(request: Mapping[str, Any], folder: Path, out: Path) -> str:
        asked.append(Path(request["model"]).is_dir())
        if len(asked) == 2 and fails:
            raise KeyboardInterrupt
        return json.dumps(RESULTS, indent=2)

    checks: list[int] = []
    monkeypatch.setattr(harness, "evaluate", evaluate)
    monkeypatch.setattr(harness, "check_data", lambda request, folder, out: checks.append(1))
    models = Models()
    with pytest.raises(KeyboardInterrupt):
        LmEval(options()).run(context(tmp_path, models))
    assert models.exported == ["base", "sft"] and len(checks) == 1
    assert not (tmp_path / "out" / "model").exists()
    fails.clear()
    artifact = LmEval(options()).run(context(tmp_path, models))
    assert models.exported == ["base", "sft", "sft"] and asked == [True] * 3
    for name in ("base", "sft"):
        assert (tmp_path / "out" / "results" / f"{name}.json").read_text() == json.dumps(RESULTS, indent=2)
    found = dict(artifact.summary or {})
    assert found == json.loads((tmp_path / "out" / "lm_eval.json").read_text())
    assert "base: base is rounded" in found["notes"]


def test_policies_of_similar_names_have_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a stage, and one of another run; a resumed run would also take over the wrong results."""
    answers = [json.dumps({**RESULTS, "number": number}) for number in range(2)]
    monkeypatch.setattr(harness, "evaluate", lambda request, folder, out: answers[len(models.exported) - 1])
    monkeypatch.setattr(harness, "check_data", lambda request, folder, out: None)
    models = Models()
    LmEval(options(policies=["/x/run/sft/adapter", "run-sft"])).run(context(tmp_path, models))
    assert models.exported == ["/x/run/sft/adapter", "run-sft"]
    written = {path.name: path.read_text() for path in (tmp_path / "out" / "results").iterdir()}
    assert written == {"run-sft-2.json": answers[0], "run-sft.json": answers[1]}


# --- numbers


def test_metrics_that_are_no_numbers_are_named() -> None:
    given = SimpleNamespace(limit=None, apply_chat_template=False)
    table = {"alias": "wiki", "word_perplexity,none": math.inf, "acc,strict": math.nan, "acc_stderr,strict": math.nan}
    notes = summary.notes(given, {"base": RESULTS, "sft": {"results": {"wiki": table}}})
    assert "base: x of gsm is nan and left out" in notes
    assert notes[-2:] == [
        "sft: word_perplexity of wiki is inf and left out",
        "sft: acc,strict of wiki is nan and left out",
    ]


def test_numbers_and_table() -> None:
    given = SimpleNamespace(limit=4, apply_chat_template=True)
    found = summary.summary({"base": RESULTS, "sft": RESULTS}, summary.notes(given, {"base": RESULTS}))
    tasks = found["policies"]["sft"]
    assert tasks["even"]["acc"] == {
        "mean": 0.75, "standard_error": 0.1, "low": pytest.approx(0.75 - 0.1959964), "n": 4,
        "high": pytest.approx(0.75 + 0.1959964), "higher_is_better": True,
    }  # fmt: skip
    assert (tasks["even"]["bleu"]["mean"], tasks["even"]["bleu"]["low"]) == (3.0, None)
    assert tasks["gsm"].keys() == {"exact_match,strict"} and tasks["gsm"]["exact_match,strict"]["low"] is None
    assert tasks["all"]["acc"]["mean"] == 0.5 and "NaN" not in json.dumps(found)
    text = summary.report(found).text(200)
    assert "only the first 4 documents of each task: for tests" in text and "asked in the chat template" in text
    assert "examples in front of a question: even 2\n" in text
    assert "lm-evaluation-harness 0.4.99" in text
    (row,) = [line.split() for line in text.splitlines() if line.startswith("even") and "acc" in line]
    assert row == ["even", "acc", "4", *(["0.750", "[0.554,", "0.946]"] * 2)]
    assert "bleu (lower is better)" in text


# --- with the package


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, _cache: None) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    recipe(folder, log_samples=True, batch_size=4)
    assert run(folder) == 0
    assert main(["export", str(folder / "run" / "sft"), str(folder / "whole"), "--merge"]) == 0
    return folder


@real
def test_log_likelihoods_are_those_of_transformers(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bench = finished / "run" / "bench"
    model = AutoModelForCausalLM.from_pretrained(finished / "whole")
    tokenizer = AutoTokenizer.from_pretrained(finished / "whole")
    samples = [json.loads(line) for line in (bench / "samples" / "sft" / "even.jsonl").read_text().splitlines()]
    right = []
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        row, found = ROWS[sample["doc_id"]], []
        for choice in row["choices"]:
            prompt = tokenizer(f"{row['q']}\nAnswer:", add_special_tokens=False).input_ids
            whole = tokenizer(f"{row['q']}\nAnswer: {choice}", add_special_tokens=False).input_ids
            with torch.no_grad():
                logprobs = model(torch.tensor([whole])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            found.append(float(logprobs.gather(1, torch.tensor(whole[len(prompt) :])[:, None]).sum()))
        theirs = [float(each[0]) for each in sample["filtered_resps"]]
        assert theirs == pytest.approx(found, abs=1e-4)
        right.append(found.index(max(found)) == row["a"])
    results = json.loads((bench / "results" / "sft.json").read_text(encoding="utf-8"))
    assert results["results"]["even"]["acc,none"] == pytest.approx(sum(right) / len(right))
    ours = json.loads((bench / "lm_eval.json").read_text(encoding="utf-8"))["policies"]["sft"]["even"]["acc"]
    assert ours["mean"] == results["results"]["even"]["acc,none"] and ours["n"] == len(ROWS)
    assert ours["standard_error"] == results["results"]["even"]["acc_stderr,none"]
    assert "even" in (bench / "report.txt").read_text(encoding="utf-8") and not (bench / "model").exists()


@real
def test_the_base_is_another_model(finished: Path) -> None:
    sides = [
        json.loads((finished / "run" / "bench" / "samples" / name / "even.jsonl").read_text().splitlines()[0])
        for name in ("base", "sft")
    ]
    assert sides[0]["filtered_resps"] != sides[1]["filtered_resps"]


@real
@pytest.mark.parametrize(
    ("task", "said"),
    [
        (
            {"dataset_kwargs": {"data_files": "gone.jsonl"}},
            ["'even' cannot be loaded", "gone.jsonl", "check dataset_path"],
        ),
        ({"dataset_path": "nobody/nothing"}, ["task 'even' cannot be loaded", "on the Hugging Face hub"]),
        ({"doc_to_text": "{{ q.__class__.__mro__ }}"}, ["a template of a task reaches for Python", "confirm_run"]),
        ({"metric_list": [{"metric": "made_up"}]}, ["the metric 'made_up' is code from the hub", "confirm_run"]),
    ],
    ids=["file", "hub", "template", "metric"],
)
def test_what_users_get_wrong(
    task: dict[str, Any],
    said: Sequence[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # or else it tries for half a minute
    recipe(tmp_path, task, policies=["base"])
    assert run(tmp_path) == 1
    shown = capfd.readouterr().err
    assert [text for text in said if text not in shown] == []


@real
def test_a_task_that_is_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe(tmp_path, tasks=["evem", "even"])
    assert run(tmp_path) == 2
    shown = capfd.readouterr().err
    assert "stage 'bench': lm_eval: no task 'evem' among" in shown and "did you mean 'even'" in shown
    assert not (tmp_path / "run" / "sft").exists()


@real
def test_code_that_the_recipe_allows_runs(tmp_path: Path) -> None:
    recipe(tmp_path, policies=["base"], confirm_run_unsafe_code=True, limit=2)
    (tmp_path / "tasks" / "utils.py").write_text("def first(docs):\n    return docs.select([0, 2, 4])\n")
    with (tmp_path / "tasks" / "even.yaml").open("a", encoding="utf-8") as file:
        file.write("process_docs: !function utils.first\n")
    assert run(tmp_path) == 0
    results = json.loads((tmp_path / "run" / "bench" / "results" / "base.json").read_text(encoding="utf-8"))
    assert results["n-samples"]["even"] == {"original": 3, "effective": 2}


@real
def test_the_process_ends_with_the_run(tmp_path: Path) -> None:
    """Its input is closed when the run is gone, however that ended."""
    request = {**options().request(), "what": "names", "answer": str(tmp_path / "answer.json")}
    (tmp_path / "request.json").write_text(json.dumps(request), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, *harness.COMMAND, str(tmp_path / "request.json")], stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=PATIENCE) == 1
    assert not (tmp_path / "answer.json").exists()


def test_the_default_device_is_one_that_this_machine_has() -> None:
    """Without a name, versions of the harness from 0.4.10 place the model on a GPU, which there may be none of."""
    assert options().request()["device"] is None
    default = device_of(None)
    assert default == ("cuda" if torch.cuda.is_available() else "cpu")
    assert float(torch.ones(1, device=default)) == 1.0 and device_of("cpu") == "cpu"
