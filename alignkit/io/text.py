"""Texts from people and models: what a terminal may show of them, the files that they name, keys
pasted into them.
"""

from __future__ import annotations

import html
import os
import os.path
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

Plain = TypeVar("Plain")

Say = Callable[[str], None]  # prints a line that the user must know
# Turn the direction of what follows
BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
REPLACEMENT = "\ufffd"
_ACTING = re.compile(rf"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff{BIDI}]")


def printable(text: str) -> str:
    """The text with control characters replaced, except line breaks and tabs."""
    return _ACTING.sub(REPLACEMENT, text)


# Signs and letters as wide as a Chinese character
WIDE = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
# Characters that differ only in how they are typed, and some that nobody sees.
_TYPED = (
    WIDE
    | dict.fromkeys("’‘ʼʹ‛′´`＇", "'")
    | dict.fromkeys("“”„‟″«»＂「」『』", '"')
    | dict.fromkeys(
        "\u00a0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B))), " "
    )
    | dict.fromkeys(
        "\u00ad\u061c\u180e\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufe0e\ufe0f\ufeff"
        + BIDI,
        "",
    )
    | dict.fromkeys("\u2010\u2011\u2212", "-")
    | {"。": ".", "、": ","}
)
_OTHERWISE = re.compile(f"[{''.join(_TYPED)}]")  # `str.translate` is many times as slow
# An entity of HTML, also one that was escaped again
_ENTITY = re.compile(r"&(?:amp;)*(#?\w{2,31};)")


def typed(text: str, entities: bool = False) -> str:
    """The text with one kind of apostrophe, quotation mark, space and minus, and without characters
    nobody sees.

    entities: keep those of HTML, such as `&#39;`, which code means as they are.
    """
    if "&" in text and not entities:
        text = _ENTITY.sub(lambda match: html.unescape(f"&{match[1]}"), text)
    return _OTHERWISE.sub(lambda match: _TYPED[match[0]], unicodedata.normalize("NFC", text))


def listed(items: Sequence[Any], most: int = 3, word: Callable[[Any], str] = str) -> str:
    """The first items in words, and how many more there are."""
    more = f" and {len(items) - most:,} more" if len(items) > most else ""
    return ", ".join(map(word, items[:most])) + more


def duration(seconds: float, digits: int = 1) -> str:
    """`1m05s`, or `7.3s` below a minute."""
    minutes, rest = divmod(seconds, 60)
    if minutes:
        return f"{int(minutes)}m{int(rest):02d}s"
    return f"{rest:.{digits}f}s"


# Unlike the methods of Path, these are false for names that no file system can have.
is_file, is_dir, exists = os.path.isfile, os.path.isdir, os.path.exists

NO_FILE = "this is a pipe or a device, which cannot be read twice; write its rows to a file"


def is_special(path: Path | str) -> bool:
    """Whether a path names a pipe, a device or a socket: reading it may never end."""
    return exists(path) and not is_file(path) and not is_dir(path)


def expanded(path: Path | str) -> Path:
    """The path with `~` replaced by a home folder, if there is such a user."""
    return Path(os.path.expanduser(path))


def absolute(path: Path) -> Path:
    """The absolute path. Links stay, such as that of a stage to its result."""
    return Path(os.path.abspath(path))


def resolved(path: Path) -> Path:
    """The absolute path without links."""
    return Path(os.path.realpath(path))


def cache_folder() -> Path:
    """What outlives runs, such as base models: `ALIGNKIT_CACHE` if set, else `alignkit` in the
    user's cache folder.
    """
    user = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(os.environ.get("ALIGNKIT_CACHE") or Path(user) / "alignkit")


HIDDEN = "***"
# Names of keys whose values have no form of their own, as gateways and headers have them
_NAMES = (
    r"(?:api|access|secret|private|subscription)[_-]?key|(?:access|auth|api|hub|bearer|refresh)[_-]?token"
    r"|(?:proxy[_-])?authorization|cookie|password|passwd|passphrase|pwd|secret|credentials?|bearer"
)
# More of them in what a recipe adds to requests
_SECRET = re.compile(
    rf"(?:(?:^|[._-])(?:{_NAMES})"
    r"|\brequest\.(?:.*[._-])?(?:auth|signature|(?<!cache_)key|(?<!(?:bos|eos|pad)_)(?<!stop_)token))$"
    r"|\brequest\.(?:.*[._-])?auth\.",
    re.IGNORECASE,
)
_WORDS_IN_NAME = re.compile("(?<=[a-z0-9])(?=[A-Z])")
_KEY = re.compile(
    r"""\b(?:[srp]k[-_](?=[\w-]{0,200}?(?=[A-Za-z]{0,200}[0-9])[A-Za-z0-9]{12})[\w-]+  # OpenAI; not sk-slovak-texts
    | (?:gsk|fw|nvapi|xai|pplx|csk|r8|tgp_v1|npm|pypi|glpat|GOCSPX|ya29|xox[abprs])[-_.](?=[A-Za-z_-]*[0-9])[\w-]{16,}
    | (?:hf|gh[oprsu]|github_pat)_[A-Za-z0-9]{16,}\w*
    | A(?:KIA|SIA)[0-9A-Z]{12,}                # AWS
    | AIza[\w-]{30,}                           # Google
    | eyJ[\w-]{10,}\.[\w-]{5,}\.[\w-]*           # JSON web tokens
    )
    | (?<=[Bb]earer\ )[^\s'"]{8,}
    | -----BEGIN[ A-Z]*PRIVATE\ KEY-----[^-]*(?:-----END[ A-Z]*PRIVATE\ KEY-----)?
    | (?<=://)[^\s/@:]*:[^\s/@]+(?=@)            # user:password@host
    | (?P<name>(?:[?&]|\brequest\.)(?i:[\w-]*[_-])?(?i:key|token|sig|signature|"""
    rf"""{_NAMES})=                              # in a query, or set by a command, or in a message
      | \b(?i:[\w-]{{0,40}}[_-])?(?i:{_NAMES})['"]?[ ]?(?:[:=][ ]?['"]|:[ ]?(?=[\w.=/+~-]{{8}})(?=[^\s'"]*[0-9]))
      )[^\s&#'"]+""",
    re.VERBOSE,
)


def redacted(value: Plain, name: str = "") -> Plain:
    """A text, or all texts in plain data, with `***` in place of keys of known kinds, of passwords
    in addresses, and of what has the name of a key. name: the keys that lead to it, with dots.
    """
    clear: Any = value
    if isinstance(value, str):
        is_key = value and _SECRET.search(_WORDS_IN_NAME.sub("_", name))
        clear = HIDDEN if is_key else _KEY.sub(rf"\g<name>{HIDDEN}", value)
    elif isinstance(value, dict):
        clear = {redacted(key): redacted(item, f"{name}.{key}") for key, item in value.items()}
    elif isinstance(value, list | tuple):
        clear = [redacted(item, name) for item in value]
    return clear
