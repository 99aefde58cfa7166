"""starts.jsonl: how each start of a run ended, on which machine, from which commit."""

import json
import subprocess
from pathlib import Path

import pytest

from alignkit.errors import RunFailed, Stopped
from alignkit_plugins.report.run_history import commit_of, machine, write_end, write_start


def git(folder: Path, *words: str) -> str:
    author = ["-c", "user.name=a", "-c", "user.email=a@example.com"]
    done = subprocess.run(
        ["git", *author, *words], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_the_recipe(tmp_path: Path) -> None:
    assert commit_of(tmp_path / "missing") == ""
    repository = tmp_path / "repository"
    (repository / "recipes").mkdir(parents=True)
    git(repository, "init", "-q")
    assert commit_of(repository) == ""  # no commit yet
    git(repository, "commit", "-q", "--allow-empty", "-m", "one")
    commit = git(repository, "rev-parse", "HEAD")
    assert commit_of(repository / "recipes") == commit
    git(repository, "worktree", "add", "-q", str(tmp_path / "tree"))
    assert commit_of(tmp_path / "tree") == commit
    git(repository, "pack-refs", "--all")
    assert commit_of(repository) == commit
    git(repository, "checkout", "-q", "--detach")
    assert commit_of(repository) == commit


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, "done"),
        (RunFailed("broken"), "failed"),
        (KeyboardInterrupt(), "interrupted"),
        (Stopped("SIGTERM"), "interrupted"),
    ],
)
def test_ends_say_how_it_ended(error: BaseException | None, outcome: str, tmp_path: Path) -> None:
    write_start(tmp_path, tmp_path)
    write_end(tmp_path, error, ["sft"], "1 GiB")
    start, end = map(json.loads, (tmp_path / "starts.jsonl").read_text().splitlines())
    assert (
        start["event"] == "start"
        and start["cores"] >= 1
        and start["memory"] > 0
        and "command" in start
    )
    assert end["outcome"] == outcome and end["reused"] == ["sft"] and end["peak_memory"] == "1 GiB"
    assert ("broken" in end["message"]) == isinstance(error, RunFailed)


def test_keys_in_messages_are_hidden(tmp_path: Path) -> None:
    write_end(tmp_path, RunFailed("the key sk-abcdefghijklmnop1234 is wrong"), [], "")
    assert "sk-abc" not in (tmp_path / "starts.jsonl").read_text()


def test_a_line_that_was_cut_does_not_spoil_the_next(tmp_path: Path) -> None:
    (tmp_path / "starts.jsonl").write_text('{"event": "st')
    write_end(tmp_path, None, [], "")
    assert json.loads((tmp_path / "starts.jsonl").read_text())["outcome"] == "done"


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    write_start(tmp_path / "missing", tmp_path)
    assert not (tmp_path / "missing").exists()


def test_the_machine_has_no_name() -> None:
    import platform

    assert platform.node() == "" or platform.node() not in json.dumps(machine())
