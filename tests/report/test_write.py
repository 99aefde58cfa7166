"""Reports are written when a run ends, however it ends, and change nothing about the run."""

import json
import shutil
from pathlib import Path

import pytest
from made import make_run

from alignkit.cli import main
from alignkit_plugins.report import events as write
from tests.pages import Reader
from tests.rows import Said, cells, read_json, write_recipe


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


SCREEN = """\
small: done, 4 of 4 stages
sft     done   1m01s
labels  done   1m01s
align   done   1m01s  reward 1.91 -> 3.11 on the prompts that it learned from
report  done   1m01s

align is better than sft in the reward helpful, +1.095 [1.067, 1.123]: 1.09
  against 0.00. Worse: local_judge (trained on it), which prefers it in 31%
  [22, 40] of comparisons.

                        sft                 align
─────────────────────────────────────────────────
helpful         0.00 [?, ?]  1.095 [1.067, 1.123]
safety          0.00 [?, ?]    0.00 [-0.24, 0.24]
local_judge               -          31% [22, 40]
length, tokens        10.00                 20.00
truncated               50%                   50%
KL, nats               0.00                 30.00

prompt: question 19
sft: before 19
align: after 19
prompt: question 13
sft: before 13
align: after 13

Warning: 2 of 20 prompts are training data (2 by sft)
next: alignkit chat run/align
"""


def test_the_command_shows_a_run_and_writes_nothing(
    tmp_path: Path, printed: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("run"))
    before = contents(run)
    assert main(["show", "run"]) == 0
    assert printed() == SCREEN
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert main(["show", "run", "--open"]) == 0
    page = Path(opened[0].removeprefix("file://"))
    assert "align is better than sft" in page.read_text() and contents(run) == before
    shutil.rmtree(page.parent)


def test_the_same_run_gives_the_same_three_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write.write_report(run)
    assert read_json(run / "report.json")["run"]["name"] == "small"
    first = contents(run)
    write.write_report(run)
    assert contents(run) == first


def test_a_failure_is_shown_with_its_reason(tmp_path: Path, printed: Said) -> None:
    run = make_run(tmp_path / "run")
    end = {"event": "end", "outcome": "failed", "message": "error: the disk\n  is full"}
    with (run / "starts.jsonl").open("a") as file:
        for line in ({"event": "start", "time": 4e9}, {**end, "time": 4e9 + 1}):
            file.write(json.dumps(line) + "\n")
    assert main(["show", str(run)]) == 0
    head = "small: failed, 4 of 4 stages\nthe disk is full\nsft "
    assert printed().startswith(head)


WORDS = r"""
    small            | 2 | small is no run: there is no such folder\n  help: did you mean 'runs/small'?
    runs/smal        | 2 | did you mean 'runs/small'?
    runs/small/align | 2 | help: it is in a run: alignkit show runs/small\n
    align@ppo        | 2 | help: write RUN/align@ppo
    file             | 2 | file is no run: it is a file
    .                | 2 | error:
    runs             | 0 | runs/small  done
                     | 0 | runs/small  done
"""


def test_a_run_that_is_not_named_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show"]) == 2
    assert "there are no runs in runs/" in capsys.readouterr().err
    make_run(Path("runs/small"))
    (tmp_path / "file").touch()
    before = contents(tmp_path)
    for word, code, said in cells(WORDS):
        assert main(["show", *word.split()]) == int(code), word
        assert said.replace("\\n", "\n") in "".join(capsys.readouterr())
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left"), ValueError("odd\nthing"), MemoryError(), KeyboardInterrupt()],
)
def test_a_report_that_fails_is_one_line(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> Path:
        raise error

    monkeypatch.setattr(write, "write_report", fail)
    monkeypatch.delenv(write.SWITCH, raising=False)
    said: list[str] = []
    write.report_run(tmp_path, said.append)
    (line,) = said
    assert line.startswith("no report was written (") and "alignkit show" in line
    assert "\n" not in line


def test_a_run_ends_with_its_report(house_run: Path) -> None:
    facts = read_json(house_run / "report.json")
    assert (facts["run"]["outcome"], facts["run"]["stages_done"]) == ("done", 6)
    sources = [(item["stage"], item["rows"]) for item in facts["data"]]
    assert sources[:2] == [("sft", 3), ("liked", 3)]
    assert facts["reproduce"]["machine"]["cores"] > 0
    assert {"dpo", "ppo"} <= {verdict["policy"] for verdict in facts["verdicts"]}
    page = (house_run / "report.html").read_text()
    Reader(page)
    assert page.count("<svg class") > 5 and len(page.encode()) < 300_000


@pytest.mark.parametrize("wanted", ["1", "0"])
def test_a_run_that_fails_has_a_report_and_its_exit_code(
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
) -> None:
    monkeypatch.setenv("ALIGNKIT_REPORT", wanted)
    sft = {"algorithm": "sft", "data": "demos.jsonl", "max_length": 2}
    recipe, out = write_recipe(tmp_path, {"sft": sft}), tmp_path / "run"
    assert main(["run", str(recipe), "--out", str(out)]) != 0
    words_said = said()
    assert (out / "report.html").exists() == (f"report: {out}" in words_said) == (wanted == "1")
    if wanted == "1":
        facts = read_json(out / "report.json")
        assert facts["run"]["outcome"] == "failed"
        assert facts["run"]["message"].splitlines()[0] in words_said
