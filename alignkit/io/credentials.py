"""Keys that were pasted where a recipe, a message or a file would keep them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"
_KEY = re.compile(
    r"""\b[srp]k[-_](?=[\w-]{0,200}?(?=[A-Za-z]{0,200}[0-9])[A-Za-z0-9]{12})[\w-]+  # OpenAI; not sk-slovak-texts
    | \b(?:gsk|fw|nvapi|xai|pplx|csk|r8|tgp_v1|npm|pypi|glpat|GOCSPX|ya29|xox[abprs])[-_.](?=[A-Za-z_-]*[0-9])[\w-]{16,}
    | \b(?:hf|gh[oprsu]|github_pat)_[A-Za-z0-9]{16,}\w*
    | \bA(?:KIA|SIA)[0-9A-Z]{12,}                # AWS
    | \bAIza[\w-]{30,}                           # Google
    | \beyJ[\w-]{10,}\.[\w-]{5,}\.[\w-]*         # JSON web tokens
    | (?<=[Bb]earer\ )[^\s'"]{8,}
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----[^-]*(?:-----END[ A-Z]*PRIVATE\ KEY-----)?
    | (?<=://)[^\s/@:]+:[^\s/@]+(?=@)            # user:password@host""",
    re.VERBOSE,
)
_NAME = re.compile(
    r"""(?ix) (?:[\w-]*[-_])? (?: (?:api|access|secret|private|subscription|account)[-_]?key
    | (?:access|api|auth|hf|hub)[-_]?token | authorization | cookie | password | secret )"""
)


def redacted(text: str) -> str:
    """The text with `***` in place of keys of known kinds, and of passwords in addresses."""
    return _KEY.sub(HIDDEN, text)


def could_be_variable(name: str) -> bool:
    """Whether a text can name an environment variable: 16 letters and digits without a break are rather a key."""
    unbroken = len(name) >= 16 and "_" not in name and not name.isalpha()
    return name.isascii() and name.isidentifier() and not unbroken and not _KEY.search(name)


def places_of_keys(value: Any, path: str = "") -> Iterator[str]:
    """Where nested plain data hold a key: under a name such as `api_key`, or in a text or name that looks like one."""
    if isinstance(value, Mapping):
        for name, below in value.items():
            place = f"{path}.{name}" if path else str(name)
            if _KEY.search(str(name)) or (isinstance(below, str) and below and _NAME.fullmatch(str(name))):
                yield place
            else:
                yield from places_of_keys(below, place)
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            yield from places_of_keys(below, f"{path}.{index}")
    elif isinstance(value, str) and _KEY.search(value):
        yield path
