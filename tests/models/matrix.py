"""What plain transformers makes of a family's conversation, which is what alignkit must make of it.

Which conversations a template refuses, and where exactly masks begin and end, is in tests/net for
every family.
"""

from __future__ import annotations

import re
from datetime import datetime, time, tzinfo
from typing import Any
from unittest.mock import patch

import families
from families import Family

from alignkit.errors import AlignkitError
from alignkit.tokens import template as chat_template

MAX_LENGTH = 100_000


class _Today(datetime):
    """A clock that shows the day that alignkit gives to templates."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
        return datetime.combine(chat_template.TODAY, time(), tz)


def squeezed(text: str) -> str:
    """The text without white space: tokenizers and control tokens add and swallow some."""
    return re.sub(r"\s+", "", text)


@patch("transformers.utils.chat_template_utils.datetime", _Today)
def applied(
    family: Family, kind: str, messages: list[dict[str, Any]], whole: bool, **kwargs: Any
) -> list[int]:
    """The tokens of a conversation as transformers makes them, or those of a prompt."""
    renamed = [dict(message) for message in messages]
    for message in renamed:
        if "reasoning_content" in message:
            message[family.reasoning_key] = message.pop("reasoning_content")
    found: list[int] = families.tokenizer(family, kind).apply_chat_template(
        renamed, return_dict=False, add_generation_prompt=not whole, **kwargs
    )
    return found


def check(family: Family, kind: str, name: str, scoring: bool, **kwargs: Any) -> None:
    """The tokens are those of transformers; where it joins prompt and answer in a token, or writes
    no end of turn, they have its text.
    """
    encoder, group = families.encoder(family, kind, **kwargs), families.group(family, name)
    try:
        found = encoder.encode(group, MAX_LENGTH, scoring=scoring)
    except AlignkitError:
        return
    assert found is not None
    messages = families.conversation(family, name)
    while messages[-1]["role"] != "assistant":
        messages.pop()
    options = {"tools": list(group.tools) or None, **kwargs}
    whole = applied(family, kind, messages, True, **options)
    prompt = applied(family, kind, messages[: len(group.prompt)], False, **options)
    tokens = [*found.prompt, *found.responses[0].tokens]
    if whole[: len(prompt)] == prompt and family.ends:
        assert list(found.prompt) == prompt
        assert tokens == whole[: len(whole) if scoring else len(tokens)]
        assert scoring or tokens[-1] in encoder.end_ids
        return
    if not family.ends and not scoring:
        assert tokens.pop() in encoder.end_ids  # as in sampling
    text, read = (squeezed(encoder.tokenizer.decode(ids)) for ids in (whole, tokens))
    last = messages[-1]["content"].rpartition("</think>")[2]
    assert text.startswith(read) and squeezed(last) in read
