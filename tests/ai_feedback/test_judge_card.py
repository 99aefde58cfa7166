"""What is said of a judge: how far people agree with it, and how often the order decides. Scripted judges of
people's pairs, with numbers worked out by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit import Group, Pair, Response, Verdict
from alignkit_plugins.ai_feedback.judge_card import judge_card, judge_names, sentence, with_people
from alignkit_plugins.ai_feedback.panel import joint
from alignkit_plugins.evals.reward_step import SAME, EvaluateReward
from tests.ai_feedback.judge_server import REFUSED, Script, Told, component, context
from tests.documented_keys import documented, paths
from tests.rows import read_json, run, user, write_recipe, write_rows

Decide = Callable[[int, str], Verdict]


def pairs(count: int) -> list[Group]:
    """Pairs with a chosen and a rejected response."""
    answers, pair = (Response("right"), Response("wrong")), (Pair(0, 1),)
    return [Group((user(f"question {n}"),), answers, pair) for n in range(count)]


def measured(
    folder: Path, groups: Any, decide: Decide, seed: int = 7
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The judge's card, and the accuracy of its verdicts. decide: by the number of the pair and the
    answer that is shown first.
    """
    script = Script(lambda item, rubric: decide(int(item[0][-1]["content"].split()[1]), item[1]))
    step = EvaluateReward(EvaluateReward.Options(judges=[component(Told, script)], pairs="p"))
    found: Any = step.run(context(folder, groups=groups, seed=seed)).summary
    about = found["judge_cards"]["x"]
    same = about["unjudged"].get(SAME.reason, 0)
    assert len(script.asked[0][1]) == about["comparisons"] - same
    (row, *_) = [
        row for row in found["results"] if (row["policy"], row["metric"]) == ("x", "accuracy")
    ]
    return about, row


def orders(one: float, other: float) -> Verdict:
    """P(first is better) if shown first, and if shown second."""
    return Verdict((one + other) / 2, (one, other), calls=2, tokens=100)


def right(correct: bool, first: str) -> Verdict:
    """Both orders say the same."""
    p = float(first.startswith("right") == correct)
    return orders(p, p)


def two_coins(n: int, first: str) -> Verdict:
    """Each order is answered by a coin: of four outcomes, two name the same place twice."""
    return orders(float(n % 2), 1.0 - n % 2) if n % 4 < 2 else right(n % 2 == 0, first)


DECIDE: dict[str, Decide] = {
    "73%": lambda n, first: right(n < 73, first),
    "half": lambda n, first: right(n % 2 == 0, first),
    "ties": lambda n, first: orders(0.5, 0.5),
    "place": lambda n, first: orders(1.0, 0.0),
    "coins": two_coins,
    "often": lambda n, first: orders(1.0, 0.0) if n % 50 < 21 else right(True, first),
    "one order": lambda n, first: Verdict(1.0),
    "broken": lambda n, first: REFUSED,
}
# A judge, pairs, agreement with people, share decided by the order, right/wrong/equal, and why it
# is none. The chosen response is the first one of half of the pairs, exactly.
CARDS = yaml.safe_load("""
- ["73%", 100, 0.73, 0, 73/27/0, ""]
- [half, 100, 0.5, 0, 50/50/0, "useless, because it agrees with people in 50% [40, 60], no better"]
- [half, 6, 0.5, 0, 3/3/0, ""]
- [half, 30, 0.5, 0, 15/15/0, ""]
- [ties, 4, null, 0, 0/0/4, ""]
- [place, 40, 0.5, 1, 0/0/40, "the order of the answers decides 100% ["]
- [coins, 60, 0.5, 0.5, 15/15/30, "the order of the answers decides 50% ["]
- [coins, 20, 0.5, 0.5, 5/5/10, ""]
- [often, 200, 0.79, 0.42, 116/0/84, ""]
- [one order, 100, 0.5, null, 50/50/0, "useless, because it agrees with people in 50% [40, 60], no better"]
- [broken, 4, null, null, 0/0/0, ""]
""")


@pytest.mark.parametrize(("judge", "count", "people", "inconsistent", "counts", "no_judge"), CARDS)
def test_a_card_says_what_a_judge_is_worth(
    judge: str,
    count: int,
    people: Any,
    inconsistent: Any,
    counts: str,
    no_judge: str,
    tmp_path: Path,
) -> None:
    found, accuracy = measured(tmp_path, pairs(count), DECIDE[judge])
    assert (found["people"] or {"mean": None})["mean"] == people
    assert found["inconsistent"]["mean"] == inconsistent and accuracy["counts"] == counts
    assert no_judge in found["no_judge"] and bool(found["no_judge"]) == bool(no_judge)


def test_a_prompt_is_the_unit_and_what_has_no_verdict_is_counted(tmp_path: Path) -> None:
    """Ten pairs of one prompt are not ten prompts. A judge has no verdict on equal texts."""
    answers = (*(Response(f"right {n}") for n in range(10)), Response("wrong"))
    many = Group((user("question 0"),), answers, tuple(Pair(n, 10) for n in range(10)))
    groups = [many, *pairs(4)[1:]]
    groups[3] = replace(groups[3], responses=(Response("same"), Response("same")))
    found, accuracy = measured(
        tmp_path, groups, lambda n, first: REFUSED if n == 1 else right(n == 0, first)
    )
    assert (found["people"]["n"], found["people"]["mean"]) == (2, 0.5)
    assert found["people"]["low"] < 0.01  # t of one degree is 12.7
    unjudged = {"the judge refused": 1, SAME.reason: 1}
    assert (found["comparisons"], found["unjudged"]) == (13, unjudged)
    assert (accuracy["counts"], accuracy["missing"]) == ("10/1/0", 2)
    assert (found["calls"], found["tokens"]) == (24, 1100)


def test_the_seed_draws_the_pairs_whose_better_response_comes_first(tmp_path: Path) -> None:
    drawn = set[tuple[str, ...]]()
    for seed in range(3):
        shown: list[str] = []

        def decide(n: int, first: str, shown: list[str] = shown) -> Verdict:
            shown.append(first)
            return right(True, first)

        measured(tmp_path, pairs(20), decide, seed)
        drawn.add(tuple(shown))
    assert len(drawn) == 3


def test_one_sentence_says_what_a_reader_must_know() -> None:
    """Of 100 pairs, people's choice in 61 and in one of both orders in 20; so in 71% of answers."""
    told = [(1.0, 0.0)] * 20 + [(1.0, 1.0)] * 61 + [(0.0, 0.0)] * 19
    judgments = [(unit, orders(*p)) for unit, p in enumerate(told)]
    alone, by_order = (
        sentence("words", judge_card(judgments)),
        "the order of the answers decides 20% [13, 29]",
    )
    assert alone == (
        f"words compared 100 pairs, and how far people agree with it is not known; {by_order}."
    )
    people = sentence("words", judge_card(judgments, with_people(judgments, [True] * 100)))
    start = r"words agrees with people in 71% \[6\d, 7\d\] of its answers on 100 pairs; "
    assert re.fullmatch(start + re.escape(by_order) + r"\.", people)
    assert judge_names([component(Told)] * 3) == ["x", "x-2", "x-3"]
    broken = sentence("words", judge_card([*judgments, (0, REFUSED)]))
    assert broken.endswith(f"{by_order}; no verdict on 1 (the judge refused).")
    assert sentence("words", judge_card([(0, REFUSED)])) == (
        "words has no verdict on any of 1 pairs (the judge refused)."
    )
    swayed = [(unit, orders(1.0, 0.0 if unit % 6 else 1.0)) for unit in range(90)]
    assert sentence("words", judge_card(swayed)) == (
        "warning: words: its verdicts are useless, because the order of the answers decides "
        "83% [74, 90] of pairs"
    )


# Verdicts of two judges of a panel on four pairs, what its card counts, and the warning
GOOD, NONE, CUT = Verdict(1.0, (1.0, 1.0)), Verdict(None, reason="cut: at 9"), Verdict(None)
PANELS: list[tuple[list[Any], dict[str, int], str]] = [
    ([GOOD, GOOD, GOOD, GOOD], {}, ""),
    ([NONE, GOOD, GOOD, GOOD], {"b (cut)": 1, "all judges but one": 1}, ""),
    (
        [NONE, NONE, CUT, GOOD],
        {"b (cut)": 2, "b (no reason given)": 1, "all judges but one": 3},
        "x",
    ),
]


@pytest.mark.parametrize(("second", "panel", "warns"), PANELS)
def test_a_panel_says_whose_verdicts_are_missing(
    second: list[Verdict], panel: dict[str, int], warns: str
) -> None:
    judgments = [(n, joint([GOOD, verdict], ["a", "b"])) for n, verdict in enumerate(second)]
    found = judge_card(judgments)
    assert found["panel"] == panel and found["unjudged"] == {}
    told = sentence("p", found)
    for who, count in panel.items():
        assert f"{who} on {count}" in told
    assert ("\nwarning: p: no verdict of b (cut) on 2, all" in told) == bool(warns)
    assert ("\np: no verdict of b (cut) on 1, all" in told) == (len(panel) == 2)
    useless = sentence("p", {**found, "no_judge": "no use"})
    assert useless.startswith("warning: p: no use") and useless.endswith(told.partition(".")[2])
    one = judge_card([(0, joint([NONE, CUT], ["a", "b"]))])
    assert one["panel"] == {"a (cut)": 1, "b (no reason given)": 1}
    assert "(cut)" in sentence("p", one)
    assert sentence("p", {key: value for key, value in found.items() if key != "panel"})


def test_a_recipe_names_a_judge_of_pairs_and_its_card_is_in_the_report(tmp_path: Path) -> None:
    """Every key of a card is documented."""
    rows = [{"prompt": f"q{n}", "chosen": "yes " * (n + 1), "rejected": "no"} for n in range(6)]
    write_rows(tmp_path / "pairs.jsonl", rows)
    judges = [{"local_judge": {"min_mass": 0.0}}]
    step = {"step": "evaluate_reward", "judges": judges, "pairs": "pairs.jsonl"}
    folder = run(write_recipe(tmp_path, {"check": step})) / "check"
    written = read_json(folder / "reward_evaluation.json")
    ((name, found),) = written["judge_cards"].items()
    assert (found["comparisons"], found["calls"]) == (6, 12)
    assert "local_judge" in (folder / "report.txt").read_text()
    place = "judge_cards.JUDGE"
    closed = [f"{place}.inconsistent", f"{place}.people"]  # estimates, as others
    keys = paths({"judge_cards": {name: found}}, {name: "JUDGE"}, closed=closed)
    known = documented(place).keys() - {f"{place}.unjudged.REASON", f"{place}.panel.WHO"}
    assert keys == {"judge_cards", place} | known
    with pytest.raises(ValueError, match="name at least one reward or judge"):
        EvaluateReward.Options(pairs="x")
