"""Files that code of users reads: they are in the key of the stage whose code it is, by content."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from alignkit import __version__
from alignkit.cli import main
from alignkit.host.plugins import import_file, load_plugins
from alignkit.io.digest import source_digests
from alignkit.io.opened import files_read
from alignkit.io.results import read_record
from alignkit.models import loading
from tests.rows import Said, run, write_recipe

LOADED = "import importlib; importlib.import_module('hel' + 'per')"
# What a module does when it is imported -> whether `words.txt` counts, or else which files do
CODE = [
    ("open('words.txt').read()", True),
    ("from pathlib import Path; Path(__file__).with_name('words.txt').read_bytes()", True),
    ("import os; os.close(os.open('words.txt', os.O_RDONLY))", True),
    ("import csv; list(csv.reader(open('words.txt')))", True),
    ("import helper", True),
    (LOADED, "helper.py words.txt"),
    (f"{LOADED}\nimport sys\ndel sys.modules['helper']\n{LOADED}", "helper.py words.txt"),
    (
        "from importlib.machinery import SourceFileLoader as L; L('', '').get_data('words.txt')",
        True,
    ),
    (
        "from concurrent.futures import ThreadPoolExecutor as T; T(1).submit(open, 'words.txt').result()\n"
        "T(1).submit(lambda: open('words.txt').read()).result()",
        True,
    ),
    ("import os\nif not os.fork():\n  open('words.txt')\n  os._exit(0)\nos.wait()", True),
    ("import json; json.load(open('run/own.json'))", False),
    ("open('words.txt', 'a').close(); open('words.txt').read()", False),
    (
        "open('words.txt').read(); open('new', 'w').close(); import os; os.replace('new', 'words.txt')",
        False,
    ),
    ("open('words.txt').read(); import os; os.remove('words.txt')", False),
    ("from contextlib import suppress\nwith suppress(OSError): open('later.txt')", "later.txt"),
    ("open('made.txt', 'x').close(); open('made.txt').read()", False),
    ("from pathlib import Path; [*Path('lists').glob('*.txt')]", "lists/"),
    ("import glob; glob.glob('lists/*.txt'); glob.glob('run/*')", "lists/"),
    ("import os; os.listdir('lists'); open('lists/own', 'w').close()", False),
    ("import importlib.metadata as m; m.version('torch')", False),
    ("open('/proc/self/stat').read(); open('/etc/hostname').read()", False),
    ("import alignkit.data.files, linecache; linecache.getline(__file__, 1)", False),
]


@pytest.mark.parametrize(("code", "counts"), CODE)
def test_what_is_read_and_not_written_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, counts: bool | str
) -> None:
    load_plugins()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "helper", raising=False)
    (tmp_path / "run").mkdir()
    (tmp_path / "lists").mkdir()
    for name, text in (("words.txt", "a"), ("run/own.json", "1"), ("user.py", code)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "helper.py").write_text("WORDS = open('words.txt').read()", encoding="utf-8")
    importlib.invalidate_caches()
    import_file(tmp_path / "user.py")
    (tmp_path / "other.py").touch()
    key = {"source": source_digests(tmp_path / "user.py")}
    found = files_read(key, tmp_path / "run")
    names = {True: "words.txt", False: ""}.get(counts, counts)  # type: ignore[call-overload]
    assert found == [f"{tmp_path}/{name}" for name in names.split()]
    assert files_read({"source": source_digests(tmp_path / "other.py")}, tmp_path) == []


REWARD = """
import glob
WORDS = open("words.txt").read() + str(glob.glob("lists/*"))

def score(prompts, completions, **columns):
    open("called.txt").read()
    return [float(len(WORDS)) for _ in completions]
"""
STEP = {
    "step": "sample",
    "prompts": "prompts.jsonl",
    "samples_per_prompt": 2,
    "sampling": {"max_new_tokens": 1},
}


@pytest.mark.silent_bug(
    "runs: files of a reward",
    "A file that a Python reward reads is changed, and the old result is reused.",
    "Its content is in the stage's key; the stage is made again and names the file.",
)
def test_a_stage_is_made_again_when_a_file_of_its_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("reward.py", REWARD), ("words.txt", "a"), ("called.txt", "b")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "lists").mkdir()
    reward = {"python": {"path": "reward.py", "function": "score"}}
    stages = {
        "plain": STEP,
        "best": {**STEP, "reward": reward},
        "next": {"step": "clean", "data": {"stage": "best"}},
    }
    recipe = write_recipe(tmp_path, stages)

    def told() -> list[str]:
        said()
        run(recipe)
        return [
            line for line in said().splitlines() if "unchanged" in line or "changed since" in line
        ]

    assert told() == []
    reused = [f"{name}: unchanged, reused" for name in stages]
    assert told() == reused
    for name in ("words.txt", "called.txt"):
        old = (tmp_path / name).read_text()
        (tmp_path / name).write_text("another", encoding="utf-8")
        again = f"best: changed since the last run ({name}: the file has changed), starting over"
        upstream = "next: changed since the last run (best has changed), starting over"
        assert told() == [reused[0], again, upstream]
        assert told() == reused
        (tmp_path / name).write_text(old, encoding="utf-8")
        assert told() == reused  # earlier results are there
    (tmp_path / "lists" / "more.txt").touch()
    again = "best: changed since the last run (lists: files were added or removed), starting over"
    assert again in told()
    files = read_record(tmp_path / "run" / "best")["depends_on"]["files"]
    assert {os.path.basename(file) for file in files} == {"words.txt", "called.txt", ""}
    assert main(["verify", str(tmp_path / "run" / "best")]) == 0
    (tmp_path / "words.txt").unlink()
    assert main(["verify", str(tmp_path / "run" / "best")]) == 2
    assert "words.txt" in said()


def test_a_result_of_another_machine_is_reused_with_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Said
) -> None:
    recipe = write_recipe(
        tmp_path, {"plain": STEP, "clean": {"step": "clean", "data": "demos.jsonl"}}
    )
    record = read_record(run(recipe) / "plain")
    assert record["made_on"].startswith("float32 on ") and record["made_on"].endswith(" threads")
    assert record["memory"] > 2**20  # bytes
    assert record["backend"] == f"cpu {__version__}"
    run(recipe)
    assert "warning: made" not in said()
    for fact in ("made_on", "backend"):
        here = {**record, fact: "another"}
        monkeypatch.setattr(loading, "machine", lambda spec, here=here: here)
        run(recipe)
        text = said()
        assert f"plain: warning: made in {record[fact]}, and its numbers differ in another" in text
        assert text.count("warning: made") == 1
