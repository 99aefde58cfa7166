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
from tests.rows import write_recipe

CONFIGS, BYTES, TEMPLATES = 60, 25, 150  # per file: odd values, changed bytes; templates
HOSTILE = """
{{ messages }}
{% for m in messages %}{{ m }}
{{ 1 / 0 }}
{{ raise_exception('no') }}
{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}
{{ ''.__class__.__mro__ }}
{{ cycler.__init__.__globals__ }}
{{ 'x' * 10 ** 9 }}
{{ range(10 ** 12) | list }}
{% for i in range(10 ** 6) %}{% for j in range(10 ** 6) %}{% endfor %}{% endfor %}
{{ messages | map(attribute='x') | join }}
{% include '/etc/passwd' %}
{% import 'os' as os %}
{% extends 'x' %}
{{
{%
{#
}}
{{ messages[0].content }}
{{ messages[-1].content.upper() }}
{{ messages[99].content }}
{{ undefined_function() }}
{{ tools[0] }}
{{ messages | tojson | pprint }}
{% set ns = namespace(x=messages) %}{{ ns.x | length }}
{{ 9 ** (9 ** 9) }}
{{ strftime_now('%Y') * 1000000 }}
"""
ODD = ["\x00", "", " ", "\x1b[31m{{ messages[0].content }}", "{{ bos_token }}" * 2000]


def folders(recipe: Path, adapter: Path) -> list[Case]:
    """Faults in each file of the base model, and of an adapter."""
    from alignkit.io.text import cache_folder

    known = cache_folder().glob("tiny-*")
    (tiny,) = [folder for folder in known if (folder / "config.json").is_file()]
    found = []
    for original in (tiny, adapter):
        for file in sorted(path for path in original.iterdir() if path.is_file()):
            for what, content in _damages(file):
                run = _damaged(recipe, original, file.name, content, original is tiny)
                found.append(Case("model", f"{file.name}: {what}", run))
    return found


def templates(recipe: Path) -> list[Case]:
    """Hostile templates, and some in which a few letters differ."""
    texts = [*HOSTILE.strip().splitlines(), *ODD, *_mutated(CHATML)]
    return [Case("template", repr(text)[:80], _template(recipe, text)) for text in texts]


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


def _run(recipe: Path, folder: Path, model: dict[str, Any], start: str = "base") -> tuple[str, str]:
    data = str(recipe.parent / "demos.jsonl")
    stage = {"algorithm": "sft", "data": data, "max_steps": 1, "from": start}
    model = {"base": "tiny", "lora": {"r": 2, "lora_alpha": 4}, **model}
    return refused(
        ["run", str(write_recipe(folder, {"sft": stage}, model)), "--out", str(folder / "o")]
    )


def _damaged(
    recipe: Path, original: Path, name: str, content: bytes, is_base: bool
) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        copy = str(shutil.copytree(original, folder / "copy"))
        (folder / "copy" / name).write_bytes(content)
        return _run(recipe, folder, {"base": copy}) if is_base else _run(recipe, folder, {}, copy)

    return run


def _template(recipe: Path, text: str) -> Callable[[Path], tuple[str, str]]:
    def run(folder: Path) -> tuple[str, str]:
        (folder / "t.jinja").write_text(text, encoding="utf-8")
        return _run(recipe, folder, {"chat_template": "t.jinja"})

    return run
