"""Answers that nobody has compared: which rows they are, and which rows other formats read."""

from __future__ import annotations

from typing import Any

import pytest

from alignkit import BadRow
from alignkit.data.group import Group
from alignkit_plugins.formats.rankings import LabeledPairs, Rankings, Unlabeled
from alignkit_plugins.formats.trl import Preference, PromptOnly


def texts(group: Group) -> list[str]:
    return [response.text for response in group.responses]


@pytest.mark.parametrize(
    ("row", "answers"),
    [
        ({"prompt": "Hi?", "response_a": "Hello", "response_b": "Hey"}, ["Hello", "Hey"]),
        (
            {"question": "Hi?", "answer 1": "Hello", "answer 2": "Hey", "answer 3": "Yo"},
            ["Hello", "Hey", "Yo"],
        ),
        ({"instruction": "Hi?", "output_1": "Hello", "output_2": "Hey", "id": 7}, ["Hello", "Hey"]),
        (
            {"prompt": "Hi?", "model_a": "x", "completionA": "Hello", "completionB": "Hey"},
            ["Hello", "Hey"],
        ),
        ({"prompt": "Hi?", "responses": ["Hello", "Hey", "Yo"]}, ["Hello", "Hey", "Yo"]),
        (
            {"prompt": "Hi?", "response_a": "Hello", "response_b": "Hey", "answers": ["right"]},
            ["Hello", "Hey"],
        ),
        (
            {"prompt": "Hi?", "response_a": "Hello", "response_b": "Hey", "label": None},
            ["Hello", "Hey"],
        ),
    ],
)
def test_answers_without_a_label_are_read(row: dict[str, Any], answers: list[str]) -> None:
    assert Unlabeled.matches(row)
    assert not any(
        format.matches(row) for format in (Rankings, LabeledPairs, PromptOnly, Preference)
    )
    group = Unlabeled().read(row)
    assert group.prompt[0]["content"] == "Hi?" and texts(group) == answers
    assert group.pairs == () and all(response.rank is None for response in group.responses)
    assert group.meta.get("id") == row.get("id") and group.meta.get("answers") == row.get("answers")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi?", "response_a": "Hello", "response_b": "Hey", "preference": "a"},
        {"prompt": "Hi?", "responses": ["Hello", "Hey"], "ranks": [1, 2]},
        {"prompt": "Hi?", "responses": [{"text": "Hello", "rank": 1}, {"text": "Hey", "rank": 2}]},
        {"prompt": "Hi?", "answers": ["Hello", "Hey"], "scores": [1.0, 2.0]},
        {"prompt": "Hi?", "chosen": "Hello", "rejected": "Hey"},
        {"prompt": "Hi?", "response": "Hello"},
        {"prompt": "Hi?", "response_1": "Hello"},
        {"prompt": "Hi?", "responses": ["Hello"]},
        {"prompt": "Capital of France?", "answers": ["Paris", "paris"]},  # for exact_match
        {"prompt": "Hi?", "responses": [[1], 2]},
        {"response_a": "Hello", "response_b": "Hey"},
        {  # PandaLM
            **{"instruction": "Hi?", "response1": "Hello", "response2": "Hey"},
            **{"annotator1": 1, "annotator2": 1, "annotator3": 2},
        },
        "text",
    ],
)
def test_rows_with_a_label_and_single_answers_are_not(row: Any) -> None:
    assert not Unlabeled.matches(row)


def test_a_wrong_row_says_what_it_lacks() -> None:
    with pytest.raises(BadRow, match="two answers are required, such as response_a and response_b"):
        Unlabeled().read({"prompt": "Hi?"})
    with pytest.raises(BadRow, match="a prompt is required, in one of the columns prompt, "):
        Unlabeled().read({"response_a": "Hello", "response_b": "Hey"})
