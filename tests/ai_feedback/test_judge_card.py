"""The cards of judges in the step `evaluate`: scripted judges, with numbers worked out by hand."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignkit import Verdict
from alignkit_plugins.ai_feedback import judge_card
from alignkit_plugins.ai_feedback.judge_card import with_people
from tests.documented_keys import documented, paths
from tests.evaluate.scripted import HELPFUL, Scripted, context, prompts, said, step, told

CARD = "judge_cards.JUDGE"
FIELDS = ("mean", "low", "high", "n")
POLICIES = ["base", "sft", "align"]
COUNT = 40


def evaluated(
    folder: Path, decide: Callable[[int, str, str], Verdict], count: int = COUNT, **options: Any
) -> tuple[dict[str, Any], list[Any], str]:
    """The summary, what was asked, and what the report says. `sft` is the baseline of three
    policies.
    """
    judge, asked = told(lambda n, one, other: decide(n, one.split()[0], other.split()[0]))
    scores = {
        policy: [float(n % 2 if policy == "align" else 0.5) for n in range(count)]
        for policy in POLICIES
    }
    models = Scripted(scores, dict.fromkeys(POLICIES, [5] * count))
    options = {
        "policies": POLICIES,
        "judges": [judge],
        "rewards": [],
        **options,
    }
    artifact = step(**options).run(context(models, folder, prompts(count)))
    return dict(artifact.summary or {}), asked, said(artifact)


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
    text = "its verdicts are of no use, because the order of the answers decides 100% ["
    assert card(summary)["no_judge"].startswith(text)
    assert f"warning: judge: {text}" in " ".join(shown.split())


def test_a_judge_whose_winner_follows_the_order_in_half_of_the_pairs_is_a_coin(
    tmp_path: Path,
) -> None:
    """Each order is answered by a coin: of four outcomes, two prefer the same place twice."""
    outcomes = [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.0, 0.0)]
    decide = lambda n, a, b: Verdict(sum(outcomes[n % 4]) / 2, outcomes[n % 4])  # noqa: E731
    found = card(evaluated(tmp_path, decide, policies=["sft", "align"], count=60)[0])
    assert found["inconsistent"]["mean"] == 0.5
    assert found["no_judge"].startswith(
        "its verdicts are of no use, because the order of the answers decides 50% ["
    )


def test_equal_answers_are_not_on_the_card(tmp_path: Path) -> None:
    judge, _ = told(prefers())
    models = Scripted(texts="the same {i}")
    found = dict(
        step(policies=POLICIES, judges=[judge]).run(context(models, tmp_path)).summary or {}
    )
    assert card(found)["comparisons"] == 0 and card(found)["no_judge"] == ""


def test_one_sentence_says_what_a_reader_must_know() -> None:
    """Of 100 pairs, people's choice in 61 and in one of both orders in 20; so in 71% of answers."""
    orders = [(1.0, 0.0)] * 20 + [(1.0, 1.0)] * 61 + [(0.0, 0.0)] * 19
    judgments = [(unit, Verdict(sum(p) / 2, p)) for unit, p in enumerate(orders)]
    alone = judge_card.sentence("words", judge_card.card(judgments))
    unknown = "words compared 100 pairs, and how far people agree with it is not known"
    assert alone == f"{unknown}; the order of the answers decides 20% [13, 29]."
    people = judge_card.card(judgments, with_people(judgments, [True] * 100))
    told = judge_card.sentence("words", people)
    assert re.fullmatch(
        r"words agrees with people in 71% \[6\d, 7\d\] of its answers on 100 pairs; the .* 20% .*",
        told,
    )
    verdicts = [Verdict(0.5, (1.0, 0.0) if unit % 6 else (1.0, 1.0)) for unit in range(90)]
    swayed = judge_card.card([(unit, verdict) for unit, verdict in enumerate(verdicts)])
    told = judge_card.sentence("words", swayed)
    assert told.startswith("warning: words: its verdicts are of no use, because ")
    assert told.endswith("the order of the answers decides 83% [74, 90] of pairs")
    broken = (0, Verdict(None, reason="broken"))
    told = judge_card.sentence("words", judge_card.card([*judgments, broken]))
    order = "the order of the answers decides 20% [13, 29]"
    assert told == f"{unknown.replace('100', '101')}; {order}; no verdict on 1 (broken)."
    silent = judge_card.card([broken])
    assert judge_card.sentence("words", silent) == "words has no verdict on any of 1 pairs."


def test_people_and_a_judge_name_places() -> None:
    """Of two questions about a pair, the second one shows the other answer first."""
    judgments = [
        (0, Verdict(0.5, (0.9, 0.1))),
        (1, Verdict(0.8, (0.9, 0.7))),
        (2, Verdict(0.5)),
    ]
    found = with_people(judgments, [True, False, True])
    # Half of the first pair's questions, none of the second one's
    assert found is not None and found["mean"] == 0.25
    of_unknown_order = with_people([(0, Verdict(0.9)), (1, Verdict(0.9))], [True, False])
    assert of_unknown_order is not None and of_unknown_order["mean"] == 0.5
    assert with_people([(0, Verdict(0.5))], [True]) is None


def test_every_key_of_a_card_is_documented(tmp_path: Path) -> None:
    def decide(n: int, a: str, b: str) -> Verdict:
        return both(0.9) if n else Verdict(None, reason="error")

    found = card(evaluated(tmp_path, decide, rewards=[HELPFUL])[0])
    people = with_people([(0, both(0.9)), (1, both(0.1))], [True, True])
    written = {"judge_cards": {"judge": {**found, "people": people}}}
    keys, known = paths(written, {"judge": "JUDGE", "error": "REASON"}), documented(CARD)
    estimates = {
        f"{key}.{field}" for key in known if "estimate of" in known[key] for field in FIELDS
    }
    assert keys - known.keys() - estimates == {"judge_cards", CARD}
    assert known.keys() <= keys
