"""How often a run tokenizes the rows of a stage: once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from alignkit.tokens.encoder import TextTokenizer
from tests.rows import run, write_recipe, write_rows

ROWS = 40


def test_a_row_is_tokenized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers."""
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    seen: Counter[str] = Counter()
    prepare, encode = TextTokenizer.prepare, TextTokenizer._encode

    def prepared(self: TextTokenizer, texts: Iterable[str]) -> None:
        texts = set(texts)
        seen.update(re.findall(r"answer\d+", " ".join(texts)))
        prepare(self, texts)

    def encoded(self: TextTokenizer, text: str) -> Any:
        seen.update(re.findall(r"answer\d+", text))
        return encode(self, text)

    monkeypatch.setattr(TextTokenizer, "prepare", prepared)
    monkeypatch.setattr(TextTokenizer, "_encode", encoded)
    rows = [{"prompt": "how", "chosen": f"answer{n}.", "rejected": "no"} for n in range(ROWS)]
    write_rows(tmp_path / "rows.jsonl", rows)
    stage = {"algorithm": "dpo", "data": "rows.jsonl", "max_steps": 1}
    run(write_recipe(tmp_path, {"only": stage}))
    assert len(seen) == ROWS and set(seen.values()) == {1}
