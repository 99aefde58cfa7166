"""The tables of docs/migrate.md, from the file that `alignkit migrate` reads."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.markdown import markdown_table

FILE = Path(__file__).parent / "examples" / "alignkit-migrate" / "alignkit_migrate.yaml"
TOOLS = ("axolotl", "llamafactory", "trl")


def text() -> str:
    """All tables."""
    tables = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    rows = [(_code(each.partition(": ")[0]), here) for each, here in tables["special"].items()]
    for trainer, keys in tables["fields"].items():
        rows += _rows({"online": "grpo, rloo"}.get(trainer, trainer), keys)
    rows += [(_code(each), text) for each, text in tables["differs"].items()]
    rows += [(f"{_code(each)} null, false or 0", text) for each, text in tables["unset"].items()]
    words = [(tool, *map(_code, each)) for tool in TOOLS for each in tables[tool]["names"].items()]
    words = markdown_table(("tool", "its word", "TRL's"), words)
    silent = f"Nothing that is learned depends on {_code(', '.join(tables['silent']))}."
    return f"{markdown_table(('TRL', 'here'), rows)}\n\n{words}\n\n{silent}\n"


def _code(words: str) -> str:
    return ", ".join(f"`{word}`" for word in words.split(", "))


def _rows(trainer: str, keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A line for each field of some trainers."""
    start = "" if trainer == "common" else f"{trainer}: "
    for word, to in keys.items():
        here = f"`{to}`"
        if not isinstance(to, str):
            place = to.get("to", "").removesuffix(".name")
            values = [f"`{there}` as `{here}`" for there, here in to["values"].items()]
            same = re.sub(r"(`.*?`) as (\1|`None`)", r"\1", ", ".join(values).lower(), flags=re.I)
            here = f"`{place}`: {same}" if place else f"always so: {same}"
        yield f"{start}`{word}`", here
