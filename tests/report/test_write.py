"""Reports are written when a run ends, however it ends, and change nothing about the run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from made import make_run

from alignkit.cli import main
from alignkit_plugins.report import events as write
from tests.pages import Reader

ROOT = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_the_command_shows_a_run_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "run")
    before = contents(run)
    assert main(["show", str(run)]) == 0
    out = capsys.readouterr().out
    assert (
        out.startswith("small: done, 4 of 4 stages\nsft ") and "\n\nalign is better than sft" in out
    )
    assert (
        "align   done   1m01s  reward 1.91 -> 3.11 on the prompts that it learned from"
        in out.splitlines()
    )
    after_the_stages = out.splitlines()[5:]
    assert len(after_the_stages) <= 25 and max(map(len, after_the_stages)) <= 80
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert main(["show", str(run), "--open"]) == 0
    page = Path(opened[0].removeprefix("file://"))
    assert "align is better than sft" in page.read_text() and contents(run) == before
    shutil.rmtree(page.parent)


def test_the_same_run_gives_the_same_three_files(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    write.write_report(run)
    assert json.loads((run / "report.json").read_text())["run"]["name"] == "small"
    first = contents(run)
    write.write_report(run)
    assert contents(run) == first


def test_a_failure_is_shown_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run")
    lines = [
        {"event": "start", "time": 4e9},
        {
            "event": "end",
            "time": 4e9 + 1,
            "outcome": "failed",
            "message": "error: the disk\n  is full",
        },
    ]
    with (run / "starts.jsonl").open("a") as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines))
    assert main(["show", str(run)]) == 0
    out = capsys.readouterr().out
    reason = "the disk is full\nsft "
    assert out.startswith(f"small: failed, 4 of 4 stages\n{reason}")


def test_a_run_that_is_not_named_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show"]) == 2
    assert "there are no runs in runs/" in capsys.readouterr().err
    make_run(Path("runs/small"))
    for word in ("small", "runs/smal"):
        assert main(["show", word]) == 2
        text = f"{word} is no run: there is no such folder\n  help: did you mean 'runs/small'?"
        assert text in capsys.readouterr().err
    assert main(["show", "runs/small/align"]) == 2
    assert "help: it is in a run: alignkit show runs/small\n" in capsys.readouterr().err
    for words in (["show"], ["show", "runs"]):
        assert main(words) == 0
        assert "runs/small  done" in capsys.readouterr().out
    assert main(["show", "align@ppo"]) == 2
    assert "help: write RUN/align@ppo" in capsys.readouterr().err


def test_the_command_refuses_what_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        assert main(["show", str(folder)]) == 2
        assert capsys.readouterr().err.startswith("error: ")
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


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
    assert (
        line.startswith("no report was written (") and "alignkit show" in line and "\n" not in line
    )


def started(recipe: Path, out: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A run in a process of its own, with a report."""
    command = [sys.executable, "-m", "alignkit", "run", str(recipe), "--out", str(out)]
    env = {**os.environ, "ALIGNKIT_REPORT": "", **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=ROOT)


@pytest.fixture(scope="module")
def smoke(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """One real run: the smoke recipe."""
    out = tmp_path_factory.mktemp("smoke") / "run"
    return out, started(ROOT / "recipes" / "smoke.yaml", out)


def test_a_run_ends_with_its_report(smoke: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = smoke
    assert done.returncode == 0 and f"report: {out / 'report.html'}" in done.stderr.splitlines()
    facts = json.loads((out / "report.json").read_text())
    assert facts["run"]["outcome"] == "done" and facts["run"]["stages_done"] == 6
    assert [(item["stage"], item["rows"]) for item in facts["data"]][:2] == [
        ("sft", 40),
        ("helpful", 48),
    ]
    assert facts["reproduce"]["command"].startswith("python -m alignkit run ")
    assert facts["reproduce"]["machine"]["cores"] > 0 and len(facts["verdicts"]) == 2
    page = (out / "report.html").read_text()
    Reader(page)
    assert page.count("data:image/svg+xml") > 10 and len(page.encode()) < 600_000


def test_a_run_that_fails_has_a_report_and_its_exit_code(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: broken\n"
        f"model: {{base: tiny}}\n"
        "stages:\n"
        f"  sft: {{algorithm: sft, data: {{path: {ROOT / 'recipes/data/demos.jsonl'}, limit: 8}}, "
        f"max_length: 2}}\n"
    )
    done = started(recipe, tmp_path / "out")
    assert done.returncode != 0
    facts = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (
        facts["run"]["outcome"] == "failed"
        and facts["run"]["message"].splitlines()[0] in done.stderr
    )
    assert "report: " in done.stderr
    silent = started(recipe, tmp_path / "silent", ALIGNKIT_REPORT="0")
    assert (
        silent.returncode == done.returncode and not (tmp_path / "silent" / "report.html").exists()
    )


CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)


def asked(page: Path, scratch: Path) -> tuple[set[str], str, str]:
    """The addresses that a page requests in Chromium, its text, and what Chromium says. Chromium's
    own are left out.
    """
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--no-first-run",
    ]
    command += ["--proxy-server=http://127.0.0.1:9", f"--user-data-dir={scratch / 'profile'}"]
    command += [f"--log-net-log={scratch / 'net.json'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    events = [
        event.get("params", {})
        for event in json.loads((scratch / "net.json").read_text())["events"]
    ]
    found = {
        one["url"]
        for one in events
        if "url" in one and one.get("initiator", "not an origin") != "not an origin"
    }
    return {url for url in found if url != page.as_uri()}, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_asks_for_nothing_and_finds_no_error(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    page = write.write_report(run)
    addresses, text, said = asked(page, tmp_path)
    assert addresses == set() and "align is better than sft" in text
    assert "CONSOLE" not in said, said
    # The same page with a picture, and without the policy that forbids it, so that this would be
    # seen.
    other = page.with_name("other.html")
    changed = (
        page.read_text()
        .replace("default-src 'none'", "default-src *")
        .replace("img-src data:", "img-src *")
    )
    other.write_text(changed.replace("<main>", '<main><img src="http://192.0.2.1/picture.png">'))
    assert asked(other, tmp_path)[0] == {"http://192.0.2.1/picture.png"}
