"""What disks, tools, people and attackers make of a file."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import yaml

BITS, VALUES, EDITS = 25, 60, 30  # per file
ODD = yaml.safe_load(r"""
[null, true, -1, 0, 1.0e+308, .nan, .inf, 1000000000000000000000000000000, "", " ", "null",
"\u202eevil", "\e[31m", "a\0b", "~nobody/x", "../../etc/passwd", "/dev/zero", "/dev/stdin",
"/proc/self/mem", ".", "/", [], {}, [[]], {"": ""}, [null], ["a", 1], {"a": {"b": {"c": 1}}},
"{{ 7 * 7 }}", "${HOME}", "!!python/object:os.system", "1e3", "2026-11-22", "0x10", "yes", "sft@all",
"base@1", "report", "\uD7FF", "日本", "👩‍👧", "%s%n", "a: b", "- a"]
""")
ODD.append("x" * 3000)
WEIRD = ["\t", "&a ", "*a", "<<: *a", "!!binary ", "? ", "---\n", "%YAML 9.9\n", "\ufeff", "{", "'"]
IN_TEMPLATES = ["", "{{", "}}", "{% if x %}", "{{ messages[0] }}", "'", "|", "\n", "assistant"]
HOSTILE = r"""
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


def damages(name: str, data: bytes) -> Iterator[tuple[str, bytes | None]]:
    """Each with what it is; None for a file that is missing."""
    chance, half = random.Random(name), data[: len(data) // 2]
    kinds = {"missing": None, "empty": b"", "cut": half, "zeros": bytes(len(data))}
    yield from {**kinds, "a pickle": b"\x80\x04N."}.items()
    for _ in range(BITS if data else 0):
        # The start, where the header is
        place, changed = chance.randrange(min(len(data), 4096)), bytearray(data)
        changed[place] ^= 1 << chance.randrange(8)
        yield f"a bit of byte {place} is flipped", bytes(changed)
    if name.endswith((".yaml", ".jinja")):
        words, text = WEIRD if name.endswith(".yaml") else IN_TEMPLATES, data.decode()
        for _ in range(EDITS):
            place, end, word = (
                chance.randrange(len(text)),
                chance.randrange(20),
                chance.choice(words),
            )
            yield f"{word!r} at {place}", (text[:place] + word + text[place + end :]).encode()
    for text in [*HOSTILE.strip().splitlines(), "\x00", " "] if name.endswith(".jinja") else []:
        yield text, text.encode()
    is_one = name.endswith((".yaml", ".json", ".jsonl")) and b"\n{" not in data
    if not is_one or not data.strip():
        return
    whole = yaml.safe_load(data)
    for _ in range(VALUES):
        value = copy.deepcopy(whole)
        what = _replace_somewhere(value, chance)
        dump = yaml.dump if name.endswith(".yaml") else json.dumps
        yield what, dump(value).encode()


def _replace_somewhere(value: Any, chance: random.Random) -> str:
    """Put something odd in place of a key or of a value, at any depth."""
    path = ""
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, odd = chance.choice(keys), copy.deepcopy(chance.choice(ODD))
        path += f".{key}"
        if isinstance(value[key], dict | list) and value[key] and chance.random() < 0.75:
            value = value[key]
        elif isinstance(value, dict) and chance.random() < 0.3:
            value[str(odd)] = value.pop(key)
            return f"{path} is called {odd!r:.40}"
        else:
            value[key] = odd
            return f"{path} is {odd!r:.40}"
