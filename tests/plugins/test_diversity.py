"""How different answers are from each other, against numbers worked out by hand and by an
exhaustive jackknife.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from alignkit import Group, Response
from alignkit_plugins.compare.comparison import UNIT
from alignkit_plugins.compare.rows import adjusted
from alignkit_plugins.evaluate import measures
from alignkit_plugins.formats.text_metrics import distinct, self_bleu, words_of

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


def test_distinct_by_hand() -> None:
    """Six words of which four differ, four pairs of which three differ."""
    found = diversity(groups(sft=[["a b a"], ["a b c"]]), ["sft"], None)["sft"]
    assert found["distinct-1"]["mean"] == pytest.approx(3 / 6)
    assert found["distinct-2"]["mean"] == pytest.approx(3 / 4)  # ab ba, ab bc
    assert (
        found[ENTROPY]["mean"] == pytest.approx(0.5) and found["distinct-1"]["difference"] is None
    )
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
    apart = diversity(once * 2, ["sft", "ppo"], "sft")["ppo"]["distinct-1"]
    grouped = diversity(twice, ["sft", "ppo"], "sft")["ppo"]["distinct-1"]
    assert (
        grouped["mean"] == apart["mean"]
        and grouped["high"] - grouped["low"] > apart["high"] - apart["low"]
    )


def test_longer_answers_are_not_less_diverse() -> None:
    """The same words, said on: distinct-n of the whole texts falls, and of their beginnings it does
    not.
    """
    random.seed(0)
    words = [[f"w{random.randrange(50)}" for _ in range(40)] for _ in range(20)]
    short, long = ([[" ".join(each[:size])] for each in words] for size in (10, 40))
    whole = [distinct([words_of(text) for (text,) in each], 1) or 0.0 for each in (short, long)]
    found = diversity(groups(sft=short, align=long), ["sft", "align"], "sft")
    assert whole[1] < 0.5 * whole[0]
    assert (
        found["align"]["distinct-1"]["mean"]
        == found["sft"]["distinct-1"]["mean"]
        == pytest.approx(whole[0])
    )
    assert found["align"]["distinct-1"]["difference"] == {
        "mean": 0.0,
        "low": 0.0,
        "high": 0.0,
        "n": 20,
        "p": 1.0,
    }


def test_intervals_are_those_of_the_jackknife() -> None:
    """Pseudo-values by leaving out each prompt in turn, from the texts themselves, and Student's
    t.
    """
    random.seed(1)

    def texts(size: int) -> list[list[str]]:
        return [
            [" ".join(f"w{random.randrange(size)}" for _ in range(9)) for _ in range(2)]
            for _ in range(12)
        ]

    given = {"sft": texts(60), "align": texts(25)}
    found = diversity(groups(**given), ["sft", "align"], "sft")

    def pseudo(prompts: Sequence[Sequence[str]]) -> tuple[float, list[float]]:
        def of(rest: Sequence[Sequence[str]]) -> float:
            return distinct([words_of(text) for each in rest for text in each], 2) or 0.0

        n, whole = len(prompts), of(prompts)
        return whole, [
            n * whole - (n - 1) * of([*prompts[:k], *prompts[k + 1 :]]) for k in range(n)
        ]

    (theirs, base), (ours, values) = pseudo(given["sft"]), pseudo(given["align"])
    half = stats.t.ppf(0.975, 11) * stats.sem([a - b for a, b in zip(values, base, strict=True)])
    difference = found["align"]["distinct-2"]["difference"]
    assert difference["mean"] == pytest.approx(ours - theirs)
    assert (difference["low"], difference["high"]) == pytest.approx(
        (ours - theirs - half, ours - theirs + half)
    )
    own = stats.t.ppf(0.975, 11) * stats.sem(base)
    assert found["sft"]["distinct-2"]["high"] == pytest.approx(theirs + own)


def test_intervals_cover_no_difference() -> None:
    """Two policies that answer alike differ clearly in about 5% of evaluations."""
    random.seed(2)
    weights = [1 / (rank + 1) for rank in range(400)]

    def texts() -> list[list[str]]:
        sizes = [random.randrange(5, 40) for _ in range(60)]
        return [
            [" ".join(random.choices([f"w{n}" for n in range(400)], weights, k=size))]
            for size in sizes
        ]

    clear = dict.fromkeys(["distinct-1", "distinct-2", ENTROPY], 0)
    for _ in range(120):
        found = diversity(groups(sft=texts(), align=texts()), ["sft", "align"], "sft")["align"]
        for measure in clear:
            difference = found[measure]["difference"]
            clear[measure] += not (difference["low"] or 0) <= 0 <= (difference["high"] or 0)
    # Of 120; 6 are expected, and more than 14 in 1 of 500 cases
    assert max(clear.values()) <= 14, clear


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
    assert [less[name] for name in ("distinct-1", "distinct-2", "self-BLEU")] == [-1, -1, -1]
    assert clear(given, "align", "sft")["self-BLEU"] == 1


def test_answers_without_log_probabilities_have_no_entropy() -> None:
    """Nor have those of the best of several, and silent answers have no words."""
    given = groups(
        sft=[["a b"], ["c d"]],
        best=[
            [
                "",
            ],
            ["c"],
        ],
    )
    silent = [
        Group(
            g.prompt, tuple(Response(r.text, tokens=r.tokens, source=r.source) for r in g.responses)
        )
        for g in given
    ]
    found = diversity(silent, ["sft", "best"], "sft")
    assert ENTROPY not in found["sft"] and ENTROPY not in found["best"]
    assert found["sft"]["distinct-1"]["mean"] == 1.0 and "distinct-2" not in found["sft"]
    nothing = diversity(groups(sft=[[""]], best=[[""]]), ["sft", "best"], "sft")["sft"]
    assert list(nothing) == []
