"""The tables of docs/migrate.md, from the file that `alignkit migrate` reads."""

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
        place, values = (to, {}) if isinstance(to, str) else (to.get("to"), to["values"])
        here = f"`{place.removesuffix('.name')}`" if place else "always so"
        words = [f"`{a}` is `{b}`" if place and a != b else f"`{a}`" for a, b in values.items()]
        yield f"{start}`{word}`", ": ".join([here, *([", ".join(words)] if words else [])]).lower()
