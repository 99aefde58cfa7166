"""Held-out examples in `evaluate`: what each metric counts, and what evaluation.json says of it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignkit import DataError, Group, Response
from alignkit.data.group import Origin, Pair
from alignkit_plugins.compare.compared import ITS_OWN
from alignkit_plugins.compare.rows import BASE_MODEL
from alignkit_plugins.compare.verdicts import LONGER_IS_BETTER as LONGER
from alignkit_plugins.compare.verdicts import PAIRS
from alignkit_plugins.compare.verdicts import SHORTER_IS_BETTER as SHORTER
from alignkit_plugins.evaluate import examples
from alignkit_plugins.evaluate.examples import LOSS, METRICS, TOKENS


def asked(text: str, *answers: str, **more: Any) -> Group:
    return Group(
        ({"role": "user", "content": text},),
        tuple(Response(text=answer) for answer in answers),
        **more,
    )


class Model:
    """One token per letter. likes: the letter of which each adds 1 to its log-probability of -2 a
    token.
    """

    def __init__(self, likes: str = ""):
        self.likes = likes

    def logprobs(self, groups: Any) -> list[torch.Tensor]:
        return [
            torch.tensor([-1.0 if letter == self.likes else -2.0 for letter in response.text])
            for group in groups
            for response in group.responses
        ]

    def predictions(self, groups: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(found, (found == -1.0).float()) for found in self.logprobs(groups)]


def context(tmp_path: Path) -> Any:
    models = {"base": Model(), "sft": Model("a"), "dpo": Model("b")}
    return SimpleNamespace(
        models=models, base_of=lambda role: "base", say=lambda text: None, out=tmp_path / "report"
    )


def measured(groups: list[Group], policies: list[str], told: Any) -> list[Group]:
    return examples.measured(groups, {policy: policy for policy in policies}, told)


def scores(groups: list[Group], tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {"base": [], "sft": [], "dpo": []}
    for group in measured(groups, [*found], context(tmp_path)):
        for response in group.responses:
            known = {name: response.scores[name] for name in METRICS if name in response.scores}
            found[str(response.source)].append(known)
    return found


def test_demonstrations_are_averaged_over_tokens(tmp_path: Path) -> None:
    groups = [asked("one?", "aaaaaa"), asked("two?", "bb"), asked("no room?", "")]
    found = scores(groups, tmp_path)
    loss, right = ([one[name] for one in found["sft"]] for name in (LOSS, TOKENS))
    assert sum(loss) / 2 == pytest.approx((6 * 1 + 2 * 2) / 8) and sum(right) / 2 == pytest.approx(
        6 / 8
    )
    assert [one[TOKENS] for one in found["base"]] == [0, 0]


def test_tokens_that_do_not_count_are_no_misses(tmp_path: Path) -> None:
    """Other turns are 0 in both; a certain token has a log-probability of 0, too, but is the
    likeliest.
    """
    told = context(tmp_path)
    told.models["sft"].predictions = lambda groups: [
        (torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0.0, 1.0, 0.0]))
    ]
    ((scored,),) = [[measured([asked("q", "abc")], ["sft"], told)[0].responses[0].scores]]
    assert (scored[TOKENS], scored[LOSS]) == (0.5, 0.5)


def test_a_pair_is_right_if_the_better_response_gained_more_against_the_base(
    tmp_path: Path,
) -> None:
    """A sum over tokens: the longer response is less likely by itself, but has gained more."""
    groups = [
        asked("one?", "aaa", "b", pairs=(Pair(0, 1),)),
        asked("two?", "b", "aaa", pairs=(Pair(0, 1),)),
    ]
    found = scores(groups, tmp_path)
    assert found["base"] == [{PAIRS: 0.5, LONGER: 0.5}, {PAIRS: 0.5, SHORTER: 0.5}]
    assert found["sft"] == [{PAIRS: 1.0, LONGER: 1.0}, {PAIRS: 0.0, SHORTER: 0.0}]
    assert found["dpo"] == [{PAIRS: 0.0, LONGER: 0.0}, {PAIRS: 1.0, SHORTER: 1.0}]


def test_a_whole_model_of_another_folder_has_no_base_model_to_gain_against(tmp_path: Path) -> None:
    told = context(tmp_path)
    told.base_of = lambda role: role if role == "dpo" else "base"
    group = asked("one?", "aaa", "b", pairs=(Pair(0, 1),))
    (scored,) = measured([group], ["base", "sft", "dpo"], told)
    assert [response.scores.get(PAIRS) for response in scored.responses] == [0.5, 1.0, None]
    assert [
        response.scores[PAIRS] for response in measured([group], ["base"], told)[0].responses
    ] == [0.5]


def test_the_base_model_reads_the_pairs_once(tmp_path: Path) -> None:
    told, read = context(tmp_path), list[str]()
    for name, model in told.models.items():
        model.logprobs = lambda groups, name=name, own=model.logprobs: [
            read.append(name),
            own(groups),
        ][1]
    group = asked("one?", "aaa", "b", pairs=(Pair(0, 1),))
    measured([group], ["base", "sft", "dpo"], told)
    assert sorted(read) == ["base", "dpo", "sft"]


def test_labels_may_say_that_the_second_is_better_and_rankings_have_several_pairs(
    tmp_path: Path,
) -> None:
    turned = asked("one?", "a", "b", pairs=(Pair(0, 1, p=0.2),))
    unknown = asked("two?", "a", "b", pairs=(Pair(0, 1, p=0.5), Pair(1, 0, p=0.9)))
    ranked = asked("three?", "aa", "ab", "bb")
    ranks = tuple(replace(response, rank=place) for place, response in enumerate(ranked.responses))
    found = scores([turned, unknown, replace(ranked, responses=ranks)], tmp_path)["sft"]
    values = [one[PAIRS] for one in found]
    # Of five pairs
    assert sum(values) / 3 == pytest.approx(3 / 5) and values[0] == values[1] < values[2]
    assert LONGER not in found[0] and SHORTER not in found[2]


@pytest.mark.parametrize(
    ("group", "says"),
    [(asked("q"), "ends with the user"), (asked("q", "a", "b"), "has 2 responses")],
)
def test_what_is_no_example_is_named_if_there_is_none(group: Group, says: str) -> None:
    with pytest.raises(DataError, match=says) as error:
        examples.usable([group])
    assert error.value.option == ("examples",)
    assert examples.usable([group, asked("q", "a")]) == [asked("q", "a")]


def test_ties_and_single_replies_next_to_comparisons_are_no_examples() -> None:
    pair, tie = asked("one?", "a", "b", pairs=(Pair(0, 1),)), asked("two?", "a", "b", pairs=())
    here, there = Origin("trees.jsonl", 1), Origin("demos.jsonl", 1, source=1)
    groups = [pair, tie, asked("three?", "a"), replace(asked("four?", "a"), origin=there)]
    groups = [group if group.origin else replace(group, origin=here) for group in groups]
    assert examples.usable(groups) == [groups[0], groups[3]]


def test_bad_responses_are_no_demonstrations() -> None:
    good, bad = (
        replace(asked("q", "a"), responses=(Response("a", label=label),)) for label in (True, False)
    )
    assert examples.usable([bad, good]) == [good]


def test_the_rows_of_pairs_and_demonstrations(tmp_path: Path) -> None:
    pairs = [asked(f"{n}?", "aaa", "b", pairs=(Pair(0, 1),)) for n in range(12)]
    names = ["base", "sft", "dpo"]
    groups = measured([*pairs, asked("demo?", "ab")], names, context(tmp_path))
    facts = {"compare": ["dpo"], "base": "base", "trained_on": {"dpo": False}, "tested": True}
    rows = examples.rows(groups, names, "sft", **facts)
    assert list(dict.fromkeys(row.metric for row in rows)) == [PAIRS, LONGER, TOKENS, LOSS]
    own = {(row.policy, row.metric): row for row in rows if row.baseline != BASE_MODEL}
    assert [own[name, PAIRS].estimate["mean"] for name in names] == [0.5, 1, 0]
    share = own["sft", PAIRS].estimate  # 12 of 12 hits, by the interval of shares
    assert 0.6 < share["low"] < 0.9 and share["high"] == 1 and share["n"] == 12
    dpo = own["dpo", PAIRS]
    assert dpo.difference["mean"] == -1 and dpo.counts == "0/12/0" and dpo.trained_on is False
    assert own["sft", PAIRS].baseline == own["base", PAIRS].baseline == ""
    assert own["dpo", LOSS].lower and own["dpo", PAIRS].percent and not own["dpo", LOSS].percent
    (over_base,) = [row for row in rows if row.baseline == BASE_MODEL and row.metric == PAIRS]
    assert (over_base.policy, over_base.difference["mean"]) == ("dpo", -0.5)
    assert math.isclose(own["sft", LOSS].estimate["mean"], 1.5)


def test_an_example_is_won_by_its_own_mean(tmp_path: Path) -> None:
    """The long one is read as before, but its value moves with the mean of all."""
    groups = [asked("one?", "bbbbbb"), asked("two?", "aa"), asked("three?", "aa")]
    scored = measured(groups, ["base", "sft"], context(tmp_path))
    (_, row) = (one for one in examples.rows(scored, ["base", "sft"], "base") if one.metric == LOSS)
    assert row.counts == "2/0/1" and row.win_rate["mean"] == 1.0
    assert row.difference["mean"] == pytest.approx(-4 / 10)
    values = [[r.scores[LOSS] for r in group.responses] for group in scored]
    assert values[0][0] != values[0][1]  # whose difference says nothing of the example
    assert [r.scores[ITS_OWN.format(LOSS)] for r in scored[0].responses] == [2.0, 2.0]


def test_long_demonstrations_count_more_and_spread_no_more(tmp_path: Path) -> None:
    """Equal losses per token of unequal demonstrations are no spread."""
    groups = [asked(f"{length}?", "a" * length) for length in (1, 10, 100)]
    assert [one[LOSS] for one in scores(groups, tmp_path)["sft"]] == pytest.approx([1, 1, 1])
