"""Simulated people: they agree as often as asked, and a reward model learns from them as much as their errors allow."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from stores import turn

from alignkit import cli
from alignkit.errors import RunFailed
from alignkit.evaluation.statistics import Estimate
from alignkit_plugins.people.items import Item
from alignkit_plugins.people.rows import store_rows
from alignkit_plugins.people.store import Store
from benchmarks.people import guesser, words
from benchmarks.people.ceiling import Setting, expected, noisy
from benchmarks.people.crowd import AGREEMENT, Crowd, Noise, accuracy_of, crowd_for, labeled_store
from benchmarks.people.noise import measure
from benchmarks.people.rounds import Stop, Version, figure, run_with_people, versions

SEEDS = 8
# Before anything was trained: a logistic regression on 200 labels is right about 84.7% of fresh pairs if it has to find
# out that a word means the same in every place, and about 94.7% if it knows. One run's deviations: 3.0 and 2.7 points.
LOW, HIGH, DEVIATION = 0.847, 0.947, 0.03


def test_how_often_people_are_right_who_agree_on_73_percent() -> None:
    p = accuracy_of(AGREEMENT)
    assert p == pytest.approx((1 + math.sqrt(0.46)) / 2) == pytest.approx(0.8391, abs=1e-4)
    assert p**2 + (1 - p) ** 2 == pytest.approx(0.73)


@pytest.mark.parametrize("noise", ["equal", "near"])
def test_two_of_them_agree_as_often_as_asked(noise: Noise, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """By the command that measures real people; 300 pairs, so the standard error is 2.6 points."""
    items = words.pairs(300, seed=1)
    crowd = crowd_for([words.gap(item) for item in items], noise)
    path = labeled_store(tmp_path / "labels.feedback", items, crowd, words.gap, overlap=2)
    assert cli.main(["labels", str(path), "--json"]) == 0
    which = json.loads(capfd.readouterr().out)["result"]["agreement"][0]["same"]
    assert which["n"] == 300
    assert which["mean"] == pytest.approx(AGREEMENT, abs=3 * 0.026)


def test_they_see_the_responses_in_any_order_and_mean_the_item_s(tmp_path: Path) -> None:
    items = words.pairs(100, seed=2)
    path = labeled_store(tmp_path / "labels.feedback", items, Crowd(noise="none"), words.gap)
    for _, row in store_rows(path):
        (vote,), responses = row["votes"], row["item"]["responses"]
        better = vote["label"]["better"]
        assert words.value(responses[better]) > words.value(responses[1 - better])
    with Store.open(path, write=False) as store:
        shown_first = [event.order[0] for event in store.events()]
        sides = [event.payload["side"] for event in store.events()]
    assert 30 < sum(shown_first) < 70 and 30 < sides.count("A") < 70


def test_labels_are_the_same_when_they_are_given_again(tmp_path: Path) -> None:
    items = words.pairs(20, seed=3)
    one, other = (
        [row["votes"][0]["label"] for _, row in store_rows(labeled_store(path, items, Crowd(seed=4), words.gap))]
        for path in (tmp_path / "one.feedback", tmp_path / "other.feedback")
    )
    assert one == other


def test_what_is_expected_was_computed_from_the_noise() -> None:
    """30 simulations of each: the standard error of a mean is half a point."""
    assert expected(Setting(), words.placed_words, simulations=30).mean == pytest.approx(LOW, abs=0.02)
    assert expected(Setting(), words.word_counts, simulations=30).mean == pytest.approx(HIGH, abs=0.02)


@pytest.mark.slow
def test_a_reward_model_on_200_labels_is_as_good_as_their_noise_allows(tmp_path: Path) -> None:
    found = [measure(Setting(), seed, tmp_path / str(seed)) for seed in range(SEEDS)]
    truth, by_people = (sum(values) / SEEDS for values in zip(*((m.truth, m.noisy) for m in found), strict=True))
    error = 2 * DEVIATION / math.sqrt(SEEDS)
    assert LOW - error < truth < HIGH + error
    # Of 8 x 500 fresh labels: the standard error is 0.7 points.
    assert by_people == pytest.approx(noisy(Setting(), truth, []), abs=0.02)
    assert by_people < accuracy_of(AGREEMENT)


def test_one_who_guesses_harms_until_gold_items_say_so(tmp_path: Path) -> None:
    """Three seeds, 500 fresh pairs each; a scorer in place of a reward model."""
    found: dict[str, list[float]] = {name: [] for name in guesser.READERS}
    for seed in range(3):
        path = tmp_path / f"{seed}.feedback"
        fresh = guesser.labeled_by_three(path, seed)
        for name, options in guesser.READERS.items():
            found[name].append(guesser.scored(path, fresh, options))
    mean = {name: sum(values) / 3 for name, values in found.items()}
    assert mean["all"] < mean["two"] - 0.05
    assert found["min_gold"] == found["two"]  # the same labels


def asked(folder: Path, count: int) -> Path:
    """A store as a run leaves it: pairs with the rewards that are the people's truth."""
    items = [Item("pair", (turn("Hi"),), (f"a {n}", f"b {n}"), meta={"reward": [n + 1.0, 0.0]}) for n in range(count)]
    with Store.open(folder / "labels.feedback", new=True) as store:
        store.add(items)
    return folder / "labels.feedback"


def test_they_label_what_a_run_waits_for_until_it_ends(tmp_path: Path) -> None:
    store, codes = asked(tmp_path, 6), iter([75, 0])
    assert run_with_people(lambda: next(codes), store, agreement=1.0) == [Stop(labels=6, right=1.0)]


@pytest.mark.parametrize(("codes", "fault"), [([75, 75], "nothing in .* is left to label"), ([3], "exit code 3")])
def test_a_run_that_cannot_end_is_an_error(codes: list[int], fault: str, tmp_path: Path) -> None:
    store, given = asked(tmp_path, 2), iter(codes)
    with pytest.raises(RunFailed, match=fault):
        run_with_people(lambda: next(given), store)


def test_the_figure_is_the_same_every_time(tmp_path: Path) -> None:
    first, last = (Estimate(mean=0.1, low=low, high=0.2, n=4) for low in (0.0, None))
    found = [Version("sft", 0.0, {}), Version("v1", 0.1, {"gold": first}), Version("v2", 0.2, {"gold": last})]
    for name in ("one.svg", "two.svg"):
        figure(found, tmp_path / name)
    text = (tmp_path / "one.svg").read_text(encoding="utf-8")
    assert text == (tmp_path / "two.svg").read_text(encoding="utf-8")
    assert all(f">{word}<" in text for word in ("sft", "v1", "v2", "gain in gold"))


def test_versions_are_compared_with_the_first(tmp_path: Path) -> None:
    gain = {"mean": 0.5, "low": 0.1, "high": 0.9, "n": 4}
    policies = {"sft": {"kl": {"mean": 0.0}}, "align_1": {"kl": {"mean": 0.3}}}
    facts = {"policies": policies, "against": {"align_1": {"gold": {"difference": gain}}}}
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "evaluation.json").write_text(json.dumps(facts), encoding="utf-8")
    assert versions(tmp_path) == [Version("sft", 0.0, {}), Version("align_1", 0.3, {"gold": Estimate(**gain)})]
