"""`alignkit label`: what it reads, what it refuses, and that the server ends as it should."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPCookieProcessor, OpenerDirector, Request, build_opener

import pytest
from stores import event, opened, pair, side

from alignkit.cli import main
from alignkit.errors import DataError
from alignkit_plugins.people.command import greet, groups_to_label, prepared, say_goodbye
from alignkit_plugins.people.items import items_of
from alignkit_plugins.servers import server
from tests.patience import PATIENCE
from tests.people.pages import application, visit
from tests.rows import Said, cells, write_rows

PAIR = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}


pytestmark = pytest.mark.usefixtures("here")  # stores are made in the current folder


def write(name: str, *rows: Any) -> Path:
    return write_rows(Path(name), rows)


def prompt(n: int, **more: Any) -> dict[str, Any]:
    return {**PAIR, "prompt": f"Hi {n}", **more}


def test_rows_become_items() -> None:
    """A row that is gone from the file is asked about no more."""
    Path("data").mkdir()
    file = write("data/pairs.v1.jsonl", prompt(1), prompt(2, license="MIT"), prompt(1, license="X"))
    with prepared(file, "safety", None, overlap=2) as store:
        kept = [
            (one.item.task, one.item.batch, one.item.license, one.wanted) for one in store.items()
        ]
        assert kept == [("safety", "pairs.v1.jsonl", license, 2) for license in ("", "MIT")]
    write("data/pairs.v1.jsonl", prompt(1, chosen="Hello, Ada!"), prompt(2))
    with prepared(file.absolute(), "safety", None) as store:
        assert [stored.retired for stored in store.items()] == [True, False, False]
    prepared(Path("data/pairs.feedback"), None, None, overlap=3).close()
    with prepared(Path("data/pairs.feedback"), None, None) as store:
        assert [stored.wanted for stored in store.items()] == [2, 3, 3]


# What lies there already; the file to label; where its labels go.
PLACES = """
                                | data/a.b.jsonl          | data/a.feedback
old labels: a.feedback          | data/a.b.jsonl          | a.feedback
labels of another: a.feedback   | data/a.b.jsonl          | data/a.feedback
nothing may be written in: data | data/a.b.jsonl          | a.feedback
a stage: runs/x/one@2           | runs/x/one@2/data.jsonl | runs/x/one@2.feedback
"""


@pytest.mark.parametrize("have, name, expected", cells(PLACES))
def test_where_labels_go(
    have: str, name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Next to the data, but not into a stage's folder, which a later run replaces. A store that an
    earlier version made in the current folder is used.
    """
    case, _, place = have.partition(": ")
    Path(name).parent.mkdir(parents=True)
    if case == "a stage":
        Path(place, "stage.json").touch()
    elif case == "nothing may be written in":
        monkeypatch.setattr("os.access", lambda *place: False)
    elif place:
        opened(Path(), name=place).close()
    if case == "labels of another":
        write("a.b.jsonl", PAIR)
    with prepared(write(name, PAIR), None, None) as store:
        assert store.path == Path(expected)


def test_gold_rows() -> None:
    file = write("a.jsonl", prompt(1), prompt(2))
    gold = write("gold.jsonl", prompt(2, margin="slightly"), prompt(3, margin=1.5))
    prepared(file, None, None).close()
    for data in (file, Path("a.feedback")):
        with prepared(data, None, gold) as store:
            known = {
                one.item.prompt[0]["content"]: (one.item.gold, one.retired) for one in store.items()
            }
        slightly = {"better": 0, "margin": "slightly"}, False
        right = {"better": 0}, False
        assert known == {"Hi 1": (None, False), "Hi 2": slightly, "Hi 3": right}
    with prepared(write("b.jsonl", prompt(1)), "safety", gold) as store:
        assert {one.item.task for one in store.items()} == {"safety"}
    bare = write("bare.jsonl", {"prompt": "Hi", "response_a": "Hello!", "response_b": "What?"})
    assert [item.task for item in items_of(groups_to_label(bare))] == ["pair"]
    with pytest.raises(DataError, match=r"bare\.jsonl:1.*states no label"):
        items_of(groups_to_label(bare), gold=True)
    ranked = write("r.jsonl", {"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [3, 0, 3]})
    turned = write("p.jsonl", {"input": "Hi", "output_1": "a", "output_2": "b", "label": 2})
    assert items_of(groups_to_label(turned), gold=True)[0].gold == {"better": 1}
    likelier = write("l.jsonl", prompt(1, p=0.2))
    assert items_of(groups_to_label(likelier), gold=True)[0].gold == {"better": 1}
    thumbs = write("t.jsonl", {"prompt": "Hi", "completion": "a", "label": False})
    for task in (None, "review"):
        assert items_of(groups_to_label(ranked), task, gold=True)[0].gold == {"ranks": [2, 1, 2]}
    assert items_of(groups_to_label(thumbs), "thumb", gold=True)[0].gold == {"good": False}
    unsaid = write("u.jsonl", {"prompt": "Hi", "completion": "a"})
    with pytest.raises(DataError, match="gold label of a thumb"):
        items_of(groups_to_label(unsaid), "thumb", gold=True)


def test_answers_in_another_order_are_the_same_item(said: Said) -> None:
    """Of files with columns of their own, which the option names. Labels that earlier versions asked
    for in both orders stay.
    """
    columns = 'prompt=Q,A=one,B="the, other"'
    Path("a.csv").write_text('Q,one,"the, other",x\n1,a,b,-\n2,a,b,-\n1,b,a,-\n2,a,b,-\n', "utf-8")
    Path("empty.jsonl").write_text('{"prompt": "q", "responses": ["a", " "]}\n')
    with prepared(Path("empty.jsonl"), None, None):
        assert "rows with an empty response, which people see as such: 1 (empty.jsonl:1)" in said()
    Path("gold.csv").write_text('Q,one,"the, other",best\n2,b,a,A\n', "utf-8")
    with prepared(Path("a.csv"), None, Path("gold.csv"), columns=f"{columns},label=best") as store:
        kept = [(stored.item.responses, stored.item.gold) for stored in store.items()]
        assert kept == [(("a", "b"), None), (("a", "b"), {"better": 1})]
        both = replace(store.items()[0].item, responses=("b", "a"))
        store.add([both])
        store.submit(event(both))
    assert "of an earlier one, in any order, asked about once: 2 (a.csv:4, a.csv:5)" in said()
    with prepared(Path("a.csv"), None, None, columns=columns) as store:
        assert [stored.retired for stored in store.items()] == [False] * 3
    ranked = {"prompt": "Hi", "responses": ["a", "b", "c"], "ranks": [3, 1, 2]}
    turned = {"prompt": "Hi", "responses": ["c", "a", "b"], "ranks": [2, 3, 1]}
    (item,) = items_of(groups_to_label(write("r.jsonl", ranked, turned)), gold=True)
    assert (
        item.gold
        == {"ranks": [3, 1, 2]}
        == item.like(replace(item, responses=("c", "a", "b"))).like(item).gold
    )
    write("r.jsonl", ranked, {**turned, "ranks": [1, 2, 3]})
    with pytest.raises(DataError, match=r"r\.jsonl:2: .* has another known label"):
        items_of(groups_to_label(Path("r.jsonl")), gold=True)
    origins = [{"origins": names} for names in (("x", "y"), ("y", "x"))]
    one, other = (pair("Hi", *texts, **by) for texts, by in zip(("ab", "ba"), origins, strict=True))
    assert other.like(one).responses == one.responses
    assert replace(other, origins=("x", "y")).like(one).responses == other.responses


Fails = Callable[[str], tuple[int, str]]


@pytest.fixture
def fails(said: Said) -> Fails:
    """The exit code of `alignkit label` with these words, and what it says, with $ for ends of
    lines.
    """
    pytest.importorskip("starlette")

    def run(words: str) -> tuple[int, str]:
        return main(["label", *shlex.split(words)]), said().replace("\n", "$")

    return run


REFUSED = """
nowhere.jsonl                        | 2 | no such file: nowhere.jsonl
many.jsonl                           | 4 | many.jsonl:1 | many.jsonl:2 | the task ranking takes 2 to 9, not 40 responses
pairs.jsonl --task pairs             | 2 | unknown task 'pairs' | did you mean 'pair'?
pairs.jsonl --task thumb             | 4 | the task thumb takes 1, not 2 responses
pairs.jsonl --overlap 0              | 2 | --overlap
pairs.jsonl --qualify 2              | 2 | --qualify 2: the store has only 0 gold items | --gold FILE
pairs.jsonl --guidelines no.md       | 4 | no.md | No such file
pairs.jsonl --guidelines latin.md    | 4 | latin.md | can't decode byte
pairs.jsonl --annotator " a"         | 4 | annotator's name
own.csv                              | 4 | alignkit label own.csv --columns 'prompt=What for,A=one,B=two'
own.csv --task thumb                 | 4 | own.csv --task thumb --columns 'prompt=What for,completion=two'
own.csv --columns prompt=one,A=tow   | 2 | --columns A=tow | did you mean 'two'?
own.csv --columns prompt             | 2 | 'prompt' is not NAME=VALUE
asked.jsonl --task safety            | 2 | asked.feedback asks for the task pair | --task pair continues
asked.feedback --task safety         | 2 | asked.feedback asks for the task pair
safe.jsonl                           | 2 | safe.feedback asks for the task safety
safe.feedback --gold pairs.jsonl     | 2 | safe.feedback asks for the task safety
bad.jsonl                            | 4 | bad.jsonl:1 | help: correct the rows$
old.feedback                         | 4 | no store of labels
new.feedback                         | 4 | there is no such file
pairs.jsonl --port PORT              | 2 | port PORT is in use
pairs.jsonl --host https://a.example | 2 | port PORT is in use
"""


def test_what_is_refused(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = list(range(40))
    ranked = {"prompt": "Hi", "responses": list(map(str, numbers)), "ranks": numbers}
    write("many.jsonl", ranked, ranked)
    write("pairs.jsonl", PAIR)
    Path("own.csv").write_text("What for,one,two\nabcd,ab,abc\n", encoding="utf-8")
    prepared(write("asked.jsonl", PAIR), None, None).close()
    prepared(write("safe.jsonl", prompt(1)), "safety", None).close()
    write("bad.jsonl", {**PAIR, "chosen": 3})
    Path("old.feedback").write_text("not a store", encoding="utf-8")
    Path("latin.md").write_bytes(b"\xe9")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(server, "PORT", port)  # a proxy would not see which other one it is
        for words, code, *texts in cells(REFUSED.replace("PORT", str(port))):
            found, said = fails(words)
            missing = [text for text in texts if text not in said]
            assert (found, missing) == (int(code), []), said
    stores = {path.name: prepared(path, None, None) for path in Path().glob("[!o]*.feedback")}
    kept = {name: len(store.items()) for name, store in stores.items()}
    assert kept == {"asked.feedback": 1, "safe.feedback": 1}  # nothing was stored


def test_what_it_says_first(said: Said) -> None:
    with prepared(write("a.jsonl", PAIR), None, None, overlap=3) as store:
        store.add([pair("known", gold={"better": 0}), pair("done"), pair("old")])
        store.submit(event(pair("done")))
        store.put(pair("old"), wanted=1, retired=True)
        greet(store, ["ann"])
        alone = said()
        greet(store, ["ann", "bob", "eva"])
        assert "warning" not in said()
        for item in store.items()[:1]:
            store.put(replace(item.item, settled_by="eve", disputed=True), wanted=3)
        greet(store, ["eve"])
        settling = said()
        greet(store, ["eva"])
    assert "items to label: 1" in alone and "labels by 3 people, but only ann can label" in alone
    assert "name more with --annotator" in alone
    assert "items to settle: 1;" in settling and "warning" not in settling
    assert "warning: each item needs the label of eve, but only eva can label here" in said()


def test_without_the_packages_it_says_what_to_install(
    fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a.jsonl", PAIR)
    monkeypatch.setitem(sys.modules, "starlette", None)
    code, text = fails("a.jsonl")
    assert code == 1 and "the page needs the package starlette$help: " in text
    assert "'alignkit[label]'" in text and not Path("a.feedback").exists()


def ask(browser: OpenerDirector, request: Request | str) -> tuple[int, str]:
    """The status and the text of an answer."""
    try:
        with browser.open(request, timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, ""


WORDS = """
--annotator ada --annotator ada --annotator bob --overlap 2 --guidelines rules.md --gold gold.jsonl --qualify 1
"""


def test_the_server_answers_whoever_has_the_link_and_ends() -> None:
    pytest.importorskip("uvicorn")
    with prepared(write("a.jsonl", PAIR), None, None) as store:  # which is gone from the file
        store.submit(event(store.items()[0].item))
    write("a.jsonl", *map(prompt, range(3)))
    write("gold.jsonl", prompt(4))
    Path("rules.md").write_text("\ufeff# Rules", encoding="utf-8")
    command = [sys.executable, "-m", "alignkit", "label", "a.jsonl", *shlex.split(WORDS)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        try:
            assert process.stdout is not None
            name, link = process.stdout.readline().split()
            assert name == "ada:" and process.stdout.readline().startswith("bob: http")
            site, _, token = link.partition("/?token=")
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+ [\w-]{43}", f"{site} {token}")
            browser = build_opener(HTTPCookieProcessor())
            page = ask(browser, link)[1]
            assert "<h1>Rules</h1>" in page
            headers = {"origin": site, "content-type": "application/json"}
            request = Request(f"{site}/api/label/next", b"{}", headers)
            assert ask(browser, request)[0] == 403
            request.add_header("x-csrf-token", re.findall('name="csrf" content="([^"]*)"', page)[0])
            state = ask(browser, request)[1]
            assert (
                '"progress":{"mine":0,"total":4}' in state and "first 1 items have known" in state
            )
            request.add_unredirected_header("Host", "evil.example")
            assert ask(browser, request)[0] == 400
            process.send_signal(signal.SIGINT)
            text = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
    assert process.returncode == 0 and "labels in a.feedback: 0; " in text
    with prepared(Path("a.feedback"), None, None) as store:
        known = [(stored.wanted, stored.retired) for stored in store.items()]
    assert known == [(1, True), (2, False), (2, False), (2, False), (1, False)]


def test_twelve_labels_are_a_recipe_that_runs(said: Said) -> None:
    """Of data as support has them: the same few answers again and again."""
    pytest.importorskip("starlette")
    rows = []
    for n in range(12):
        topic = ("invoice", "parcel", "password")[n % 3]
        rows.append({**PAIR, "prompt": f"Where is {topic} {n}?", "chosen": f"Open {topic}."})
    Path("support").mkdir()
    with prepared(write("support/pairs.jsonl", *rows), None, None) as store:
        page, labels = visit(*application(store)), 0
        while (item := page.next()["item"]) is not None:
            page.post("submit", page.event(item, side("AB"[labels % 2])))
            labels += 1
        say_goodbye(store)
    assert labels == 12
    init = shlex.split(said().split("`")[1])[1:]
    assert init == ["init", "NEW", "support/pairs.feedback"]
    recipe = "NEW/recipe.yaml"
    for words in ([*init, "--base", "tiny"], ["check", recipe], ["run", recipe]):
        assert main(words) == 0, said()
