"""Finds the commands in the documentation: lines of blocks, inline code, the headers of the shipped
recipes, and the examples of --help.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.cli import program

ROOT = Path(__file__).parent.parent
PROGRAMS = "alignkit|python|pytest|pip|make"
FENCE = re.compile(r"^ *```(\w*)")
LINE = re.compile(rf"^(?:\$ )?((?:{PROGRAMS}) .*)$")
INLINE = re.compile(rf"`((?:{PROGRAMS}) [^`]+)`")
# Longer ones are indented
HEADER = re.compile(r"^#( *)(?:\S.*: )?(alignkit run .*(?:\n#\1 +\S.*)*)", re.MULTILINE)
# A block that begins with a comment on its name is a file
FILE = re.compile(r"^```\w+\n(# ([\w.-]+\.(?:py|yaml))\n.*?)^```$", re.MULTILINE | re.DOTALL)
# What a reader fills in: RUN/STAGE, FILE.py, seed=N, [a.b=c].
PLACEHOLDER = re.compile(r"(?<![\w-])(?:[A-Z]{3,}|N|S)(?![\w-])|\[|\.\.\.")


@dataclass(frozen=True)
class Command:
    """A command of a page. block: from a block of code, so that a reader can copy it with the lines
    before.
    """

    page: Path
    words: tuple[str, ...]
    block: bool

    @property
    def text(self) -> str:
        return shlex.join(self.words)

    @property
    def program(self) -> str:
        """`alignkit run`, `python -m`, `make`."""
        return (
            " ".join(self.words[:2]) if self.words[0] in ("alignkit", "python") else self.words[0]
        )

    def filled(self) -> tuple[str, ...]:
        """The words with numbers and names for what a reader fills in, and with everything that is
        optional.
        """
        text = " ".join(shlex.quote(word) if " " in word else word for word in self.words)
        if PLACEHOLDER.search(text) and not re.search(r"=\[", text):
            text = re.sub(
                r"(?<![\w-])[NS](?![\w-])",
                "1",
                text.replace("...", "").translate(str.maketrans("", "", "[]")),
            )
        return tuple(shlex.split(text))

    @property
    def is_pattern(self) -> bool:
        """Whether a reader has to fill something in besides a number."""
        return bool(PLACEHOLDER.search(re.sub(r"=\S*|'[^']*'|\b[NS]\b", "", self.text)))


def pages() -> list[Path]:
    # Has a test of its own
    docs = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.name != "SKILL.md"]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "AGENTS.md", *docs]


def commands() -> list[Command]:
    """All commands of the documentation, each once per page, in order."""
    found = [command for page in pages() for command in _of_page(page)]
    found += [
        command
        for recipe in sorted((ROOT / "recipes").glob("*.yaml"))
        for command in _of_recipe(recipe)
    ]
    found += _of_help(program())
    return list(dict.fromkeys(found))


def write_files(page: Path, folder: Path) -> None:
    """Write the files that a page shows."""
    for text, name in FILE.findall(page.read_text(encoding="utf-8")):
        (folder / name).write_text(text, encoding="utf-8")


def _of_page(page: Path) -> Iterator[Command]:
    code, language, paragraph = False, "", ""
    for line in [*page.read_text(encoding="utf-8").splitlines(), ""]:
        if fence := FENCE.match(line):
            code, language = not code, fence[1]
        elif code and language in ("", "sh", "bash", "console"):
            if match := LINE.match(line):
                yield from _split(page, match[1], True)
        elif not code and line.strip() and not line.startswith("|"):
            paragraph += f" {line.strip()}"
            continue
        for match in INLINE.finditer(
            paragraph if code or not line.startswith("|") else f"{paragraph} {line}"
        ):
            yield from _split(page, match[1], False)
        paragraph = ""


def _of_help(command: Any) -> Iterator[Command]:
    """The examples that --help prints, as if they stood on the page of commands."""
    for line in re.sub(r" \\\n\s+", " ", command.help or "").splitlines():
        if match := LINE.match(line.strip()):
            yield from _split(ROOT / "docs" / "commands.md", match[1], True)
    for below in getattr(command, "commands", {}).values():
        yield from _of_help(below)


def _of_recipe(recipe: Path) -> Iterator[Command]:
    for match in HEADER.finditer(recipe.read_text(encoding="utf-8")):
        yield from _split(recipe, re.sub(r"\n# +", " ", match[2]), False)


def _split(page: Path, text: str, block: bool) -> Iterator[Command]:
    for part in re.split(r" && ", text):
        words = tuple(shlex.split(part, comments=block))
        if words and words[0] in PROGRAMS.split("|"):
            yield Command(page, words, block)
