"""Judges as raters of people's pairs: scripted ones, with numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Group, Pair, Response, Verdict
from alignkit.cli import main
from alignkit_plugins.evaluate.reward_step import EvaluateReward
from tests.evaluate.scripted import context, said, told

ALWAYS_FIRST = (1.0, 0.0)  # P(first) if shown first, and if shown second


def pairs(lengths: Sequence[tuple[int, int]]) -> list[Group]:
    """Pairs with a chosen and a rejected response of these lengths; `right` says which one people
    chose.
    """
    return [
        Group(
            ({"role": "user", "content": f"question {n}"},),
            (Response("right".ljust(chosen, "x")), Response("wrong".ljust(rejected, "y"))),
            (Pair(0, 1),),
        )
        for n, (chosen, rejected) in enumerate(lengths)
    ]


def measured(
    folder: Path,
    groups: Sequence[Group],
    decide: Callable[[int, str, str], Verdict],
    **options: Any,
) -> tuple[dict[str, Any], list[Any], str]:
    """The summary, what was asked, and what the report says."""
    judge, asked = told(decide)
    step = EvaluateReward(EvaluateReward.Options(judges=[judge], pairs="x", **options))
    artifact = step.run(context(None, folder, groups))
    return dict(artifact.summary or {}), asked, said(artifact)


def accuracy(found: dict[str, Any], column: str = "", value: str = "") -> dict[str, Any]:
    """The row that says how often the judge is right; its `counts` are right, wrong and equal."""
    (row,) = (
        row
        for row in found["results"]
        if (row["policy"], row["metric"]) == ("judge", "accuracy")
        and (row.get("column", ""), row.get("value", "")) == (column, value)
    )
    return dict(row)


def first(orders: tuple[float, float]) -> Verdict:
    return Verdict(sum(orders) / 2, orders, calls=2, tokens=100)


def right(correct: bool, a: str) -> Verdict:
    """Both orders say the same."""
    p = float(a.startswith("right") == correct)
    return first((p, p))


def test_a_judge_that_always_names_the_first_place_is_none(tmp_path: Path) -> None:
    """Half of the questions have the right answer there."""
    found, asked, shown = measured(
        tmp_path, pairs([(10, 10)] * 40), lambda n, a, b: first(ALWAYS_FIRST)
    )
    card = found["judge_cards"]["judge"]
    assert len(asked) == 40 and card["people"]["mean"] == 0.5
    assert card["inconsistent"]["mean"] == 1
    assert accuracy(found)["counts"] == "0/0/40"  # after averaging both orders
    assert (card["calls"], card["tokens"]) == (80, 4000)
    assert "the order of the answers decides 100% [" in " ".join(shown.split())


def test_a_judge_that_asks_in_one_order_only_learns_nothing_from_the_place(tmp_path: Path) -> None:
    """The chosen response is the first one of half of the pairs, exactly."""
    found, asked, _ = measured(tmp_path, pairs([(10, 10)] * 40), lambda n, a, b: Verdict(1.0))
    assert sum(item[1].startswith("right") for item in asked) == 20
    card = found["judge_cards"]["judge"]
    assert card["people"]["mean"] == 0.5 and "no better than chance" in card["no_judge"]


def test_a_judge_with_73_percent_accuracy(tmp_path: Path) -> None:
    found, _, shown = measured(tmp_path, pairs([(10, 10)] * 100), lambda n, a, b: right(n < 73, a))
    people, card = found["judge_cards"]["judge"]["people"], found["judge_cards"]["judge"]
    assert people["mean"] == pytest.approx(0.73) and people["n"] == 100
    assert accuracy(found)["counts"] == "73/27/0" and card["no_judge"] == ""
    assert card["inconsistent"]["mean"] == 0
    assert "judge agrees with people in 73% [63, 81] of its answers on 100 pairs" in " ".join(
        shown.split()
    )


def test_a_judge_that_only_counts_letters(tmp_path: Path) -> None:
    """Right at the 30 pairs whose chosen response is twice as long, wrong at the 10 whose rejected
    one is.
    """
    found, _, _ = measured(
        tmp_path,
        pairs([(20, 10)] * 30 + [(10, 20)] * 10),
        lambda n, a, b: first((float(len(a) > len(b)),) * 2),
    )
    card = found["judge_cards"]["judge"]
    assert card["people"]["mean"] == 0.75
    assert accuracy(found, "the chosen response", "longer")["estimate"]["mean"] == 1
    assert accuracy(found, "the chosen response", "shorter")["estimate"]["mean"] == 0


def test_a_coin_is_no_judge_and_few_pairs_do_not_say_so(tmp_path: Path) -> None:
    half = measured(tmp_path / "a", pairs([(10, 10)] * 100), lambda n, a, b: right(n % 2 == 0, a))[
        0
    ]
    assert half["judge_cards"]["judge"]["no_judge"] == (
        "its verdicts are of no use, because it agrees with people in 50% [40, 60], no better "
        "than chance"
    )
    few = measured(tmp_path / "b", pairs([(10, 10)] * 6), lambda n, a, b: right(n % 2 == 0, a))[0]
    assert few["judge_cards"]["judge"]["no_judge"] == ""


def test_what_has_no_verdict_is_counted_and_equal_texts_are_ties(tmp_path: Path) -> None:
    groups = pairs([(10, 10)] * 4)
    groups[3] = replace(groups[3], responses=(Response("same"), Response("same")))
    refused = Verdict(None, reason="the judge refused: no", calls=2)
    found, asked, _ = measured(tmp_path, groups, lambda n, a, b: right(True, a) if n else refused)
    card, row = found["judge_cards"]["judge"], accuracy(found)
    assert (
        len(asked) == 3
        and card["comparisons"] == 3
        and card["unjudged"] == {"the judge refused": 1}
    )
    assert (row["counts"], row["missing"]) == ("2/0/1", 1)
    assert (card["calls"], card["tokens"]) == (6, 200)


def test_without_any_verdict_nothing_is_claimed(tmp_path: Path) -> None:
    found, _, shown = measured(
        tmp_path, pairs([(10, 10)] * 4), lambda n, a, b: Verdict(None, reason="broken")
    )
    assert found["judge_cards"]["judge"]["people"] is None and "agrees with people" not in shown


def test_a_judge_that_only_sees_ties_has_given_verdicts(tmp_path: Path) -> None:
    found, *_ = measured(tmp_path, pairs([(10, 10)] * 4), lambda n, a, b: first((0.5, 0.5)))
    assert found["judge_cards"]["judge"]["people"] is None and accuracy(found)["counts"] == "0/0/4"
    assert found["judge_cards"]["judge"]["unjudged"] == {}


def test_a_prompt_is_the_unit(tmp_path: Path) -> None:
    """Ten pairs of one prompt are not ten prompts."""
    answers = (*(Response(f"right {n}") for n in range(10)), Response("wrong"))
    many = Group(
        ({"role": "user", "content": "question 0"},), answers, tuple(Pair(n, 10) for n in range(10))
    )
    found, _, _ = measured(
        tmp_path, [many, *pairs([(10, 10)] * 2)[1:]], lambda n, a, b: right(n == 0, a)
    )
    people = found["judge_cards"]["judge"]["people"]
    assert people["n"] == 2 and people["mean"] == 0.5


def test_a_rater_is_needed() -> None:
    with pytest.raises(ValueError, match="name at least one reward or judge"):
        EvaluateReward.Options(pairs="x")


def test_a_recipe_names_a_judge_and_its_card_is_in_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model without training, as a judge of people's pairs and of policies."""
    monkeypatch.delenv("ALIGNKIT_REPORT", raising=False)
    rows = [{"prompt": f"q{n}", "chosen": "yes " * (n + 1), "rejected": "no"} for n in range(6)]
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
    )
    judges = [{"local_judge": {"min_mass": 0.0}}]
    step = {"step": "evaluate_reward", "judges": judges, "pairs": "pairs.jsonl"}
    recipe = {"model": {"base": "tiny"}, "stages": {"check": step}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]) == 0
    said = " ".join((tmp_path / "run" / "check" / "report.txt").read_text().split())
    assert (
        "local_judge agrees with people in " in said
        or "its verdicts are of no use, because " in said
    )
    (card,) = json.loads((tmp_path / "run" / "check" / "reward_evaluation.json").read_text())[
        "judge_cards"
    ].values()
    assert (card["comparisons"], card["calls"]) == (6, 12)
