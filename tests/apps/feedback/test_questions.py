"""What the labels of a store say about its labelers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stores import event, opened, pair, ranking, scores, turn

from alignkit.cli import main
from alignkit.evaluation.agreement import interval, krippendorff_alpha
from alignkit.evaluation.concordance import mean_tau_b
from alignkit_plugins.people.effective_labels import labeled
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.measure import day, habit_facts, measured
from alignkit_plugins.people.questions import Question, Unit, habits_of, questions_of
from alignkit_plugins.people.store import Store


def store_of(folder: Path, *rows: tuple[Item, dict[str, Any]], **more: Any) -> Store:
    """A store with labels: (item, {annotator: payload}). Every label shows the responses in the item's order."""
    store = opened(folder, *(item for item, _ in rows))
    for item, given in rows:
        for who, payload in given.items():
            store.submit(event(item, payload, who=who, **more))
    return store


def side(letter: str, margin: str = "better", **more: Any) -> dict[str, Any]:
    return {"side": letter, "margin": margin, **more}


def facts(store: Store, against: str = "") -> dict[str, Any]:
    return {question.name: measured(question) for question in questions_of(labeled(store), against)}


def test_pairs_ask_which_and_how_much(tmp_path: Path) -> None:
    rows = [
        (pair(f"prompt {number}"), {"ann": side("A"), "bob": side(letter, margin)})
        for number, (letter, margin) in enumerate(
            [("A", "better"), ("A", "slightly"), ("B", "unsure"), ("A", "better")]
        )
    ]
    with store_of(tmp_path, *rows) as store:
        found = facts(store)
    which, much = found["pair: which is better"], found["pair: how much better"]
    assert which["coefficients"]["agreement"]["mean"] == 3 / 4
    assert much["coefficients"]["agreement"]["mean"] == 2 / 4
    turned = [int(item.id, 16) % 2 for item, _ in rows]  # which response is A is drawn for each item
    assert set(turned) == {0, 1}
    signs = [["AB"[turn], "AB"[turn ^ (number == 2)]] for number, turn in enumerate(turned)]
    assert which["coefficients"]["gwet_ac1"]["mean"] == interval(signs, "gwet_ac1")["mean"]
    degrees = [[-3, -3], [-3, -2], [-3, 1], [-3, -3]]
    degrees = [[-value for value in unit] if turn else unit for turn, unit in zip(turned, degrees, strict=True)]
    assert much["coefficients"]["alpha_ordinal"]["mean"] == krippendorff_alpha(degrees, "ordinal")
    assert set(which["coefficients"]) >= {"cohen_kappa", "fleiss_kappa"} and "gwet_ac2" not in which["coefficients"]
    assert which["annotators"]["ann"]["with others"]["mean"] == 3 / 4


def test_data_with_the_better_response_first_show_agreement_beyond_chance(tmp_path: Path) -> None:
    """80 pairs whose first response is better, and two people of whom each denies it of every tenth."""
    rows = [
        (pair(f"prompt {number}", f"good {number}"),
         {who: side("B" if number % 10 == place else "A") for place, who in enumerate(("ann", "bob"))})
        for number in range(80)
    ]  # fmt: skip
    with store_of(tmp_path, *rows) as store:
        found = facts(store)["pair: which is better"]["coefficients"]
    assert found["agreement"]["mean"] == 0.8
    assert found["cohen_kappa"]["mean"] == pytest.approx(0.6, abs=0.05)
    assert found["alpha_nominal"]["mean"] == pytest.approx(0.6, abs=0.05)


def test_a_contested_gold_label_is_no_reference(tmp_path: Path) -> None:
    item = pair(gold={"better": 0})
    with store_of(tmp_path, (item, {"ann": side("B")})) as store:
        assert facts(store)["pair: which is better"]["gold"]["ratings"]["mean"] == 0
        store.submit(event(item, {"note": "no"}, kind="contest"))
        assert facts(store)["pair: which is better"]["gold"] is None


def test_labels_are_compared_in_the_items_order(tmp_path: Path) -> None:
    item = pair()
    with opened(tmp_path, item) as store:
        store.submit(event(item, side("A"), order=(1, 0)))
        store.submit(event(item, side("B"), who="bob", order=(0, 1)))
        assert facts(store)["pair: which is better"]["coefficients"]["agreement"]["mean"] == 1


def test_rankings(tmp_path: Path) -> None:
    ranks = [[1, 2, 3, 4], [1, 2, 4, 3], [2, 1, 1, 4]]
    given = {who: {"ranks": row} for who, row in zip(("ann", "bob", "eve"), ranks, strict=True)}
    with store_of(tmp_path, (ranking(), given), (ranking("alone"), {"ann": {"ranks": [1, 1, 1, 1]}})) as store:
        found = facts(store)["ranking"]["coefficients"]
    assert found["tau_b"]["mean"] == mean_tau_b(ranks) and found["tau_b"]["n"] == 1
    assert found["agreement"]["mean"] == (5 + 3 + 2) / (6 + 5 + 5)  # without pairs that one of the two ties
    assert 0 < found["w"]["mean"] < 1


def test_scores_are_a_question_per_criterion(tmp_path: Path) -> None:
    one, other = {"helpful": 7, "harmless": 6}, {"helpful": 2, "harmless": 6}
    given = {"ann": {"scores": [one, other]}, "bob": {"scores": [{**one, "helpful": 6}, other]}}
    with store_of(tmp_path, (scores(), given)) as store:
        found = facts(store)
    assert found["scores: helpful"]["items"] == 2
    assert found["scores: helpful"]["coefficients"]["agreement"]["mean"] == 1 / 2
    assert found["scores: helpful"]["coefficients"]["agreement"]["low"] is None  # two responses, but one item
    assert found["scores: harmless"]["coefficients"]["agreement"]["mean"] == 1


def test_safety_bins_and_thumbs(tmp_path: Path) -> None:
    safe = Item("safety", (turn("Harm?"),), ("no", "yes"))
    thumb = Item("thumb", (turn("Good?"),), ("yes",))
    bins = {"ann": side("A", safety="both_safe"), "bob": side("A", safety="preferred_safe")}
    with store_of(tmp_path, (safe, bins), (thumb, {"ann": {"good": True}, "bob": {"good": True}})) as store:
        found = facts(store)
    assert found["safety: which bin"]["coefficients"]["agreement"]["mean"] == 0
    assert found["thumb"]["coefficients"]["agreement"]["mean"] == 1


def test_gold_and_a_judges_column(tmp_path: Path) -> None:
    rows = [
        (pair("a", gold={"better": 0}, meta={"judge": 1}), {"ann": side("A"), "bob": side("B")}),
        (pair("b", meta={"judge": [0.1, 0.9]}), {"ann": side("B"), "bob": side("B")}),
        (pair("c", meta={"judge": [0.9, 0.1]}), {"ann": side("B")}),
    ]
    with store_of(tmp_path, *rows) as store:
        found = facts(store, "judge")["pair: which is better"]
    assert found["annotators"]["ann"]["with gold"]["mean"] == 1
    assert found["annotators"]["bob"]["with gold"]["mean"] == 0
    assert found["gold"]["ratings"]["mean"] == 1 / 2
    assert found["against"]["judge"]["ratings"] == {**found["against"]["judge"]["ratings"], "mean": 3 / 5, "n": 5}
    assert found["against"]["judge"]["majority"]["mean"] == 1 / 2  # of b and c; a is tied


@pytest.mark.parametrize("verdict", ["x", 2, [1, 2, 3], {}])
def test_a_column_that_is_no_verdict(tmp_path: Path, verdict: Any, capfd: pytest.CaptureFixture[str]) -> None:
    with store_of(tmp_path, (pair(meta={"judge": verdict}), {"ann": side("A")})) as store:
        assert main(["labels", "agree", str(store.path), "--against", "judge"]) == 4
    assert "column 'judge' must hold 0 or 1" in capfd.readouterr().err


def test_over_time(tmp_path: Path) -> None:
    rows = [
        (pair(f"{batch} {n}", batch=batch), {"ann": side("A"), "bob": side("AB"[n])}) for batch in "xy" for n in (0, 1)
    ]
    with store_of(tmp_path, *rows) as store:
        found = facts(store)["pair: which is better"]["over time"]
    assert [(row["when"], row["items"], row["agreement"]["mean"]) for row in found] == [("x", 2, 0.5), ("y", 2, 0.5)]


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-01-05T12:00:00.000000Z", "2026-01-05"),
        ("45065.55", "2023-05-19"),
        ("1767571200", "2026-01-05"),
        ("1767571200000", "2026-01-05"),
        ("week 3", "week 3"),
    ],
)
def test_the_day_of_a_time(time: str, expected: str) -> None:
    assert day(time) == expected


def test_how_annotators_work(tmp_path: Path) -> None:
    items = [pair(f"prompt {number}", first="long answer", second="short") for number in range(4)]
    with opened(tmp_path, *items) as store:
        for number, item in enumerate(items):
            order = (0, 1) if number % 2 else (1, 0)
            store.submit(event(item, side("A"), order=order, seconds=number + 1))
        store.submit(event(items[0], side("A"), order=(0, 1), occasion=1))
        store.submit(event(items[1], side("A", "unsure"), order=(0, 1), occasion=1))
        found = habit_facts(habits_of(labeled(store)))["ann"]
    assert found["left"]["mean"] == 1 and found["longest run"] == 4
    assert found["longer"]["mean"] == 1 / 2
    assert found["same again"] == {**found["same again"], "mean": 1 / 2, "n": 2}
    assert found["median seconds"] == 2.5


def test_nothing_in_common_is_said(tmp_path: Path) -> None:
    question = Question("q", "nominal", [Unit("1", {"ann": "a"}), Unit("2", {"bob": None})])
    found = measured(question)
    assert (found["items"], found["items with several ratings"], found["gold"]) == (1, 0, None)
    assert found["annotators"] == {"ann": {"ratings": 1, "with others": None, "with gold": None}}


def test_the_command_reads_a_store(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [(pair(f"prompt {n}"), {"ann": side("A"), "bob": side("AB"[n % 3 == 0])}) for n in range(12)]
    path = store_of(tmp_path, *rows, seconds=3).path
    assert main(["labels", "agree", str(path)]) == 0
    said = capfd.readouterr().out
    assert "Gwet's AC1" in said and "how annotators work" in said
    assert main(["labels", "agree", str(path), "--json"]) == 0
    (found,) = json.loads(capfd.readouterr().out)["result"]
    assert found["questions"][0]["coefficients"]["agreement"]["mean"] == pytest.approx(8 / 12)
    assert found["habits"]["ann"]["left"]["mean"] == 1


def test_a_store_without_labels_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with opened(tmp_path, pair()) as store:
        assert main(["labels", "agree", str(store.path)]) == 4
    assert "no labels that can be compared" in capfd.readouterr().err
