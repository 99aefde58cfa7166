"""The shell of every page: one style, one theme in light and dark, and texts that do nothing.

A template that extends `page.html.j2` is one file without scripts that loads nothing. Everything
that a model, a data set or a recipe wrote is escaped, and its control characters are made visible.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.io.text import printable

if TYPE_CHECKING:
    from jinja2 import Environment

HERE = Path(__file__).parent
STYLE = (HERE / "page.css").read_text("utf-8")  # for servers that forbid styles in a page
LONG_WORD = re.compile(r"\S{20,}")  # characters that may not fit into a line of a phone
JOINT = re.compile(r"(\S{11,}?[_/@]+)(?=\w)")  # after which one may end
CODE = re.compile("`([^`]+)`")


def templates(*folders: Path, **names: Any) -> Environment:
    """The templates in these folders, and the shared ones: `page.html.j2`, and macros in
    `blocks.html.j2`.

    names: what every template may use.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([*folders, HERE]),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = breakable
    environment.globals |= names
    return environment


def _visible(value: Any) -> Any:
    """A text with a sign for each control character; HTML stays as it is."""
    is_text = isinstance(value, str) and not hasattr(value, "__html__")
    return printable(value) if is_text else value


def breakable(value: object) -> Any:
    """Escaped text with `code` as code, and places where a line may break in long names."""
    from markupsafe import Markup, escape

    escaped = str(escape(printable(str(value))))
    # Before there are tags to break.
    text = LONG_WORD.sub(lambda word: JOINT.sub(r"\1<wbr>", word[0]), escaped)
    return Markup(CODE.sub(r"<code>\1</code>", text))
