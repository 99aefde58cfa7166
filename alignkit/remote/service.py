"""A service on a server: what is asked, and what it has replied before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.errors import RemoteError
from alignkit.io.stored_replies import asking_is_allowed
from alignkit.remote.options import RemoteOptions, key_of
from alignkit.remote.replies import Reply, ReplyStore
from alignkit.remote.requests import ask_all
from alignkit.reward import Progress, no_progress

Read = Callable[[bytes], Any]
Fits = Callable[[Mapping[str, Any], Any], str]


@dataclass(frozen=True)
class Remote:
    """One service: where it is, how its replies are read, and where they are stored.

    name: for messages, and the name of the file of stored replies. path: appended to `base_url`. folder: of that file.
    read: turns the bytes of a reply into a JSON value, or raises `Malformed`.
    help: explains statuses that end the run, if the general texts do not; {variable} and {path} are filled in.
    fits: says why a value cannot be the reply to a request's body, such as a wrong number of scores; empty if it can.

    The constructor raises RunFailed if the key is missing or the file is damaged, before any request is sent.
    """

    name: str
    options: RemoteOptions
    path: str
    folder: Path
    read: Read
    help: Mapping[int, str] | None = None
    fits: Fits = lambda body, value: ""

    def __post_init__(self) -> None:
        self.key()
        with closing(ReplyStore(self.folder, self.name)):
            pass

    @property
    def url(self) -> str:
        """The address that requests go to."""
        return f"{self.options.base_url}/{self.path}"

    def key(self) -> str:
        """The key, from the environment. Messages never contain it."""
        return key_of(self.name, self.options)

    def ask(self, bodies: Sequence[Mapping[str, Any]], progress: Progress = no_progress) -> list[Reply]:
        """Replies to requests with these bodies, in order. Equal requests are sent once, stored replies reused.

        progress: of the context, to show how many replies have arrived.
        """
        keys = [self._key_of(body) for body in bodies]
        with closing(ReplyStore(self.folder, self.name)) as store:
            replies = store.get(keys)
            missing = {key: body for key, body in zip(keys, bodies, strict=True) if key not in replies}
            if missing:
                self._check_asking(len(missing), len(set(keys)))
                with progress(f"asking {self.name}", len(missing)) as done:
                    replies |= ask_all(self, missing, store, done)
        return [replies[key] for key in keys]

    def _check_asking(self, missing: int, count: int) -> None:
        if not asking_is_allowed():
            stored = f"{missing} of {count} replies are not stored in {self.folder}"
            raise RemoteError(f"{self.name}: {stored}, and nothing is asked or paid for here")

    def _key_of(self, body: Mapping[str, Any]) -> str:
        """A hash of everything that a reply depends on."""
        return hashlib.sha256(json.dumps([self.url, body], sort_keys=True).encode()).hexdigest()
