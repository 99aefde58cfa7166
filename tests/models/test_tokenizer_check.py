"""Tokenizers that do not fit their model, or cannot be read: refused before any weight is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from architectures import make

from alignkit.errors import RunFailed
from alignkit.models import shared_model
from alignkit.models.shared_model import SharedModel
from alignkit.settings import ModelSpec


def with_words(**words: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(tokenizer: dict[str, Any]) -> dict[str, Any]:
        tokenizer["model"]["vocab"] |= words
        return tokenizer

    return change


@pytest.mark.silent_bug(
    "models: added tokens",
    "Rows of added tokens are learned and not saved.",
    "A tokenizer with more ids than embeddings is refused.",
    "artidoro/qlora#214",
)
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            with_words(far=500),
            "has the token 'far' with the id 500, but the model has only 97 embeddings",
        ),
        (
            with_words(next=97),
            "has the token 'next' with the id 97, but the model has only 97 embeddings",
        ),
        (lambda tokenizer: {}, "its tokenizer cannot be read (KeyError"),
    ],
)
def test_foreign_tokenizers_are_refused(
    change: Callable[[dict[str, Any]], Any],
    problem: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = make(tmp_path, "Llama") / "tokenizer.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    monkeypatch.setattr(
        shared_model, "load_base", lambda *_: pytest.fail("the weights were loaded")
    )
    with pytest.raises(RunFailed) as caught:
        SharedModel(ModelSpec(base=str(tmp_path), dtype="float32", device="cpu"), str(tmp_path))
    assert problem in str(caught.value) and "\nhelp: " in str(caught.value)
