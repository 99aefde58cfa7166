"""The numbers of a table of cells: by hand, and what it claims and refuses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from alignkit.errors import DataError
from alignkit_plugins.cells import crossed
from alignkit_plugins.cells.table import choice, table_of
from alignkit_plugins.compare.verdicts import verdicts
from benchmarks.tables import Setting, claims

# Means of prompts 3, 6, 6 and of seeds 4, 6; what is left is 0, 0, -1, 1, 1, -1
BY_HAND = np.array([[2.0, 4.0], [4.0, 8.0], [6.0, 6.0]])


def test_two_crossed_random_effects_by_hand() -> None:
    parts = crossed.parts(BY_HAND)
    assert [float(part) for part in parts[:4]] == pytest.approx([5, 6, 6, 2])
    spread = crossed.spread(parts)
    assert float(spread.variance) == pytest.approx((6 + 6 - 2) / 6)
    assert float(spread.free) == pytest.approx(100 / (36 / 2 + 36 / 1 + 4 / 2))
    # t of 0.975 with 1.786 degrees of freedom
    assert float(crossed.half_width(spread)) == pytest.approx(4.8373 * (10 / 6) ** 0.5, rel=1e-3)


def test_a_table_loads_no_library_of_tests() -> None:
    code = "import alignkit_plugins.cells.table, sys; print('scipy.stats' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code]) == b"False\n"


def test_the_seeds_of_all_cells_say_how_much_one_varies() -> None:
    squares, free = crossed.moderated(np.array([4.0, 4.0]), 3)
    assert squares.tolist() == pytest.approx([4, 4]) and free.tolist() == [6]
    squares, free = crossed.moderated(np.array([1.0, 2.0, 30.0]), 4)
    assert 1 < squares[0] < squares[1] < squares[2] == 30 and 4 < free[0] <= 8
    # Nine methods that vary alike and one that varies ten times as much: its own is kept. All share a
    # baseline, so that they are not known as well as ten would be
    squares, free = crossed.moderated(np.array([1.0] * 9 + [10.0]), 4)
    assert squares[:9].min() > 1 and squares[9] == 10 and free[0] < 4 + 4 * 10 / (1 + 9 / 4) + 1e-9


@pytest.mark.parametrize(("cells", "seeds"), [(2, 5), (6, 3), (6, 5), (18, 5)])
def test_equal_cells_get_few_claims_and_the_printed_difference_is_seen(
    cells: int, seeds: int
) -> None:
    """As `python -m benchmarks.tables` at length, and far from what a test without seeds claims."""
    random, setting = np.random.default_rng(0), Setting(cells, seeds, 100, 0.5, 0.09, 0.05)
    even = claims(setting, 250, random)
    assert even.false <= 0.055 + 0.02 and even.plain > 0.15
    least, likely, most = even.visible
    assert least < likely < most
    assert 0.65 < claims(setting._replace(gain=likely), 250, random).seen < 0.95


def cell(variant: str, seed: int, scores: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    """A cell of `right`, whose baseline is always wrong in the first half of the prompts."""
    count = len(next(iter(scores.values())))
    baseline = {name: [float(at >= count // 2) for at in range(count)] for name in scores}
    evaluation = {
        "headline": "right",
        "baseline": "sft",
        "policies": ["sft", "align"],
        "sampling": {"temperature": 1.0, "seed": seed},
        "measures": {
            name: {
                "kind": "metric",
                "scale": {"levels": [0.0, 1.0], "samples": 1, "bounds": [0.0, 1.0]},
                "lower": name == "refused",
                "percent": True,
                "tested": True,
                "trained_on": {"align": False, "sft": False},
                "parts": {},
            }
            for name in scores
        },
        "prompts": {name: [[f"p{at}", at] for at in range(count)] for name in scores},
        "scores": {name: {"sft": baseline[name], "align": own} for name, own in scores.items()},
    }
    return {
        "values": {"seed": str(seed), "algorithm": variant},
        "seed": seed,
        "base": "one recipe",
        "stages": {"align": {"seconds": 60.0 * seed}},
        "evaluations": {"report": {**evaluation, **more}},
    }


ALL = [1.0] * 40
HALF = [float(at >= 20) for at in range(40)]


def shifted(seed: int) -> list[float]:
    return [float((at + seed) % 2) for at in range(40)]


def test_a_table_names_variants_and_claims_by_direction() -> None:
    cells = [
        cell(variant, seed, {"right": right(seed), "refused": refused(seed)})
        for variant, right, refused in (
            ("ppo", lambda seed: ALL, lambda seed: HALF),
            ("grpo", lambda seed: HALF, lambda seed: ALL),
            ("even", shifted, lambda seed: HALF),
        )
        for seed in (3, 4, 5)
    ]
    table = table_of(cells, "report")
    clear = {(row.policy, row.metric): row.clear for row in table.rows if row.baseline}
    assert clear == {
        ("ppo", "right"): 1,
        ("ppo", "refused"): 0,
        ("grpo", "right"): 0,
        ("grpo", "refused"): -1,  # beside an even headline
        ("even", "right"): 0,
        ("even", "refused"): 0,
    }
    assert table.seeds == [3, 4, 5] and "could see a difference of" in table.notes[0]
    minutes = {row.policy: row.estimate["mean"] for row in table.rows if row.kind == "answers"}
    assert minutes == {"ppo": 4, "grpo": 4, "even": 4}
    (ppo,) = (row for row in table.rows if (row.policy, row.metric) == ("ppo", "right"))
    assert ppo.difference["mean"] == 0.5 and ppo.estimate["mean"] == 1.0
    assert ppo.difference["low"] < 0.5 < ppo.difference["high"] + 0.03


def test_variants_of_the_only_policy_are_compared_with_the_first() -> None:
    """Also where all values are alike, which says nothing of others."""
    cells = []
    for variant, own in (("ppo", HALF), ("grpo", ALL)):
        for seed in (3, 4, 5):
            made = cell(variant, seed, {"right": own}, baseline=None, policies=["align"])
            scores = made["evaluations"]["report"]["scores"]["right"]
            scores.pop("sft")
            made["evaluations"]["report"]["measures"]["right"]["scale"]["levels"] = None
            cells.append(made)
    table = table_of(cells, "report")
    (row,) = (row for row in table.rows if row.baseline)
    assert (row.policy, row.baseline, row.clear) == ("grpo", "ppo", 1)
    assert row.difference["mean"] == 0.5 and row.difference["low"] > 0
    assert row.estimate["low"] is None and "could see" in table.notes[0]


def test_one_seed_has_no_interval_over_seeds() -> None:
    table = table_of([cell("ppo", 3, {"right": ALL})], "report")
    assert table.notes == ["one seed, 3: the intervals are over prompts only"]


def test_seeds_that_not_all_have_are_left_out() -> None:
    cells = [cell("ppo", seed, {"right": ALL}) for seed in (3, 4)]
    table = table_of([*cells, cell("grpo", 4, {"right": HALF})], "report")
    assert table.seeds == [4] and table.notes[0].endswith("seeds 3")


OTHER: Any = {
    "sampling": {"temperature": 0.5},
    "prompts": {"right": [["other", 0]] * 40},
    "headline": "refused",
    "policies": ["align", "sft"],
}


@pytest.mark.parametrize("name", OTHER)
def test_cells_that_were_measured_in_other_ways_do_not_compare(name: str) -> None:
    cells = [cell("ppo", 3, {"right": ALL}), cell("grpo", 3, {"right": ALL}, **{name: OTHER[name]})]
    with pytest.raises(DataError, match=f"algorithm=grpo do not compare: they differ in {name}"):
        table_of(cells, "report")


def test_two_results_of_one_cell_and_no_common_seed_are_refused() -> None:
    one = cell("ppo", 3, {"right": ALL})
    with pytest.raises(DataError, match="two folders have different results"):
        table_of([one, cell("ppo", 3, {"right": HALF})], "report")
    with pytest.raises(DataError, match="no seed in common"):
        table_of([one, cell("grpo", 4, {"right": HALF})], "report")


def rows_of(cells: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(row.policy, row.metric): row for row in table_of(cells, "report").rows}


def test_cells_of_a_recipe_that_has_changed_are_refused() -> None:
    old = {**cell("ppo", 4, {"right": ALL}), "base": "before"}
    with pytest.raises(DataError, match="the recipe has changed between them"):
        table_of([cell("ppo", 3, {"right": ALL}), old], "report")


def test_what_is_drawn_together_is_one_prompt_and_keeps_the_mean() -> None:
    """Nine of twelve questions are about one passage, which may be the first, number 0."""
    for unit in (0, 7):
        prompts = {"right": [[f"p{at}", unit if at < 9 else at + 10] for at in range(12)]}
        values = [1.0] * 9 + [0.0, 1.0, 1.0]
        cells = [cell("ppo", seed, {"right": values}, prompts=prompts) for seed in (3, 4, 5)]
        row = rows_of(cells)["ppo", "right"]
        assert row.estimate["mean"] == pytest.approx(11 / 12) and row.difference["n"] == 4
        assert row.clear == 0


def test_a_variant_that_is_called_as_a_policy_keeps_its_own_numbers() -> None:
    cells = [cell(name, 3, {"right": own}) for name, own in (("base", ALL), ("sft", HALF))]
    rows = rows_of(cells)
    assert rows["align base", "right"].estimate["mean"] == 1.0
    assert (
        rows["align sft", "right"].estimate["mean"] == rows["sft", "right"].estimate["mean"] == 0.5
    )


@pytest.mark.parametrize(
    ("learned", "named"),
    [({"ppo", "grpo"}, ["refused"]), ({"grpo"}, ["right", "refused"]), (set(), ["right"])],
)
def test_a_variant_that_learned_from_the_metric_is_no_proof(
    learned: set[str], named: list[str]
) -> None:
    """The verdicts, and what the table could see, are of the same metrics."""
    made = list[Any]()
    for name in ("ppo", "grpo"):
        for seed in (3, 4):
            made.append(cell(name, seed, {"right": ALL, "refused": shifted(seed)}))
            trained_on = made[-1]["evaluations"]["report"]["measures"]["right"]["trained_on"]
            trained_on["align"] = name in learned
    found = table_of(made, "report")
    seen = [note.partition(" points in ")[2] for note in found.notes if "could see" in note]
    assert [note.partition(":")[0] for note in seen] == named
    assert [*dict.fromkeys(one.metric for one in verdicts(found.rows))] == named
    assert found.headline == named[-1] and f"in {named[-1]}, not adjusted" in found.notes[-1]
    rows = {row.policy: row.trained_on for row in found.rows if row.metric == "right"}
    assert [rows[name] for name in ("ppo", "grpo")] == ["ppo" in learned, "grpo" in learned]


def test_a_metric_that_a_variant_lacks_is_missing() -> None:
    """Such as one whose judge has failed: no number, and no 0."""
    made = [
        cell(name, seed, {"right": ALL, "refused": HALF})
        for name in ("ppo", "grpo")
        for seed in (3, 4)
    ]
    for one in made[2:]:
        report = one["evaluations"]["report"]
        report["scores"]["refused"].pop("align")
        report["missing"] = {"refused": {"align": [1] * 40}}
    rows = rows_of(made)
    assert ("grpo", "refused") not in rows and rows["grpo", "right"].clear == 1
    assert rows["ppo", "refused"].estimate["mean"] == 0.5


def test_a_few_equal_differences_are_not_certain() -> None:
    cells = [cell("ppo", seed, {"right": [0.5, 1.5]}) for seed in (3, 4)]
    for one in cells:
        one["evaluations"]["report"]["measures"]["right"]["scale"] = None
    row = rows_of(cells)["ppo", "right"]
    assert row.difference["p"] == 0.5 and row.clear == 0


def test_a_composite_of_metrics_on_the_same_prompts_is_no_surer_than_one() -> None:
    right = [float(at % 3 == 0) for at in range(40)]
    cells = [cell("ppo", seed, {"right": right, "again": right}) for seed in (3, 4)]
    for one in cells:
        measures = one["evaluations"]["report"]["measures"]
        parts = {"right": 0.5, "again": 0.5}
        measures["both"] = {**measures["right"], "scale": None, "parts": parts}
    rows = rows_of(cells)
    alone, both = (rows["ppo", name].difference for name in ("right", "both"))
    assert both["mean"] == pytest.approx(alone["mean"]) and both["n"] == 40
    assert both["high"] - both["low"] > 0.8 * (alone["high"] - alone["low"])


def test_the_best_is_better_than_each_other_one() -> None:
    def cells(second: float) -> list[dict[str, Any]]:
        near = [float(at % 40 >= second) for at in range(40)]
        variants = {"ppo": ALL, "grpo": near, "rloo": HALF}
        return [
            cell(name, seed, {"right": own}) for name, own in variants.items() for seed in (3, 4, 5)
        ]

    said = "ppo is better than each other policy in right."
    assert said in table_of(cells(20), "report").notes
    assert said not in table_of(cells(2), "report").notes  # than grpo, not for sure


def test_a_setting_is_scored_where_it_was_not_chosen() -> None:
    """Each is best with one seed, at the tuning prompts only; with the others, the other one is."""
    tuning, shown = list[dict[str, Any]](), list[dict[str, Any]]()
    for seed, tuned, scored in (
        (3, (ALL, HALF), (HALF, ALL)),
        (4, (HALF, ALL), (HALF, ALL)),
        (5, (HALF, ALL), (ALL, HALF)),
    ):
        for name, own, other in zip(("slow", "fast"), tuned, scored, strict=True):
            tuning.append(cell(name, seed, {"right": own}))
            shown.append(cell(name, seed, {"right": other}))
    # Chosen for seed 3: fast, as with 4 and 5; for 4 and 5: each has one, so that the first is
    tables = table_of(tuning, "report"), table_of(shown, "report")
    (text,) = choice(*tables, "tuning")
    assert text.startswith("chosen by tuning with the other seeds (slow 2x, fast 1x): 83% [")
    few = [table_of([one for one in own if one["seed"] < 5], "report") for own in (tuning, shown)]
    assert not [*choice(*few, "tuning")]


def test_a_policy_is_known_by_its_stage_and_by_the_seeds_that_all_have() -> None:
    """Scores of the same answers differ by rounding."""
    cells = [cell(name, seed, {"right": ALL}) for name in ("ppo", "grpo") for seed in (3, 4)]
    for one in cells[1:]:  # one grpo is not there
        one["stages"] = {"sft": {"hash": f"of {one['seed']}"}, "align": {"hash": str(one)}}
        one["evaluations"]["report"]["scores"]["right"]["sft"] = [0.5 + 1e-9 * len(str(one))] * 40
    cells[0]["stages"] = {"sft": {"hash": "of 3"}, "align": {"hash": "another"}}
    assert {row.policy for row in table_of(cells[:3], "report").rows} == {"sft", "ppo", "grpo"}
