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
from alignkit.errors import DataError
from alignkit_plugins.people import server
from alignkit_plugins.people.command import greet, groups_of, prepared
from alignkit_plugins.people.items import items_of
from alignkit_plugins.people.label_api import guidelines_now, rendered
from alignkit_plugins.people.store import Store
from tests.patience import PATIENCE

PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def prompt(n: int, **more: Any) -> dict[str, Any]:
    return {**PAIR, "prompt": f"Hi {n}", **more}


def test_rows_become_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is in the current folder. A row that is gone from the file is asked about no
    more.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    file = write(tmp_path / "data" / "pairs.jsonl", prompt(1), prompt(2, license="MIT"))
    with prepared(Path("data/pairs.jsonl"), "safety", None, overlap=2) as store:
        assert store.path == Path("pairs.feedback")
        kept = [
            (one.item.task, one.item.batch, one.item.license, one.wanted) for one in store.items()
        ]
        assert kept == [("safety", "data/pairs.jsonl", license, 2) for license in ("", "MIT")]
    write(file, prompt(1, chosen="Hello, Ada!"), prompt(2))
    with prepared(file, "safety", None) as store:
        assert [stored.retired for stored in store.items()] == [True, False, False]
    with prepared(Path("pairs.feedback"), None, None, overlap=3) as store:
        assert [stored.wanted for stored in store.items()] == [2, 3, 3]


def test_answers_that_nobody_compared_are_pairs_and_rankings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", {"prompt": "Hi", "response_a": "Hello!", "response_b": "What?"})
    write(tmp_path / "b.jsonl", {"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [1, 1, 1]})
    for name, task, count in (("a", "pair", 2), ("b", "ranking", 3)):
        with prepared(Path(f"{name}.jsonl"), None, None) as store:
            (item,) = (stored.item for stored in store.items())
            assert (item.task, len(item.responses)) == (task, count)


def test_gold_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "a.jsonl", prompt(1), prompt(2))
    gold = write(tmp_path / "gold.jsonl", prompt(2, chosen="What?", rejected="Hello!"), prompt(3))
    prepared(file, None, None).close()
    for data in (file, Path("a.feedback")):
        with prepared(data, None, gold) as store:
            known = {
                one.item.prompt[0]["content"]: one.item.gold
                for one in store.items()
                if one.item.gold
            }
            assert known == {"Hi 2": {"better": 0}, "Hi 3": {"better": 0}}
            assert not any(stored.retired for stored in store.items() if stored.item.gold)
    bare = write(
        tmp_path / "bare.jsonl", {"prompt": "Hi", "responses": ["a", "b"], "ranks": [1, 1]}
    )
    with pytest.raises(DataError, match=r"bare\.jsonl:1.*states no label"):
        items_of(groups_of(bare), gold=True)
    ranked = write(
        tmp_path / "r.jsonl", {"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}
    )
    thumbs = write(tmp_path / "t.jsonl", {"prompt": "Hi", "completion": "a", "label": True})
    assert items_of(groups_of(ranked), gold=True)[0].gold == {"ranks": [2, 1, 2]}
    assert items_of(groups_of(thumbs), "thumb", gold=True)[0].gold == {"good": True}


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main(["label", *arguments])
    return code, capsys.readouterr().err


def test_what_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("starlette")
    monkeypatch.chdir(tmp_path)
    many = write(
        tmp_path / "many.jsonl",
        {"prompt": "Hi", "responses": list(map(str, range(40))), "ranks": list(range(40))},
    )
    pairs = write(tmp_path / "pairs.jsonl", PAIR)
    bad = write(tmp_path / "bad.jsonl", {**PAIR, "chosen": 3})
    (tmp_path / "old.feedback").write_text("not a store", encoding="utf-8")
    (tmp_path / "latin.md").write_bytes(b"\xe9")
    for arguments, code, texts in (
        (["nowhere.jsonl"], 2, ["no such file: nowhere.jsonl"]),
        ([str(many)], 4, ["many.jsonl:1", "a ranking has 2 to 9 responses, not 40"]),
        ([str(pairs), "--task", "pairs"], 2, ["unknown task 'pairs'", "did you mean 'pair'?"]),
        ([str(pairs), "--task", "thumb"], 4, ["a thumb has 1 to 1 responses, not 2"]),
        ([str(pairs), "--overlap", "0"], 2, ["--overlap"]),
        (
            [str(pairs), "--qualify", "2"],
            2,
            ["--qualify 2: the store has only 0 gold items", "--gold FILE"],
        ),
        ([str(pairs), "--guidelines", "no.md"], 4, ["no.md", "No such file"]),
        ([str(pairs), "--guidelines", "latin.md"], 4, ["latin.md", "can't decode byte"]),
        ([str(pairs), "--annotator", "a\nb"], 4, ["annotator's name"]),
        ([str(bad)], 4, ["bad.jsonl:1", "help: correct the rows\n"]),
        (["old.feedback"], 4, ["no store of labels"]),
        (["new.feedback"], 4, ["there is no such file"]),
    ):
        found, text = fails(capsys, *arguments)
        assert (found, [part for part in texts if part not in text]) == (code, []), text
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(server, "PORT", int(port))
        # A proxy would not see which other one it is
        for words in (["--port", port], ["--host", "https://a.example"]):
            found, text = fails(capsys, str(pairs), *words)
            assert found == 2 and f"port {port} is in use" in text


def test_what_it_says_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path / "a.jsonl", PAIR)
    monkeypatch.chdir(tmp_path)
    with prepared(file, None, None, overlap=3) as store:
        greet(store, 1)
        alone = capsys.readouterr().err
        greet(store, 3)
        three = capsys.readouterr().err
    assert "items to label: 1" in alone and "labels by 3 people, but only 1 can label" in alone
    assert "name more with --annotator" in alone and "warning" not in three


def test_without_the_packages_it_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    monkeypatch.chdir(tmp_path)
    code, text = fails(capsys, str(write(tmp_path / "a.jsonl", PAIR)))
    assert (
        code == 1
        and "the page needs the package starlette\nhelp: " in text
        and "'alignkit[label]'" in text
    )
    assert not (tmp_path / "a.feedback").exists()


def test_guidelines(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.feedback", new=True) as store:
        assert guidelines_now(store)[1].startswith("# How to label")
        for text in ("one", "two, longer"):
            store.add_guidelines(text)
        assert guidelines_now(store)[1] == "two, longer"
    assert rendered("a | b\n--|--\n<b>1</b> | ![x](y)").count("<img") == 0


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends(
    tmp_path: Path, sign: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", *map(prompt, range(3)))
    command = [sys.executable, "-m", "alignkit", "label", "a.jsonl", "--annotator", "ada"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address)
            # The redirect is followed without the cookie
            with pytest.raises(urllib.error.HTTPError) as closed:
                urllib.request.urlopen(address, timeout=PATIENCE)
            closed.value.close()
            assert closed.value.code == 401
            server.send_signal(sign)
            text = server.communicate(timeout=PATIENCE)[1]
        finally:
            server.kill()
    if sign is signal.SIGINT:
        assert server.returncode == 0 and "labels in a.feedback: 0; " in text
    with prepared(Path("a.feedback"), None, None) as store:
        assert len(store.items()) == 3
