"""Checks a tokenizer and its chat template before any weights are loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from alignkit.errors import DataError, RunFailed
from alignkit.tokens.encoder import Encoder
from alignkit.tokens.template import TODAY

SHOWN = 24  # characters of a prompt's end, in an error


def check_ids(tokenizer: Any, rows: int, source: str) -> None:
    """Raise RunFailed if a token's id has no row. rows: of the model's embedding."""
    ids: dict[str, int] = tokenizer.get_vocab()
    word = max(ids, key=ids.__getitem__)
    if ids[word] >= rows:
        raise RunFailed(
            f"{source}: the tokenizer has the token {word!r} with the id {ids[word]}, but the "
            f"model has only {rows} embeddings\n"
            "help: use the tokenizer that belongs to the model, or resize the model's embeddings"
        )


def check_chat(encoder: Encoder, base: str) -> list[str]:
    """Return facts about the template that the user should know. Raises RunFailed if it cannot be
    followed.
    """
    try:
        markers = encoder.chat.markers
    except DataError as error:
        raise RunFailed(
            f"{base}: {error}\nhelp: set model.chat_template to another template"
        ) from error
    if encoder.tokenizer.eos_token_id is None and not markers.close:
        raise RunFailed(
            f"{base}: the tokenizer has no EOS token and the chat template writes no end of turn, "
            "so responses would never end\n"
            "help: set model.chat_template to a template that ends the assistant's turn with a "
            "control token"
        )
    if markers.follows and not markers.opening:  # reasoning follows the opening of its block
        alone, together = encoder.rendered.ids(markers.prompt), encoder.rendered.ids(markers.whole)
        if together[: len(alone)] != alone:
            raise RunFailed(
                f"{base}: the prompt's last token changes when an answer follows it, because one "
                f"token covers its end: it ends with {markers.prompt[-SHOWN:]!r}\n"
                "help: in model.chat_template, write the white space at the end of the "
                "generation prompt before the answer instead"
            )
    return list(_facts(encoder))


def _facts(encoder: Encoder) -> Iterator[str]:
    chat = encoder.chat
    for name in chat.kwargs:
        if not re.search(rf"\b{re.escape(name)}\b", chat.source):
            yield f"the chat template does not use '{name}' of model.chat_template_kwargs"
    if not chat.markers.follows:
        yield (
            "the chat template does not write an answer without reasoning after its own prompt, "
            "so rows with such answers are refused"
        )
    if not chat.markers.close:
        yield (
            "the chat template writes no end of turn, so responses end with EOS, or where the "
            "next turn would begin"
        )
    if "strftime_now" in chat.source:
        yield f"the chat template writes a date, which is always {TODAY}"
