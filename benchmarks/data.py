"""Seeded random texts of given lengths, so that nothing is downloaded: common words, long-tailed
(lognormal) lengths.

A word is one token in common vocabularies, about three in the tiny model's. The chat template adds
its own tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from alignkit.data.group import Group, Message, Response

SPREAD = 0.8  # standard deviation of a length's logarithm
COMMON = (
    "the of and to in is that it was for on are as with they be at one have this from by had not "
    "but some what there we can out other were all your when up use word how said each she which "
    "their time will way about many then them would write like so these her long make thing see "
    "him two has look more day could go come did my sound no most number who over know water "
    "than call first people may down side been now find any new work part take get place made "
    "live where after back little only round man year came show every good give our under name "
    "very through just form great think say help low line before turn cause same mean differ "
    "move right boy old too does tell"
)
WORDS = COMMON.split()


def lengths(rng: np.random.Generator, count: int, mean: float) -> list[int]:
    """Lognormal lengths in words with this mean, clipped to an eighth and three times the mean."""
    drawn = rng.lognormal(math.log(mean) - SPREAD**2 / 2, SPREAD, count)
    return [int(n) for n in np.clip(drawn, max(1, mean / 8), 3 * mean).round()]


def text(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words).tolist()).capitalize()


def groups(
    count: int, responses: int, prompt: float, response: float, *, fixed_prompt: bool = False
) -> list[Group]:
    """Prompts with ranked responses, the best first; `prompt` and `response` are mean lengths in
    words.

    fixed_prompt: all prompts have exactly that length.
    """
    rng = np.random.default_rng(0)
    prompt_lengths = [round(prompt)] * count if fixed_prompt else lengths(rng, count, prompt)
    made = []
    for number, words in enumerate(prompt_lengths):
        question = (Message(role="user", content=text(rng, words)),)
        sizes = lengths(rng, responses, response)
        answers = [Response(text=text(rng, n), rank=float(rank)) for rank, n in enumerate(sizes, 1)]
        made.append(Group(question, tuple(answers), id=f"{number}"))
    return made


def demonstrations(count: int, prompt: float, response: float) -> list[Group]:
    return groups(count, 1, prompt, response)


def prompts(count: int, mean: float) -> list[Group]:
    return groups(count, 0, prompt=mean, response=1)


def long_tailed_caps(count: int, most: int) -> list[int]:
    """Long-tailed response lengths, at most `most` tokens; half of them are below a fifth of it."""
    rng = np.random.default_rng(1)
    return [
        int(n) for n in np.clip(rng.lognormal(math.log(most / 5), SPREAD, count), 1, most).round()
    ]


def answers(count: int, tokens: int) -> list[str]:
    """Texts of at least `tokens` tokens."""
    rng = np.random.default_rng(2)
    return [text(rng, tokens) for _ in range(count)]


def truncated(ids: Sequence[int], tokens: int, end: Sequence[int]) -> tuple[int, ...]:
    """A response of exactly `tokens` tokens that ends with an end of turn."""
    return (*ids[: tokens - len(end)], *end)
