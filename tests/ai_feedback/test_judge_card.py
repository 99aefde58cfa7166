"""The cards of judges in the step `evaluate`: scripted judges, with numbers worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from by_policy import by_policy

from alignkit import Judge, Verdict
from alignkit_plugins.ai_feedback import judge_card
from alignkit_plugins.ai_feedback.judge_card import judgment, raters_agree, with_people
from tests.evaluate.test_evaluate import (
    HELPFUL,
    Scripted,
    context,
    documented,
    judge_component,
    paths,
    prompts,
    said,
    step,
)

CARD = "judge_cards.JUDGE"
FIELDS = ("mean", "low", "high", "n")
POLICIES = ["base", "sft", "align"]
COUNT = 40


class Told(Judge):
    """Decides as `options.decide(number of the prompt, policy of the first, policy of the second)`
    says.
    """

    def compare(self, items: Any) -> list[Verdict]:
        self.options.asked.extend(items)
        return [
            self.options.decide(int(prompt[-1]["content"].split()[-1]), a.split()[0], b.split()[0])
            for prompt, a, b in items
        ]


def evaluated(
    folder: Path, decide: Callable[[int, str, str], Verdict], count: int = COUNT, **options: Any
) -> tuple[dict[str, Any], list[Any], str]:
    """The summary, what was asked, and what the report says. `sft` is the baseline of three
    policies.
    """
    told: Any = SimpleNamespace(decide=decide, asked=[])
    scores = {
        policy: [float(n % 2 if policy == "align" else 0.5) for n in range(count)]
        for policy in POLICIES
    }
    models = Scripted(scores, dict.fromkeys(POLICIES, [5] * count))
    options = {
        "policies": POLICIES,
        "judges": [judge_component(Told, told)],
        "rewards": [],
        **options,
    }
    artifact = step(**options).run(context(models, folder, prompts(count)))
    return by_policy(artifact.summary or {}), told.asked, said(artifact)


def prefers(*order: str) -> Callable[[int, str, str], Verdict]:
    """The judge that always prefers the policy that comes first in this order."""
    return lambda n, a, b: both(float(order.index(a) < order.index(b)))


def both(p: float) -> Verdict:
    return Verdict(p, (p, p), calls=2, tokens=50)


def card(summary: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = summary["judge_cards"]["judge"]
    return found


def test_a_judge_that_always_names_the_first_place_is_of_no_use(tmp_path: Path) -> None:
    summary, _, shown = evaluated(
        tmp_path, lambda n, a, b: Verdict(0.5, (1.0, 0.0)), policies=["sft", "align"]
    )
    text = (
        "its verdicts are of no use, because it names the first answer that it reads in 100% of "
        "questions"
    )
    assert card(summary)["no_judge"].startswith(text) and card(summary)["named_first"]["mean"] == 1
    assert f"warning: judge: {text}" in " ".join(shown.split())


def test_a_judge_whose_winner_follows_the_order_in_half_of_the_pairs_is_a_coin(
    tmp_path: Path,
) -> None:
    """Each order is answered by a coin: of four outcomes, two prefer the same place twice."""
    outcomes = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)]
    decide = lambda n, a, b: Verdict(sum(outcomes[n % 4]) / 2, outcomes[n % 4])  # noqa: E731
    found = card(evaluated(tmp_path, decide, policies=["sft", "align"], count=60)[0])
    assert found["inconsistent"]["mean"] == 0.5 and found["named_first"]["mean"] == 0.5
    assert found["no_judge"].startswith(
        "its verdicts are of no use, because the order of the answers decides 50% ["
    )


def test_agreement_with_a_reward_and_a_second_judge(tmp_path: Path) -> None:
    """The reward prefers align at odd prompts; one judge at all, the other at all but the last
    four.

    Of the 80 verdicts of the first one and the reward, 60 prefer align: chance disagrees in 2 * 60
    * 20 / (80 * 79).
    """
    told = [lambda n, a, b: both(1.0), lambda n, a, b: both(float(n < COUNT - 4))]
    judges = [judge_component(Told, SimpleNamespace(decide=decide, asked=[])) for decide in told]  # type: ignore[arg-type]
    options = {"policies": ["sft", "align"], "judges": judges, "rewards": [HELPFUL]}
    summary, _, _ = evaluated(tmp_path, prefers(), **options)
    cards = summary["judge_cards"]
    assert list(cards["judge"]["agreement"]) == ["judge-2", "helpful"]
    reward = cards["judge"]["agreement"]["helpful"]
    assert reward["same"]["mean"] == 0.5
    assert reward["alpha"]["mean"] == pytest.approx(1 - 0.5 * 80 * 79 / (2 * 60 * 20))
    judge = cards["judge-2"]["agreement"]["judge"]
    assert judge["same"]["mean"] == 0.9
    assert judge["alpha"]["mean"] == pytest.approx(1 - 0.1 * 80 * 79 / (2 * 76 * 4))


def test_equal_answers_are_not_on_the_card(tmp_path: Path) -> None:
    component = judge_component(Told, SimpleNamespace(decide=prefers(), asked=[]))  # type: ignore[arg-type]
    models = Scripted(texts="the same {i}")
    found = by_policy(
        step(policies=POLICIES, judges=[component]).run(context(models, tmp_path)).summary or {}
    )
    assert card(found)["comparisons"] == 0 and card(found)["no_judge"] == ""


def test_one_sentence_says_what_a_reader_must_know() -> None:
    """Of 100 pairs, people's choice in 61 and in one of both orders in 20; so in 71% of answers."""
    orders = [(1.0, 0.0)] * 20 + [(1.0, 1.0)] * 61 + [(0.0, 0.0)] * 19
    judgments = [judgment(unit, Verdict(sum(p) / 2, p)) for unit, p in enumerate(orders)]
    alone = judge_card.sentence("words", judge_card.card(judgments))
    unknown = "words compared 100 pairs, and how far people agree with it is not known"
    assert alone == f"{unknown}; the order of the answers decides 20% [13, 29]."
    people = judge_card.card(judgments, people=with_people(judgments, [True] * 100, seed=0))
    assert people["people"]["questions"] == 200
    told = judge_card.sentence("words", people)
    assert re.fullmatch(
        r"words agrees with people in 71% \[6\d, 7\d\] of its answers on 100 pairs; the .* 20%\.",
        told,
    )
    verdicts = [Verdict(0.5, (1.0, 0.0) if unit % 6 else (1.0, 1.0)) for unit in range(90)]
    swayed = judge_card.card([judgment(unit, verdict) for unit, verdict in enumerate(verdicts)])
    told = judge_card.sentence("words", swayed)
    assert told.startswith("warning: words: its verdicts are of no use, because ")
    assert told.endswith("the order of the answers decides 83% [74, 90] of pairs")
    broken = judgment(0, Verdict(None, reason="broken"))
    told = judge_card.sentence("words", judge_card.card([*judgments, broken]))
    order = "the order of the answers decides 20% [13, 29]"
    assert told == f"{unknown.replace('100', '101')}; {order}; no verdict on 1 (broken)."
    silent = judge_card.card([broken])
    assert judge_card.sentence("words", silent) == "words has no verdict on any of 1 pairs."


def test_people_and_a_judge_name_places() -> None:
    """Of two questions about a pair, the second one shows the other answer first."""
    judgments = [
        judgment(0, Verdict(0.5, (0.9, 0.1))),
        judgment(1, Verdict(0.8, (0.9, 0.7))),
        judgment(2, Verdict(0.5)),
    ]
    found = with_people(judgments, [True, False, True], seed=0)
    assert found is not None and found["questions"] == 4
    # Half of the first pair's questions, none of the second one's
    assert found["same"]["mean"] == 0.25
    of_unknown_order = with_people(
        [judgment(0, Verdict(0.9)), judgment(1, Verdict(0.9))], [True, False], seed=0
    )
    assert of_unknown_order is not None and of_unknown_order["same"]["mean"] == 0.5
    assert with_people(judgments, [None, None, True], seed=0) is None


def test_every_key_of_a_card_is_documented(tmp_path: Path) -> None:
    def decide(n: int, a: str, b: str) -> Verdict:
        return both(0.9) if n else Verdict(None, reason="error")

    found = card(evaluated(tmp_path, decide, rewards=[HELPFUL])[0])
    people = raters_agree([(0, 1, 1), (1, 1, 2)], seed=0)
    written = {"judge_cards": {"judge": {**found, "people": {**people, "questions": 2}}}}
    keys, known = (
        paths(written, {"judge": "JUDGE", "error": "REASON", "helpful": "OTHER"}),
        documented(CARD),
    )
    estimates = {
        f"{key}.{field}" for key in known if "estimate of" in known[key] for field in FIELDS
    }
    assert keys - known.keys() - estimates == {"judge_cards", CARD}
    assert known.keys() - keys == {f"{CARD}.members"}  # of a panel, as below
    panel = Verdict(0.9, (0.9, 0.9), parts={"one": both(0.9)})
    asked = judge_card.card([judgment(0, panel)])
    assert (
        asked.keys() - found.keys() == {"members"}
        and asked["members"]["one"].keys() == found.keys()
    )
