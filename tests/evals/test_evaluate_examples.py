"""Held-out examples in `evaluate`: what each metric counts, and what evaluation.json says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignkit import DataError, Group, Response
from alignkit.data.group import Origin, Pair
from alignkit_plugins.compare.comparison import units_of
from alignkit_plugins.compare.rows import PAIRS, Row, plain
from alignkit_plugins.compare.scores import OUTCOME, Measure, Scale, Scores, compare
from alignkit_plugins.compare.verdicts import LONGER_IS_BETTER as LONGER
from alignkit_plugins.compare.verdicts import SHORTER_IS_BETTER as SHORTER
from alignkit_plugins.evals import examples
from alignkit_plugins.evals.examples import LOSS, METRICS, TOKENS
from tests.evals.scripted import lines
from tests.rows import user

NAMES = ["base", "sft", "dpo"]
FIRST = (Pair(0, 1),)


def asked(text: str, *answers: str, **more: Any) -> Group:
    return Group((user(text),), tuple(map(Response, answers)), **more)


class Model:
    """One token per letter. likes: the letter of which each adds 1 to its log-probability of -2 a
    token. read: how often it was asked.
    """

    def __init__(self, likes: str = ""):
        self.likes, self.read = likes, 0

    def logprobs(self, groups: Any) -> list[torch.Tensor]:
        self.read += 1
        texts = [response.text for group in groups for response in group.responses]
        return [torch.tensor([float((c == self.likes) - 2) for c in text]) for text in texts]

    def predictions(self, groups: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(found, (found == -1.0).float()) for found in self.logprobs(groups)]


@pytest.fixture
def around(tmp_path: Path) -> Any:
    """sft likes `a`, dpo likes `b`, and the base model nothing."""
    models = {"base": Model(), "sft": Model("a"), "dpo": Model("b")}
    return SimpleNamespace(
        models=models, base_of=lambda role: "base", say=lambda text: None, out=tmp_path / "report"
    )


def measured(groups: list[Group], around: Any, policies: list[str] = NAMES) -> list[Group]:
    return examples.measured(groups, {policy: policy for policy in policies}, around)


def scores(groups: list[Group], around: Any) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in NAMES}
    for group in measured(groups, around):
        for response in group.responses:
            known = {name: response.scores[name] for name in METRICS if name in response.scores}
            found[str(response.source)].append(known)
    return found


def test_demonstrations_are_averaged_over_tokens(around: Any) -> None:
    """Equal losses per token of unequal demonstrations are no spread."""
    found = scores([asked("one?", "aaaaaa"), asked("two?", "bb"), asked("no room?", "")], around)
    loss, right = ([one[name] for one in found["sft"]] for name in (LOSS, TOKENS))
    assert [sum(loss) / 2, sum(right) / 2] == pytest.approx([(6 * 1 + 2 * 2) / 8, 6 / 8])
    assert [one[TOKENS] for one in found["base"]] == [0, 0]
    long = scores([asked(f"{length}?", "a" * length) for length in (1, 10, 100)], around)
    assert [one[LOSS] for one in long["sft"]] == pytest.approx([1, 1, 1])


def test_tokens_that_do_not_count_are_no_misses(around: Any) -> None:
    """Other turns are 0 in both; a certain token has a log-probability of 0, too, but is the
    likeliest.
    """
    certain = torch.tensor([0.0, 0.0, -1.0]), torch.tensor([0.0, 1.0, 0.0])
    around.models["sft"].predictions = lambda groups: [certain]
    (group,) = measured([asked("q", "abc")], around, ["sft"])
    assert (group.responses[0].scores[TOKENS], group.responses[0].scores[LOSS]) == (0.5, 0.5)


def test_a_pair_is_right_if_the_better_response_gained_more_against_the_base(around: Any) -> None:
    """A sum over tokens: the longer response is less likely by itself, but has gained more."""
    found = scores(
        [asked("1?", "aaa", "b", pairs=FIRST), asked("2?", "b", "aaa", pairs=FIRST)], around
    )
    for name, one, other in (("base", 0.5, 0.5), ("sft", 1.0, 0.0), ("dpo", 0.0, 1.0)):
        assert found[name] == [{PAIRS: one, LONGER: one}, {PAIRS: other, SHORTER: other}]
    # The base model reads the pairs once.
    assert [model.read for model in around.models.values()] == [1, 1, 1]
    (more,) = scores([asked("3?", "aabb", "a", pairs=FIRST)], around)["sft"]
    assert more[PAIRS] == 1.0  # not by the mean of its tokens


def test_examples_of_one_conversation_are_one_unit(around: Any) -> None:
    later = replace(asked("one?", "aaa", "b", pairs=FIRST), meta={"kind": 1})
    rows = [later, asked("one?", "b"), asked("two?", "b")]
    found = examples.measured(rows, {"mine": "sft"}, around)
    assert [response.source for row in found for response in row.responses] == ["mine"] * 3
    assert units_of(found) == [0, 0, 2] and found[0].meta["kind"] == 1 and found[0].pairs is None
    raw = [replace(asked("", text, "b", pairs=FIRST), prompt=()) for text in "aca"]
    assert units_of(raw) == units_of(examples.measured(raw, {"mine": "sft"}, around)) == [0, 1, 0]


def test_a_whole_model_of_another_folder_has_no_base_model_to_gain_against(around: Any) -> None:
    around.base_of = lambda role: role if role == "dpo" else "base"
    (scored,) = measured([asked("one?", "aaa", "b", pairs=FIRST)], around)
    assert [response.scores.get(PAIRS) for response in scored.responses] == [0.5, 1.0, None]


def test_labels_may_say_that_the_second_is_better_and_rankings_have_several_pairs(
    around: Any,
) -> None:
    turned = asked("one?", "a", "b", pairs=(Pair(0, 1, p=0.2),))
    unknown = asked("two?", "a", "b", pairs=(Pair(0, 1, p=0.5), Pair(1, 0, p=0.9)))
    ranked = asked("three?", "aa", "ab", "bb")
    ranks = tuple(replace(response, rank=place) for place, response in enumerate(ranked.responses))
    found = scores([turned, unknown, replace(ranked, responses=ranks)], around)["sft"]
    values = [one[PAIRS] for one in found]
    # Of five pairs
    assert sum(values) / 3 == pytest.approx(3 / 5) and values[0] == values[1] < values[2]
    assert LONGER not in found[0] and SHORTER not in found[2]


def test_what_is_an_example() -> None:
    """No bad responses; no ties, and no single replies next to comparisons in the same source."""
    here, there = Origin("trees.jsonl", 1), Origin("demos.jsonl", 1, source=1)
    pair = asked("one?", "a", "b", pairs=FIRST, origin=here)
    tie = asked("two?", "a", "b", pairs=(), origin=here)
    single, other = asked("three?", "a", origin=here), asked("four?", "a", origin=there)
    assert examples.usable([pair, tie, single, other]) == [pair, other]
    good, bad = (
        replace(asked("q"), responses=(Response("a", label=label),)) for label in (True, False)
    )
    assert examples.usable([bad, good]) == [good] and examples.usable([]) == []


@pytest.mark.parametrize(
    ("answers", "says"), [([], "ends with the user"), (["a", "b"], "has 2 responses")]
)
def test_what_is_no_example_is_named_if_there_is_none(answers: list[str], says: str) -> None:
    group, good = asked("q", *answers), asked("q", "a")
    with pytest.raises(DataError, match=says) as error:
        examples.usable([group])
    assert error.value.option == ("examples",)
    assert examples.usable([group, good]) == [good]


# 12 of 12 hits have the interval of shares; see `lines`.
ROWS = """
base pairs right |  | 0.5 - - 12 |  |  | 0
sft pairs right |  | 1 0.718 1 12 |  |  | 0
dpo pairs right | sft | 0 0 0.282 12 | -1 -1 -0.718 12 0.0004883 | 0 | 0/12/0 0
dpo pairs right | the base model | 0 0 0.282 12 | -0.5 -0.5 -0.218 12 0.0005103 |  | 0
base pairs right, better is longer |  | 0.5 - - 12 |  |  | 0
sft pairs right, better is longer |  | 1 0.718 1 12 |  |  | 0
dpo pairs right, better is longer | sft | 0 0 0.282 12 | -1 -1 -0.718 12 0.0004883 | 0 | 0/12/0 0
dpo pairs right, better is longer | the base model | 0 0 0.282 12 | -0.5 -0.5 -0.218 12 0.0005103 |  | 0
base next tokens right |  | 0 0 0.8325 1 |  |  | 0
sft next tokens right |  | 0.5 - - 1 |  |  | 0
dpo next tokens right | sft | 0.5 - - 1 | 0 - - 1 1 |  | 0/0/1 0
dpo next tokens right | the base model | 0.5 - - 1 | 0.5 - - 1 1 |  | 0
base next-token loss |  | 2 - - 1 |  |  | 0
sft next-token loss |  | 1.5 - - 1 |  |  | 0
dpo next-token loss | sft | 1.5 - - 1 | 0 - - 1 1 |  | 0/0/1 0
dpo next-token loss | the base model | 1.5 - - 1 | -0.5 - - 1 1 |  | 0
"""


def test_the_rows_of_pairs_and_demonstrations(around: Any) -> None:
    pairs = [asked(f"{n}?", "aaa", "b", pairs=FIRST) for n in range(12)]
    groups = measured([*pairs, asked("demo?", "ab")], around)
    rows = compare(examples.scores(groups, NAMES, {"dpo": False}), "sft", ["dpo"], "base")
    assert lines({"results": map(plain, rows)}) == ROWS.strip().splitlines()
    dpo, *_, loss = (row for row in rows if row.policy == "dpo" and row.counts)
    assert (dpo.percent, dpo.lower, loss.percent, loss.lower) == (True, False, False, True)
    assert dpo.trained_on is False and dpo.tested


def test_an_example_is_won_by_its_own_mean(around: Any) -> None:
    """The long one is read as before, but its value moves with the mean of all."""
    groups = [asked("one?", "bbbbbb"), asked("two?", "aa"), asked("three?", "aa")]
    scored = measured(groups, around, NAMES[:2])
    rows = compare(examples.scores(scored, NAMES[:2], {}), "base")
    (_, row) = (one for one in rows if one.metric == LOSS)
    assert row.counts == "2/0/1" and row.win_rate["mean"] == 1.0
    assert row.difference["mean"] == pytest.approx(-4 / 10)
    base, sft = scored[0].responses
    assert base.scores[LOSS] != sft.scores[LOSS]  # whose difference says nothing of the example
    assert base.scores[OUTCOME.format(LOSS)] == sft.scores[OUTCOME.format(LOSS)] == 2.0


def compared(values: dict[str, list[float]], **facts: Any) -> list[Row]:
    scores = Scores({"metric": Measure(**facts)})
    scores.add("metric", values, [(str(place), None) for place in range(len(values["dpo"]))])
    return compare(scores, "base")


def test_a_base_model_without_a_preference_adds_no_chance_to_a_difference() -> None:
    """The difference from its 50% has the interval of the policy's share, which ends at 0 and
    1.
    """
    _, row = compared({"base": [0.5] * 6, "dpo": [0.0] * 6})
    found = [row.difference[end] + 0.5 for end in ("low", "high")]
    assert (
        found == [row.estimate["low"], row.estimate["high"]] == pytest.approx([0, 0.443], abs=1e-3)
    )
    _, row = compared({"base": [0.5, 0.25, 0.5], "dpo": [1.0, 0.0, 1.0]})
    # By the t of three differences, because those of the base model vary as well
    found = [row.difference[end] for end in ("low", "high")]
    assert found == pytest.approx([-0.8257, 1.3257], abs=1e-4)


def test_shares_end_at_1_and_other_rates_are_none() -> None:
    (row,) = compared({"dpo": [0.5, 1.0, 0.75]}, percent=True)
    assert (row.estimate["mean"], row.estimate["high"], row.trained_on) == (0.75, 1.0, None)
    assert not compared({"dpo": [-1.0, 1.0]})[0].percent
    nine = Scale(None, bounds=(1.0, 9.0)).mean([1.0, 8.0, 9.0], [None] * 3)
    assert (nine["low"], nine["mean"], nine["high"]) == (1.0, 6.0, 9.0)
    # Three prompts of two units count like two of each
    share, even = Scale((0.0, 1.0)), Scale((0.0, 1.0), 2)
    assert share.mean([1.0] * 3, "aab")["low"] == even.mean([1.0] * 2, "ab")["low"]
