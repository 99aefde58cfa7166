"""After a swap, a run shows the old result next to the new one, prompt by prompt, from the rows that
it kept.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from alignkit import Group, Response
from alignkit.cli import main
from alignkit.io.results import json_lines, read_checked, write_checked
from alignkit_plugins.cells.earlier import ONE_SEED, changed
from alignkit_plugins.command_line.find import find, find_result, folders_of, results_of_stage
from alignkit_plugins.compare.comparison import short_names
from alignkit_plugins.compare.rows import Row, rows_in
from alignkit_plugins.compare.scores import Measure, compare, scale_of, scores_of
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of
from alignkit_plugins.report.figures import figures_of
from alignkit_plugins.report.screen import screen
from tests.rows import cells, prompts, read_rows, run, user, write_recipe, write_rows

SWAP = ("stages.align.algorithm=rejection_sampling", "stages.align.iterations=2")
STAGES = """
align:
  algorithm: ppo
  prompts: prompts.jsonl
  reward: length
  iterations: 1
  rollout: {samples_per_prompt: 2, max_new_tokens: 6}
  learning_rate: 0.05
report:
  step: evaluate
  policies: [base, align]
  rewards: [length]
  prompts: prompts.jsonl
  samples_per_prompt: 2
  sampling: {max_new_tokens: 6}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("swapped")
    texts = [f"what is {word}?" for word in ("it", "this", "that", "here", "there")]
    write_rows(folder / "prompts.jsonl", prompts(texts))
    return write_recipe(folder, STAGES)


@pytest.fixture(scope="module")
def swapped(recipe: Path) -> Path:
    """A run whose `align` was made by ppo, and then by rejection sampling."""
    run(recipe)
    return run(recipe, *SWAP)


def lengths(evaluation: Path) -> list[float]:
    """The mean length of the answers of `align` to each prompt."""
    means = []
    for group in read_rows(evaluation / "samples.jsonl"):
        own = [one["scores"]["length"] for one in group["responses"] if one["source"] == "align"]
        means.append(mean(own))
    return means


def test_old_and_new_are_compared_at_the_same_prompts(swapped: Path) -> None:
    (pair,) = changed(swapped, "report")
    new, old = pair["result"], pair["against"]
    assert (new, old, pair["notes"]) == ("align@rejection_sampling", "align@ppo", [])
    assert pair["settings"][:2] == ["algorithm: ppo -> rejection_sampling", "iterations: 1 -> 2"]
    current = (swapped / "report").resolve()
    (before,) = [folder for folder in folders_of(swapped, "report") if folder != current]
    was, now = lengths(before), lengths(current)
    found = {row.policy: row for row in rows_in(pair) if row.kind == "reward"}
    assert found[old].estimate["mean"] == pytest.approx(mean(was))
    assert found[new].estimate["mean"] == pytest.approx(mean(now))
    difference = found[new].difference
    assert found[new].baseline == old and difference["n"] == 5
    assert found[new].trained_on is True  # by the reward that both learned from
    assert difference["mean"] == pytest.approx(mean(b - a for a, b in zip(was, now, strict=True)))
    assert difference["low"] <= difference["mean"] <= difference["high"]


def test_the_screen_and_the_report_show_it_and_the_log_says_why(
    swapped: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    run(recipe, *SWAP)  # all is reused, and printed again
    screens = [capsys.readouterr().out]
    assert main(["show", str(swapped)]) == 0
    screens.append(capsys.readouterr().out)
    names = [["align@"], ["align@", "rejection_sampling"], ["base", "ppo", "(newest)"]]
    for out in screens:  # one sentence, and one table of both results
        said = " ".join(out.split())
        assert re.search("(and|than) align@ppo in the reward length", said)
        assert "They differ in algorithm: ppo -> rejection_sampling, iterations: 1 -> 2" in said
        assert ONE_SEED in said
        assert all(name in [line.split() for line in out.splitlines()] for name in names)
    told = page(facts_of(swapped)).replace("<wbr>", "")
    assert "against align@ppo, prompt by prompt" in told
    assert "Talk to the newest policy" in told or "better than align@ppo" in told
    log = (swapped / "run.log").read_text(encoding="utf-8")
    for why in ("algorithm: ppo -> rejection_sampling, iterations: 1 -> 2", "align has changed)"):
        assert f"changed since the last run ({why}" in log


def test_curves_of_both_results_lie_side_by_side(swapped: Path) -> None:
    file = results_of_stage(swapped, "align")["align@ppo"] / "metrics.jsonl"
    kept, (row,) = file.read_bytes(), json_lines(file)
    lines = [json.dumps({**row, "step": step, "reward": 6.0 + step}) for step in (1, 2)]
    file.write_text("\n".join(lines))
    reward = figures_of(facts_of(swapped))["align"][0]
    file.write_bytes(kept)
    assert "reward; align@ppo from 7 to 8, align@rejection_sampling from" in reward.words


def test_kept_answers_change_no_byte(
    swapped: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = (swapped / "run.log").read_text(encoding="utf-8")
    assert re.findall("report: (.*) kept answers", log) == ["base: 5"]
    monkeypatch.setenv("ALIGNKIT_REUSE", "0")
    alone = run(recipe, *SWAP, out=tmp_path / "alone")
    for name in ("samples.jsonl", "evaluation.json"):
        made = [(one / "report" / name).read_bytes() for one in (swapped, alone)]
        assert made[0] == made[1]
    # Another way to sample needs other answers
    again = run(recipe, *SWAP, "stages.report.sampling.temperature=0.9", out=swapped)
    assert (again / "run.log").read_text(encoding="utf-8").count("kept answers") == 1
    run(recipe, *SWAP)


# The part of a row that has another value, and what is said of it
OTHER = """
    evaluations report sampling temperature | sampling (temperature: 0.7 -> 7)
    evaluations report measured metrics     | metrics
    evaluations report measured helpful     | helpful
    evaluations report prompts length       | prompts
    seed                                    | seed
"""


@pytest.mark.parametrize(("place", "part"), cells(OTHER))
def test_results_that_were_measured_in_other_ways_do_not_compare(
    swapped: Path, place: str, part: str
) -> None:
    rows = {file: read_checked(file) for file in swapped.glob("cells/report-*.json")}
    (earlier,) = [file for file in rows if rows[file]["stages"]["align"]["plugin"] == "ppo"]
    text, (*keys, last) = earlier.read_text(encoding="utf-8"), place.split()
    inner = row = rows[earlier]
    for key in keys:
        inner = inner[key]
    inner[last] = 7
    write_checked(earlier, row)
    facts = facts_of(swapped)
    earlier.write_text(text.replace("report", "other"), encoding="utf-8")  # not as it was written
    assert changed(swapped, "report") == []
    earlier.write_text(text, encoding="utf-8")
    names = "align@rejection_sampling and align@ppo do not compare"
    (one,) = facts["cells"]
    assert one["notes"] == [f"{names}: they differ in {part}."] and one["results"] == []
    assert one["notes"][0] in " ".join(screen(facts).split())


def against_then(groups: list[Group], name: str, kind: str = "metric", **facts: Any) -> Row:
    measure = Measure(kind, scale_of(groups, name), **facts)
    return compare(scores_of(groups, ["then", "now"], {name: measure}), "then")[1]


def test_a_third_result_stands_beside_the_others(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "third"
    for words in ((), SWAP, (*SWAP[:1], "stages.align.iterations=1")):
        run(recipe, *words, out=out)
    (one,) = changed(out, "report")
    assert (one["result"], one["against"]) == (
        "align@rejection_sampling",
        "align@rejection_sampling~1",
    )
    assert one["settings"] == ["iterations: 2 -> 1"]
    assert one["notes"][0].startswith("align@rejection_sampling against align@ppo: ")
    assert [row.policy for row in rows_in(one)][:3] == ["align@ppo", one["against"], one["result"]]


def test_commands_take_a_result(
    swapped: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named, out = find(f"{swapped}/align@ppo"), tmp_path / "export"  # as evaluate, chat and serve
    assert list(short_names([str(named.folder), "base"]).values()) == ["run/align@ppo", "base"]
    assert named.folder == (find_result(swapped, "align@ppo") / "adapter").resolve()
    assert named.label == "run-align-ppo" and named.rollout["max_new_tokens"] == 6
    assert main(["export", f"{swapped}/align@ppo", str(out)]) == 0
    weights = "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (named.folder / weights).read_bytes()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "ppo" in card and "rejection_sampling" not in card
    capsys.readouterr()
    assert main(["show", f"{swapped}/align@ppo"]) == 0
    assert ".results/align-" in capsys.readouterr().out
    assert main(["check", str(recipe), "align@ppo"]) == 2
    assert "check shows the rows of a stage" in capsys.readouterr().err


@pytest.mark.silent_bug(
    "reports: lower is better",
    "Wins and losses of a measure whose lower scores are better are reversed where two results "
    "are compared.",
    "A win is the better score, in every table.",
)
def test_a_lower_score_wins_where_lower_is_better() -> None:
    groups = []
    for at, score in enumerate([0.0, 0.0, 0.0, 1.0]):
        now, then = (
            Response("t", (1,), source=source, scores={"refused": x})
            for source, x in (("now", score), ("then", 1 - score))
        )
        groups.append(Group((user(str(at)),), (now, then)))
    row = against_then(groups, "refused", lower=True)
    assert row.counts == "3/1/0" and row.win_rate["mean"] == 0.75
    assert row.difference["mean"] == -0.5  # differences keep the sign of the scores
