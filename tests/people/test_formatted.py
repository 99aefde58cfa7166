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

TAGS = {
    "p",
    "h3",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "li",
    "blockquote",
    "table",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}
TAGS |= {"strong", "em", "s", "code", "pre", "hr"}


def leaves(parts: list[Any]) -> list[str]:
    """The texts, with the information of code blocks."""
    found = []
    for part in parts:
        if isinstance(part, str):
            found.append(part)
        else:
            assert part[0] in TAGS
            attributes = [child for child in part[1:] if isinstance(child, dict)]
            found += [str(value) for child in attributes for value in child.values()]
            found += leaves([child for child in part[1:] if not isinstance(child, dict)])
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a **b** `c`", [["p", "a ", ["strong", "b"], " ", ["code", "c"]]]),
        ("# T\n\n_x_ ~~y~~", [["h3", "T"], ["p", ["em", "x"], " ", ["s", "y"]]]),
        ("- a\n- b", [["ul", ["li", "a"], ["li", "b"]]]),
        ("3. a\n4. b", [["ol", {"start": 3}, ["li", "a"], ["li", "b"]]]),
        ("```py x\na *b*\n```", [["pre", {"info": "py x"}, "a *b*"]]),
        ("> q\n\n---", [["blockquote", ["p", "q"]], ["hr"]]),
        ("|a|b|\n|-|-|\n|1|2|", [["table", ["thead", ["tr", ["th", "a"], ["th", "b"]]],
                                  ["tbody", ["tr", ["td", "1"], ["td", "2"]]]]]),
        ("*a*\nb  \nc", [["p", ["em", "a"], "\n", "b", "\n", "c"]]),
    ],
)  # fmt: skip
def test_markdown_becomes_elements(text: str, expected: list[Any]) -> None:
    assert formatted(text) == expected


@pytest.mark.parametrize(
    "text", ["plain", "two\n\nparagraphs,\n  indented by two", "5 * 3 = 15", "", "a_b_c"]
)
def test_a_text_without_markdown_is_left_alone(text: str) -> None:
    assert formatted(text) is None


@pytest.mark.parametrize(
    "formula",
    [
        r"$a_1 * b_1 * c$",
        r"$$x_1 * y_1$$",
        r"\(a_1 \le b_1\)",
        r"\[ \{a\} \]",
        "$$\n a\n+ b\n= c\n$$",
        "\\[\n- x_1 \\\\\n- y_1\n\\]",
        "\\begin{align}\na &= b \\\\\n+ c\n\\end{align}",
    ],
)
def test_formulas_stay_as_they_were_written(formula: str) -> None:
    assert formatted(f"*x*\n\n{formula}") is None


def test_prices_are_no_formulas() -> None:
    assert formatted("*It* costs $5 or $6") == [["p", ["em", "It"], " costs $5 or $6"]]


@pytest.mark.parametrize(
    "text",
    [
        "[x](javascript:alert)",
        "![x](http://evil.example/a.png)",
        "<http://evil.example>",
        "[a]: http://evil.example 'hidden'",
        "&#x202e; &lt;",
        "<b>x</b>",
        "<!-- hidden -->",
        "http://evil.example",
    ],
)
def test_what_could_load_or_hide_is_shown_as_written(text: str) -> None:
    found = formatted(f"*x*\n\n{text}") or []
    assert "".join(leaves(found[1:])) == text


@pytest.mark.parametrize("text", INJECTIONS)
def test_injections_have_only_known_tags(text: str) -> None:
    for marked in (
        f"*x* {text}",
        f"# {text}",
        f"- {text}",
        f"```{text}\n{text}\n```",
        f"|{text}|\n|-|\n|{text}|",
    ):
        assert "".join(leaves(formatted(marked) or [marked]))


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


@pytest.mark.parametrize(
    "text", ["[", "![a", "*a _b ", "- a\n", ">", "$", "\\[\n", "$$a\n", "`", "|a", "\\begin{a}\n"]
)
def test_hostile_markdown_ends(text: str) -> None:
    formatted(f"*x*\n\n{text * (LONGEST // len(text) - 2)}")
    assert formatted("*x* " * LONGEST) is None
