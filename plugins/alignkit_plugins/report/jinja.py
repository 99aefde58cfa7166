"""Pages with tables and figures: one file each, without scripts.

Everything that a model, a data set or a recipe wrote is escaped, and its control characters are
made visible.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.io.text import printable
from alignkit_plugins.report.curves import Figure
from alignkit_plugins.report.figures import drawn

if TYPE_CHECKING:
    from jinja2 import Environment

LONG_WORD = re.compile(r"\S{20,}")  # characters that may not fit into a line of a phone
JOINT = re.compile(r"(\S{11,}?[_/@]+)(?=\w)")  # after which one may end
CODE = re.compile("`([^`]+)`")


def templates(folder: Path, figures: Sequence[Figure]) -> Environment:
    """The templates in a folder, with those of tables and figures."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def visible(value: Any) -> Any:
        return (
            printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
        )

    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pictures = dict(zip(map(id, figures), drawn(figures), strict=True))
    environment.filters |= {"breakable": breakable, "picture": lambda figure: pictures[id(figure)]}
    return environment


def breakable(value: object) -> Any:
    """Escaped text with `code` as code, and places where a line may break in long names and
    paths.
    """
    from markupsafe import Markup, escape

    text = str(escape(printable(str(value))))
    # Before there are tags to break
    text = LONG_WORD.sub(lambda word: JOINT.sub(r"\1<wbr>", word[0]), text)
    return Markup(CODE.sub(r"<code>\1</code>", text))
