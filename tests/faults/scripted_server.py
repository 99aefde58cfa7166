"""A server on loopback that replies well a few times, then fails in one way, until it is healed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

NAME = "service.test"  # which only the server's own lookups know
Good = Callable[[Mapping[str, Any]], Any]
Act = Callable[["ScriptedServer", socket.socket, Any], None]


@dataclass
class ScriptedServer:
    """good: the right reply to a request's body. act: what happens to a request instead, after
    `healthy` good replies.

    look: what a lookup of its name does then. after: called once, before the last good reply is
    sent. paid: how often each body had a whole good reply. elsewhere: requests to other paths.
    """

    good: Good
    act: Act | None = None
    look: Callable[[], None] | None = None
    after: Callable[[ScriptedServer], None] | None = None
    healthy: int = 2
    requests: int = 0
    paid: Counter[str] = field(default_factory=Counter)
    elsewhere: int = 0
    _sockets: list[socket.socket] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    @property
    def failing(self) -> bool:
        return sum(self.paid.values()) >= self.healthy

    def heal(self) -> None:
        """From now on, all replies are good."""
        self.act = self.look = self.after = None
        for each in self._sockets:
            each.close()
        if self.listener.fileno() < 0:
            self.listener = socket.create_server(("127.0.0.1", self.port), backlog=64)
            threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def close(self) -> None:
        """Accept nothing any more."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def hold(self) -> None:
        """Let new connections wait for ever: the queue of a listener that nobody serves is full."""
        self.close()
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", self.port))
        held.listen(0)
        self._sockets.append(held)
        for _ in range(4):
            waiting = socket.socket()
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", self.port))
            self._sockets.append(waiting)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ValueError):
            connection.settimeout(600)
            path, content = _request(connection)
            body = json.loads(content)
            with self._lock:
                self.requests += 1
                self.elsewhere += path not in ("/v1/chat/completions", "/v1/score")
                act = self.act if self.failing else None
                if act is None:
                    self.paid[hashlib.sha256(content).hexdigest()] += 1
                last = act is None and self.after is not None and self.failing
            if last and self.after is not None:
                after, self.after = self.after, None
                after(self)
            if act is None:
                reply(connection, json.dumps(self.good(body)).encode())
            else:
                act(self, connection, body)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Lookups of NAME find the server, or fail as `look` does."""
        real = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
            if host not in (NAME, NAME.encode()):
                return real(host, port, *arguments, **options)
            if self.look is not None and self.failing:
                self.look()
            return real("127.0.0.1", self.port, *arguments, **options)

        with mock.patch("socket.getaddrinfo", getaddrinfo):
            yield


def _request(connection: socket.socket) -> tuple[str, bytes]:
    """The path and the body of a request. Raises ValueError for none."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            raise ValueError("no request")
        data += part
    head, _, content = data.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    while len(content) < int(headers.get("content-length", "0")):
        content += connection.recv(65536)
    return lines[0].split()[1], content


def reply(
    connection: socket.socket,
    body: bytes,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    length: int | None = None,
    pause: float = 0.0,
) -> None:
    """Send a whole reply. length: of the body, as it is announced. pause: seconds before each
    byte.
    """
    lines = {
        "Content-Length": str(len(body) if length is None else length),
        "Connection": "close",
        **(headers or {}),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    connection.sendall(f"HTTP/1.1 {status} Scripted\r\n{head}\r\n".encode())
    if not pause:
        connection.sendall(body)
    for place in range(len(body) if pause else 0):
        connection.sendall(body[place : place + 1])
        time.sleep(pause)
