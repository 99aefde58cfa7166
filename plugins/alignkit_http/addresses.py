"""Addresses of servers that a recipe may name."""

from __future__ import annotations

from urllib.parse import urlsplit


def checked_address(url: str) -> str:
    """A server's base address without a slash at the end. Raises ValueError for one that must not be asked."""
    if " " in url or not url.isprintable():
        raise ValueError("must not contain spaces, line breaks or control characters")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must begin with http:// or https:// and name a host")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(
            "must not contain a user, a query or a fragment; put the key's environment variable into api_key_env"
        )
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ValueError("has a port that is not a number from 1 to 65535")
    return url.rstrip("/")
