"""The rows of an evaluation, and the verdict that they give: clear only by what a policy did not
learn from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from alignkit.evaluation.statistics import paired_difference
from alignkit_plugins.compare.rows import (
    ANSWERS,
    BASE_MODEL,
    KL,
    LENGTH,
    PAIRS,
    TRUNCATED,
    Row,
    adjusted,
    main_rows,
    plain,
    rows_in,
)
from alignkit_plugins.compare.scores import Measure, Scale, Score, Scores, compare
from alignkit_plugins.compare.tables import table
from alignkit_plugins.compare.verdicts import (
    LONGER_IS_BETTER,
    SHORTER_IS_BETTER,
    PolicyVerdict,
    verdicts,
)
from tests.rows import cells

UP, DOWN, UNCLEAR = (0.3, 0.2, 0.4), (-0.3, -0.4, -0.2), (0.1, -0.1, 0.3)
DIFFERENCES = {"+": UP, "-": DOWN, "~": UNCLEAR, "none": None}
TRAINED_ON = {"": False, "*": True, "?": None}
MEASURES = ("refused", "refused in vain")


def estimate(
    triple: tuple[float, float, float] | None, middle: float = 0.0, p: float | None = None
) -> dict[str, Any]:
    """p: by default, clear of any number of others where the interval excludes the middle."""
    mean, low, high = triple or (None, None, None)
    if p is None:
        p = 0.3 if low is None or high is None or low <= middle <= high else 1e-6
    return {"mean": mean, "low": low, "high": high, "n": 20, "p": p}


def summary(text: str) -> list[Row]:
    """The rows of align against sft, by metric: `refused +, llama2* -` is a gain in what it did not
    learn from and a loss in what it was trained on (`?`: not known), and `~` is unclear.
    """
    rows = []
    scores = [score.rsplit(" ", 1) for score in text.split(", ")]
    own = {name.rstrip("*?"): TRAINED_ON[name[len(name.rstrip("*?")) :]] for name, _ in scores}
    first = next(iter(own))
    for metric, (_, difference) in zip(own, scores, strict=True):
        better = {"percent": metric in MEASURES, "lower": metric == "refused in vain"}
        kind = "metric" if metric in MEASURES else "reward"
        sft = Row("sft", metric, kind, {"mean": 0.4, "n": 20}, **better)
        align = replace(sft, policy="align", estimate={"mean": 0.7, "n": 20}, baseline="sft")
        tested = metric == first or metric != "length"
        align = replace(align, trained_on=own[metric], tested=tested)
        rows += [sft, replace(align, difference=estimate(DIFFERENCES[difference]))]
    return rows


def judged(rows: list[Row], triple: tuple[float, float, float], own: bool = False) -> list[Row]:
    """With a judge's preference of align."""
    preference = estimate(triple, 0.5)
    gap = {end: preference[end] - 0.5 for end in ("mean", "low", "high")} | {"p": preference["p"]}
    facts = {"percent": True, "trained_on": own, "tested": True}
    return [*rows, Row("align", "judge", "judge", preference, "sft", gap, **facts)]


def verdict(rows: list[Row], policy: str = "align") -> PolicyVerdict:
    return next(one for one in verdicts(adjusted(rows)) if one.policy == policy)


def text(rows: list[Row]) -> str:
    return " ".join(verdict(rows).sentences)


IN_VAIN = "refused +, refused in vain ~"
WON, LOST, EVEN = (0.7, 0.6, 0.8), (0.3, 0.2, 0.45), (0.5, 0.4, 0.6)
JUDGED = {"won": (WON, False), "lost": (LOST, False), "even": (EVEN, False), "own": (WON, True)}
# What was found, the verdict, and what is said of it; a loss counts whoever says it
VERDICTS = """
refused +, llama2* + | gained | sft in refused, +30 points [20, 40]: 70% against 40%. Also better: the reward llama2
llama2* + | gained by its own reward | +0.30 [0.20, 0.40]: 0.70 against 0.40. It was trained on this reward or
llama2* +, helpful? + | gained, not verified | Also better: the reward llama2 (trained on it)
helpful? + | gained, not verified | reward helpful, +0.30 [0.20, 0.40]: 0.70 against 0.40. It is not known
llama2* +, refused ~ | nothing clear | No clear difference between align and sft in refused, +10 points [-10, 30].
llama2* +, refused - | lost | align is worse than sft in refused, -30 points
refused +, refused in vain + | mixed | Worse: refused in vain (lower is better), +30
refused +, refused in vain - | gained | Also better: refused in vain (lower is
refused +, refused in vain ~ | gained | No clear difference in refused in vain.
refused in vain - | gained | better than sft in refused in vain (lower is better)
reward* + | gained by its own reward | sft in the reward (trained on it), +0.30
refused +, llama2* - | mixed | Worse: the reward llama2 (trained on it), -0.30
refused none | unknown | cannot be compared: no prompt has a score for both.
llama2* +, length - | gained by its own reward | align is better
won | gained | align is better than sft in judge, which prefers it in 70% [60, 80]
lost | lost | align is worse than sft in judge, which prefers it in 30% [20, 45]
even | nothing clear | in judge, which prefers it in 50% [40, 60] of comparisons.
own | gained by its own reward | Also better: judge (trained on it), which
"""


@pytest.mark.parametrize(("found", "outcome", "said"), cells(VERDICTS))
def test_what_decides_and_what_is_said_of_it(found: str, outcome: str, said: str) -> None:
    """A judge decides unless it was trained on; a reward that is only shown decides nothing."""
    judge = JUDGED.get(found)
    rows = judged(summary("llama2* +"), *judge) if judge else summary(found)
    assert verdict(rows).outcome == outcome and said in text(rows)
    assert "length" not in text(rows)


def test_a_gain_that_falls_below_the_base_is_mixed() -> None:
    rows = summary(IN_VAIN)
    for row in rows[1::2]:
        rows.append(replace(row, baseline=BASE_MODEL, difference=estimate(UP)))
    assert verdict(rows).outcome == "mixed"
    assert f"Worse than {BASE_MODEL}: refused in vain (lower is better), +30" in text(rows)


@pytest.mark.parametrize(
    ("shorter", "difference", "outcome", "said"),
    [
        ((0.28, 0.1, 0.5), UP, "only length", "align prefers longer responses"),
        ((0.28, 0.1, 0.5), UNCLEAR, "nothing clear", "which is no gain"),
        ((0.45, 0.3, 0.65), UP, "gained", "align is better than sft"),
        ((0.52, 0.45, 0.58), UP, "gained", "align is better than sft"),
    ],
)
def test_a_gain_that_is_only_length_is_no_gain(
    shorter: Any, difference: Any, outcome: str, said: str
) -> None:
    row = replace(summary("helpful +")[1], metric=PAIRS, difference=estimate(difference))
    rows = [replace(row, percent=True)]
    for name, share in ((LONGER_IS_BETTER, (0.78, 0.6, 0.9)), (SHORTER_IS_BETTER, shorter)):
        rows.append(replace(row, metric=name, estimate=estimate(share), difference={}))
    even = estimate((0.5, 0.4, 0.6))
    rows += [replace(row, column="topic", estimate=even) for row in rows[1:]]
    assert verdict(rows).outcome == outcome and said in text(rows)
    found = "78% [60, 90] of pairs right where the better one is longer, and 28% [10, 50] where"
    assert (found in text(rows)) == (outcome != "gained")
    assert ("better than" in text(rows)) == (outcome == "gained")


def test_a_base_model_that_compares_with_itself_is_chance() -> None:
    base, align = (replace(row, percent=True) for row in summary(f"{PAIRS} +"))
    base, share = replace(base, estimate={"mean": 0.5, "n": 20}), estimate(WON)
    for difference, how in ((UP, "better"), (DOWN, "worse"), (UNCLEAR, "not clearly better")):
        rows = [base, replace(align, estimate=share, difference=estimate(difference))]
        said = f"align orders held-out pairs {how} than chance: 70% [60, 80] are right. "
        assert text(rows).startswith(said) and "people or a judge can say." in text(rows)
        assert table(rows).rows == [[PAIRS, "chance", "70% [60, 80]"]]


def test_likelier_tokens_are_no_better_answers() -> None:
    rows = [replace(row, percent=True) for row in summary("next tokens right +")]
    assert text(rows).endswith("Whether its answers are better, people or a judge can say.")


def test_a_loss_where_the_better_one_is_shorter_is_not_one_of_all_pairs() -> None:
    rows = list[Row]()
    for metric, difference in ((PAIRS, UNCLEAR), (SHORTER_IS_BETTER, DOWN)):
        base, align = (replace(row, metric=metric, percent=True) for row in summary(f"{PAIRS} +"))
        rows += [
            replace(base, estimate={"mean": 0.5, "n": 20}),
            replace(align, difference=estimate(difference)),
        ]
    assert text(rows).startswith(
        "align orders held-out pairs where the better one is shorter worse"
    )


def three(p: float, others: float, policies: tuple[str, ...] = ("align",)) -> list[Row]:
    """Three metrics that nobody learned from, the first with p and the others with another p."""
    rows = []
    for policy in policies:
        for name in ("facts", "refused", "refused in vain"):
            difference = estimate(UP, p=p if name == "facts" else others)
            row = Row(policy, name, "metric", {}, "sft", difference, trained_on=False, tested=True)
            rows.append(replace(row, percent=name in MEASURES, lower=name == "refused in vain"))
    return rows


@pytest.mark.silent_bug(
    "statistics: several metrics",
    "Each measure has its own 95% interval, and any that excludes 0 is a finding.",
    "The first measure decides; the others are adjusted together with Holm's method, gains with a "
    "twentieth of the error.",
)
def test_the_headline_decides_and_the_others_are_adjusted() -> None:
    assert verdict(three(0.04, 0.5)).outcome == "gained"  # hardly any power is lost
    unclear = three(0.5, 0.04)
    assert verdict(unclear).outcome == "nothing clear"
    assert "orse" not in text(unclear) and "etter:" not in text(unclear)
    # Its interval excludes 0
    assert "refused, +30 points [20, 40], p 0.04 alone, but 0.5 among 3 possible gains" in text(
        unclear
    )
    assert "+30 points [20, 40], p 0.04 alone, but 0.1 among 3 possible losses." in text(unclear)
    # Once the headline is clear, the others have the whole error: 0.02 for the first of two.
    assert "Also better: refused" in text(three(0.001, 0.02))
    assert "Also better" not in text(three(0.001, 0.03))


def of_counts(counts: Mapping[str, tuple[int, int, int]]) -> list[Row]:
    """Rows of align against sft, by metric: prompts, and how many align answers with 1 and sft with
    0, and the other way around.
    """
    scores = Scores()
    for metric, (prompts, up, down) in counts.items():
        places = [(f"{metric} {place}", None) for place in range(prompts)]
        sft = [float(up <= place < up + down) for place in range(prompts)]
        align = [float(place < up) for place in range(prompts)]
        lower = metric.startswith("refused")
        scores.measures[metric] = Measure(lower=lower, tested=True, trained_on={"align": False})
        scores.add(metric, {"sft": sft, "align": align}, places)
    return compare(scores, "sft", ["align"])


SWAPPED = {
    "harmful refused": (100, 9, 12),
    "refused ordinary": (100, 12, 2),  # raw p 0.007
    "refused by form": (85, 12, 9),
    "refused by sound": (80, 8, 0),  # 0.004
    "facts right": (80, 5, 5),
}


def test_a_loss_is_told_first_where_the_headline_is_even() -> None:
    rows = of_counts(SWAPPED)
    found = verdict(rows)
    assert (found.outcome, found.metric) == ("lost", "refused by sound")
    first, also, unclear = found.sentences
    assert first.startswith("align is worse than sft in refused by sound (lower is better), +10")
    assert also == "Also worse: refused ordinary (lower is better), +10 points [2, 17]."
    assert unclear.startswith("No clear difference in harmful refused, -3 points [-12, 6]; refused")
    # Plain Holm over the losses, whatever the gains are
    least = {row.metric: row.p for row in adjusted(rows) if row.tested and row.p}
    assert least["refused by sound"] == pytest.approx(5 * 0.00401, abs=1e-4)
    assert least["refused ordinary"] == pytest.approx(4 * 0.00688, abs=1e-4)
    gained = verdict(of_counts(SWAPPED | {"harmful refused": (100, 30, 5)}))
    assert gained.outcome == "mixed" and gained.sentences[1].startswith("Worse: refused ordinary")


def test_the_last_policy_has_the_headline_and_the_others_are_adjusted() -> None:
    both = three(0.04, 0.5, ("align", "ppo"))
    assert verdict(both).outcome == "nothing clear" and verdict(both, "ppo").outcome == "gained"
    clear = three(1e-4, 0.5, ("align", "ppo"))
    assert verdict(clear).outcome == verdict(clear, "ppo").outcome == "gained"


@pytest.mark.silent_bug(
    "statistics: no spread",
    "An effect that is the same at all prompts has no interval, and so no verdict.",
    "It has a p value, that of a sign test.",
)
def test_an_effect_that_is_equal_at_all_prompts_has_a_verdict() -> None:
    def outcome(prompts: int) -> str:
        sft, align = summary("refused +")
        gap = paired_difference([3.0] * prompts, [2.0] * prompts)
        return verdict([sft, replace(align, difference=gap)]).outcome

    assert (outcome(5), outcome(6)) == ("nothing clear", "gained")


@pytest.mark.parametrize(
    ("interval", "lower", "said"),
    [
        ((0.1, -0.04, 0.3), False, "loses less than"),
        ((0.1, -0.06, 0.3), False, "may lose more than"),
        ((-0.1, -0.3, 0.04), True, "loses less than"),
        ((-0.1, -0.3, 0.06), True, "may lose more than"),
        (None, False, "may lose more than"),
    ],
)
def test_a_loss_within_the_margin_is_said_for_sure_or_not(
    interval: Any, lower: bool, said: str
) -> None:
    sft, align = summary("refused ~")
    facts: Any = {"margin": 0.05, "lower": lower, "percent": True}
    text = f"In refused, it {said} the margin of 5 points: "
    rows = [replace(sft, **facts), replace(align, difference=estimate(interval), **facts)]
    sentences = verdict([*rows, *summary("other ~")]).sentences
    assert any(one.startswith(text) for one in sentences) == (interval is not None)


# Tables


def full() -> list[Row]:
    """With everything that an evaluation may have."""
    share = {"mean": 0.75, "low": 0.5, "high": 0.9, "n": 16}
    won = {"win_rate": share, "counts": "12/4/4"}
    rows = []
    for row in judged(summary(IN_VAIN), (0.7, 0.6, 0.8)):
        equal = estimate((0.6, 0.4, 0.8)) if row.kind == "judge" else estimate(UNCLEAR)
        rows.append(replace(row, equal_length=equal, **won) if row.baseline else row)
    rows = adjusted(rows)
    rows += [replace(rows[1], column="topic"), replace(rows[1], baseline=BASE_MODEL)]
    length = {"mean": 20.0, "low": 19.0, "high": 21.0, "n": 20}
    for policy, kl in (("sft", 0.0), ("align", 2.0)):
        rows.append(Row(policy, LENGTH, ANSWERS, length))
        rows.append(Row(policy, TRUNCATED, ANSWERS, {"mean": 0.5}, percent=True))
        rows.append(Row(policy, KL, ANSWERS, {"mean": kl}, "sft"))
    return rows


TABLE = """
refused | 40% | 70%
refused in vain* | 40% | 70%
judge | - | 70% [60, 80]
length, tokens | 20.0 [19.0, 21.0] | 20.0 [19.0, 21.0]
truncated | 50% | 50%
KL, nats | 0.00 | 2.00
"""


def test_tables_and_the_file_are_of_the_same_rows() -> None:
    rows = full()
    upright = table(main_rows(rows))
    assert upright.columns == ["", "sft", "align"] and upright.note == "* lower is better"
    assert list(map(tuple, upright.rows)) == cells(TABLE)
    assert rows_in({"results": json.loads(json.dumps(list(map(plain, rows))))}) == rows


def test_scores_are_plain_and_meet_at_their_prompt_and_seed() -> None:
    """In whatever order tables of several runs are joined; a prompt that one lacks is left out."""
    ours = {("a", 0): 1.0, ("a", 1): 0.0, ("b", 0): 1.0, ("b", 1): None}
    theirs = {("b", 1): 0.0, ("b", 0): 0.0, ("a", 1): 1.0, ("a", 0): 0.0, ("c", 0): 1.0}
    scores = Scores()
    for policy, values in (("sft", theirs), ("align", ours)):
        for (prompt, seed), value in values.items():
            scores.rows.append(Score("right", policy, prompt, value, unit=prompt, seed=seed))
    stored = json.loads(json.dumps([score._asdict() for score in scores.rows]))
    assert [Score(**one) for one in stored] == scores.rows
    _, row = compare(scores, "sft")
    assert (row.counts, row.percent) == ("2/1/0", True)
    assert row.difference["mean"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("right", range(1, 12))
def test_a_composite_is_clear_only_where_its_interval_is(right: int, sign: int) -> None:
    """Its interval may be wider than that of its own values, and then its p is as large."""
    scores = Scores({"sum": Measure(scale=Scale(None), parts={"one": 1.0, "other": -0.5})})
    for name, hits in (("one", right), ("other", 1)):
        scores.measures[name] = Measure(scale=Scale((0.0, 1.0)))
        own = {"sft": [0.0] * 20, "align": [1.0] * hits + [0.0] * (20 - hits)}
        if sign < 0:
            own = {"sft": own["align"], "align": own["sft"]}
        scores.add(name, own, [(f"{name} {at}", at) for at in range(20)])
    scores.combine()
    (row,) = (row for row in compare(scores, "sft") if row.difference and row.metric == "sum")
    found = row.difference
    assert (found["p"] < 0.05) == (found["low"] > 0 or found["high"] < 0)


@pytest.mark.parametrize(("right", "count"), [(6, 7), (5, 5), (6, 6), (9, 10), (10, 13), (1, 9)])
def test_a_share_is_clear_only_where_its_interval_is(right: int, count: int) -> None:
    """Of pairs, of which the base model has half by chance."""
    scores = Scores({PAIRS: Measure(percent=True)})
    own = [1.0] * right + [0.0] * (count - right)
    prompts = [(str(at), at) for at in range(count)]
    scores.add(PAIRS, {"base": [0.5] * count, "align": own}, prompts)
    (row,) = (row for row in compare(scores, "base") if row.difference)
    found = row.difference
    assert found["p"] >= 0.05 or found["low"] > 0 or found["high"] < 0
    assert found["p"] > 0.4 * stats.binomtest(right, count).pvalue


def test_a_composite_of_the_same_prompts_is_no_surer_than_a_metric_of_them() -> None:
    """Samples of a prompt are not independent, whatever they are measured by."""
    right = {"sft": [0.0, 1.0] * 10, "align": [1.0] * 15 + [0.0] * 5}
    scores = Scores({"sum": Measure(scale=Scale(None), parts={"one": 0.5, "other": 0.5})})
    for name in ("one", "other"):
        scores.measures[name] = Measure(scale=Scale((0.0, 1.0)))
        scores.add(name, right, [(str(at), at) for at in range(20)])
    scores.combine()
    rows = {row.metric: row for row in compare(scores, "sft") if row.difference}
    widths = [row.difference["high"] - row.difference["low"] for row in rows.values()]
    assert list(rows) == ["sum", "one", "other"] and widths[0] > 0.9 * widths[1]
