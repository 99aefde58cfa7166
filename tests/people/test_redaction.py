"""What identifies a person or opens a door is taken out; ordinary numbers and texts stay."""

from __future__ import annotations

import pytest

from alignkit_plugins.people.sharing import mapped, pseudonym, redact
from tests.rows import cells

TAKEN_OUT = """
write to ann.lee+x@mail.example.co.uk. | write to [e-mail].
<bob@example.com>                      | <[e-mail]>
call +49 30 1234567 now                | call [phone] now
call (030) 123 456-78                  | call [phone]
+1 (555) 123-4567                      | [phone]
+12345678, +12345678901234             | [phone], [phone]
555-123-4567, ok?                      | [phone], ok?
0044 20 7946 0958                      | [phone]
+49\u00a030\u20111234567, 555\u2013123\u20134567 | [phone], [phone]
my key is sk-abcdefgh1234567890ABCD    | my key is ***
https://ann:secret@example.com/x       | https://***@example.com/x
AAAAAAAAAAAAAAAA1111111111111111       | ***
"""
STAYS = """
on 2026-01-05 at 12:30:45
ISBN 978-3-16-148410-0
3.14159265358979
0.123456789012
1,000,000,000
1234567890
version 1.2.3
@handle and #tag
x@y
the answer is 42
192.168.0.1
+1234567
+123456789012345
11111111111111111111111111111111111111111111111111
שלום
"""


@pytest.mark.parametrize(("text", "expected"), cells(TAKEN_OUT))
def test_what_is_taken_out(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize("text", STAYS.split("\n"))
def test_what_stays(text: str) -> None:
    assert redact(text) == text


def test_long_texts_are_quick() -> None:
    for text in ("a@" * 50_000, "0" * 100_000, "+1" * 50_000, "a" * 100_000, "1 " * 50_000):
        assert redact(text) is not None


def test_texts_at_any_depth() -> None:
    value = {"to": ["a@b.example", {"x": "a@b.example", "n": 3}], "a@b.example": None}
    assert mapped(value, redact) == {
        "to": ["[e-mail]", {"x": "[e-mail]", "n": 3}],
        "a@b.example": None,
    }


def test_a_pseudonym_cannot_be_guessed_without_its_store() -> None:
    one, other = (pseudonym("ann", salt) for salt in ("a", "b"))
    assert one != other and one == pseudonym("ann", "a") == pseudonym(one, "b")
