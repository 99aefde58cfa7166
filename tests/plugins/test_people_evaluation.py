"""A run that evaluates with people, by its commands: it waits, is labeled, and counts what simulated people said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from labelers import label_all, number
from scipy.optimize import brentq

from alignkit.cli import main
from alignkit.data.group import read_groups
from alignkit.evaluation import statistics
from alignkit_plugins.people.store import Store

SFT = {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 2, "learning_rate": 0.01}
PEOPLE: dict[str, Any] = {
    "step": "evaluate", "policies": ["base", "align"], "prompts": "prompts.jsonl", "by": ["language"],
    "sampling": {"max_new_tokens": 8}, "show": 0, "people": {},
}  # fmt: skip
PROMPTS = 20


def write(folder: Path, stages: dict[str, Any]) -> list[str]:
    """The arguments of a run."""
    rows = [{"prompt": f"bread {i}", "language": "de" if i < 8 else "en"} for i in range(PROMPTS)]
    demos = [{"prompt": f"say {i}", "response": f"the number {i}"} for i in range(8)]
    for name, data in (("prompts", rows), ("demos", demos)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, data)), encoding="utf-8")
    recipe = {"model": {"base": "tiny", "dtype": "float32"}, "stages": stages}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return ["run", str(folder / "recipe.yaml"), "--out", str(folder / "run")]


def test_each_round_is_judged_by_people_and_the_numbers_are_those_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four of five people prefer the trained policy, in both rounds of a `repeat` block."""
    stages = {"align": {**SFT, "from": "align"}, "compare": PEOPLE}
    arguments = write(tmp_path, {"rounds": {"repeat": 2, "start": {"align": "base"}, "stages": stages}})
    store = tmp_path / "run" / "labels.feedback"
    assert main(arguments) == 75
    shown = capsys.readouterr().err
    assert f"  to label: alignkit label {store}\n" in shown and "to resume: " in shown and "error" not in shown
    assert "stage 'compare_1' waits for" in shown and "stage 'compare_2' waits for" in shown
    answers = (tmp_path / "run" / "compare_1" / "map" / "answers.jsonl").read_bytes()
    label_all(store, lambda item: str(item.origins[number(item) % 5 == 0]))
    with Store.open(store) as opened:
        events = opened.events()
        sides = {event.payload["side"] for event in events if event.order == (0, 1)}
        turned = sum(event.order == (1, 0) for event in events)
    assert sides == {"A", "B"} and 5 < turned < len(events) - 5  # ignoring the order shown would give other numbers
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "answers" not in printed.err.replace("20 answers", "")  # nothing was sampled again
    assert (tmp_path / "run" / "compare_1" / "map" / "answers.jsonl").read_bytes() == answers
    for number_of_round in (1, 2):
        check(tmp_path / "run" / f"compare_{number_of_round}", f"align_{number_of_round}", printed.out)
    assert main(arguments) == 0 and "compare_2: unchanged, reused" in capsys.readouterr().err


def check(folder: Path, policy: str, printed: str) -> None:
    """The results of an evaluation, from its answers and from whom people preferred."""
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    result = found["judged"][policy]["people"]
    said: dict[str, list[float]] = {"de": [], "en": []}  # 1, 0, or 0.5 for equal answers
    for group in read_groups(folder / "samples.jsonl"):
        baseline, ours = (response.text.strip() for response in group.responses)
        preferred = float(int(group.prompt[-1]["content"].split()[-1]) % 5 > 0)
        if "\0" not in baseline + ours:
            said[group.meta["language"]].append(0.5 if baseline == ours else preferred)
    everyone = [*said["de"], *said["en"]]
    assert len(everyone) > 15 and 0.7 < statistics.mean(everyone) < 0.9
    assert [result[key] for key in ("wins", "losses", "ties")] == [everyone.count(p) for p in (1.0, 0.0, 0.5)]
    rate = sum(everyone) / len(everyone)
    assert result["preference"]["mean"] == pytest.approx(rate)
    assert f"{policy} is preferred {rate:.0%} [" in printed
    for language, of in said.items():
        by = found["by"]["language"][language]["judged"][policy]["people"]
        assert by["mean"] == pytest.approx(sum(of) / len(of)) and by["n"] == len(of)
    wins, losses = sum(everyone), len(everyone) - sum(everyone)
    gap = brentq(lambda d: wins / (1 + math.exp(d)) - losses / (1 + math.exp(-d)) - 0.1 * d / 2, -5, 5)
    ranking = found["ranking"]["people"]
    assert ranking[policy]["strength"]["mean"] == pytest.approx(gap / 2, abs=1e-6)
    assert ranking[policy]["elo"]["mean"] == pytest.approx(1000 + 200 * gap / math.log(10), abs=1e-3)


def test_another_store_and_what_the_page_of_the_run_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = {"align": SFT, "compare": {**PEOPLE, "rewards": ["length"], "people": {"store": "ours.feedback"}}}
    arguments = write(tmp_path, stages)
    assert main(arguments) == 75
    shown = capsys.readouterr().err
    known = tmp_path / "run" / "compare" / "report.txt"
    assert f"compare: what is known without people: {known}\n" in shown
    assert "By length (reward)" in " ".join(known.read_text().split())
    assert not (tmp_path / "run" / "labels.feedback").exists()
    label_all(tmp_path / "ours.feedback", lambda item: "align")
    assert main(arguments) == 0
    assert main(["show", str(tmp_path / "run")]) == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "people prefer align to base" in page and "how far to trust the raters" in page
    assert main(["verify", str(tmp_path / "run" / "compare")]) == 0
    assert "compare: not verified, because people labeled what it read" in capsys.readouterr().out


def test_mistakes_are_shown_in_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare = {**PEOPLE, "policies": ["base", "align"], "people": {"store": "labels.db", "guidelines": "none.md"}}
    assert main(write(tmp_path, {"align": SFT, "compare": compare})) == 2
    shown = capsys.readouterr().err
    assert "the name of a store must end in .feedback" in shown and "no such file: none.md" in shown
    (tmp_path / "old.feedback").write_bytes(b"not a store")
    arguments = write(tmp_path, {"align": SFT, "compare": {**PEOPLE, "people": {"store": "old.feedback"}}})
    assert main(arguments) == 4
    shown = capsys.readouterr().err
    assert "old.feedback: not a SQLite file, so not a store of feedback" in shown and "recipe.yaml:" in shown
    assert not (tmp_path / "run" / "align").exists()
