"""Uploads to the hub, for which a small server stands: what is stored, and what a hub that refuses
leaves behind.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from alignkit.errors import RecipeError, RunFailed
from alignkit_plugins.people.sharing import check_target, upload


class Hub:
    """What the server knows, and what it was sent. refuses: path -> status."""

    def __init__(self) -> None:
        self.repos: dict[str, str] = {}  # -> visibility
        self.files: dict[str, bytes] = {}
        self.refuses: dict[str, int] = {}
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    """The parts of the hub's interface that an upload uses."""

    hub: Hub

    def do_GET(self) -> None:
        path = self._begin()
        if path == "/api/whoami-v2":
            self._reply({"name": "me", "orgs": [{"name": "lab"}]})
        elif path.startswith("/api/datasets/"):
            repo = "/".join(path.split("/")[3:5])
            if repo in self.hub.repos:
                self._reply(
                    {"id": repo, "sha": "0" * 40, "private": self.hub.repos[repo] == "private"}
                )
            else:
                self._reply(
                    {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"}
                )
        else:
            self._reply({"error": "no such file"}, 404, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = self._begin()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if status := next(
            (status for part, status in self.hub.refuses.items() if part in path), None
        ):
            self._reply({"error": "storage quota exceeded"}, status)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'me'}/{asked['name']}"
            status = 409 if repo in self.hub.repos else 200
            self.hub.repos.setdefault(repo, asked["visibility"])
            self._reply({"url": f"{constants.ENDPOINT}/{repo}", "id": repo}, status)
        elif "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = [
                {"path": name, "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for name in files
            ]
            self._reply({"files": modes})
        elif "/commit/" in path:
            for line in body.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    self.hub.files[part["value"]["path"]] = base64.b64decode(
                        part["value"]["content"]
                    )
            self._reply(
                {
                    "commitUrl": f"{constants.ENDPOINT}/me/sft/commit/1",
                    "commitOid": "1" * 40,
                    "success": True,
                }
            )
        else:
            self._reply({"ok": True})

    def _begin(self) -> str:
        path = self.path.split("?")[0]
        self.hub.asked.append(path)
        return path

    def _reply(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, which is the only one there is."""
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Handler,), {"hub": found}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "a-token")
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("a card")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("visibility", "readers"), [("", "only you"), ("private", "only you"), ("public", "everybody")]
)
def test_an_upload(hub: Hub, visibility: str, readers: str, folder: Path) -> None:
    """A new repository is private."""
    if visibility:
        hub.repos["me/sft"] = visibility
    where = upload(folder, check_target("sft"))
    assert hub.repos == {"me/sft": visibility or "private"}
    assert hub.files == {"README.md": b"a card"}
    assert where == f"{constants.ENDPOINT}/me/sft, which {readers} can read"


def test_names_are_checked_first(hub: Hub) -> None:
    with pytest.raises(RecipeError, match="--push: this is no name of a repository"):
        check_target("a b")


def test_no_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(RecipeError, match=r"there is none(?s:.)*hf auth login"):
        check_target("me/sft")


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE is set"):
        check_target("me/sft")


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "a-token")
    with pytest.raises(RunFailed, match="the hub refused, or did not answer"):
        check_target("me/sft")


@pytest.mark.parametrize("part", ["/api/repos/create", "/commit/"])
def test_a_hub_that_refuses(hub: Hub, part: str, folder: Path) -> None:
    """What was made stays, and the message says how to upload it later."""
    hub.refuses[part] = 403
    with pytest.raises(RunFailed, match=r"403(?s:.)*storage quota exceeded") as raised:
        upload(folder, check_target("me/sft"))
    later = f"it is in {folder}; push it with `hf upload" in str(raised.value)
    assert later == (part == "/commit/")
