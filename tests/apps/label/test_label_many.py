"""Thirty people label at once, each at a browser of their own: no label is lost, and none is stored twice."""

from __future__ import annotations

import http.client
import json
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from alignkit_plugins.people.effective_labels import labeled
from alignkit_plugins.people.store import Store
from tests.patience import PATIENCE

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

PEOPLE, ITEMS, OVERLAP = 30, 180, 2
DECIDES = 0.8  # seconds that a person needs for an item at most; real people need more


class Person:
    """Somebody who opens a link and labels until nothing is left. took: seconds of each submission."""

    def __init__(self, address: str, seed: int):
        self.link, self.random = urlsplit(address), random.Random(seed)
        self.origin = f"http://{self.link.netloc}"
        self.connection = http.client.HTTPConnection(self.link.netloc, timeout=PATIENCE)
        self.took: list[float] = []
        self.sent: list[str] = []

    def get(self, path: str, **headers: str) -> Any:
        self.connection.request("GET", path, headers=headers)
        reply = self.connection.getresponse()
        return reply, reply.read().decode()

    def post(self, name: str, body: Any) -> Any:
        self.connection.request("POST", f"/api/label/{name}", json.dumps(body), self.headers)
        reply = self.connection.getresponse()
        text = reply.read()
        assert reply.status == 200, text
        return json.loads(text)

    def labels(self) -> None:
        reply, _ = self.get(f"/?{self.link.query}")
        cookie = reply.headers["set-cookie"].partition(";")[0]
        found = dict(re.findall(r'<meta name="(\w+)" content="([^"]*)">', self.get("/", cookie=cookie)[1]))
        self.headers = {"cookie": cookie, "origin": self.origin, "x-csrf-token": found["csrf"]}
        self.headers["content-type"] = "application/json"
        state = self.post("next", {})
        while item := state["item"]:
            time.sleep(self.random.uniform(0, DECIDES))
            known = {name: item[name] for name in ("revision", "shown")} | {"item": item["id"], "kind": "label"}
            label = {"side": self.random.choice("AB"), "margin": "better"}
            body = {"uuid": str(uuid.uuid4()), "payload": label, "guidelines": found["guidelines"], **known}
            begun = time.perf_counter()
            state = self.post("submit", body)
            self.took.append(time.perf_counter() - begun)
            self.sent.append(body["uuid"])
            if self.random.random() < 0.1:  # a browser that did not hear the answer
                state = self.post("submit", body)
        self.connection.close()


def test_thirty_people_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Question {n}?", "chosen": f"good {n}", "rejected": f"poor {n}"} for n in range(ITEMS)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    command = [sys.executable, "-m", "alignkit", "label", "pairs.jsonl", "--overlap", str(OVERLAP)]
    command += ["--repeat-rate", "0", "--host", "127.0.0.2", "--reviewer", "eve"]
    for number in range(PEOPLE):
        command += ["--annotator", f"person {number}"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            lines = [server.stdout.readline().split(": ")[1].strip() for _ in range(PEOPLE + 1)]
            people = [Person(address, seed) for seed, address in enumerate(lines[:-1])]
            with ThreadPoolExecutor(PEOPLE) as pool:
                list(pool.map(Person.labels, people))
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=PATIENCE)
        finally:
            server.kill()
    sent = [name for person in people for name in person.sent]
    with Store.open(tmp_path / "pairs.feedback") as store:
        stored = Counter(event.uuid for event in store.events() if event.kind == "label")
        assert stored == Counter(sent) and len(sent) == ITEMS * OVERLAP
        assert {len(entry.votes) for entry in labeled(store)} == {OVERLAP}
    took = sorted(seconds for person in people for seconds in person.took)
    with capsys.disabled():
        median, most = (1000 * took[int(share * (len(took) - 1))] for share in (0.5, 0.95))
        print(f"\n{PEOPLE} people, {len(took)} labels: median {median:.0f} ms, 95% within {most:.0f} ms")
