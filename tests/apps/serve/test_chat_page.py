"""The page of `alignkit chat --page`: what the server answers, keeps and refuses."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette")

from alignkit_apps.chat import page as page_module
from alignkit_plugins.people.effective_labels import labeled
from tests.apps.label.injections import INJECTIONS
from tests.apps.label.pages import served
from tests.apps.serve.chats import NAMES, ORIGIN, Chat, Tab, asked, chat, events_in, said
from tests.patience import PATIENCE


def new() -> str:
    return str(uuid.uuid4())


# --- answers


def test_two_answer_side_by_side() -> None:
    with chat(rewards=True) as page:
        events = page.opened().ask("bread is good", system="Be kind.")
        assert said(events) == ["sft heard 2: bread is good", "dpo heard 2: bread is good"]
        pieces = [event["text"] for event in events if event.get("side") == 1 and "text" in event]
        assert len(pieces) > 3 and "".join(pieces) == said(events)[1]
        assert events[0] == {"side": 0, "begins": True}
        assert [e["said"]["rewards"] for e in events if "said" in e] == [{"length": 2.6}, {"length": 2.6}]
        assert not any("kept" in event for event in events)


def test_each_side_has_a_conversation_of_its_own() -> None:
    def turns(*texts: str) -> list[Any]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    with chat() as page:
        body = {**asked(), "sides": [turns("a", "b", "now"), turns("now")]}
        assert said(events_in(page.opened().post("ask", body).text)) == ["sft heard 3: now", "dpo heard 1: now"]


def test_the_seed_decides_the_answers(run: Path) -> None:
    """They are those of the terminal."""
    from alignkit.io.progress import Reporter
    from alignkit.plugins import load_plugins
    from alignkit_apps.chat.chat_api import Asked, ChatApi
    from alignkit_apps.chat.session import Session
    from alignkit_apps.policies.policy import opened
    from alignkit_apps.policies.recipe import models_of

    sampling = {"max_new_tokens": 8, "temperature": 0.8}
    named = models_of([str(run / "sft"), str(run / "online")])
    with opened(named, load_plugins().registry, Reporter(), lambda: None, "alignkit chat") as models:
        events: list[Any] = []
        ChatApi(models, sampling, seed=3).answer("ada", Asked(**asked("my old friend")), events.append, lambda: True)
        session = Session(models, sampling, seed=3)
        session.begin("my old friend")
        assert said(events) == [session.ask(name, lambda text: None, lambda: True).text for name in models.policies]


@pytest.mark.parametrize("blind", [False, True])
def test_errors_of_a_model_are_said_and_others_answer(blind: bool, tmp_path: Path) -> None:
    def says(name: str) -> Any:
        def answer(messages: Any, number: int) -> str:
            if name == NAMES[0] and messages[-1]["content"] == "explode":
                raise RuntimeError(f"the weights of runs/x/{name} melted")
            return "fine"

        return answer

    with chat(tmp_path / "a.feedback", says=says, blind=blind) as page:
        tab = page.opened()
        tab.agree()
        events = tab.ask("explode")
        (fault,) = [event["error"] for event in events if "error" in event]
        assert "unexpected RuntimeError" in fault and said(events) == ["fine"]
        assert (NAMES[0] in fault) is not blind
        (kept,) = [event["kept"] for event in events if "kept" in event]
        assert sorted(one is None for one in kept) == [False, True]
        too_long = [event for event in tab.ask("a" * 60_000) if "error" in event]
        assert all(event["too_long"] and "at most 1023" in event["error"] for event in too_long) and len(too_long) == 2
        assert blind is not any(NAMES[0] in event["error"] for event in too_long)
        assert said(tab.ask()) == ["fine", "fine"]


def test_what_would_not_be_seen_is_named() -> None:
    with chat(names=NAMES[:1], says=lambda name: lambda messages, number: "a\u202eb") as page:
        (event,) = [event for event in page.opened().ask(sides=1) if "said" in event]
        assert (event["said"]["text"], event["said"]["shown"]) == ("a\u202eb", "a⟦U+202E⟧b")


def test_markdown_comes_as_parts() -> None:
    with chat(names=NAMES[:1], says=lambda name: lambda messages, number: messages[-1]["content"]) as page:
        tab = page.opened()
        parts = [[e["said"]["parts"] for e in tab.ask(text, sides=1) if "said" in e] for text in ("a **b**", "plain")]
        assert parts == [[[["p", "a ", ["strong", "b"], ""]]], [None]]


# --- blind


def test_nobody_learns_the_names_before_the_choice(tmp_path: Path) -> None:
    with chat(tmp_path / "a.feedback", blind=True, says=lambda name: lambda m, n: f"I am {name[-3:]}") as page:
        tab = page.opened()
        tab.agree()
        orders = set()
        for number in range(12):
            events = tab.ask(f"q{number}", draw=str(number))
            assert not any(name in json.dumps(events) for name in (*NAMES, "runs/x"))
            first = said(events)[0][-3:]
            names = tab.post("names", {"draw": str(number)}).json()["names"]
            assert names == tab.post("names", {"draw": str(number)}).json()["names"]  # as often as it is asked
            assert names[0].endswith(first) and sorted(names) == sorted(NAMES)
            orders.add(first)
            assert page.collection
            item = page.collection.store().items()[-1].item
            assert list(item.origins) == names and item.responses[0].endswith(first)  # type: ignore[union-attr]
        assert orders == {"sft", "dpo"}
        assert not any(name in tab.html for name in NAMES)


# --- what is kept


def kept(events: list[dict[str, Any]]) -> list[Any]:
    found: list[Any] = next(event["kept"] for event in events if "kept" in event)
    return found


def test_what_is_said_about_answers_is_kept_once(tmp_path: Path) -> None:
    with chat(tmp_path / "a.feedback") as page:
        tab = page.opened()
        tab.agree()
        pair = kept(tab.ask())
        sent = [
            ("rate", {"uuid": new(), "kept": pair[0], "good": True}),
            ("rate", {"uuid": new(), "kept": pair[1], "good": False}),
            ("choose", {"uuid": new(), "kept": pair, "side": "B", "margin": "slightly"}),
            ("edit", {"uuid": new(), "kept": pair[1], "text": "what it should be"}),
        ]
        for name, body in [*sent, *sent]:
            assert tab.post(name, body).json() == {"event": body["uuid"]}
        tab.post("undo", {"uuid": new(), "of": sent[0][1]["uuid"]})
        assert page.collection
        found = {(e.stored.item.task, e.stored.item.responses[0]): e.final for e in labeled(page.collection.store())}
        assert found == {
            ("pair", "sft heard 1: Hi"): {"better": 1, "margin": "slightly"},
            ("thumb", "sft heard 1: Hi"): None,
            ("thumb", "dpo heard 1: Hi"): {"good": False},
            ("demonstration", "dpo heard 1: Hi"): {"text": "what it should be"},
        }
        assert {event.annotator for event in page.collection.store().events()} == {"ada"}


def test_nothing_is_kept_without_consent(tmp_path: Path) -> None:
    path = tmp_path / "a.feedback"
    with chat(path, annotators=("ada", "bob")) as page:
        ada, bob = page.opened(), page.opened("bob")
        ada.agree(False)
        assert not any("kept" in event for event in ada.ask()) and not path.exists()
        assert '"agreed": false' in ada.html.replace("&#34;", '"')
        ada.agree()
        pair = kept(ada.ask())
        assert not any("kept" in event for event in bob.ask())
        body = {"uuid": new(), "kept": pair[0], "good": True}
        answer = bob.post("rate", body)
        assert answer.status_code == 422 and "without consent" in answer.json()["error"]
        assert '"agreed": true' in page.opened().html.replace("&#34;", '"')
        ada.agree(False)
        assert ada.post("rate", body).status_code == 422
        assert not any("kept" in event for event in ada.ask("after"))
    with chat() as page:
        assert "start the page with --collect" in page.opened().post("rate", body).json()["error"]


# --- what is refused


BAD: list[Any] = [
    [],
    None,
    {},
    asked(sides=1),
    asked(sides=3),
    asked("  "),
    {**asked(), "sides": [[], []]},
    {**asked(), "sides": [asked("a")["sides"][0], asked("b")["sides"][0]]},
    {**asked(), "sides": [[{"role": "assistant", "content": "a"}]] * 2},
    {**asked(), "sides": [[{"role": "system", "content": "a"}, {"role": "user", "content": "a"}]] * 2},
    asked("\ud800"),
    asked(system="\udc00"),
    asked(draw="x" * 65),
    asked(round=-1),
    asked(model="other"),
]


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_questions_that_are_none(body: Any) -> None:
    with chat() as page:
        tab = page.opened()
        headers = {"origin": ORIGIN, "x-csrf-token": tab.csrf, "content-type": "application/json"}
        reply = tab.client.post("/api/chat/ask", content=json.dumps(body), headers=headers)
        assert reply.status_code == 422 and reply.json()["error"]
        assert page.policies[0].words == 0


@pytest.mark.parametrize("name", ["ask", "rate", "choose", "edit", "undo", "consent", "names"])
def test_other_sites_cannot_use_it(name: str) -> None:
    with chat() as page:
        tab = page.opened()
        for wrong in (
            {"origin": "http://evil.example"}, {"x-csrf-token": "guess"}, {"sec-fetch-site": "cross-site"},
        ):  # fmt: skip
            assert tab.post(name, asked(), **wrong).status_code == 403
        assert tab.post(name, asked(), **{"content-type": "text/plain"}).status_code == 415
        stranger = Tab(page.opened().client, tab.csrf, "")
        stranger.client.cookies.clear()
        assert stranger.post(name, asked()).status_code == 401
        assert tab.client.get(f"/api/chat/{name}").status_code == 405
        assert tab.client.get("/", headers={"host": "evil.example"}).status_code == 400
        assert page.policies[0].words == 0


def test_pages_and_files(tmp_path: Path) -> None:
    with chat(tmp_path / "a.feedback", system="<script>window.hit=1</script>") as page:
        from starlette.testclient import TestClient

        bare = TestClient(page.app, base_url=ORIGIN)
        assert bare.get("/").status_code == 401 and "alignkit chat" in bare.get("/").text
        tab = page.opened()
        for path in ("/", "/chat/chat.js", "/static/page.js", "/nothing"):
            policy = tab.client.get(path).headers["content-security-policy"]
            assert "default-src 'none'" in policy and "unsafe" not in policy
        for path in ("../page.py", "..%2fpage.py", "%2e%2e/page.py", "/etc/passwd", "..\\page.py"):
            assert tab.client.get(f"/chat/{path}").status_code == 404
        assert tab.html.count("<script") == 1 and " style=" not in tab.html and "onclick" not in tab.html


def test_a_large_question_is_refused() -> None:
    with chat() as page:
        assert page.opened().post("ask", asked("x" * (1 << 20))).status_code == 413


def test_texts_are_json_and_never_html(tmp_path: Path) -> None:
    def says(name: str) -> Any:
        return lambda messages, number: f"{name}{messages[-1]['content']}"

    with chat(tmp_path / "a.feedback", says=says) as page:
        tab = page.opened()
        tab.agree()
        for text in INJECTIONS[:20]:
            reply = tab.post("ask", asked(text))
            assert reply.headers["content-type"] == "application/x-ndjson"
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert said(events_in(reply.text))[0] == NAMES[0] + text


# --- slow answers


def connected(page: Chat, port: int, body: Any) -> tuple[http.client.HTTPConnection, Any]:
    """A question over a socket, and the beginning of its answer."""
    opened = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    opened.request("GET", f"/?token={page.sessions.links['ada']}")
    reply = opened.getresponse()
    reply.read()
    cookie = reply.headers["set-cookie"].split(";")[0]
    opened.request("GET", "/", headers={"cookie": cookie})
    csrf = opened.getresponse().read().decode().split('name="csrf" content="')[1].split('"')[0]
    headers = {"cookie": cookie, "x-csrf-token": csrf, "origin": f"http://127.0.0.1:{port}"}
    opened.request("POST", "/api/chat/ask", json.dumps(body), {**headers, "content-type": "application/json"})
    return opened, opened.getresponse()


def test_a_page_that_leaves_ends_its_answer(tmp_path: Path) -> None:
    """Even while nothing is written; the next question does not wait for it, and nothing of it is kept."""
    with chat(tmp_path / "a.feedback", names=NAMES[:1]) as page, served(page.app) as port:
        page.opened().agree()
        page.policies[0].gate.clear()
        connection, reply = connected(page, port, asked(sides=1))
        assert json.loads(reply.readline()) == {"side": 0, "begins": True}
        assert page.policies[0].waits.wait(PATIENCE)
        assert reply.readline() == b"\n"  # a proxy sees that the answer is still to come
        reply.close()
        connection.close()
        page.policies[0].waits.clear()
        connection, reply = connected(page, port, asked("next", sides=1))
        while (line := reply.readline()) == b"\n":
            continue
        assert json.loads(line) == {"side": 0, "begins": True}  # so the first one has ended
        page.policies[0].gate.set()
        assert said(events_in(reply.read().decode())) == ["sft heard 1: next"]
        connection.close()
        assert page.collection
        assert [stored.item.prompt[0]["content"] for stored in page.collection.store().items()] == ["next"]


def test_too_many_questions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MOST_WAITING", 1)
    with chat(names=NAMES[:1]) as page, served(page.app) as port:
        page.policies[0].gate.clear()
        first = connected(page, port, asked(sides=1))
        assert page.policies[0].waits.wait(PATIENCE)
        second = connected(page, port, asked(sides=1))
        connection, reply = connected(page, port, asked(sides=1))
        assert reply.status == 503 and "too many questions" in reply.read().decode()
        page.policies[0].gate.set()
        for opened, waiting in (first, second):
            assert said(events_in(waiting.read().decode())) == ["sft heard 1: Hi"]
            opened.close()
        connection.close()


def test_a_server_that_stops_ends_its_answers() -> None:
    with chat(names=NAMES[:1]) as page, served(page.app) as port:
        page.policies[0].gate.clear()
        first = connected(page, port, asked(sides=1))
        assert page.policies[0].waits.wait(PATIENCE)
        second = connected(page, port, asked(sides=1))
        page.tasks.stop()
        for opened, waiting in (first, second):
            waiting.read()  # ends
            opened.close()


# --- the command


def test_the_command(run: Path, tmp_path: Path) -> None:
    """It prints the address, answers, and ends with exit code 0 on Ctrl-C."""
    words = [
        str(run / "sft"),
        str(run / "online"),
        "--page",
        "--blind",
        "--max-new-tokens",
        "4",
        "--collect",
        "a.feedback",
    ]
    command = [sys.executable, "-m", "alignkit", "chat", *words, "--annotator", "ada"]
    # Ctrl-C: a shell's background jobs ignore it, and so would their children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=environment)
    signal.signal(signal.SIGINT, before)
    try:
        assert process.stdout
        address = process.stdout.readline().decode().strip()
        assert address.startswith("http://127.0.0.1:") and "?token=" in address
        port, token = int(address.split(":")[2].split("/")[0]), address.split("token=")[1]
        page: Any = type("Page", (), {"sessions": type("Sessions", (), {"links": {"ada": token}})})
        connection, reply = connected(page, port, asked())
        assert len(said(events_in(reply.read().decode()))) == 2
        connection.close()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, errors.decode()
        assert "stopped" in errors.decode() and not (tmp_path / "a.feedback").exists()
    finally:
        process.kill()
        process.wait()
