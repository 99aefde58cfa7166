"""Recipes and rows that people, tools and attackers write: broken, foreign, absurd."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.faults.case import Case, refused

RECIPES, ROWS = 1200, 900
ODD: list[Any] = [
    None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**30, "", " ", "null", "x" * 3000, "\u202eevil", "\x1b[31m",
    "a\x00b", "~nobody/x", "../../etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem", ".", "/", [], {}, [[]],
    {"": ""}, [None], ["a", 1], {"a": {"b": {"c": 1}}}, "{{ 7 * 7 }}", "${HOME}", (
        "!!python/object:os.system"
    ), "1e3",
    "2026-11-22", "0x10", "yes", "sft@all", "base@1", "report", "\ud7ff", "日本",
    "👩‍👧", "%s%n", "a: b", "- a",
]  # fmt: skip
WEIRD = [
    "\t",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "? ",
    "---\n",
    "...\n",
    "%YAML 9.9\n",
    "\x85",
    "\ufeff",
    "}",
    "{",
    "'",
]
GROUPS: list[dict[str, Any]] = [
    {"prompt": "how are you", "completion": "fine"},
    {"prompt": "how are you", "chosen": "fine", "rejected": "bad"},
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    {"instruction": "say hi", "input": "", "output": "hi"},
    {"prompt": "how are you", "completion": "fine", "label": True},
    {
        "chosen": "\n\nHuman: hi\n\nAssistant: hello",
        "rejected": "\n\nHuman: hi\n\nAssistant: go away",
    },
    {"text": "just a text"},
]


def cases(recipe: Path) -> list[Case]:
    """Mutated recipes and mutated rows, each checked by `alignkit check`."""
    whole = json.loads(recipe.read_text(encoding="utf-8"))
    recipes = [
        Case("recipe", f"{n}: {what}", _recipe(recipe, text))
        for n, (what, text) in enumerate(_recipes(whole))
    ]
    rows = [
        Case("row", f"{n}: {what}", _rows(recipe, whole, line))
        for n, (what, line) in enumerate(_lines())
    ]
    return recipes + rows


def _recipes(whole: dict[str, Any]) -> Iterator[tuple[str, str]]:
    chance = random.Random(1)
    text = yaml.safe_dump(whole, sort_keys=False)
    for _ in range(RECIPES // 2):
        changed = copy.deepcopy(whole)
        what = replace_somewhere(changed, chance)
        yield what, yaml.dump(changed, sort_keys=False, allow_unicode=True)
    for _ in range(RECIPES - RECIPES // 2):
        place, weird = chance.randrange(len(text)), chance.choice(WEIRD)
        kind = chance.choice(("insert", "cut", "repeat"))
        if kind == "insert":
            yield f"{weird!r} at {place}", text[:place] + weird + text[place:]
        elif kind == "cut":
            yield f"cut at {place}", text[:place]
        else:
            lines = text.splitlines(keepends=True)
            line = chance.randrange(len(lines))
            yield f"line {line} twice", "".join([*lines[: line + 1], *lines[line:]])


def replace_somewhere(value: Any, chance: random.Random) -> str:
    """Put something odd in place of a key or of a value, at any depth."""
    path = ""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = chance.choice(keys)
        path += f".{key}"
        if isinstance(value[key], dict | list) and value[key] and chance.random() < 0.75:
            value = value[key]
            continue
        odd = chance.choice(ODD)
        if isinstance(value, dict) and chance.random() < 0.3:
            value[str(odd)] = value.pop(key)
            return f"{path} is called {odd!r:.40}"
        value[key] = copy.deepcopy(odd)
        return f"{path} is {odd!r:.40}"


def _lines() -> Iterator[tuple[str, bytes]]:
    chance = random.Random(2)
    for _ in range(ROWS):
        row = copy.deepcopy(chance.choice(GROUPS))
        if chance.random() < 0.7:
            what = replace_somewhere(row, chance)
            yield what, json.dumps(row).encode()
        else:
            data = bytearray(json.dumps(row).encode())
            place = chance.randrange(len(data))
            data[place] = chance.randrange(256)
            yield f"byte {place} is {data[place]}", bytes(data)


def _recipe(recipe: Path, text: str) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        for name in ("demos.jsonl", "pairs.jsonl", "prompts.jsonl"):
            (folder / name).write_bytes((recipe.parent / name).read_bytes())
        (folder / "recipe.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
        return refused(["check", str(folder / "recipe.yaml")])

    return run


def _rows(recipe: Path, whole: dict[str, Any], line: bytes) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        stages = {"sft": {"algorithm": "sft", "data": "rows.jsonl"}}
        (folder / "rows.jsonl").write_bytes(line + b"\n")
        (folder / "recipe.json").write_text(
            json.dumps(whole | {"stages": stages}), encoding="utf-8"
        )
        return refused(["check", str(folder / "recipe.json")])

    return run
