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

RECIPES, ROWS = 400, 900
ODD: list[Any] = [
    None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**30, "", " ", "null", "x" * 3000, "\u202eevil", "\x1b[31m",
    "a\x00b", "~nobody/x", "../../etc/passwd", "/dev/zero", "/dev/stdin", "/proc/self/mem", ".", "/", [], {}, [[]],
    {"": ""}, [None], ["a", 1], {"a": {"b": {"c": 1}}}, "{{ 7 * 7 }}", "${HOME}", (
        "!!python/object:os.system"
    ), "1e3",
    "2026-11-22", "0x10", "yes", "sft@all", "base@1", "report", "\ud7ff", "日本",
    "👩‍👧", "%s%n", "a: b", "- a",
]  # fmt: skip
WEIRD = ["\t", "&a ", "*a", "<<: *a", "!!binary ", "? ", "---\n", "%YAML 9.9\n", "\ufeff", "{", "'"]
ROWS_OF_FORMATS = """
{"prompt": "how are you", "completion": "fine", "label": true}
{"prompt": "how are you", "chosen": "fine", "rejected": "bad"}
{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
{"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]}
{"instruction": "say hi", "input": "", "output": "hi"}
{"chosen": "\\n\\nHuman: hi\\n\\nAssistant: hello", "rejected": "\\n\\nHuman: hi\\n\\nAssistant: no"}
{"text": "just a text"}
"""


def recipes(recipe: Path) -> list[Case]:
    """Mutated recipes, each checked by `alignkit check`."""
    found = []
    for what, text in _recipes(yaml.safe_load(recipe.read_text(encoding="utf-8"))):
        files = {"recipe.yaml": text.encode("utf-8", "surrogatepass")}
        for name in ("demos.jsonl", "pairs.jsonl", "prompts.jsonl"):
            files[name] = (recipe.parent / name).read_bytes()
        found.append(Case("recipe", what, _checked(files)))
    return found


def rows(recipe: Path) -> list[Case]:
    """Mutated rows, each checked by `alignkit check`."""
    whole = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    whole["stages"] = {"sft": {"algorithm": "sft", "data": "rows.jsonl"}}
    text = yaml.safe_dump(whole).encode()
    return [
        Case("row", what, _checked({"recipe.yaml": text, "rows.jsonl": line + b"\n"}))
        for what, line in _lines()
    ]


def _checked(files: dict[str, bytes]) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return refused(["check", str(folder / "recipe.yaml")])

    return run


def _recipes(whole: dict[str, Any]) -> Iterator[tuple[str, str]]:
    chance = random.Random(1)
    text = yaml.safe_dump(whole, sort_keys=False)
    for _ in range(RECIPES):
        changed = copy.deepcopy(whole)
        what = replace_somewhere(changed, chance)
        yield what, yaml.dump(changed, sort_keys=False, allow_unicode=True)
        place, weird = chance.randrange(len(text)), chance.choice(WEIRD)
        yield f"{weird!r} at {place}", text[:place] + weird + text[place:]
        yield f"cut at {place}", text[:place]


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
    chance, known = random.Random(2), ROWS_OF_FORMATS.strip().splitlines()
    for _ in range(ROWS):
        row = json.loads(chance.choice(known))
        if chance.random() < 0.7:
            what = replace_somewhere(row, chance)
            yield what, json.dumps(row).encode()
        else:
            data = bytearray(json.dumps(row).encode())
            place = chance.randrange(len(data))
            data[place] = chance.randrange(256)
            yield f"byte {place} is {data[place]}", bytes(data)
