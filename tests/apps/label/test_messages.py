"""What a page may send."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit_apps.web.messages import read
from alignkit_plugins.people.labels import BadLabel, StrictModel


class Spent(StrictModel):
    item: str
    seconds: float


def test_a_message() -> None:
    assert read(Spent, {"item": "a", "seconds": 2.5}) == Spent(item="a", seconds=2.5)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"item": "a"}, "'seconds': Field required"),
        ({"item": "a", "seconds": 1.0, "admin": True}, "'admin': Extra inputs"),
        ({"item": 1, "seconds": 1.0}, "'item': Input should be a valid string"),
        ({"item": "a", "seconds": "1"}, "'seconds': Input should be a valid number"),
        ({"item": "a", "seconds": float("nan")}, "'seconds': Input should be a finite number"),
        (["item"], "Input should be a valid dictionary"),
    ],
)
def test_a_message_that_the_server_does_not_take(message: Any, said: str) -> None:
    with pytest.raises(BadLabel, match=f"this message is none that the server takes: .*{said}"):
        read(Spent, message)
