"""Texts from people and models: what a terminal may show of them, the files that they name, keys pasted into them."""

from __future__ import annotations

import os
import os.path
import re
import unicodedata
from contextlib import suppress
from pathlib import Path

BIDI = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # turn the direction of what follows
INTERVAL = re.compile(r"\[[-+\w.]+, [-+\w.]+\]\S*")  # such as [0.21, 0.63]
JOINT = "\ue000"  # stands for the space in an interval while lines are broken
REPLACEMENT = "\ufffd"


def printable(text: str) -> str:
    """The text with control characters replaced, except line breaks and tabs."""
    if text.isprintable():
        return text
    return "".join(REPLACEMENT if _acts(character) else character for character in text)


def _acts(character: str) -> bool:
    return (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t") or character in BIDI


def joined(text: str) -> str:
    """The printable text with JOINT in its intervals, so that no line ends in one."""
    return INTERVAL.sub(lambda match: match[0].replace(" ", JOINT), printable(text))


def wrapped(line: str, width: int, indent: int = 0) -> list[str]:
    """A line in lines of at most `width` characters, with intervals in one piece. indent: of all but the first."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.text import Text

    if cell_len(line) <= width:
        return [printable(line)]
    parts = Text(joined(line)).wrap(Console(), max(1, width - indent), overflow="fold")
    first, *others = (part.plain.replace(JOINT, " ").rstrip() for part in parts)
    return [first, *(" " * indent + part for part in others)]


def excerpt(text: str, width: int) -> str:
    """The beginning of a text on one line of at most `width` columns; `(empty)` if it is blank."""
    from rich.cells import cell_len, set_cell_size

    words = printable(" ".join(text[: 4 * width].split()))
    if cell_len(words) <= width and len(text) <= 4 * width:
        return words or "(empty)"
    return f"{set_cell_size(words, max(0, width - 3)).rstrip()}..."


def duration(seconds: float, digits: int = 1) -> str:
    """`1m05s`, or `7.3s` below a minute."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{int(rest):02d}s" if minutes else f"{rest:.{digits}f}s"


# What a name raises that no file system can have, which is one without a file.
IMPOSSIBLE = (OSError, ValueError, RuntimeError)  # too long, with a NUL, or of an unknown user (~nobody)

# Unlike the methods of Path, these are false for such names.
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
    """The absolute path without links, or the path itself."""
    with suppress(*IMPOSSIBLE):
        return path.resolve()
    return path


def cache_folder() -> Path:
    """What outlives runs, such as base models: `ALIGNKIT_CACHE` if set, else `alignkit` in the user's cache folder."""
    user = os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")
    return Path(os.environ.get("ALIGNKIT_CACHE") or Path(user) / "alignkit")


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


def redacted(text: str) -> str:
    """The text with `***` in place of keys of known kinds, and of passwords in addresses."""
    return _KEY.sub(HIDDEN, text)
