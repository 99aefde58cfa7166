"""The mapping `server:` of everything that sends requests to one, and its key."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator

from alignkit.errors import RunFailed
from alignkit.io.text import redacted
from alignkit.options import Options
from alignkit_plugins.ai_feedback.stored_replies import asking_is_allowed


def checked_address(url: str) -> str:
    """A server's base address without a slash at the end. Raises ValueError for one that must not
    be asked.
    """
    if " " in url or not url.isprintable():
        raise ValueError("must not contain spaces, line breaks or control characters")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must begin with http:// or https:// and name a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "must not contain a user, a query or a fragment; put the key's environment variable "
            "into api_key_env"
        )
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("has a port that is not a number from 1 to 65535")
    return url.rstrip("/")


class RemoteOptions(Options):
    """The mapping `server:` of everything that sends requests to one."""

    model_config = ConfigDict(
        hide_input_in_errors=True
    )  # errors must not repeat a key that was pasted into the wrong place

    changes_no_result: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "concurrency", "timeout_seconds", "max_retries"}
    )

    base_url: str = Field(
        description="base address of the service, such as http://localhost:8000/v1"
    )
    api_key_env: str = Field(
        default="", description="environment variable that holds the key (not the key itself)"
    )
    concurrency: int = Field(default=8, ge=1, le=256, description="maximum concurrent requests")
    timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        description="time limit of one request, from connecting to the last byte",
    )
    max_retries: int = Field(
        default=5, ge=0, description="retries after a failure that may be temporary"
    )
    request: dict[str, Any] = Field(
        {}, description="additional fields of the request; null removes a field"
    )

    @field_validator("base_url")
    @classmethod
    def _plain_address(cls, url: str) -> str:
        return checked_address(url)

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON of a request, with the recipe's own fields."""
        return {
            name: value for name, value in {**body, **self.request}.items() if value is not None
        }

    @field_validator("api_key_env")
    @classmethod
    def _variable_name(cls, name: str) -> str:
        if name and (redacted(name) != name or not (name.isascii() and name.isidentifier())):
            raise ValueError("must be the name of an environment variable, not the key itself")
        return name


class WithKey(Protocol):
    """Options with the name of a key's environment variable."""

    @property
    def api_key_env(self) -> str: ...


def key_of(name: str, options: WithKey) -> str:
    """The key, from the environment. Raises RunFailed if it is missing; a `check` may call it.

    name: of the judge or reward, for the message.
    """
    variable = options.api_key_env
    if not variable or not asking_is_allowed():
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RunFailed(
            f"{name}: the environment variable {variable} is not set, but must hold the key"
        )
    if not (key.isascii() and key.isprintable()):
        raise RunFailed(
            f"{name}: the key in the environment variable {variable} has unprintable or non-ASCII "
            "characters"
        )
    return key
