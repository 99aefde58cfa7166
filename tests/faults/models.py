"""Model folders, adapters and chat templates that are damaged, foreign or hostile: refused in
words, or used.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit_plugins.models.templates import CHATML
from tests.faults.case import Case, refused
from tests.faults.texts import replace_somewhere

CONFIGS, BYTES, TEMPLATES = 60, 25, 150  # per file: odd values, changed bytes; templates
HOSTILE = [
    "{{ messages }}",
    "{% for m in messages %}{{ m }}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('no') }}",
    "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ 'x' * 10 ** 9 }}",
    "{{ range(10 ** 12) | list }}",
    "{% for i in range(10 ** 6) %}{% for j in range(10 ** 6) %}{% endfor %}{% endfor %}",
    "{{ messages | map(attribute='x') | join }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends 'x' %}",
    "\x00",
    "",
    " ",
    "{{",
    "{%",
    "{#",
    "}}",
    "{{ messages[0].content }}",
    "{{ messages[-1].content.upper() }}",
    "{{ bos_token }}" * 2000,
    "\x1b[31m{{ messages[0].content }}",
    "{{ messages[99].content }}",
    "{{ undefined_function() }}",
    "{{ tools[0] }}",
    "{{ messages | tojson | pprint }}",
    "{% set ns = namespace(x=messages) %}{{ ns.x | length }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ strftime_now('%Y') * 1000000 }}",
]


def cases(recipe: Path, scratch: Path, finished: Path) -> list[Case]:
    """Faults in each file of the base model, in a copied adapter, and in templates."""
    from alignkit.io.text import cache_folder

    (tiny,) = [
        folder for folder in cache_folder().glob("tiny-*") if (folder / "config.json").is_file()
    ]
    damaged = [
        Case("model", f"{file.name}: {what}", _base(recipe, tiny, file.name, content))
        for file in sorted(tiny.iterdir())
        if file.is_file()
        for what, content in _damages(file)
    ]
    adapter = finished / "sft" / "adapter"
    damaged += [
        Case(
            "model", f"adapter's {file.name}: {what}", _adapter(recipe, adapter, file.name, content)
        )
        for file in sorted(adapter.iterdir())
        for what, content in _damages(file)
    ]
    templates = [*HOSTILE, *_mutated(CHATML)]
    return damaged + [
        Case("template", repr(text)[:80], _template(recipe, text)) for text in templates
    ]


def _damages(file: Path) -> list[tuple[str, bytes]]:
    data, chance = file.read_bytes(), random.Random(file.name)
    found = [
        ("empty", b""),
        ("cut", data[: len(data) // 2]),
        ("zeros", bytes(len(data))),
        ("a pickle", b"\x80\x04N."),
    ]
    for _ in range(BYTES):
        # The start, where the header is
        changed, place = bytearray(data), chance.randrange(min(len(data), 4096))
        changed[place] = chance.randrange(256)
        found.append((f"byte {place} is {changed[place]}", bytes(changed)))
    if file.suffix == ".json":
        for _ in range(CONFIGS):
            value = json.loads(data)
            what = replace_somewhere(value, chance)
            found.append((what, json.dumps(value).encode()))
    return found


def _mutated(template: str) -> list[str]:
    chance, found = random.Random(4), []
    for _ in range(TEMPLATES):
        place, length = chance.randrange(len(template)), chance.randrange(1, 20)
        middle = chance.choice(
            ["", "{{", "}}", "{% if x %}", "{{ messages[0] }}", "'", "|", "\n", "assistant"]
        )
        found.append(template[:place] + middle + template[place + length :])
    return found


def _stages(recipe: Path, **keys: Any) -> dict[str, Any]:
    return {
        "sft": {
            "algorithm": "sft",
            "data": str(recipe.parent / "demos.jsonl"),
            "max_steps": 1,
            **keys,
        }
    }


def _run(folder: Path, model: dict[str, Any], stages: dict[str, Any]) -> tuple[str, str]:
    text = json.dumps({"model": {"lora": {"r": 2, "lora_alpha": 4}} | model, "stages": stages})
    (folder / "r.json").write_text(text, encoding="utf-8")
    return refused(["run", str(folder / "r.json"), "--out", str(folder / "o")])


def _base(recipe: Path, tiny: Path, name: str, content: bytes) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        shutil.copytree(tiny, folder / "base")
        (folder / "base" / name).write_bytes(content)
        return _run(folder, {"base": str(folder / "base")}, _stages(recipe))

    return run


def _adapter(
    recipe: Path, adapter: Path, name: str, content: bytes
) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        shutil.copytree(adapter, folder / "start")
        (folder / "start" / name).write_bytes(content)
        return _run(folder, {"base": "tiny"}, _stages(recipe, **{"from": str(folder / "start")}))

    return run


def _template(recipe: Path, text: str) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        (folder / "t.jinja").write_text(text, encoding="utf-8")
        return _run(folder, {"base": "tiny", "chat_template": "t.jinja"}, _stages(recipe))

    return run
