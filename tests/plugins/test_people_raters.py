"""People as raters in the step `evaluate`: what comes of their labels, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from labelers import label_all, number
from raters import COUNT, POLICIES, WIDTH, Blind, Told, evaluated, kept, mostly_align, told
from scipy.optimize import brentq
from test_evaluate import HELPFUL, judge_component, prompts, said, step, triple

from alignkit import Response
from alignkit.evaluation import judging, statistics
from alignkit.evaluation.judge_quality import raters_agree
from alignkit.evaluation.ranking import elo_gap
from alignkit.stopping import StageWaits
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.store import Event, Store
from alignkit_plugins.people.waiting import STORE


def test_the_numbers_of_people_by_hand(tmp_path: Path) -> None:
    summary, text = evaluated(tmp_path, mostly_align)
    found = summary["judged"]["align"]["people"]
    # Agresti and Coull's interval of 16 of 20.
    z = 1.959963984540054
    n = COUNT + z**2
    p = (16 + z**2 / 2) / n
    half = z * math.sqrt(p * (1 - p) / n)
    assert triple(found["preference"]) == pytest.approx((0.8, p - half, min(1.0, p + half)))
    assert (found["wins"], found["losses"], found["ties"], found["unjudged_prompts"]) == (16, 4, 0, 0)
    assert found["win_rate"] == statistics.share(16, 20)
    # Bradley and Terry: 16 log s(d) + 4 log s(-d) less the ridge, 0.1 / 2 times twice (d / 2) squared.
    gap = brentq(lambda d: 16 / (1 + math.exp(d)) - 4 / (1 + math.exp(-d)) - 0.1 * d / 2, 0, 5)
    ranking = summary["ranking"]["people"]
    assert list(ranking) == ["align", "sft"]
    assert ranking["align"]["strength"]["mean"] == pytest.approx(gap / 2, abs=1e-6)
    assert ranking["align"]["elo"]["mean"] - ranking["sft"]["elo"]["mean"] == pytest.approx(elo_gap(gap), abs=1e-3)
    low, high = found["preference"]["low"], found["preference"]["high"]
    assert f"align is preferred 80% [{100 * low:.0f}, {100 * high:.0f}]" in text
    assert "people, against sft" in text and "people: 20 labels of 20 pairs at 20 prompts, by 1 person" in text
    assert summary["judges"] == ["people"]


def test_the_sides_that_were_shown_are_turned_back(tmp_path: Path) -> None:
    """Somebody who always prefers `align` often preferred the right answer."""
    summary, _ = evaluated(tmp_path, lambda item: "align")
    with Store.open(tmp_path / STORE) as store:
        sides = [event.payload["side"] for event in store.events()]
        assert all(stored.item.held_out for stored in store.items())
    assert 3 < sides.count("A") < COUNT - 3
    assert summary["judged"]["align"]["people"]["preference"]["mean"] == 1.0
    assert summary["judge_cards"]["people"]["named_first"]["mean"] == pytest.approx(sides.count("A") / COUNT)
    assert summary["judge_cards"]["people"]["no_judge"] == ""


def test_people_who_always_take_the_left_answer_are_called_no_judge(tmp_path: Path) -> None:
    options: dict[str, Any] = {"policies": POLICIES, "rewards": [], "people": {}}
    there = kept(Blind(40), tmp_path, prompts(40))
    with pytest.raises(StageWaits):
        step(**options).run(there)
    with Store.open(tmp_path / STORE) as store:
        for place, stored in enumerate(store.items()):
            order = (0, 1) if place % 2 else (1, 0)
            payload = {"side": "A", "margin": "better"}
            store.submit(Event(f"{place:032x}", "ann", "label", payload, stored.item.id, order=order))
    summary = dict(step(**options).run(there).summary or {})
    assert summary["judged"]["align"]["people"]["preference"]["mean"] == 0.5
    assert summary["judge_cards"]["people"]["no_judge"].startswith("this is no judge: it names the first answer")


def test_unsure_counts_half(tmp_path: Path) -> None:
    def decide(item: Item) -> dict[str, str]:
        return {"by": mostly_align(item), "margin": "unsure" if number(item) < 10 else "slightly"}

    summary, _ = evaluated(tmp_path, decide)
    values = [0.25, *[0.75] * 4, 0.25, *[0.75] * 4, 0.0, *[1.0] * 4, 0.0, *[1.0] * 4]
    assert summary["judged"]["align"]["people"]["preference"] == pytest.approx(statistics.estimate(values))
    assert summary["people"]["unsure"] == 10


def test_few_preferences_stay_between_0_and_100(tmp_path: Path) -> None:
    def decide(item: Item) -> dict[str, str]:
        return {"by": "align" if number(item) else "sft", "margin": "unsure"}

    groups = [replace(group, meta={"language": "de"}) for group in prompts(2)]
    summary, text = evaluated(tmp_path, decide, count=2, groups=groups, by=["language"])
    found = summary["judged"]["align"]["people"]["preference"]
    assert (found["mean"], found["low"], found["high"]) == (0.5, 0.0, 1.0)
    assert text.count("50% [0, 100]") == 4  # in the table, by column, and in both verdicts


def test_labels_of_several_people_are_averaged_and_their_agreement_is_shown(tmp_path: Path) -> None:
    turns = {"ann": 4, "bob": 10}
    options: dict[str, Any] = {"policies": POLICIES, "rewards": [], "people": {"annotators": 2}}
    there = kept(Blind(), tmp_path, prompts(COUNT))
    for name, first in turns.items():
        with pytest.raises(StageWaits, match="waits for"):
            step(**options).run(there)
        label_all(tmp_path / STORE, lambda item, first=first: "sft" if number(item) < first else "align", name)
    artifact = step(**options).run(there)
    summary = dict(artifact.summary or {})
    values = [0.0] * 4 + [0.5] * 6 + [1.0] * 10
    found = summary["judged"]["align"]["people"]
    assert found["preference"] == pytest.approx(statistics.estimate(values))
    assert (found["wins"], found["losses"], found["ties"]) == (10, 4, 6)
    among = summary["judge_cards"]["people"]["annotators"]
    assert among["same"]["mean"] == pytest.approx(14 / 20) and among["same"]["n"] == 20
    # Krippendorff: 12 of 40 ratings disagree; by chance 2 * 14 * 26 of 40 * 39 would.
    assert among["alpha"]["mean"] == pytest.approx(1 - (12 / 40) / (2 * 14 * 26 / (40 * 39)))
    assert summary["people"]["annotators"] == 2 and summary["people"]["labels"] == 40
    assert "annotators agree" in said(artifact, WIDTH)


def test_adjudicated_flagged_and_skipped_pairs(tmp_path: Path) -> None:
    options: dict[str, Any] = {"policies": POLICIES, "rewards": [], "people": {}}
    there = kept(Blind(), tmp_path, prompts(COUNT))
    with pytest.raises(StageWaits):
        step(**options).run(there)
    asides = {0: "flag", 1: "flag", 2: "skip"}
    items = label_all(tmp_path / STORE, lambda item: asides.get(number(item), "align"))
    with Store.open(tmp_path / STORE) as store:
        settled = next(item for item in items if number(item) == 0)
        right = {"side": "B", "margin": "better"}  # in the item's own order: the baseline's
        store.submit(Event("f" * 32, "owner", "adjudicate", right, settled.id))
    found = dict(step(**options).run(there).summary or {})["judged"]["align"]["people"]
    assert (found["wins"], found["losses"]) == (17, 1)
    assert found["unjudged"] == {"flagged": 1, "skipped": 1} and found["unjudged_prompts"] == 2


def test_by_column(tmp_path: Path) -> None:
    groups = [replace(g, meta={"language": "de" if i % 5 == 0 else "en"}) for i, g in enumerate(prompts(COUNT))]
    summary, text = evaluated(tmp_path, mostly_align, groups=groups, by=["language"], rewards=[HELPFUL])
    german, english = (summary["by"]["language"][value]["judged"]["align"]["people"] for value in ("de", "en"))
    assert (german["mean"], german["n"], english["mean"], english["n"]) == (0.0, 4, 1.0, 16)
    assert "by language, against sft" in text


def test_by_column_counts_the_prompts_that_people_saw(tmp_path: Path) -> None:
    groups = [replace(group, meta={"language": "de"}) for group in prompts(COUNT)]
    asides = {0: "flag", 1: "skip"}
    options: dict[str, Any] = {"groups": groups, "by": ["language"], "rewards": [HELPFUL]}
    _, text = evaluated(tmp_path, lambda item: asides.get(number(item), "align"), **options)
    assert "100% [79, 100] of 18" in text


def test_three_policies_meet_the_baseline(tmp_path: Path) -> None:
    models = Blind(policies=["sft", "align", "best"])
    policies = ["sft", "align", "base", "best"]  # the first but `base` is the baseline
    summary, text = evaluated(
        tmp_path, lambda item: "sft" if "sft" in item.origins and number(item) < 5 else str(item.origins[0]),
        models=models, policies=policies,
    )  # fmt: skip
    assert list(summary["judged"]) == ["align", "base", "best"]
    assert {p: found["people"]["losses"] for p, found in summary["judged"].items()} == dict.fromkeys(
        summary["judged"], 5
    )
    assert list(summary["ranking"]["people"])[-1] == "sft" and "ranking in Elo points" in text
    assert summary["people"]["pairs"] == 3 * COUNT


def test_policies_with_equal_answers_share_a_pair(tmp_path: Path) -> None:
    class Same(Blind):
        def _answer(self, role: str, i: int, k: int) -> Response:
            return super()._answer("align" if role == "best" else role, i, k)

    policies = ["sft", "align", "best"]
    models = Same(policies=policies)
    shared, _ = evaluated(tmp_path, lambda item: str(item.origins[0]), models=models, policies=policies)
    assert shared["people"]["pairs"] == COUNT and shared["judged"]["best"]["people"]["wins"] == COUNT


def test_judges_and_rewards_are_compared_with_people(tmp_path: Path) -> None:
    """The reward prefers `align` at odd prompts and the judge below 15; people do at all but every fifth."""
    judge = told(lambda n: 0.9 if n < 15 else 0.2)
    options = {
        "rewards": [HELPFUL],
        "judges": [judge_component(Told, judge)],
        "models": Blind(),
    }
    summary, text = evaluated(tmp_path, mostly_align, **options)
    people = [-1 if n % 5 == 0 else 1 for n in range(COUNT)]
    judges, rewards = [1 if n < 15 else -1 for n in range(COUNT)], [1 if n % 2 else -1 for n in range(COUNT)]
    cards = summary["judge_cards"]
    for name, ratings in (("judge", judges), ("helpful", rewards)):
        expected = raters_agree(list(zip(range(COUNT), people, ratings, strict=True)), seed=7)
        assert cards["people"]["agreement"][name] == expected
    assert cards["judge"]["people"] == {"questions": COUNT, **cards["judge"]["agreement"]["people"]}
    assert cards["judge"]["people"]["same"]["mean"] == pytest.approx(
        sum(p == j for p, j in zip(people, judges, strict=True)) / 20
    )
    assert "people and judges, against sft" in text and "how far to trust the raters" in text


def test_only_the_first_answers_are_compared(tmp_path: Path) -> None:
    judge = told(lambda n: 0.9)
    options = {
        "judges": [judge_component(Told, judge)],
        "samples_per_prompt": 2,
        "models": Blind(),
    }
    summary, _ = evaluated(tmp_path, mostly_align, **options)
    found = summary["judged"]["align"]
    assert (found["people"]["comparisons"], found["judge"]["comparisons"]) == (COUNT, 2 * COUNT)
    assert summary["judge_cards"]["judge"]["people"]["questions"] == COUNT


def test_safety_is_counted_for_both_answers(tmp_path: Path) -> None:
    bins = ["preferred_safe", "both_safe", "both_unsafe", "preferred_safe"]

    def decide(item: Item) -> dict[str, str]:
        n = number(item) % 4
        return {"by": "sft" if n == 3 else "align", "safety": bins[n]}

    summary, text = evaluated(tmp_path, decide, people={"task": "safety"})
    safe = summary["people"]["safe"]["align"]
    assert safe["policy"]["mean"] == pytest.approx(0.5) and safe["baseline"]["mean"] == pytest.approx(0.5)
    assert safe["policy"] == statistics.rate([1.0, 1.0, 0.0, 0.0] * 5)
    assert safe["baseline"] == statistics.rate([0.0, 1.0, 0.0, 1.0] * 5)
    assert "safe answers, by people" in text


def test_what_reports_say_of_people(tmp_path: Path) -> None:
    summary, _ = evaluated(tmp_path, lambda item: "align", rewards=[HELPFUL])
    (verdict,) = judging.verdicts("compare", summary)
    assert verdict["sentence"].startswith("people prefer align to sft: align is preferred 100%")
    lost = {**verdict, "judge": "", "reward": "helpful", "outcome": "lost"}
    lost["difference"] = {"mean": -1.0, "low": -2.0, "high": -0.5, "n": 20}
    assert "helpful prefers sft, but people prefer align: the reward may be fooled" in list(
        judging.doubts(summary, [verdict, lost])  # type: ignore[list-item]
    )


def test_verdicts_of_judges_without_people_are_as_before(tmp_path: Path) -> None:
    judge = told(lambda n: 0.9)
    models = Blind()
    there = kept(models, tmp_path, prompts(COUNT))
    artifact = step(policies=POLICIES, rewards=[], judges=[judge_component(Told, judge)]).run(there)
    assert "judges, against sft, in both orders" in said(artifact, WIDTH)
    assert dict(artifact.summary or {})["people"] is None and not (tmp_path / "out" / "map" / "answers.jsonl").exists()
