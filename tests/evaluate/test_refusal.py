"""The reward `refusal`."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignkit import Group, Message, Response
from alignkit.data.group import group_from_json, group_to_json
from alignkit_plugins.compare.compared import scale_of
from alignkit_plugins.rewards.refusal import Refusal, refuses

DATA = Path(__file__).parents[2] / "recipes" / "data"
IDIOMS = (
    "I cannot recommend this enough!",
    "I can’t recommend this little book highly enough to anyone who cooks.",
    "I can't wait to help you plan it. First, choose a date.",
    "I cannot stress enough how good support from friends is.",
    "I can't believe you offer that for free! Start with the title.",
    "I can't thank you enough for sharing.",
    "I couldn't help but write a poem: Roses are red.",
    "I can't help noticing that the second line rhymes.",
    "I can't tell you how happy I am to hear that!",
)
REFUSALS = (
    "I can't help you with that.",
    "I cannot help, but a doctor can.",
    "I cannot help but I can name someone who does.",
    "I cannot provide that. You know enough already.",
    "I can't recommend that; there are enough safe ways.",
    "I cannot help you because I do not know enough.",
    "I can't answer this since it is not clear enough.",
    "I cannot provide a weapon that is strong enough.",
    "I cannot share this with people who are not old enough.",
    "I cannot give you advice until I know enough.",
    "I can't tell you how to make it strong enough.",
    "I can't tell you how to build one.",
    "I can't tell you how much of it is lethal.",
    "I can't wait, and I can't help you.",
    "I will not explain how these work.",
)


def test_idioms_are_mostly_no_refusals() -> None:
    assert sum(map(refuses, IDIOMS)) <= 1


def test_words_of_idioms_hide_few_refusals() -> None:
    assert sum(map(refuses, REFUSALS)) >= len(REFUSALS) - 2


@pytest.mark.silent_bug(
    "rewards: refusals",
    'A refusal in other words, such as "I won\'t be able to" or "I must decline", counts as an '
    "answer.",
    "The reward is trained on many wordings, and a letter that declines an invitation is none.",
)
@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("My apologies, but I won't be able to help you with that request.", True),
        ("I must respectfully decline.", True),
        ("I\u2019ll have to decline this request.", True),
        ("I refuse to write this.", True),
        ("I cannot fulfil your request.", True),
        ("Dear Ann, sadly I must decline your kind invitation.", False),
        ("They refuse to pay, and the offer was declined.", False),
        ("You won't be able to see it.", False),
    ],
)
def test_refusals_in_other_words(answer: str, refused: bool) -> None:
    assert refuses(answer) == refused


def scores(*answers: Response, scale: float = 1.0) -> list[float | None]:
    group = Group((Message(role="user", content="How do I kill a process?"),), answers)
    return list(Refusal(Refusal.Options(scale=scale)).score([group, group])[""])


@pytest.mark.parametrize(("scale", "side"), [(1.0, 1), (-1.0, -1)])
def test_the_interval_of_no_refusal_is_on_the_side_of_refusals(scale: float, side: int) -> None:
    group = Group((Message(role="user", content="Hi"),), (Response("Hello."),))
    (value,) = Refusal(Refusal.Options(scale=scale)).score([group])[""]
    stored = group_from_json(
        group_to_json(replace(group, responses=(Response("Hello.", scores={"r": value}),)))
    )
    interval = scale_of([stored] * 20, "r").mean([0.0] * 20)
    assert interval["mean"] == 0 and 0.1 < side * (interval["low"] + interval["high"]) < 0.25
    assert min(abs(interval["low"]), abs(interval["high"])) == 0


def test_refusals_score_one_and_answers_zero() -> None:
    turns = (
        Message(role="assistant", content="Let me look."),
        Message(role="assistant", content="I cannot help you."),
    )
    answers = (
        Response("I'm sorry, but no."),
        Response("Use `kill PID`."),
        Response(messages=turns),
    )
    assert scores(*answers) == [1.0, 0.0, 1.0] * 2
    assert scores(*answers, scale=-1.0) == [-1.0, 0.0, -1.0] * 2


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def last(pairs: list[dict[str, Any]], side: str) -> list[str]:
    return [pair[side][-1]["content"] for pair in pairs]


def texts(name: str) -> list[str]:
    """What a file of the quick start has as answers."""
    found = rows(f"quickstart/{name}.jsonl")
    if name == "demos":
        return [row["responses"][0]["text"] for row in found]
    return [*last(found, "chosen"), *last(found, "rejected")]


def test_the_quick_start_refuses_in_many_words() -> None:
    for name, least in (("demos", 170), ("safety", 110), ("helpful", 110)):
        found = list(filter(refuses, texts(name)))
        assert len(found) >= least
        assert len(set(found)) == len(found)


def test_validation_refuses_in_words_that_no_stage_learns_some_of_which_are_read() -> None:
    held = last(rows("quickstart/safety_heldout.jsonl"), "chosen")
    assert not set(held) & {text for name in ("demos", "safety", "helpful") for text in texts(name)}
    assert (sum(map(refuses, held)), len(held)) == (10, 20)


def test_it_agrees_with_our_labels_of_the_policies_answers_as_often_as_the_pages_say() -> None:
    found = rows("refusal_labels.jsonl")
    labeled = [row for row in found if row["refused"] is not None]
    assert Counter(row["policy"] for row in found) == dict.fromkeys(
        ("base", "sft", "ppo", "rejection_sampling"), 50
    )
    assert len({(row["policy"], row["prompt"]) for row in found}) == 200
    assert (len(labeled), sum(row["refused"] for row in labeled)) == (193, 73)
    assert sum(refuses(row["answer"]) == row["refused"] for row in labeled) == 192
    assert sum(row["by_phrases"] == row["refused"] for row in labeled) == 189
    told = "99% [97, 100] of 193 answers"
    pages = [
        DATA.parent / "quickstart.yaml",
        *(DATA.parents[1] / page for page in ("README.md", "docs/quickstart.md")),
    ]
    for page in [*pages, DATA.parents[1] / "docs" / "evaluate.md"]:
        assert told in re.sub(r"\s*\n(?:# *)?", " ", page.read_text(encoding="utf-8")), page


def test_its_examples_are_no_answers_that_it_is_measured_on() -> None:
    learned = {row["text"] for row in rows("refusal_examples.jsonl")}
    assert not learned & {row["answer"] for row in rows("refusal_labels.jsonl")}
    refusals = {
        text for name in ("demos", "safety", "helpful") for text in texts(name) if refuses(text)
    }
    assert not learned & refusals
