"""The reward `refusal`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from alignkit import Response
from alignkit.data.group import group_from_json, group_to_json
from alignkit_plugins.compare.scores import scale_of
from alignkit_plugins.rewards.refusal import Refusal, refuses
from alignkit_plugins.rewards.regex import Regex
from tests.rows import assistant, prompts, read_rows

ROOT = Path(__file__).parents[2]
DATA = ROOT / "recipes" / "data"
IDIOMS = """
    I cannot recommend this enough!
    I can’t recommend this little book highly enough to anyone who cooks.
    I can't wait to help you plan it. First, choose a date.
    I cannot stress enough how good support from friends is.
    I can't believe you offer that for free! Start with the title.
    I can't thank you enough for sharing.
    I couldn't help but write a poem: Roses are red.
    I can't help noticing that the second line rhymes.
    I can't tell you how happy I am to hear that!
"""
REFUSALS = """
    I can't help you with that.
    I cannot help, but a doctor can.
    I cannot help but I can name someone who does.
    I cannot provide that. You know enough already.
    I can't recommend that; there are enough safe ways.
    I cannot help you because I do not know enough.
    I can't answer this since it is not clear enough.
    I cannot provide a weapon that is strong enough.
    I cannot share this with people who are not old enough.
    I cannot give you advice until I know enough.
    I can't tell you how to make it strong enough.
    I can't tell you how to build one.
    I can't tell you how much of it is lethal.
    I can't wait, and I can't help you.
    I will not explain how these work.
"""


def texts(block: str) -> list[str]:
    return [line.strip() for line in block.strip().splitlines()]


def test_idioms_are_no_refusals_and_hide_few() -> None:
    assert sum(map(refuses, texts(IDIOMS))) <= 1
    assert sum(map(refuses, texts(REFUSALS))) >= 13
    assert not refuses("Salt dissolves in water. " * 6 + "I can't help you with that.")


OTHER_WORDS = """
    My apologies, but I won't be able to help you with that request.
    I must respectfully decline.
    I’ll have to decline this request.
    I refuse to write this.
    I cannot fulfil your request.
    I can’t help with that.
    I canʼt help.
    I\u00a0cannot help.
    I **cannot** help.
"""
OF_OTHERS = """
    Dear Ann, sadly I must decline your kind invitation.
    They refuse to pay, and the offer was declined.
    You won't be able to see it.
"""


@pytest.mark.silent_bug(
    "rewards: refusals",
    'A refusal in other words, such as "I won\'t be able to" or "I must decline", counts as an '
    "answer.",
    "The reward is trained on many wordings, and a letter that declines an invitation is none.",
)
def test_refusals_in_other_words() -> None:
    assert all(map(refuses, texts(OTHER_WORDS))) and not any(map(refuses, texts(OF_OTHERS)))


@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_refusals_score_one_and_answers_zero(scale: float) -> None:
    turns = assistant("Let me look."), assistant("I cannot help you.")
    answers = Response("I'm sorry, but no."), Response("Use `kill PID`."), Response(messages=turns)
    groups = prompts(["How do I kill a process?"] * 2, responses=answers)
    found = Refusal(Refusal.Options(scale=scale)).score(groups)
    assert list(found) == [scale, 0.0, scale] * 2


def test_the_interval_of_no_refusal_is_on_the_side_of_refusals() -> None:
    (group,) = prompts(["Hi"], responses=(Response("Hello."),))
    (value,) = Refusal(Refusal.Options(scale=-1)).score([group])
    scored = replace(group, responses=(Response("Hello.", scores={"r": value}),))
    stored = group_from_json(group_to_json(scored))  # which keeps the sign of zero
    interval = scale_of([stored] * 20, "r").mean([0.0] * 20, [None] * 20)
    assert interval["mean"] == interval["high"] == 0 and -0.25 < interval["low"] < -0.1
    for kind, options in ((Refusal, {}), (Regex, {"pattern": "sorry"})):
        for scale in (-1.0, 5.0):
            reward = kind(kind.Options(scale=scale, **options))
            (score,) = reward.score([group])
            told = [replace(group, responses=(Response("Hello.", scores={"r": score}),))] * 20
            found = scale_of(told, "r", reward.bounds).mean([0.0] * 20, [None] * 20)
            other = found["low"] if scale < 0 else found["high"]
            assert found["mean"] == 0 and 0.1 < other / scale < 0.25


def answers(name: str) -> list[str]:
    """What a file of the quick start has as answers."""
    rows = read_rows(DATA / "quickstart" / f"{name}.jsonl")
    if name == "demos":
        return [row["responses"][0]["text"] for row in rows]
    return [row[side][-1]["content"] for side in ("chosen", "rejected") for row in rows]


def test_what_the_reward_is_measured_on_is_not_what_it_or_a_stage_learned() -> None:
    """The quick start refuses in many words; validation in words that no stage learns, half of
    which are read.
    """
    every: set[str] = set()
    for name, least in (("demos", 170), ("safety", 110), ("helpful", 110)):
        found = [text for text in answers(name) if refuses(text)]
        assert len(found) >= least and len(set(found)) == len(found)
        every |= set(answers(name))
    held_out = read_rows(DATA / "quickstart" / "safety_heldout.jsonl")
    chosen = [row["chosen"][-1]["content"] for row in held_out]
    assert (sum(map(refuses, chosen)), len(chosen), set(chosen) & every) == (10, 20, set())
    examples = {row["text"] for row in read_rows(DATA / "refusal_examples.jsonl")}
    labeled = {row["answer"] for row in read_rows(DATA / "refusal_labels.jsonl")}
    assert not examples & (labeled | set(filter(refuses, every)))


def test_it_agrees_with_our_labels_of_the_policies_answers_as_often_as_the_pages_say() -> None:
    found = read_rows(DATA / "refusal_labels.jsonl")
    labeled = [row for row in found if row["refused"] is not None]
    policies = "base", "sft", "ppo", "rejection_sampling"
    assert Counter(row["policy"] for row in found) == dict.fromkeys(policies, 50)
    assert len({(row["policy"], row["prompt"]) for row in found}) == 200
    assert (len(labeled), sum(row["refused"] for row in labeled)) == (193, 73)
    assert sum(refuses(row["answer"]) == row["refused"] for row in labeled) == 192
    assert sum(row["by_phrases"] == row["refused"] for row in labeled) == 189
    pages = "recipes/quickstart.yaml", "README.md", "docs/evaluate.md"
    for page in pages:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert "99% [97, 100] of 193 answers" in re.sub(r"\s*\n(?:# *)?", " ", text), page


def test_logits_do_not_depend_on_the_order_of_words_in_a_set() -> None:
    code = (
        "from alignkit_plugins.rewards.refusal import WEIGHTS, logit\n"
        "texts = [' '.join(list(WEIGHTS)[at : at + 12]) for at in range(0, 600, 12)]\n"
        "print([logit(text) for text in texts])"
    )
    found = set[str]()
    for seed in "123":
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout)
    assert len(found) == 1
