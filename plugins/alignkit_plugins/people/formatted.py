"""Markdown in answers, as nested lists that a page turns into elements; no HTML is made anywhere.

Nothing loads, and nothing is dropped but cells that a table's head does not have: links, images,
references, entities and HTML stay as they were written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from alignkit_plugins.people.messages import visible

Part = str | list[Any]

# Characters; longer texts are shown as written, because Markdown can take seconds for a hostile one
LONGEST = 20_000
_AS_WRITTEN = ("link", "image", "autolink", "reference", "entity", "html_block", "html_inline")
_FORMULA = re.compile(r"\$\$|\\[(\[]|\\begin\{|\$(?!\s)[^$\n]+(?<!\s)\$(?!\d)")


def formatted(text: str) -> list[Part] | None:
    """The Markdown of a text; None if it has none, is too long, or has formulas, whose signs
    Markdown would take.

    A part is a text, or a list of a tag, an object of its attributes if it has any (`start` of
    `ol`, `info` of `pre`), and its parts. The tags are HTML's.
    """
    if len(text) > LONGEST or _FORMULA.search(text):
        return None
    tokens = _MARKDOWN.parse(visible(text))
    if all(_is_plain(token) for token in tokens):
        return None
    return _nested(tokens)


def shown_turn(turn: Mapping[str, Any], most: int | None = None) -> dict[str, Any]:
    """A turn's role and text, and the parts of its Markdown if it has any; calls of tools are no
    Markdown.

    most: characters of the text, after which it is cut with a note.
    """
    parts = [turn["reasoning_content"]] if turn.get("reasoning_content") else []
    parts += [turn["content"]] if turn["content"] else []
    parts += [
        f"{call['function']['name']}({call['function'].get('arguments', '')})"
        for call in turn.get("tool_calls", ())
    ]
    text = cut("\n\n".join(map(str, parts)), most)
    shown = {"role": visible(str(turn["role"])), "text": visible(text)}
    marked = None if turn.get("tool_calls") else formatted(text)
    return shown if marked is None else {**shown, "parts": marked}


def cut(text: str, most: int | None) -> str:
    """The beginning of a text, and how many characters follow."""
    return (
        text
        if most is None or len(text) <= most
        else f"{text[:most]}\n\n[{len(text) - most:,} more characters]"
    )


def _is_plain(token: Token) -> bool:
    if token.type == "inline":
        return all(child.type in ("text", "softbreak") for child in token.children or ())
    return token.type in ("paragraph_open", "paragraph_close")


def _nested(tokens: Iterable[Token]) -> list[Part]:
    root: list[Part] = []
    stack = [root]
    for token in tokens:
        if token.type == "inline":
            stack[-1] += _nested(token.children or ())
        elif token.nesting == 1:
            stack.append(_opened(token))
        elif token.nesting == -1:
            part = stack.pop()
            # Paragraphs of a tight list are hidden: their texts belong to the list's item.
            stack[-1] += part[1:] if token.hidden else [part]
        else:
            stack[-1].append(_leaf(token))
    return root


def _opened(token: Token) -> list[Part]:
    if token.tag == "ol" and "start" in token.attrs:
        return ["ol", {"start": int(token.attrs["start"])}]  # type: ignore[list-item]
    if token.tag in ("h1", "h2", "h3", "h4", "h5", "h6"):
        return [f"h{min(int(token.tag[1]) + 2, 6)}"]  # below the page's own headings
    return [token.tag]


def _leaf(token: Token) -> Part:
    text = visible(token.content)
    if token.type in ("fence", "code_block"):
        info: list[Any] = [{"info": visible(token.info.strip())}] if token.info.strip() else []
        return ["pre", *info, text.removesuffix("\n")]
    if token.type in ("softbreak", "hardbreak"):
        return "\n"
    if token.type == "code_inline":
        return ["code", text]
    return ["hr"] if token.type == "hr" else text


_MARKDOWN = (
    MarkdownIt("commonmark", {"html": False})
    .enable(["table", "strikethrough"])
    .disable(list(_AS_WRITTEN))
)
