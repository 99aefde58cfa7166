"""How often a run tokenizes the rows of a stage: once."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import main
from alignkit.tokens.encoder import TextTokenizer

ROWS = 40


@pytest.mark.parametrize("algorithm", ["sft", "dpo"])
def test_a_row_is_tokenized_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str
) -> None:
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
    if algorithm == "sft":
        rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    stage = {"algorithm": algorithm, "data": "rows.jsonl", "max_steps": 1}
    recipe = {"model": {"base": "tiny"}, "stages": {"only": stage}}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe), encoding="utf-8")
    assert main(["run", str(tmp_path / "recipe.json"), "--out", str(tmp_path / "out")]) == 0
    assert len(seen) == ROWS and set(seen.values()) == {1}
