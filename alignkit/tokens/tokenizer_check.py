"""Checks of a tokenizer before the weights are loaded: no two tokens share an id, and every id has an embedding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alignkit.errors import RunFailed


def loaded_tokenizer(load: Callable[[], Any], source: str) -> Any:
    """Call `load`. Raises RunFailed if the tokenizer's files are missing or damaged."""
    try:
        return load()
    except Exception as error:  # of any class: tokenizers are read by several libraries
        reason = str(error).strip().split("\n")[0]
        if "trust_remote_code" in str(error):
            raise RunFailed(
                f"{source}: its tokenizer comes with its own code, which is not run\n"
                "help: set model.trust_remote_code if you trust it"
            ) from error
        raise RunFailed(
            f"{source}: its tokenizer cannot be read ({type(error).__name__}: {reason})\n"
            "help: copy the tokenizer's files (tokenizer.json, tokenizer_config.json) again"
        ) from error


def check_ids(tokenizer: Any, rows: int, source: str) -> None:
    """Raise RunFailed if two tokens share an id, or an id has no row. rows: of the model's embedding."""
    words: dict[int, str] = {}
    for word, number in sorted(tokenizer.get_vocab().items()):
        if number in words:
            raise RunFailed(
                f"{source}: two tokens have the id {number}, {words[number]!r} and {word!r}\n"
                "help: use the tokenizer that belongs to the model"
            )
        words[number] = word
    largest = max(words, default=-1)
    if largest >= rows:
        raise RunFailed(
            f"{source}: the tokenizer has the token {words[largest]!r} with the id {largest}, but the model has only "
            f"{rows} embeddings\nhelp: use the tokenizer that belongs to the model, or resize the model's embeddings"
        )
