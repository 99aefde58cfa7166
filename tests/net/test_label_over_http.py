"""The label page as the command serves it, over HTTP: for those with a link, from its own address.

tests/people/test_label_security.py asks the application itself for every header and every body.
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

from tests.patience import PATIENCE
from tests.rows import pairs, write_rows


class Site:
    """The server, and the session of a labeler who opened their link."""

    def __init__(self, port: int, tokens: list[str]):
        self.port, self.tokens = port, tokens
        self.cookie, self.csrf = self.open(tokens[0])

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """One request. Underscores in names of headers are hyphens; an empty header is left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        sent = {name.replace("_", "-"): value for name, value in headers.items() if value}
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, answer.read().decode()
        finally:
            connection.close()

    def open(self, token: str) -> tuple[str, str]:
        """The cookie and the CSRF word of a labeler's session."""
        status, headers, _ = self.ask("GET", f"/?token={token}")
        cookie = headers["set-cookie"]
        assert status == 303 and "HttpOnly" in cookie and token not in cookie
        cookie = cookie.partition(";")[0]
        page = self.ask("GET", "/", cookie=cookie)[2]
        return cookie, re.findall('name="csrf" content="([^"]*)"', page)[0]

    def post(self, body: bytes = b"{}", **headers: str) -> int:
        """The status of a request for the next item, as the page sends it but for these headers."""
        usual = {"cookie": self.cookie, "origin": f"http://127.0.0.1:{self.port}"}
        usual |= {"x_csrf_token": self.csrf, "content_type": "application/json"}
        return self.ask("POST", "/api/label/next", body, **{**usual, **headers})[0]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("label")
    write_rows(folder / "pairs.jsonl", pairs())
    command = [sys.executable, "-u", "-m", "alignkit", "label", "pairs.jsonl"]
    command += ["--annotator", "ada", "--annotator", "bob"]
    log, wide = folder / "log", {**os.environ, "COLUMNS": "400"}
    with log.open("wb") as file:
        server = subprocess.Popen(command, cwd=folder, stdout=file, stderr=file, env=wide)
    try:
        found: list[tuple[str, str]] = []
        for _ in range(600):
            text = log.read_text(encoding="utf-8")
            found = re.findall(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]+)", text)
            if len(found) >= 2 or server.poll() is not None:
                break
            time.sleep(0.2)
        assert len(found) >= 2, text
        yield Site(int(found[0][0]), [token for _, token in found])
    finally:
        server.terminate()
        server.wait(60)


def test_the_page_works_for_its_labelers(site: Site) -> None:
    assert site.post() == 200 and site.post(sec_fetch_site="same-origin") == 200
    _, headers, _ = site.ask("GET", "/", cookie=site.cookie)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


def test_a_session_is_one_persons(site: Site) -> None:
    assert site.ask("GET", "/")[0] == 401 and site.ask("GET", "/?token=guess")[0] == 401
    cookie, csrf = site.open(site.tokens[1])
    assert site.post(cookie=cookie, x_csrf_token=csrf) == 200
    assert site.post(cookie=cookie) == 403  # ada's word in bob's session


REFUSED: list[tuple[dict[str, Any], int]] = [
    ({"host": "127.0.0.1.evil.example"}, 400),
    ({"cookie": ""}, 401),
    ({"origin": "null"}, 403),
    ({"origin": "http://127.0.0.1:1"}, 403),
    ({"x_csrf_token": "guess"}, 403),
    ({"sec_fetch_site": "cross-site"}, 403),
    ({"content_type": "text/plain"}, 415),
    ({"body": b"[" * 100_000}, 422),
    ({"body": json.dumps({"value": "x" * (2 << 20)}).encode()}, 413),
]


@pytest.mark.parametrize(("request_", "status"), REFUSED, ids=lambda value: str(value)[:40])
def test_other_sites_and_bodies_are_refused(
    site: Site, request_: dict[str, Any], status: int
) -> None:
    assert site.post(**request_) == status


@pytest.mark.parametrize(
    "path", ["../app.py", "..%2fapp.py", "%2e%2e/app.py", "/etc/passwd", "label.js%00.py"]
)
def test_only_the_pages_files_are_served(site: Site, path: str) -> None:
    assert site.ask("GET", f"/static/{path}", cookie=site.cookie)[0] in (404, 405)
