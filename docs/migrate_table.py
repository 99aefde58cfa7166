"""The tables of docs/migrate.md, from the file that `alignkit migrate` reads."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from benchmarks.markdown import markdown_table

FILE = Path(__file__).parent / "examples" / "alignkit-migrate" / "alignkit_migrate.yaml"
FIXED = "always so: "
TOOLS = ("axolotl", "llamafactory", "trl")


def text() -> str:
    """All tables, with a row for all words that mean the same."""
    tables = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    rows = [(_code(each.partition(": ")[0]), here) for each, here in tables["special"].items()]
    kept = []
    for trainer, keys in tables["fields"].items():
        kept += [to for word, to in keys.items() if _keeps_its_name(word, to)]
        rows += _rows({"online": "grpo, rloo"}.get(trainer, trainer), keys)
    rows += [(_code(each), text) for each, text in tables["differs"].items()]
    rows += [(f"{_code(each)} off", text) for each, text in tables["unset"].items()]
    named: dict[str, list[str]] = {}
    for word, here in rows:
        named.setdefault(here, []).append(word)
    for here in [here for here in named if here.startswith("see `")]:
        named[dict(rows)[here.removeprefix("see ")]] += named.pop(here)
    fixed = {here: named.pop(here) for here in [*named] if here.startswith(FIXED)}
    only = [f"{', '.join(each)} {here.removeprefix(FIXED)}" for here, each in fixed.items()]
    words: dict[str, dict[str, list[str]]] = {}
    for tool in TOOLS:
        for word, there in tables[tool]["names"].items():
            words.setdefault(there, {}).setdefault(tool, []).append(f"`{word}`")
    lines = [
        (_code(there), *(", ".join(each.get(tool, ())) for tool in TOOLS))
        for there, each in words.items()
    ]
    parts = (
        f"These keys keep their last word: {_code(', '.join(kept))}.",
        markdown_table(("TRL", "here"), [(", ".join(each), here) for here, each in named.items()]),
        markdown_table(("TRL", "axolotl", "LLaMA-Factory", "also"), lines),
        f"These have one meaning here, so another value is an error: {'; '.join(only)}.\n",
    )
    return "\n\n".join(parts)


def _keeps_its_name(word: str, to: object) -> bool:
    return isinstance(to, str) and to.rpartition(".")[2] == word


def _code(words: str) -> str:
    return ", ".join(f"`{word}`" for word in words.split(", "))


def _rows(trainer: str, keys: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A line for each field of some trainers."""
    start = "" if trainer == "common" else f"{trainer}: "
    for word, to in keys.items():
        if _keeps_its_name(word, to):
            continue
        here = f"`{to}`"
        if not isinstance(to, str):
            place = to.get("to", "").removesuffix(".name")
            values = [f"`{there}` as `{here}`" for there, here in to["values"].items()]
            same = re.sub(r"(`.*?`) as (\1|`None`)", r"\1", ", ".join(values).lower(), flags=re.I)
            here = f"`{place}`: {same}" if place else f"{FIXED}{same}"
        yield f"{start}`{word}`", here
