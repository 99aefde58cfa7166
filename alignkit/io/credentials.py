"""Keys that were pasted where a recipe, a message or a file would keep them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"
_KNOWN = re.compile(
    r"""\b(?:sk|rk|pk)-[A-Za-z0-9_-]{12,}        # OpenAI, Anthropic, Stripe
    | \bgh[oprsu]_[A-Za-z0-9]{16,} | \bgithub_pat_\w{16,} | \bglpat-[\w-]{16,}
    | \bhf_[A-Za-z0-9]{16,}
    | \bA(?:KIA|SIA)[0-9A-Z]{12,}                # AWS
    | \bAIza[0-9A-Za-z_-]{30,}                   # Google
    | \bxox[abprs]-[\w-]{10,}                    # Slack
    | \beyJ[\w-]{10,}\.[\w-]{5,}\.[\w-]*         # JSON web tokens
    | (?<=[Bb]earer\ )[^\s'"]{8,}
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----[^-]*(?:-----END[ A-Z]*PRIVATE\ KEY-----)?""",
    re.VERBOSE,
)
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@:]+:[^\s/@]+(?=@)")  # user:password@host
_RANDOM = re.compile(r"(?=[A-Za-z0-9]*[0-9])(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{32,}")
_NAMES = re.compile(r"(?i)(x[-_])?(api[-_]?key|authorization|access[-_]token|auth[-_]token|bearer|password|secret)")


def looks_like_key(text: str) -> bool:
    """Whether a text contains a key of a known kind, or 32 letters and digits without a break."""
    return bool(_KNOWN.search(text) or _RANDOM.search(text))


def redacted(text: str, *, random: bool = False) -> str:
    """The text with `***` in place of keys of known kinds. random: and of any 32 letters and digits without a break."""
    text = _IN_ADDRESS.sub(HIDDEN, _KNOWN.sub(HIDDEN, text))
    return _RANDOM.sub(HIDDEN, text) if random else text


def places_of_keys(value: Any, path: str = "", *, random: bool = True) -> Iterator[str]:
    """Where nested plain data hold a key: under a name such as `api_key`, or in a text that looks like one.

    random: whether 32 letters and digits without a break look like one; an id of a run is written like that, too.
    """
    if isinstance(value, Mapping):
        for name, below in value.items():
            place = f"{path}.{name}" if path else str(name)
            if isinstance(below, str) and below and _NAMES.fullmatch(str(name)):
                yield place
            else:
                yield from places_of_keys(below, place, random=random)
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            yield from places_of_keys(below, f"{path}.{index}", random=random)
    elif isinstance(value, str) and (looks_like_key(value) if random else redacted(value) != value):
        yield path
