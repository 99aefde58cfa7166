"""Texts as a page shows them: nothing in them hides, and Markdown is nested lists that the page
turns into elements.

No HTML is made anywhere. Nothing loads, and nothing is dropped but cells that a table's head does
not have: links, images, references, entities and HTML stay as they were written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from alignkit.io.text import BIDI
from alignkit_plugins.text.rows import calls_of

if TYPE_CHECKING:
    from markdown_it.token import Token
    from markdown_it.tree import SyntaxTreeNode

Part = str | list[Any]

# characters; longer texts are shown as written, because Markdown can take seconds for a hostile one
LONGEST = 20_000
_AS_WRITTEN = ["link", "image", "autolink", "reference", "entity", "html_block", "html_inline"]
_FORMULA = re.compile(r"\$\$|\\[(\[]|\\begin\{|\$(?!\s)[^$\n]+(?<!\s)\$(?!\d)")
# Joiners and the first variation selectors stay, because emoji and many scripts need them.
_UNSEEN = "\u180e\u200b\u2060-\u2064\ufeff\u115f\u1160\u3164\uffa0\ufff9-\ufffb"
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff"
# invisible, and used to hide instructions or bytes
_CARRIERS = "\U000e0000-\U000e007f\U000e0100-\U000e01ef"
_HIDDEN = re.compile(f"[{_CONTROLS}{_UNSEEN}{_CARRIERS}{''.join(BIDI)}]")
_REFUSED = re.compile("[\x00\ud800-\udfff]")  # by stores and by recipes


def visible(text: str) -> str:
    """The text with control characters, direction marks and invisible characters named, such as
    ⟦U+202E⟧.
    """
    return _HIDDEN.sub(_named, text.replace("\r\n", "\n"))


def storable(text: str) -> str:
    """The text with what no store takes named, such as ⟦U+0000⟧: a model may have sampled it."""
    return _REFUSED.sub(_named, text)


def _named(found: re.Match[str]) -> str:
    return f"⟦U+{ord(found[0]):04X}⟧"


def shown_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn's role and text, and the parts of its Markdown if it has any; calls of tools are no
    Markdown.
    """
    calls = calls_of(turn)
    text = "\n\n".join(filter(None, [turn.get("reasoning_content"), turn["content"], *calls]))
    shown = {"role": visible(str(turn["role"])), "text": visible(text)}
    marked = None if calls else formatted(text)
    return shown if marked is None else {**shown, "parts": marked}


def formatted(text: str) -> list[Part] | None:
    """The Markdown of a text; None if it has none, is too long, or has formulas, whose signs
    Markdown would take.

    A part is a text, or a list of a tag, an object of its attributes if it has any (`start` of
    `ol`, `info` of `pre`), and its parts. The tags are HTML's.
    """
    from markdown_it import MarkdownIt
    from markdown_it.tree import SyntaxTreeNode

    if len(text) > LONGEST or _FORMULA.search(text):
        return None
    markdown = (
        MarkdownIt("commonmark", {"html": False})
        .enable(["table", "strikethrough"])
        .disable(_AS_WRITTEN)
    )
    tokens = markdown.parse(visible(text))
    return None if all(map(_is_plain, tokens)) else _nested(SyntaxTreeNode(tokens))


def _is_plain(token: Token) -> bool:
    if token.type == "inline":
        return all(child.type in ("text", "softbreak") for child in token.children or ())
    return token.type in ("paragraph_open", "paragraph_close")


def _nested(node: SyntaxTreeNode) -> list[Part]:
    """The parts of a node."""
    parts = list[Part]()
    for child in node.children:
        # Paragraphs of a tight list are hidden: their texts belong to the list's item.
        if child.type == "inline" or child.hidden:
            parts += _nested(child)
        elif child.is_nested:
            parts.append([*_opened(child), *_nested(child)])
        else:
            parts.append(_leaf(child))
    return parts


def _opened(node: SyntaxTreeNode) -> list[Part]:
    if node.tag == "ol" and "start" in node.attrs:
        return ["ol", {"start": int(node.attrs["start"])}]  # type: ignore[list-item]
    if node.type == "heading":
        return [f"h{min(int(node.tag[1]) + 2, 6)}"]  # below the page's own headings
    return [node.tag]


def _leaf(node: SyntaxTreeNode) -> Part:
    text = visible(node.content)
    if node.type in ("fence", "code_block"):
        info: list[Any] = [{"info": visible(node.info.strip())}] if node.info.strip() else []
        return ["pre", *info, text.removesuffix("\n")]
    if node.type in ("softbreak", "hardbreak"):
        return "\n"
    if node.type == "code_inline":
        return ["code", text]
    return ["hr"] if node.type == "hr" else text
