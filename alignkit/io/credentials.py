"""Keys that were pasted where a recipe, a message or a file would keep them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

HIDDEN = "***"
_KNOWN = re.compile(
    r"""\b(?:sk|rk|pk)-(?=[\w-]{0,200}?(?=[A-Za-z]{0,200}[0-9])[A-Za-z0-9]{12})[\w-]+  # OpenAI; not sk-slovak-texts
    | \b[srp]k_(?:live|test)_\w{12,}             # Stripe
    | \b(?:gsk|fw|nvapi|xai|pplx|csk|r8|tgp_v1|npm)[_-](?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{16,}  # other hosts of models
    | \bpypi-[\w-]{30,} | \bya29\.[\w-]{16,} | \bGOCSPX-[\w-]{16,}
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
_RANDOM = re.compile(r"(?<![A-Za-z0-9])(?=[A-Za-z0-9]*[0-9])(?=[A-Za-z0-9]*[A-Za-z])[A-Za-z0-9]{32,}")
_NAMES = re.compile(
    r"""(?ix) (?:[\w-]*[-_])? (?: api[-_]?key | (?:access|secret|private|subscription|account)[-_]?key
    | (?:access|auth|api|bearer|refresh|session|security|hf|hub|github)[-_]?token
    | (?:proxy-)?authorization | bearer | cookie | password | passwd | passphrase | secret | credentials? )"""
)
_TOKEN = re.compile(r"[\w.~+/=-]{6,}")  # in `token: ...`, but not `<sep>`


def looks_like_key(text: str) -> bool:
    """Whether a text contains a key of a known kind, or 32 letters and digits without a break."""
    return bool(_KNOWN.search(text) or _RANDOM.search(text))


def redacted(text: str, *, random: bool = False) -> str:
    """The text with `***` in place of keys of known kinds. random: and of any 32 letters and digits without a break."""
    text = _IN_ADDRESS.sub(HIDDEN, _KNOWN.sub(HIDDEN, text))
    return _RANDOM.sub(HIDDEN, text) if random else text


def could_be_variable(name: str) -> bool:
    """Whether a text can name an environment variable: 16 characters in both cases with digits are rather a key."""
    mixed = len(name) >= 16 and all(re.search(kind, name) for kind in ("[a-z]", "[A-Z]", "[0-9]"))
    return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)) and not mixed and not looks_like_key(name)


def places_of_keys(value: Any, path: str = "", *, random: bool = True) -> Iterator[str]:
    """Where nested plain data hold a key: under a name such as `api_key`, or in a text that looks like one.

    random: whether 32 letters and digits without a break look like one; an id of a run is written like that, too.
    """
    if isinstance(value, Mapping):
        for name, below in value.items():
            place = f"{path}.{name}" if path else str(name)
            named = _NAMES.fullmatch(str(name)) or (str(name).lower() == "token" and _TOKEN.fullmatch(str(below)))
            if named and isinstance(below, str) and below:
                yield place
            else:
                yield from places_of_keys(below, place, random=random)
    elif isinstance(value, list | tuple):
        for index, below in enumerate(value):
            yield from places_of_keys(below, f"{path}.{index}", random=random)
    elif isinstance(value, str) and (looks_like_key(value) if random else redacted(value) != value):
        yield path
