"""Charts: where lines, dots and intervals lie; which metrics share one; text that stays text."""

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from made import HOSTILE, align_rows, make_run, sft_rows

from alignkit_plugins.report import drawing, figures
from alignkit_plugins.report.drawing import Line, Point
from alignkit_plugins.report.facts import facts_of
from tests.rows import write_rows

# Values, and what stands at the scale: a few round numbers, also of what never changes
SCALES: list[tuple[list[float], list[str]]] = [
    ([0, 10], ["0", "5", "10"]),
    ([0.0, 1e-320], ["-0.05", "0", "0.05"]),
    ([-1e29, 1e29], ["-1e+29", "0", "1e+29"]),
]


@pytest.mark.parametrize(("values", "ticks"), SCALES)
def test_a_scale_has_round_numbers(values: list[float], ticks: list[str]) -> None:
    scale = drawing.Scale(values)
    assert [f"{tick:.6g}" for tick in scale.ticks()] == ticks


CURVE = Line([1, 2, 3], [0, 1, 2])
# A line, and how many paths, bands and dots it is
LINES = [
    (CURVE, (1, 0, 3)),
    (CURVE._replace(joined=False), (0, 0, 4)),  # one in the legend
    (CURVE._replace(band=[(0, 1), (0, 2), (1, 3)]), (2, 1, 3)),
    (Line(range(13), range(13)), (1, 0, 0)),
    (Line(range(41), range(41)), (2, 0, 0)),  # noisy, perhaps: smoothed, with what it was behind
    (Line(range(41), range(41), [(0, 41)] * 41), (2, 1, 0)),  # a mean, within its band
    (Line([1, 3.58118], [0, 1]), (0, 0, 3)),
]


@pytest.mark.parametrize(("line", "counts"), LINES)
def test_a_curve_has_a_band_and_few_values_are_dots(line: Line, counts: Any) -> None:
    body = drawing.curves({"ppo": line, "a\nname" * 9: line}, "step").body
    found = (body.count("<path") / 2, body.count('"band c0'), body.count("<circle") / 2)
    assert found == counts and "c1" in body and ">a namea" in body
    assert f">{max(line.x):.3g}<" in body
    assert ">ppo<" not in drawing.curves({"ppo": line, "other": line}, "step", False).body
    named = drawing.curves({"ppo": line}, "K", ticks={line.x[1]: "two"}, up="KL").body
    assert ">two<" in named and ">KL<" in named and 'middle" x="0%"' not in named


def test_the_mean_of_neighbors_keeps_a_trend_and_few_values() -> None:
    up_and_down = [at + (-1) ** at for at in range(60)]
    assert drawing.smoothed(up_and_down)[10:13] == pytest.approx([10, 11, 12], abs=0.2)
    assert drawing.smoothed(up_and_down[:40]) == up_and_down[:40]


def test_a_row_has_its_interval_and_its_seeds() -> None:
    points = {"sft": Point(0.25, 0.0, 0.5), "align": Point(0.5, 0.4, 0.6, [0.4, 0.6], "result")}
    drawn = drawing.rows(points, percent=True)
    where = re.findall(r'"interval \w*" x1="([\d.]+%)" x2="([\d.]+%)"', drawn.body)
    assert where == [("0%", "50%"), ("25%", "25%"), ("40%", "60%"), ("50%", "50%")]
    assert re.findall(r'"seed" cx="(\d+%)"', drawn.body) == ["40%", "60%"]
    assert ">sft</text>" in drawn.body and drawn.left == 43
    # A bar begins at 0, also of values that are far from it
    bars = drawing.rows({"sft": Point(4, 3, 5)}, bars=True).body
    (bar,) = re.findall(r'"bar" x1="([\d.]+)%" x2="([\d.]+)%"', bars)
    assert bar == ("4.545", "77.27")
    # Marks have a place, though all points are far from them, and x a name
    marked = drawing.rows({"sft": Point(4, 3, 5)}, marks=[-1.0], label="margins")
    assert marked.body.count('class="base"') == 1 and ">margins<" in marked.body
    assert marked.height == drawing.rows({"sft": Point(4, 3, 5)}).height + drawing.LINE
    assert f">{'x' * 60}<" in drawing.rows({"x" * 60: Point(4, 3, 5)}, most=60).body
    # A long name stands above its row, which then has the whole width
    long = drawing.rows({"x" * 25: Point(4, 3, 5), "sft": Point(4, 3, 5)})
    assert long.left == 8 and long.height == drawn.height + 2 * drawing.LINE
    assert re.findall(r'x="0" y="([\d.]+)">', long.body) == ["19.0", "55.0"]


def test_a_plane_has_intervals_in_both_directions() -> None:
    one = Point(1, 0, 2, [0.5, 1.5])
    drawn = drawing.plane({"ppo": (one, one), "<b>": (one, one)}, "helpful", "safe")
    assert drawn.body.count('"interval') == 4 and drawn.body.count('"seed') == 4
    assert ">helpful<" in drawn.body and ">safe<" in drawn.body and "&lt;b&gt;" in drawn.body
    file = ElementTree.fromstring(drawing.alone(drawn))
    assert file.tag.endswith("}svg") and file.get("height") == str(drawn.height)
    assert "prefers-color-scheme: dark" in str(file[0].text)


def test_panels_group_metrics_without_what_is_no_number() -> None:
    found = figures.panels(figures.lines_of(align_rows()))
    scores = ["score/helpful", "score/safety"]
    assert list(found) == ["Reward", "KL to the reference, nats", "Scores"]
    assert found["Scores"] == scores
    assert figures.lines_of(sft_rows())["loss"][:2] == ([1, 2, 4], [2.0, 1.5, 1.0])
    # Of a stage without steps
    assert figures.lines_of([{"loss": 1.0}, {"loss": 0.5}])["loss"].x == [1.0, 2.0]


def test_a_reader_of_ppo_sees_the_length_below_the_reward(tmp_path: Path) -> None:
    names = "kl loss entropy clip_fraction truncated score/safe response_tokens reward"
    rows = [dict.fromkeys([*names.split(), "explained_variance"], at) for at in range(3)]
    run = make_run(tmp_path / "run", {"align": rows})
    drawn = figures.figures_of(facts_of(run))["align"]
    assert [one.title for one in drawn[:2]] == ["Reward", "Response length, tokens"]
    assert len(drawn) == 10 and ">iteration<" in drawn[0].drawing.body


def test_figures_are_byte_identical_and_described(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "run"))
    found = figures.figures_of(facts)
    assert found == figures.figures_of(facts) and found["report"] == []
    reward, *others = found["align"]
    assert reward.words == "align: Reward; reward from 1.909 to 3.107"
    for one in [reward, *others]:
        ElementTree.fromstring(f"<svg>{one.drawing.body}</svg>")


def test_hostile_names_are_text_and_strange_numbers_cost_no_other_figure(tmp_path: Path) -> None:
    rows = align_rows()
    for at, row in enumerate(rows):
        row |= {HOSTILE: at % 3, f"score/{HOSTILE}": at}
        row |= {"loss": (-1) ** at * 1.7e308, "kl": 1e-320 * at}
    found = figures.figures_of(facts_of(make_run(tmp_path / "run", {"align": rows})))
    for one in found["align"]:
        assert not re.search("<script|\u202e|\x1b|nan|inf", one.drawing.body)
    titles = [one.title for one in found["align"]]
    assert "Loss" not in titles and "Scores" in titles and found["sft"]


def gold_rows(*golds: float) -> list[dict[str, float]]:
    """Iterations whose KL is the square of their number, and whose reward rises by 2 each."""
    deviations: Any = {"reward_std": 4.0, "gold_std": 0.5}
    rows = []
    for n, gold in enumerate(golds, 1):
        rows.append({"step": n, "kl": n * n, "reward": 2.0 * n, "gold": gold, **deviations})
        deviations = {}  # those at the start count
    return rows


def test_gold_and_reward_are_gains_in_their_own_deviations() -> None:
    (drawn,) = figures.reward_by_kl("align", gold_rows(1.0, 1.5, 2.0, 1.25))
    assert drawn.title == "Reward and gold against KL"
    assert drawn.words.endswith("; reward from 0 to 1.5, gold from 0 to 0.5")
    assert drawn.note == "gold was highest in iteration 3"


def test_two_points_of_gold_are_too_few() -> None:
    rows = gold_rows(1.0, 1.5, 2.0)
    assert figures.reward_by_kl("align", rows)
    del rows[1]["gold"]
    assert figures.reward_by_kl("align", rows) == []
    same = [row | {"kl": 1.0} for row in gold_rows(1.0, 1.5, 2.0)]
    assert figures.reward_by_kl("align", same) == []


def test_rewards_by_kind_have_a_line_each_and_the_band_of_their_error(tmp_path: Path) -> None:
    rows = [
        {f"kind/{kind}/{key}": at for kind in ("harmful_prompts", "b") for key in KEYS}
        for at in range(3)
    ]
    found = {one.title: one for one in figures.of_stage("align", {"": figures.lines_of(rows)})}
    reward = found["Reward by kind of prompt"]
    assert reward.words.endswith("harmful prompts from 0 to 2, b from 0 to 2")
    assert reward.drawing.body.count('"band') == 2
    assert "; harmful prompts: safety from" in found["Scores by kind of prompt"].words


KEYS = ("reward", "reward_se", "score/safety")


def test_a_histogram_has_the_first_samples_and_the_last(tmp_path: Path) -> None:
    files = [tmp_path / f"{number:04d}.jsonl" for number in (1, 2, 3)]
    for file, rewards in zip(files, ([0.0, 12.0], [50.0], [12.0, None]), strict=True):
        write_rows(file, [{"responses": [{"scores": {"reward": one}} for one in rewards]}])
    (drawn,) = figures.histogram("align", files)
    assert drawn.words.endswith("iteration 1 has mean 6, iteration 3 has mean 12")
    assert drawn.drawing.body.count("<path") == 2 and ">50<" not in drawn.drawing.body
    assert figures.histogram("align", files[1:]) and not figures.histogram("align", files[:1])
    write_rows(files[0], [{"responses": [{"scores": {"reward": 12.0}}]}])
    assert figures.histogram("align", files) == []  # they never differ
    write_rows(files[0], [{"responses": [{"source": "align"}]}])
    assert figures.histogram("align", files) == []  # as of a stage without a reward
