"""`alignkit label`: what it reads, what it refuses, and that the server ends as it should."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import main
from alignkit.errors import DataError, RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.runs.stage_store import StageStore
from alignkit_apps.label.guidelines import Guidelines, rendered
from alignkit_apps.label.start import Plans, Source, _greet, file_groups, prepared, stage_groups
from alignkit_apps.web import hosting
from alignkit_plugins.people.asking import Wanted, items_of
from alignkit_plugins.people.store import Store
from tests.patience import PATIENCE

PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompt(n: int, **more: Any) -> dict[str, Any]:
    return {**PAIR, "prompt": f"Hi {n}", **more}


def test_rows_become_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is in the current folder, and names the file from there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    file = write(tmp_path / "data" / "pairs.jsonl", prompt(1), prompt(2), prompt(3))
    plans = Plans(task="safety", batch="week 1", license="CC0-1.0", overlap=2, gold_rate=0.1, seed=4)
    with prepared(Source(str(file), limit=2), None, plans) as store:
        assert store.path == Path("pairs.feedback")
        found = [stored.item for stored in store.items()]
        assert [(item.task, item.file, item.row, item.batch, item.license) for item in found] == [
            ("safety", "data/pairs.jsonl", row, "week 1", "CC0-1.0") for row in (1, 2)
        ]
        assert (store.plan.overlap, store.plan.gold_rate, store.plan.repeat_rate, store.plan.seed) == (2, 0.1, 0.02, 4)
    with prepared(Source("pairs.feedback"), None, Plans()) as store:
        assert len(store.items()) == 2 and store.plan.overlap == 2


@pytest.mark.parametrize("named", [False, True])
def test_answers_that_nobody_compared_are_pairs_and_rankings(tmp_path: Path, named: bool) -> None:
    """Also with columns that the command line names, as a recipe does."""
    row = {"prompt": "Hi", "response_a": "Hello!", "response_b": "What?"}
    file = write(tmp_path / "a.jsonl", {"q" if named and name == "prompt" else name: row[name] for name in row})
    data = f"{{path: {file}, columns: {{prompt: q}}}}" if named else str(file)
    with prepared(Source(data), tmp_path / "a.feedback", Plans()) as store:
        (item,) = (stored.item for stored in store.items())
        assert (item.task, item.prompt[0]["content"], item.responses) == ("pair", "Hi", ("Hello!", "What?"))
    many = write(tmp_path / "b.jsonl", {"prompt": "Hi", "answers": ["a", "b", "c"]})
    with pytest.raises(RecipeError, match="see nothing of the texts in column 'answers'") as refused:
        prepared(Source(str(many)), tmp_path / "b.feedback", Plans())
    assert f"alignkit label '{{unlabeled: {many}}}'" in str(refused.value)
    for data, task in ((f"{{unlabeled: {many}}}", None), (str(many), "demonstration")):
        with prepared(Source(data), tmp_path / f"{task}.feedback", Plans(task=task)) as store:
            assert [stored.item.task for stored in store.items()] == [task or "ranking"]


def test_a_changed_row_retires_its_item(tmp_path: Path) -> None:
    file, path = write(tmp_path / "a.jsonl", prompt(1), prompt(2)), tmp_path / "a.feedback"
    prepared(Source(str(file)), path, Plans()).close()
    write(file, prompt(1, chosen="Hello, Ada!"), prompt(2))
    with prepared(Source(str(file)), path, Plans()) as store:
        assert [stored.retired for stored in store.items()] == [True, False, False]


def test_a_row_of_several_items_keeps_them_all(tmp_path: Path) -> None:
    """Texts of several people for one prompt are one row, and an item each."""
    votes = [{"annotator": name, "label": {"text": f"by {name}"}} for name in ("ada", "bob")]
    item = {"task": "demonstration", "prompt": [{"role": "user", "content": "Write"}], "responses": []}
    file = write(tmp_path / "a.jsonl", {"feedback": 1, "item": item, "votes": votes})
    with prepared(Source(str(file)), tmp_path / "a.feedback", Plans()) as store:
        assert [(stored.item.file, stored.retired) for stored in store.items()] == [
            ("a.jsonl", False),
            ("a.jsonl#2", False),
        ]


def test_gold_rows(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", prompt(1), prompt(2))
    gold = write(tmp_path / "gold.jsonl", prompt(2, chosen="What?", rejected="Hello!"), prompt(3))
    path = tmp_path / "a.feedback"
    prepared(Source(str(file)), path, Plans()).close()
    with prepared(Source(str(file)), path, Plans(), gold) as store:
        found = {stored.item.prompt[0]["content"]: stored.item.gold for stored in store.items() if stored.item.gold}
        assert found == {"Hi 2": {"better": 0}, "Hi 3": {"better": 0}}
    bare = write(tmp_path / "bare.jsonl", {"prompt": "Hi", "responses": ["a", "b"], "ranks": [1, 1]})
    with pytest.raises(DataError, match=r"bare\.jsonl:1.*states no label"):
        items_of(file_groups(bare), Wanted(), tmp_path, gold=True)


def test_gold_rankings_and_thumbs(tmp_path: Path) -> None:
    ranked = write(tmp_path / "r.jsonl", {"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]})
    thumbs = write(tmp_path / "t.jsonl", {"prompt": "Hi", "completion": "a", "label": True})
    assert items_of(file_groups(ranked), Wanted(), tmp_path, gold=True)[0].gold == {"ranks": [2, 1, 2]}
    assert items_of(file_groups(thumbs), Wanted("thumb"), tmp_path, gold=True)[0].gold == {"good": True}


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["label", *arguments])
    return code, capsys.readouterr().err


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("starlette")
    monkeypatch.chdir(tmp_path)
    many = write(
        tmp_path / "many.jsonl", {"prompt": "Hi", "responses": list(map(str, range(40))), "ranks": list(range(40))}
    )
    pairs = write(tmp_path / "pairs.jsonl", PAIR)
    bad = write(tmp_path / "bad.jsonl", {**PAIR, "chosen": 3})
    long = write(tmp_path / "long.jsonl", prompt(1, chosen="x" * 200_001))
    (tmp_path / "old.feedback").write_text("not a store", encoding="utf-8")
    (tmp_path / "latin.md").write_bytes(b"\xe9")
    (tmp_path / "a.yaml").write_text("name: a", encoding="utf-8")
    for arguments, code, texts in (
        (["nowhere.jsonl"], 2, ["no such file: nowhere.jsonl"]),
        (["a.yaml"], 2, ["a recipe needs a stage", "alignkit label a.yaml STAGE"]),
        ([str(pairs), "sft"], 2, ["not a recipe"]),
        ([str(many)], 4, ["many.jsonl:1", "a ranking has 2 to 9 responses, not 40", "keep at most 9", "pairs_per_row"]),
        ([str(pairs), "--task", "pairs"], 2, ["unknown task 'pairs'", "did you mean 'pair'?"]),
        ([str(pairs), "--task", "thumb"], 4, ["a thumb has 1 response, not 2"]),
        ([str(long)], 4, ["long.jsonl:1", "nobody can read"]),
        ([str(pairs), "--store", "labels.db"], 2, ["must end in .feedback"]),
        ([str(pairs), "--overlap", "0"], 2, ["--overlap must be at least 1, not 0"]),
        ([str(pairs), "--repeat-rate", "5"], 2, ["--repeat-rate is a share", "below 1, not 5"]),
        (
            [str(pairs), "--repeat-rate", "0.5", "--gold-rate", "0.5"],
            2,
            ["--gold-rate and --repeat-rate must be below"],
        ),
        ([str(pairs), "--annotator", "ada", "--annotator", "ada"], 2, ["--annotator ada is there twice"]),
        ([str(pairs), "--guidelines", "no.md"], 4, ["no.md", "No such file"]),
        ([str(pairs), "--guidelines", "latin.md"], 4, ["latin.md", "not UTF-8 at byte 0"]),
        ([str(pairs), "--annotator", "a\nb"], 4, ["annotator's name"]),
        ([str(bad)], 4, ["bad.jsonl:1", "help: correct the rows\n"]),
        (["old.feedback"], 4, ["not a SQLite file"]),
        (["new.feedback"], 4, ["there is no such file"]),
    ):
        found, text = fails(capsys, *arguments)
        assert (found, [part for part in texts if part not in text]) == (code, []), text
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(hosting, "PORT", int(port))
        for words in (["--port", port], ["--host", "https://a.example"]):  # a proxy would not see which other one it is
            found, text = fails(capsys, str(pairs), *words)
            assert found == 2 and f"port {port} is in use" in text


def test_a_license_of_known_items(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Items that have one keep it; without a file, all items of the store that have none get it."""
    path = tmp_path / "a.feedback"
    file = write(tmp_path / "a.jsonl", prompt(1), prompt(2, license="MIT"))
    other = write(tmp_path / "b.jsonl", prompt(3))

    def licenses(source: Path, store: Path | None, license: str = "") -> list[str]:
        with prepared(Source(str(source)), store, Plans(license=license)) as opened:
            return [stored.item.license for stored in opened.items()]

    assert licenses(file, path) == ["", "MIT"] and licenses(other, path) == ["", "MIT", ""]
    assert licenses(file, path, "CC0-1.0") == ["CC0-1.0", "MIT", ""]
    assert "1 item without a license: now CC0-1.0" in capsys.readouterr().err
    assert licenses(path, None, "CC-BY-4.0") == ["CC0-1.0", "MIT", "CC-BY-4.0"]


def test_what_it_says_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.jsonl", PAIR)
    with prepared(Source(str(file)), tmp_path / "a.feedback", Plans(overlap=3)) as store:
        _greet(store, 1)
        alone = capsys.readouterr().err
        _greet(store, 3)
        three = capsys.readouterr().err
    assert "1 item to label" in alone and "labels by 3 people, but only 1 can label" in alone
    assert "add 2 more --annotator" in alone and "warning" not in three


def test_without_the_packages_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.chdir(tmp_path)
    code, text = fails(capsys, str(write(tmp_path / "a.jsonl", PAIR)))
    assert code == 1 and "the page needs the package starlette\nhelp: " in text and "'uvicorn>=" in text
    assert not (tmp_path / "a.feedback").exists()


RECIPE = """
name: a
model: {base: tiny}
stages:
  sft: {algorithm: sft, data: demos.jsonl}
  helpful: {algorithm: reward_model, data: pairs.jsonl}
"""


def test_a_stage_of_a_recipe(tmp_path: Path) -> None:
    """What it reads, or what it wrote."""
    write(tmp_path / "pairs.jsonl", PAIR)
    write(tmp_path / "demos.jsonl", {"prompt": "Hi", "completion": "Hello!"})
    file = tmp_path / "a.yaml"
    file.write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe(file)
    groups = stage_groups(recipe, "helpful", tmp_path / "run")
    assert [item.task for item in items_of(groups, Wanted(), tmp_path)] == ["pair"]
    groups = stage_groups(recipe, "sft", tmp_path / "run")
    assert [item.task for item in items_of(groups, Wanted(), tmp_path)] == ["demonstration"]


def test_a_stage_that_is_repeated(tmp_path: Path) -> None:
    write(tmp_path / "prompts.jsonl", {"prompt": "Hi"})
    file = tmp_path / "a.yaml"
    file.write_text(
        "{name: a, model: {base: tiny}, stages: {v: {repeat: 11, stages: {labels: "
        "{step: people, data: prompts.jsonl}}}}}",
        encoding="utf-8",
    )
    recipe = load_recipe(file)
    with pytest.raises(RecipeError, match=r"(?s)no stage 'labels'.*repeated; name a round, such as 'labels_1'"):
        stage_groups(recipe, "labels", tmp_path)
    run = StageStore(tmp_path, recipe.stages)
    run.begin("labels_2", "a hash")
    run.wait("labels_2", 3, tmp_path / "labels.feedback")
    with pytest.raises(RecipeError, match="repeated, and 'labels_2' waits for labels"):
        stage_groups(recipe, "labels", tmp_path)


def test_guidelines(tmp_path: Path) -> None:
    file = tmp_path / "guide.md"
    file.write_text("one", encoding="utf-8")
    with Store.open(tmp_path / "a.feedback", new=True) as store:
        guide = Guidelines(store, file)
        first = guide.current()
        file.write_text("two, longer", encoding="utf-8")
        second = guide.current()
        file.unlink()
        assert guide.current() == second  # people at work keep the last version
        assert store.guidelines() == [first, second] and second[1] == "two, longer"
        assert Guidelines(store).current() == second  # without a file, the store's own
    assert rendered("a | b\n--|--\n<b>1</b> | ![x](y)").count("<img") == 0


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends(tmp_path: Path, sign: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", *map(prompt, range(3)))
    command = [sys.executable, "-m", "alignkit", "label", "a.jsonl", "--annotator", "ada"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address)
            with pytest.raises(urllib.error.HTTPError) as closed:  # the redirect is followed without the cookie
                urllib.request.urlopen(address, timeout=PATIENCE)
            closed.value.close()
            assert closed.value.code == 401
            server.send_signal(sign)
            text = server.communicate(timeout=PATIENCE)[1]
        finally:
            server.kill()
    if sign is signal.SIGINT:
        assert server.returncode == 0 and "no labels yet; they will be in a.feedback\n" in text
    with prepared(Source("a.feedback"), None, Plans()) as store:
        assert len(store.items()) == 3
