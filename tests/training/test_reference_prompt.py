"""A reference that reads the responses behind another prompt than the policy's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from watched import Watched, online

from alignkit import Group, Message, Needs
from alignkit.errors import DataError, PluginError
from tests.rows import assistant, user

pytestmark = pytest.mark.usefixtures("one_thread")

LONG = (user("bread " * 5000), assistant("good"))


class Wrong(Watched):
    def reference_prompt(self, group: Group) -> Sequence[Message]:
        return self.prompt

    prompt: Any


@pytest.mark.parametrize(
    ("prompt", "problem"),
    [
        ("Be brief.", "Input should be a valid dictionary"),
        ((), "return the messages of a prompt, not"),
        (LONG, "stage 'align': the reference's prompt of .* leaves no room"),
    ],
    ids=["text", "empty", "too long"],
)
def test_what_is_no_prompt_is_refused_before_sampling(
    tmp_path: Path, prompt: Any, problem: str
) -> None:
    watched = Wrong(Needs(reference_logprobs=True))
    watched.prompt = prompt
    with pytest.raises((PluginError, DataError), match=problem):
        online(tmp_path, watched, plugin="online_dpo")
    assert not list((tmp_path / "run" / "align").glob("rollouts/*"))
