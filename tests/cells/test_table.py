"""The numbers of a table of cells: by hand, and what it claims and refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkit.errors import DataError
from alignkit.io.results import write_checked
from alignkit_plugins.cells import crossed, table
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


def cell(variant: str, seed: int, scores: Mapping[str, list[float]]) -> dict[str, Any]:
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
        "stages": {
            "align": {
                "seconds": 60.0 * seed,
                "memory": seed * 2**30,
                "tokens": seed * 1000,
                "base_parameters": 2_000_000 if variant == "large" else 1_000_000,
            }
        },
        "evaluations": {"report": evaluation},
    }


ALL = [1.0] * 40
HALF = [float(at >= 20) for at in range(40)]


def shifted(seed: int) -> list[float]:
    return [float((at + seed) % 2) for at in range(40)]


def made(scores: Mapping[str, Any], *seeds: int) -> list[dict[str, Any]]:
    """The cells of variants. scores: by metric; or of `right`, also by seed."""
    found = list[dict[str, Any]]()
    for variant, own in scores.items():
        for seed in seeds or (3, 4, 5):
            right = own(seed) if callable(own) else own
            every = right if isinstance(right, Mapping) else {"right": right}
            found.append(cell(variant, seed, every))
    return found


def report_of(one: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = one["evaluations"]["report"]
    return found


def test_a_table_names_variants_and_claims_by_direction() -> None:
    cells = made(
        {
            "ppo": {"right": ALL, "refused": HALF},
            "grpo": {"right": HALF, "refused": ALL},
            "even": lambda seed: {"right": shifted(seed), "refused": HALF},
        }
    )
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
    assert table.seeds == [3, 4, 5] and "see a difference of" in table.notes[0]
    for metric in ("training, minutes", "peak memory, GiB", "trained on, thousand tokens"):
        costs = {row.policy: row.estimate["mean"] for row in table.rows if row.metric == metric}
        assert costs == {"ppo": 4, "grpo": 4, "even": 4}
    assert not any(row.metric.startswith("base,") for row in table.rows)
    (ppo,) = (row for row in table.rows if (row.policy, row.metric) == ("ppo", "right"))
    assert ppo.difference["mean"] == 0.5 and ppo.estimate["mean"] == 1.0
    assert ppo.difference["low"] < 0.5 < ppo.difference["high"] + 0.03


def test_a_table_has_the_size_of_bases_that_differ() -> None:
    rows = table_of(made({"small": ALL, "large": HALF}), "report").rows
    sizes = {row.policy: row.estimate["mean"] for row in rows if row.metric.startswith("base,")}
    assert sizes == {"small": 1, "large": 2}


def test_variants_of_the_only_policy_are_compared_with_the_first() -> None:
    """Also where all values are alike, which says nothing of others."""
    cells = made({"ppo": HALF, "grpo": ALL})
    for one in map(report_of, cells):
        one.update(baseline=None, policies=["align"])
        one["scores"]["right"].pop("sft")
        one["measures"]["right"] |= {"scale": None, "percent": False}
    table = table_of(cells, "report")
    (row,) = (row for row in table.rows if row.baseline)
    assert (row.policy, row.baseline, row.clear) == ("grpo", "ppo", 1)
    assert row.difference["mean"] == 0.5 and row.difference["low"] > 0
    assert row.estimate["low"] is None and "see a difference" in table.notes[0]


def test_equal_policies_are_no_precise_result() -> None:
    """As where all are at 100%."""
    (note, *_) = table_of(made({"ppo": HALF, "grpo": HALF}), "report").notes
    assert note.startswith("The policies are equal in right at every prompt and seed, so it tells")


def test_intervals_end_where_the_metric_does() -> None:
    cells = made({"ppo": lambda seed: ALL if seed else HALF}, 0, 1)
    for one in cells:
        one["evaluations"]["report"]["measures"]["right"]["scale"]["levels"] = None
    (mean,) = (
        row.estimate
        for row in table_of(cells, "report").rows
        if row.policy == "ppo" and row.metric == "right"
    )
    assert mean["high"] == 1.0 and mean["low"] == 0.0
    for one in cells:  # shares have these bounds also where nothing names them
        one["evaluations"]["report"]["scores"]["right"]["align"] = [0.0] * 40
        one["evaluations"]["report"]["measures"]["right"]["scale"].update(
            levels=[0.0, 1.0], bounds=None
        )
    rows = [row for row in table_of(cells, "report").rows if row.policy == "ppo"]
    assert rows[0].metric == "right" and rows[0].estimate["low"] == 0.0
    cells = made({"ppo": lambda seed: ALL if seed else HALF}, 0, 1)
    for one in cells:  # a composite of shares lies between -1 and 1
        measures = one["evaluations"]["report"]["measures"]
        measures["sum"] = {
            **measures["right"],
            "parts": {"right": 1.0},
            "percent": True,
            "scale": None,
        }
    rows = [row for row in table_of(cells, "report").rows if row.policy == "ppo"]
    assert {row.metric: row.estimate.get("high") for row in rows}["sum"] == 1.0


def test_scores_that_are_0_or_1_in_some_cells_by_chance_are_no_shares() -> None:
    cells = made({"ppo": [0.5, *ALL[1:]], "grpo": ALL})
    for one in cells:
        binary = "grpo" in one["values"].values()
        levels = [0.0, 1.0] if binary else None
        one["evaluations"]["report"]["measures"]["right"]["percent"] = binary
        one["evaluations"]["report"]["measures"]["right"]["scale"]["levels"] = levels
    for some in (cells, cells[::-1]):
        table = table_of(some, "report")
        assert not table.measure.percent and table.measure.scale.levels is None


@pytest.mark.parametrize(("others", "names"), [(1, 1), (40, 2)])
def test_a_base_model_whose_scores_round_otherwise_is_the_same(others: int, names: int) -> None:
    cells = made({"ppo": ALL * 3, "grpo": HALF * 3})
    for one in cells:
        count = others * ("grpo" in one["values"].values())
        report = report_of(one)
        report["policies"] = ["base", "sft", "align"]
        report["scores"]["right"]["base"] = [1.0] * count + [0.0] * (120 - count)
        report["prompts"]["right"] = [[f"p{at}", at] for at in range(120)]
    rows = rows_of(cells)
    assert len([name for name, metric in rows if "base" in name and metric == "right"]) == names


@pytest.mark.parametrize("values", [ALL, [0.0, *ALL[1:]], [0.9, *ALL[1:]]])
def test_a_share_without_a_scale_ends_at_all(values: list[float]) -> None:
    """As of held-out pairs, whose baseline has neither right nor wrong ones."""
    cells = made({"ppo": values})
    for one in cells:
        report_of(one)["measures"]["right"]["scale"] = None
    estimate = rows_of(cells)["ppo", "right"].estimate
    assert 0.5 < estimate["low"] < estimate["mean"] <= estimate["high"] <= 1.0


def test_one_seed_has_no_interval_over_seeds() -> None:
    table = table_of(made({"ppo": ALL}, 3), "report")
    assert table.notes == ["one seed, 3: the intervals are over prompts only"]


def test_seeds_that_not_all_have_are_left_out() -> None:
    table = table_of([*made({"ppo": ALL}, 3, 4), *made({"grpo": HALF}, 4)], "report")
    assert table.seeds == [4] and table.notes[0].endswith("seeds 3")


# What differs in the second cell
REFUSED: Any = [
    (
        {"sampling": {"temperature": 0.5}},
        "algorithm=grpo do not compare: they differ in sampling .temperature: 1.0 -> 0.5.",
    ),
    ({"prompts": {"right": [["other", 0]] * 40}}, "they differ in prompts"),
    ({"headline": "refused"}, "they differ in headline"),
    ({"policies": ["align", "sft"]}, "they differ in policies"),
    ({"base": "before"}, "the recipe has changed between them"),
    ({"values": {"seed": "3", "algorithm": "ppo"}}, "two folders have different results"),
    ({"seed": 4}, "no seed in common"),
]


@pytest.mark.parametrize(("change", "says"), REFUSED)
def test_cells_that_do_not_compare_are_refused(change: dict[str, Any], says: str) -> None:
    one, other = made({"ppo": ALL, "grpo": HALF}, 3)
    (other if change.keys() <= other.keys() else report_of(other)).update(change)
    with pytest.raises(DataError, match=says):
        table_of([one, other], "report")


def rows_of(cells: list[dict[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(row.policy, row.metric): row for row in table_of(cells, "report").rows}


def test_what_is_drawn_together_is_one_prompt_and_keeps_the_mean() -> None:
    """Nine of twelve questions are about one passage, which may be the first, number 0."""
    for unit in (0, 7):
        prompts = {"right": [[f"p{at}", unit if at < 9 else at + 10] for at in range(12)]}
        values = [1.0] * 9 + [0.0, 1.0, 1.0]
        cells = made({"ppo": values})
        for one in cells:
            report_of(one)["prompts"] = prompts
        row = rows_of(cells)["ppo", "right"]
        assert row.estimate["mean"] == pytest.approx(11 / 12) and row.difference["n"] == 4
        assert row.clear == 0


CALLED = {"base": ALL, "sft": HALF}


def test_a_variant_that_is_called_as_a_policy_keeps_its_own_numbers() -> None:
    rows = rows_of(made(CALLED, 3))
    means = {
        name: row.estimate["mean"] for (name, metric), row in rows.items() if metric == "right"
    }
    assert means == {"align base": 1.0, "align sft": 0.5, "sft": 0.5}


@pytest.mark.parametrize(
    ("learned", "named"),
    [({"ppo", "grpo"}, ["refused"]), ({"grpo"}, ["right", "refused"]), (set(), ["right"])],
)
def test_a_variant_that_learned_from_the_metric_is_no_proof(
    learned: set[str], named: list[str]
) -> None:
    """The verdicts, and what the table could see, are of the same metrics."""

    def scores(seed: int) -> dict[str, list[float]]:
        return {"right": ALL, "refused": shifted(seed)}

    cells = made({"ppo": scores, "grpo": scores}, 3, 4)
    for one in cells:
        trained_on = report_of(one)["measures"]["right"]["trained_on"]
        trained_on["align"] = one["values"]["algorithm"] in learned
    found = table_of(cells, "report")
    assert re.findall(r"table could see .* in (\w+):", "\n".join(found.notes)) == named
    assert [*dict.fromkeys(one.metric for one in verdicts(found.rows))] == named
    assert found.headline == named[-1] and f"in {named[-1]}, not adjusted" in found.notes[-1]
    rows = {row.policy: row.trained_on for row in found.rows if row.metric == "right"}
    assert [rows[name] for name in ("ppo", "grpo")] == ["ppo" in learned, "grpo" in learned]


@pytest.mark.parametrize("column", ["sampling", "measures", "prompts"])
def test_a_metric_that_a_variant_lacks_is_missing(column: str) -> None:
    """Such as one whose judge has failed: no number, and no 0."""
    both = {"right": ALL, "refused": HALF}
    cells = made({"ppo": both, "grpo": both}, 3, 4)
    for one in map(report_of, cells[2:]):
        one["scores"]["refused"].pop("align")
        one[column].pop("refused", None)
    rows = rows_of(cells)
    assert ("grpo", "refused") not in rows and rows["grpo", "right"].clear == 1
    assert rows["ppo", "refused"].estimate["mean"] == 0.5


def test_a_few_equal_differences_are_not_certain() -> None:
    cells = made({"ppo": [0.5, 1.5]}, 3, 4)
    for one in map(report_of, cells):
        one["measures"]["right"]["scale"] = None
    row = rows_of(cells)["ppo", "right"]
    assert row.difference["p"] == 0.5 and row.clear == 0


def test_a_composite_of_metrics_on_the_same_prompts_is_no_surer_than_one() -> None:
    right = [float(at % 3 == 0) for at in range(40)]
    cells = made({"ppo": {"right": right, "again": right}}, 3, 4)
    for one in cells:
        measures = report_of(one)["measures"]
        parts = {"right": 0.5, "again": 0.5}
        measures["both"] = {**measures["right"], "scale": None, "parts": parts}
    rows = rows_of(cells)
    alone, both = (rows["ppo", name].difference for name in ("right", "both"))
    assert both["mean"] == pytest.approx(alone["mean"]) and both["n"] == 40
    assert both["high"] - both["low"] > 0.8 * (alone["high"] - alone["low"])


def test_the_best_is_better_than_each_other_one() -> None:
    for worse in (20, 2):  # with 2, it is not better than grpo for sure
        near = [float(at >= worse) for at in range(40)]
        table = table_of(made({"ppo": ALL, "grpo": near, "rloo": HALF}), "report")
        assert ("ppo is better than each other policy in right." in table.notes) == (worse == 20)


def test_a_setting_is_scored_where_it_was_not_chosen() -> None:
    """Each is best with one seed, at the tuning prompts only; with the others, the other one is."""
    by_seed = {3: ALL, 4: HALF, 5: HALF}, {3: HALF, 4: HALF, 5: ALL}
    tuning, shown = (
        made({"slow": own.get, "fast": lambda seed, own=own: HALF if own[seed] is ALL else ALL})
        for own in by_seed
    )
    # Chosen for seed 3: fast, as with 4 and 5; for 4 and 5: each has one, so that the first is
    tables = table_of(tuning, "report"), table_of(shown, "report")
    (text,) = choice(*tables, "tuning")
    assert text.startswith("chosen by tuning with the other seeds (slow 2x, fast 1x): 83% [")
    few = [table_of([one for one in own if one["seed"] < 5], "report") for own in (tuning, shown)]
    assert not [*choice(*few, "tuning")]


def test_a_policy_is_known_by_its_stage_and_by_the_seeds_that_all_have() -> None:
    """Scores of the same answers differ by rounding."""
    cells = made({"ppo": ALL, "grpo": ALL}, 3, 4)
    for one in cells[1:]:  # one grpo is not there
        one["stages"] = {"sft": {"hash": f"of {one['seed']}"}, "align": {"hash": str(one)}}
        report_of(one)["scores"]["right"]["sft"] = [0.5 + 1e-9 * len(str(one))] * 40
    cells[0]["stages"] = {"sft": {"hash": "of 3"}, "align": {"hash": "another"}}
    assert {row.policy for row in table_of(cells[:3], "report").rows} == {"sft", "ppo", "grpo"}


def test_names_of_several_axes_say_of_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    for place, one in enumerate(made({"1e-5": HALF, "2e-5": ALL})):
        rate, seed = one["values"]["algorithm"], one["values"]["seed"]
        axes = {"stages.align.learning_rate": rate, "stages.align.iterations": "2"}
        row = {**one, "values": {"seed": seed, **axes}, "place": place}
        write_checked(tmp_path / "cells" / f"seed={seed},rate={rate}.json", row)
    report, _ = table.report_of([tmp_path])
    assert "seeds 3, 4, 5; policies by learning_rate, iterations" in report.text(200)
