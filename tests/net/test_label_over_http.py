"""The label page is for those with a link, from its own address: asked over HTTP, as the command
serves it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from patience import PATIENCE

ROWS = [{"prompt": f"prompt {n}", "chosen": f"good {n}", "rejected": f"poor {n}"} for n in range(4)]
STATIC = ("../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", "label.js%00.py")


class Site:
    """The server, and the session of a labeler who opened their link."""

    def __init__(self, port: int, tokens: list[str]):
        self.port, self.tokens = port, tokens
        self.address = f"http://127.0.0.1:{port}"
        self.cookie, self.csrf = self.open(tokens[0])

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """One request. Underscores in names of headers are hyphens; an empty header is left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items() if value}
        try:
            connection.request(method, path, content, sent)
            answer = connection.getresponse()
            return (
                answer.status,
                {name.lower(): value for name, value in answer.getheaders()},
                answer.read(),
            )
        finally:
            connection.close()

    def open(self, token: str) -> tuple[str, str]:
        """The cookie and the CSRF word of a labeler's session."""
        status, headers, _ = self.ask("GET", f"/?token={token}")
        assert (
            status == 303
            and "HttpOnly" in headers["set-cookie"]
            and token not in headers["set-cookie"]
        )
        cookie = headers["set-cookie"].partition(";")[0]
        html = self.ask("GET", "/", cookie=cookie)[2].decode()
        return cookie, re.findall('name="csrf" content="([^"]*)"', html)[0]

    def post(self, body: Any = None, **headers: str) -> int:
        """The status of a request for the next item, as the page sends it but for these headers."""
        usual = {"cookie": self.cookie, "origin": self.address, "x_csrf_token": self.csrf}
        sent = {**usual, "content_type": "application/json", **headers}
        return self.ask("POST", "/api/label/next", {} if body is None else body, **sent)[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("label")
    (folder / "pairs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8"
    )
    command = [
        sys.executable,
        "-u",
        "-m",
        "alignkit",
        "label",
        "pairs.jsonl",
        "--annotator",
        "ada",
        "--annotator",
        "bob",
    ]
    log = folder / "log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            command, cwd=folder, stdout=file, stderr=file, env={**os.environ, "COLUMNS": "400"}
        )
    try:
        found: list[tuple[str, str]] = []
        for _ in range(600):
            found = re.findall(
                r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]+)", log.read_text(encoding="utf-8")
            )
            if len(found) >= 2 or server.poll() is not None:
                break
            time.sleep(0.2)
        assert len(found) >= 2, log.read_text(encoding="utf-8")
        yield Site(int(found[0][0]), [token for _, token in found])
    finally:
        server.terminate()
        server.wait(60)


def test_the_page_works_for_its_labelers(site: Site) -> None:
    assert site.post() == 200 and site.post(sec_fetch_site="same-origin") == 200
    _, headers, _ = site.ask("GET", "/", cookie=site.cookie)
    policy = headers["content-security-policy"]
    assert (
        "default-src 'none'" in policy
        and "unsafe" not in policy
        and "frame-ancestors 'none'" in policy
    )
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8765"]
)
def test_other_hosts_are_refused(site: Site, host: str) -> None:
    assert site.ask("GET", "/", host=host, cookie=site.cookie)[0] == 400
    assert site.post(host=host) == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"cookie": ""}, 401),
        ({"cookie": "alignkit-label=guess"}, 401),
        ({"origin": ""}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://127.0.0.1:1"}, 403),
        ({"x_csrf_token": ""}, 403),
        ({"x_csrf_token": "guess"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"content_type": "text/plain"}, 415),
    ],
)
def test_other_sites_cannot_ask(site: Site, headers: dict[str, str], status: int) -> None:
    assert site.post(**headers) == status


def test_a_session_is_one_persons(site: Site) -> None:
    assert site.ask("GET", "/")[0] == 401 and site.ask("GET", "/?token=guess")[0] == 401
    cookie, csrf = site.open(site.tokens[1])
    assert site.post(cookie=cookie, x_csrf_token=csrf) == 200
    assert site.post(cookie=cookie) == 403  # ada's word in bob's session


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"[" * 100_000, b"\xff"])
def test_bodies_that_are_none(site: Site, body: bytes) -> None:
    assert site.post(body) == 422


def test_a_large_body_is_refused(site: Site) -> None:
    assert site.post(b'{"value": "' + b"x" * (2 << 20) + b'"}') == 413


@pytest.mark.parametrize("path", STATIC)
def test_only_the_pages_files_are_served(site: Site, path: str) -> None:
    assert site.ask("GET", f"/static/{path}", cookie=site.cookie)[0] in (404, 405)
