"""After a swap, a run shows the old result next to the new one, prompt by prompt, from answers that
it kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from alignkit import Group, Response
from alignkit.cli import main
from alignkit.io.results import find_result, folders_of
from alignkit_plugins.compare.compared import rated
from alignkit_plugins.compare.comparison import short_names
from alignkit_plugins.compare.rows import rows_of
from alignkit_plugins.report.document import page
from alignkit_plugins.report.facts import facts_of
from alignkit_plugins.report.swaps import _joined, swaps_of

SWAP = "stages.align.algorithm=rejection_sampling"


def write_recipe(folder: Path, policies: Sequence[str] = ("base", "align")) -> Path:
    prompts = [{"prompt": f"what is {word}?"} for word in ("it", "this", "that", "here", "there")]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)), encoding="utf-8")
    small = {"samples_per_prompt": 2, "max_new_tokens": 6}
    align = {
        "algorithm": "ppo",
        "prompts": "prompts.jsonl",
        "reward": "length",
        "iterations": 1,
        "rollout": small,
    }
    report = {
        "step": "evaluate",
        "policies": list(policies),
        "rewards": ["length"],
        "prompts": "prompts.jsonl",
    }
    stages = {
        "align": {**align, "learning_rate": 0.05},
        "report": {**report, "samples_per_prompt": 2, "sampling": {"max_new_tokens": 6}},
    }
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps({"model": {"base": "tiny"}, "stages": stages}), encoding="utf-8")
    return recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("swapped"))


@pytest.fixture(scope="module")
def swapped(recipe: Path) -> Path:
    """A run whose `align` was made by ppo, and then by rejection sampling."""
    out = recipe.parent / "run"
    assert main(["run", str(recipe), "--out", str(out)]) == 0
    assert main(["run", str(recipe), SWAP, "--out", str(out)]) == 0
    return out


def earlier_reports(run: Path) -> list[Path]:
    """The folders of evaluations that others replaced, the oldest first."""
    folders = [
        folder for folder in folders_of(run, "report") if folder != (run / "report").resolve()
    ]
    return sorted(folders, key=lambda folder: (folder / "stage.json").stat().st_mtime)


def lengths(evaluation: Path) -> list[float]:
    """The mean length of the answers of `align` to each prompt."""
    groups = [
        json.loads(line)
        for line in (evaluation / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    own = [[one for one in group["responses"] if one["source"] == "align"] for group in groups]
    return [mean(one["scores"]["length"] for one in answers) for answers in own]


def test_old_and_new_are_compared_at_the_same_prompts(swapped: Path) -> None:
    (pair,) = swaps_of(swapped, "report")
    assert (pair["result"], pair["against"], pair["differs"]) == (
        "align@rejection_sampling",
        "align@ppo",
        "",
    )
    (before,) = earlier_reports(swapped)
    old, new = lengths(before), lengths(swapped / "report")
    found = {row.policy: row for row in rows_of(pair) if row.kind == "reward"}
    assert found["align@ppo"].estimate["mean"] == pytest.approx(mean(old))
    result = found["align@rejection_sampling"]
    assert result.difference["n"] == 5
    assert result.estimate["mean"] == pytest.approx(mean(new)) and result.baseline == "align@ppo"
    assert result.difference["mean"] == pytest.approx(
        mean(b - a for a, b in zip(old, new, strict=True))
    )
    assert result.difference["low"] <= result.difference["mean"] <= result.difference["high"]


def test_the_screen_and_the_report_show_it(
    swapped: Path, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    # All is reused, and printed again
    assert main(["run", str(recipe), SWAP, "--out", str(swapped)]) == 0
    screens = [capsys.readouterr().out]
    assert main(["show", str(swapped)]) == 0
    screens.append(capsys.readouterr().out)
    for out in screens:  # one sentence, and one table of both results
        text = " ".join(out.split())
        assert "align@rejection_sampling and align@ppo in the reward length" in text or (
            "than align@ppo in the reward length" in text
        )
        assert ["base", "align@ppo", "align@rejection_sampling"] in [
            line.split() for line in out.splitlines()
        ]
    facts = facts_of(swapped)
    assert "against align@ppo, prompt by prompt" in re.sub("<wbr>", "", page(facts))


def test_the_run_says_what_the_swap_changes(swapped: Path) -> None:
    log = (swapped / "run.log").read_text(encoding="utf-8")
    assert (
        "align: changed since the last run (algorithm: ppo -> rejection_sampling), starting over"
        in log
    )
    assert "report: changed since the last run (align has changed), starting over" in log


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda record, summary: summary["sampling"].update(temperature=0.5),
            "the sampling has changed",
        ),
        (
            lambda record, summary: record["component"]["options"].update(prompts=[]),
            "the prompts have changed",
        ),
        (
            lambda record, summary: record["component"]["options"].update(rewards=[]),
            "the rewards have changed",
        ),
        (
            lambda record, summary: record["component"]["options"].update(
                metrics={"x": {"where": 1}}
            ),
            "the metrics have changed",
        ),
        (lambda record, summary: record["upstream"].update(helpful="0"), "helpful has changed"),
    ],
)
def test_evaluations_that_differ_do_not_compare(
    swapped: Path, monkeypatch: pytest.MonkeyPatch, change: Any, why: str
) -> None:
    from alignkit_plugins.report import swaps as module

    record, object_of = module.read_record, module.read_object
    now: dict[str, Any] = {
        "depends_on": {},
        "summary": object_of(swapped / "report" / "evaluation.json"),
    }
    now["depends_on"] = record(swapped / "report")["depends_on"]
    change(now["depends_on"], now["summary"])
    current = swapped / "report"
    monkeypatch.setattr(
        module,
        "read_record",
        lambda path: record(path) | ({"depends_on": now["depends_on"]} if path == current else {}),
    )
    monkeypatch.setattr(
        module,
        "read_object",
        lambda path: now["summary"] if path.parent == current else object_of(path),
    )
    (pair,) = swaps_of(swapped, "report")
    assert pair["differs"] == why and pair["results"] == []


def test_a_score_that_is_missing_leaves_its_prompt_out(swapped: Path, tmp_path: Path) -> None:
    file = swapped / "report" / "samples.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for response in rows[0]["responses"]:
        response["scores"] = {}
    (tmp_path / "samples.jsonl").write_text("\n".join(map(json.dumps, rows[:3])), encoding="utf-8")
    groups = _joined(tmp_path, swapped / "report", "align", "now", "then")
    _, now = rated(groups, ["then", "now"], "then", "length")
    assert now.difference["n"] == 2 and now.difference["mean"] == 0.0


def test_examples_of_one_prompt_meet_their_own_earlier_results(tmp_path: Path) -> None:
    for folder in ("now", "then"):
        (tmp_path / folder).mkdir()
        rows = [
            {
                "alignkit": 1,
                "prompt": [{"role": "user", "content": "q"}],
                "responses": [{"text": "", "source": "a", "scores": {"x": x}}],
            }
            for x in (1.0, 0.0, 1.0, 0.0)
        ]
        (tmp_path / folder / "held_out.jsonl").write_text(
            "\n".join(map(json.dumps, rows)), encoding="utf-8"
        )
    groups = _joined(tmp_path / "now", tmp_path / "then", "a", "now", "then")
    _, now = rated(groups, ["then", "now"], "then", "x", kind="metric")
    assert len(groups) == 4 and now.counts == "0/0/4"


def test_commands_take_a_result(
    swapped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from alignkit_plugins.models.find import find

    named = find(str(swapped / "align@ppo"))  # as evaluate, chat and serve
    assert list(short_names([str(named.folder), "base"]).values()) == ["run/align@ppo", "base"]
    assert named.folder == (find_result(swapped, "align@ppo") / "adapter").resolve()
    assert named.label == "run-align-ppo" and named.rollout["max_new_tokens"] == 6
    assert main(["export", str(swapped / "align@ppo"), str(tmp_path / "export")]) == 0
    weights = [
        folder / "adapter_model.safetensors" for folder in (tmp_path / "export", named.folder)
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    card = (tmp_path / "export" / "README.md").read_text(encoding="utf-8")
    assert "ppo" in card and "rejection_sampling" not in card
    capsys.readouterr()
    assert main(["show", str(swapped / "align@ppo")]) == 0
    assert ".results/align-" in capsys.readouterr().out
    assert main(["check", str(write_recipe(swapped.parent)), "align@ppo"]) == 2
    assert "check shows the rows of a stage" in capsys.readouterr().err


@pytest.mark.silent_bug(
    "reports: lower is better",
    "Wins and losses of a measure whose lower scores are better are reversed where two results "
    "are compared.",
    "A win is the better score, in every table.",
)
def test_a_lower_score_wins_where_lower_is_better() -> None:
    def answer(source: str, score: float) -> Response:
        return Response("t", tokens=(1,), source=source, scores={"refused": score})

    groups = [
        Group(
            ({"role": "user", "content": str(at)},), (answer("now", now), answer("then", 1 - now))
        )
        for at, now in enumerate([0.0, 0.0, 0.0, 1.0])
    ]
    _, now = rated(groups, ["then", "now"], "then", "refused", kind="metric", lower=True)
    assert now.counts == "3/1/0" and now.win_rate["mean"] == 0.75
    assert now.difference["mean"] == -0.5  # differences keep the sign of the scores
