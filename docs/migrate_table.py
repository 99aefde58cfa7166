"""The tables of docs/migrate.md, from the file that `alignkit migrate` reads."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.markdown import markdown_table

FILE = Path(__file__).parent / "examples" / "alignkit-migrate" / "alignkit_migrate.yaml"
TOOLS = ("axolotl", "llamafactory", "trl")


def text() -> str:
    """Both tables, with a row for all words that mean the same. What differs is printed when a config
    has it.
    """
    tables = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    rows = [(_code(each.partition(": ")[0]), here) for each, here in tables["special"].items()]
    kept = []
    for trainer, keys in tables["fields"].items():
        start = {"common": "", "online": "grpo, rloo: "}.get(trainer, f"{trainer}: ")
        for word, to in keys.items():
            if isinstance(to, str) and to.rpartition(".")[2] == word:
                kept.append(to)
            elif isinstance(to, str) or "to" in to:  # others have only one meaning here
                rows.append((f"{start}`{word}`", _here(to)))
    named: dict[str, list[str]] = {}
    for word, here in rows:
        named.setdefault(here, []).append(word)
    words: dict[str, dict[str, list[str]]] = {}
    for tool in TOOLS:
        for word, there in tables[tool]["names"].items():
            words.setdefault(there, {}).setdefault(tool, []).append(f"`{word}`")
    lines = [
        (_code(there), *(", ".join(each.get(tool, ())) for tool in TOOLS))
        for there, each in words.items()
    ]
    parts = (
        f"TRL's names are the last words of these keys: {_code(', '.join(kept))}.",
        markdown_table(("TRL", "here"), [(", ".join(each), here) for here, each in named.items()]),
        markdown_table(("TRL", "axolotl", "LLaMA-Factory", "also"), lines) + "\n",
    )
    return "\n\n".join(parts)


def _code(words: str) -> str:
    return ", ".join(f"`{word}`" for word in words.split(", "))


def _here(to: str | Mapping[str, Any]) -> str:
    """The key of a recipe that a field is, and the values that are known."""
    if isinstance(to, str):
        return f"`{to}`"
    values = [f"`{there}` as `{here}`" for there, here in to["values"].items()]
    same = re.sub(r"(`.*?`) as (\1|`None`)", r"\1", ", ".join(values).lower(), flags=re.I)
    return f"`{to['to'].removesuffix('.name')}`: {same}"
