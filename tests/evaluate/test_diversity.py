"""How different answers are from each other, against numbers worked out by hand and by an
exhaustive jackknife.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from alignkit import Group, Response
from alignkit_plugins.compare.comparison import UNIT
from alignkit_plugins.compare.rows import adjusted
from alignkit_plugins.evaluate import measures
from alignkit_plugins.formats.text_metrics import self_bleu, words_of

ENTROPY = "entropy, nats per token"


def diversity(
    groups: Sequence[Group], policies: list[str], baseline: str | None
) -> dict[str, dict[str, Any]]:
    """The estimates of each policy by metric, with the `difference` from the baseline."""
    found: dict[str, dict[str, Any]] = {policy: {} for policy in policies}
    for row in measures.diversity(groups, policies, baseline):
        found[row.policy][row.metric] = {**row.estimate, "difference": row.difference or None}
    return found


def groups(**texts: Sequence[Sequence[str]]) -> list[Group]:
    """texts: for each policy, its answers to each prompt. A word is a token of log-probability
    -1/2.
    """
    return [
        Group(
            ({"role": "user", "content": f"{place}?"},),
            tuple(
                Response(text, tokens=tuple(range(size)), logprobs=(-0.5,) * size, source=policy)
                for policy, prompts in texts.items()
                for text in prompts[place]
                for size in [len(text.split())]
            ),
        )
        for place in range(len(next(iter(texts.values()))))
    ]


def test_entropy_by_hand() -> None:
    found = diversity(groups(sft=[["a b a"], ["a b c"]]), ["sft"], None)["sft"]
    assert found[ENTROPY]["mean"] == pytest.approx(0.5) and found[ENTROPY]["difference"] is None
    assert "self-BLEU" not in found  # of one answer to a prompt


def test_self_bleu_is_among_the_answers_to_a_prompt() -> None:
    texts = [["one two three four", "one two three five"], ["a b c d e", "v w x y z"]]
    found = diversity(groups(sft=texts), ["sft"], None)["sft"]["self-BLEU"]
    known = [self_bleu([words_of(text) for text in each]) for each in texts]
    assert known[1] == 0.0 and found["mean"] == pytest.approx(
        sum(value or 0.0 for value in known) / 2
    )


def test_prompts_of_a_group_are_one_draw() -> None:
    texts = [["a b"], ["c d e f"], ["a g h a"], ["b b b i j"]]
    once = groups(sft=texts, ppo=[["a a"], *texts[1:]])
    twice = [replace(group, meta={UNIT: place}) for place, group in enumerate(once)] * 2
    one, two = (diversity(each, ["sft", "ppo"], "sft")["ppo"][ENTROPY] for each in (once, twice))
    assert two == {**one, "n": 8, "difference": {**one["difference"], "n": 8}}


def clear(given: Sequence[Group], baseline: str, policy: str) -> dict[str, int | None]:
    """What is clear of a policy's diversity: 1 for more, -1 for less."""
    rows = adjusted(measures.diversity(given, ["sft", "align"], baseline, tested=True))
    return {row.metric: row.clear for row in rows if row.policy == policy}


def test_what_it_cost_is_clear() -> None:
    """All answers of `align` are one, and it is surer of its words."""
    random.seed(3)
    said = [
        [" ".join(f"w{random.randrange(99)}" for _ in range(8)) for _ in range(2)]
        for _ in range(15)
    ]
    given = groups(sft=said, align=[["no no no no no no no no"] * 2] * 15)
    less = clear(given, "sft", "align")
    assert less["self-BLEU"] == -1
    assert clear(given, "align", "sft")["self-BLEU"] == 1


def test_answers_without_log_probabilities_have_no_entropy() -> None:
    """Nor have those of the best of several."""
    given = groups(sft=[["a b"], ["c d"]], best=[[""], ["c"]])
    silent = []
    for group in given:
        answers = tuple(replace(response, logprobs=None) for response in group.responses)
        silent.append(replace(group, responses=answers))
    assert diversity(silent, ["sft", "best"], "sft") == {"sft": {}, "best": {}}
