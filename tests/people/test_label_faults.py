"""The page when things fail: a server that is killed, and errors."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from alignkit_plugins.people.store import Store
from tests.chromium import Person, expect, needed, person
from tests.patience import PATIENCE
from tests.people.pages import filled, pairs

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

LEFT = {"side": "A", "margin": "better"}


class Server:
    """`alignkit label` on a store, which can be killed and started again on the same port."""

    def __init__(self, path: Path, people: list[str]):
        self.path, self.people = path, people
        self.port = 0
        self.start()

    def start(self) -> None:
        names = [part for name in self.people for part in ("--annotator", name)]
        command = [sys.executable, "-m", "alignkit", "label", str(self.path), *names]
        command += ["--port", str(self.port)] if self.port else []
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        lines = [self.process.stdout.readline().strip() for _ in self.people]
        self.links = dict(zip(self.people, (line.split(": ")[-1] for line in lines), strict=True))
        self.port = urlsplit(next(iter(self.links.values()))).port or 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Client:
    """A person's requests over a real connection."""

    def __init__(self, link: str):
        parts = urlsplit(link)
        self.host = parts.netloc
        self.cookie = self.ask("GET", f"/?{parts.query}")[1]["set-cookie"].split(";")[0]
        html = self.ask("GET", "/")[0].decode()
        self.meta = dict(re.findall(r'<meta name="(\w+)" content="([^"]*)">', html))

    def ask(self, method: str, path: str, body: Any = None) -> tuple[bytes, Any]:
        headers = {"cookie": getattr(self, "cookie", ""), "content-type": "application/json"}
        if body is not None:
            headers |= {"origin": f"http://{self.host}", "x-csrf-token": self.meta["csrf"]}
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status >= 400:
                raise http.client.HTTPException(f"{answer.status} {text!r}")
            return text, answer.headers
        finally:
            connection.close()

    def post(self, name: str, body: Any) -> Any:
        return json.loads(self.ask("POST", f"/api/label/{name}", body)[0])


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_kill_9_during_submits_loses_and_doubles_no_label(tmp_path: Path) -> None:
    """Four people submit and send again what was not acknowledged, while the server is killed five
    times.
    """
    people, path = ["ada", "bob", "cyd", "dan"], tmp_path / "a.feedback"
    filled(path, pairs(400)).close()
    server = Server(path, people)
    acknowledged: dict[str, str] = {}
    faults: list[str] = []
    done = threading.Event()

    def work(name: str) -> None:
        waiting: dict[str, Any] | None = None
        while not done.is_set():
            try:
                client = Client(server.links[name])
                while not done.is_set():
                    if waiting is None:
                        item = client.post("next", {})["item"]
                        seen = {
                            "item": item["id"],
                            "shown": item["shown"],
                        }
                        more = {
                            "kind": "label",
                            "payload": LEFT,
                            "guidelines": client.meta["guidelines"],
                        }
                        waiting = {"uuid": str(uuid.uuid4()), **seen, **more}
                    client.post("submit", waiting)
                    if acknowledged.setdefault(waiting["uuid"], waiting["item"]) != waiting["item"]:
                        faults.append(waiting["uuid"])
                    waiting = None
            except (OSError, http.client.HTTPException, KeyError):
                time.sleep(0.02)  # the server is gone

    threads = [threading.Thread(target=work, args=(name,)) for name in people]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 6):
            wait_for(lambda: len(acknowledged) >= 15 * number)  # noqa: B023
            server.kill()
            server.start()
        wait_for(lambda: len(acknowledged) >= 90)
    finally:
        done.set()
        for thread in threads:
            thread.join(PATIENCE)
        server.kill()
    with Store.open(path) as store:
        stored = {event.uuid: event.item for event in store.events()}
        assert acknowledged.items() <= stored.items() and faults == []
        assert len(stored) == len(store.events()) and len(stored) - len(acknowledged) <= len(people)
        assert all(stored_item.labels <= 1 for stored_item in store.items())
        assert sum(stored_item.labels for stored_item in store.items()) == len(stored)
        assert store.connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


@pytest.mark.slow
class TestInChromium:
    """With a browser."""

    pytestmark = needed

    def test_a_label_outlives_the_server(self, browser: Any, tmp_path: Path) -> None:
        """The server is killed before a submit. Its next run has another link, and gets the label
        that waits.
        """
        path = tmp_path / "a.feedback"
        filled(path, pairs(3)).close()
        server = Server(path, ["ada"])
        context = browser.new_context()
        with Store.open(path) as store:
            ada = Person(context.new_page(), store, server.links["ada"])
            prompt = ada.prompt()
            server.kill()
            ada.press("Digit2", "n")
            ada.page.keyboard.type("kept")
            ada.press("Escape", "Enter")
            ada.shows("1 label waits in this browser", "#offline")
            server.start()
            ada.shows("open the address that it printed", "#offline")
            assert ada.labels() == []
            ada.page.goto(server.links["ada"])
            ada.settled()
            ada.shows("1 of ", "#counts")
            assert ada.prompt() != prompt
            label = ada.labels()
            assert [(event.payload["margin"], event.payload["note"]) for event in label] == [
                ("better", "kept")
            ]
            assert (
                ada.page.evaluate(
                    "Object.keys(localStorage).filter((key) => key.includes('outbox')).length"
                )
                <= 1
            )
        context.close()
        server.kill()

    @pytest.mark.parametrize("status", [500, 503, 507])
    def test_an_error_keeps_the_label(self, browser: Any, tmp_path: Path, status: int) -> None:
        with person(browser, tmp_path, pairs(2)) as ada:
            body = json.dumps({"error": "the disk is full"})
            ada.page.route(
                "**/api/label/submit", lambda route: route.fulfill(status=status, body=body)
            )
            prompt = ada.prompt()
            ada.press("Digit1", "Enter")
            ada.shows("The server cannot store it: the disk is full. 1 label waits", "#offline")
            ada.page.unroute("**/api/label/submit")
            ada.prompt_changes(prompt)
            expect(ada.page.locator("#offline")).to_be_hidden()
            assert len(ada.labels()) == 1
            ada.faults.clear()  # the browser reports the status
