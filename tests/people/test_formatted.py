"""Markdown of answers: what becomes an element, what stays as it was written, and that nothing is
lost or slow.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("markdown_it")

from alignkit_plugins.people.texts import LONGEST, formatted, visible
from tests.people.injections import INJECTIONS
from tests.rows import json_rows

TAGS = "p h3 h4 h5 h6 ul ol li blockquote table thead tbody tr th td strong em s code pre hr"


def leaves(parts: list[Any]) -> list[str]:
    """The texts, with the information of code blocks."""
    found = []
    for part in parts:
        if isinstance(part, str):
            found.append(part)
        else:
            assert part[0] in TAGS.split()
            attributes = [child for child in part[1:] if isinstance(child, dict)]
            found += [str(value) for child in attributes for value in child.values()]
            found += leaves([child for child in part[1:] if not isinstance(child, dict)])
    return found


MARKDOWN = r"""
["a **b** `c`", [["p", "a ", ["strong", "b"], " ", ["code", "c"]]]]
["# T\n\n_x_ ~~y~~", [["h3", "T"], ["p", ["em", "x"], " ", ["s", "y"]]]]
["- a\n- b", [["ul", ["li", "a"], ["li", "b"]]]]
["3. a\n4. b", [["ol", {"start": 3}, ["li", "a"], ["li", "b"]]]]
["```py x\na *b*\n```", [["pre", {"info": "py x"}, "a *b*"]]]
["> q\n\n---", [["blockquote", ["p", "q"]], ["hr"]]]
["|a|b|\n|-|-|", [["table", ["thead", ["tr", ["th", "a"], ["th", "b"]]]]]]
["|a|\n|-|\n|1|", [["table", ["thead", ["tr", ["th", "a"]]], ["tbody", ["tr", ["td", "1"]]]]]]
["*a*\nb  \nc", [["p", ["em", "a"], "\n", "b", "\n", "c"]]]
["*It* costs $5 or $6", [["p", ["em", "It"], " costs $5 or $6"]]]
["###### T", [["h6", "T"]]]
["```\n  a\n```", [["pre", "  a"]]]
["    a\n", [["pre", "a"]]]
["a  \nb", [["p", "a", "\n", "b"]]]
["*a* $5-$6", [["p", ["em", "a"], " $5-$6"]]]
["plain", null]
["two\n\nparagraphs,\n  indented by two", null]
["5 * 3 = 15", null]
["", null]
["a_b_c", null]
"""
FORMULAS = r"""
"$a_1 * b_1 * c$"
"$$x_1 * y_1$$"
"\\(a_1 \\le b_1\\)"
"\\[ \\{a\\} \\]"
"\\begin{align}\na &= b \\\\\n+ c\n\\end{align}"
"""
AS_WRITTEN = """
[x](javascript:alert)
![x](http://evil.example/a.png)
<http://evil.example>
[a]: http://evil.example 'hidden'
&#x202e; &lt;
<b>x</b>
<!-- hidden -->
http://evil.example
"""


@pytest.mark.parametrize(("text", "expected"), json_rows(MARKDOWN))
def test_markdown_becomes_elements(text: str, expected: Any) -> None:
    assert formatted(text) == expected


@pytest.mark.parametrize("formula", json_rows(FORMULAS))
def test_formulas_stay_as_they_were_written(formula: str) -> None:
    assert formatted(f"*x*\n\n{formula}") is None


@pytest.mark.parametrize("text", AS_WRITTEN.strip().splitlines())
def test_what_could_load_or_hide_is_shown_as_written(text: str) -> None:
    found = formatted(f"*x*\n\n{text}") or []
    assert "".join(leaves(found[1:])) == text


@pytest.mark.parametrize("text", INJECTIONS)
def test_injections_have_only_known_tags(text: str) -> None:
    marked = (
        f"*x* {text}\n\n# {text}\n\n- {text}\n\n```{text}\n{text}\n```\n\n|{text}|\n|-|\n|{text}|"
    )
    assert leaves(formatted(marked) or [])


def test_hidden_characters_are_named_in_markdown_too() -> None:
    found = json.dumps(
        formatted("**a\u202eb** `c\u200bd`\n```x\u2066\ne\0f\n```"), ensure_ascii=False
    )
    assert all(f"⟦U+{number}⟧" in found for number in ("202E", "200B", "2066", "0000"))


@given(st.text(alphabet="ab1 \n*_`#>-+$\\[]()!<&;~=:\t\u202e", max_size=80))
def test_no_letter_is_lost(text: str) -> None:
    """Markdown removes signs and spaces, and nothing else, except cells that a table's head does
    not have.
    """
    found = "".join(leaves(formatted(text) or [visible(text)]))
    assert re.sub("[^ab]", "", found) == re.sub("[^ab]", "", text)


@pytest.mark.parametrize("text", ["[", "![a", "*a _b ", "- a\n", ">", "$", "`", "|a"])
def test_hostile_markdown_ends(text: str) -> None:
    formatted(f"*x*\n\n{text * (LONGEST // len(text) - 2)}")
    assert formatted("*x* " * (LONGEST // 4)) is not None
    assert formatted("*x* " * (LONGEST // 4) + ".") is None
