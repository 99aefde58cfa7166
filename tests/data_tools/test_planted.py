"""What `alignkit data` finds in files in which it was planted: all of it, and nothing else."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from planted_rows import LEAKS, PERSONAL, PLANTED, ROWS, data, plant

from alignkit.errors import Repeated
from tests.rows import Said, read_rows, run, write_recipe, write_rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("planted")
    plant(made)
    return made


def number(row: Any) -> int:
    return int(row["row"].rpartition(":")[2])


def test_clean_leaves_out_what_was_planted_and_nothing_else(folder: Path) -> None:
    data("clean", folder / "train.jsonl", "--out", folder / "clean.jsonl", "languages=[en]")
    removed = read_rows(folder / "clean.removed.jsonl")
    assert Counter(row["rule"] for row in removed) == PLANTED
    kept = read_rows(folder / "clean.jsonl")
    before = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    data("clean", folder / "train.jsonl", "--out", folder / "again.jsonl", "languages=[en]")
    for end in (".jsonl", ".removed.jsonl"):
        assert (folder / f"again{end}").read_bytes() == (folder / f"clean{end}").read_bytes()
    assert len(kept) + len(removed) == len(before)
    assert sum("[e-mail]" in row["completion"] for row in kept) == PERSONAL
    # The first of equal rows stays as it was
    assert kept[:ROWS] == [json.loads(line) for line in before[:ROWS]]
    assert all(number(row) > ROWS for row in removed)
    assert removed[-1].keys() == {"row", "rule", "reason"}  # no JSON


def test_a_rule_is_off_by_one_option(folder: Path) -> None:
    off = ("near=0", "personal=false")
    data("clean", folder / "train.jsonl", "--out", folder / "all.jsonl", *off)
    always = ("duplicates", "stock_phrases", "unreadable")
    found = Counter(row["rule"] for row in read_rows(folder / "all.removed.jsonl"))
    assert found == {rule: PLANTED[rule] for rule in always}
    assert "@example.org" in (folder / "all.jsonl").read_text(encoding="utf-8")


def test_check_finds_the_leaks(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    both = f"[{folder / 'dialogues.jsonl'}, {folder / 'train.jsonl'}]"
    against = f"against={folder / 'heldout.jsonl'}"
    data("check", both, against, "--json", code=Repeated.exit_code)
    faults = json.loads(capfd.readouterr().out)["result"]["faults"]
    assert faults["against"] == sum(LEAKS.values())
    assert faults["duplicates"] + faults["near"] == PLANTED["duplicates"] + PLANTED["near"]
    data("check", folder / "dialogues.jsonl", against, code=Repeated.exit_code)
    said = " ".join(capfd.readouterr().out.split())
    assert "dialogues.jsonl:1: against: has the prompt of" in said and "heldout.jsonl:" in said
    data("clean", folder / "train.jsonl", against, "--out", folder / "without.jsonl")
    data("check", folder / "without.jsonl", against)


def test_a_file_of_which_no_row_can_be_compared_is_no_pass(tmp_path: Path, said: Said) -> None:
    for name, prompt in (("train", "Hi"), ("test", 7)):
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": prompt, "completion": "Hello!"}])
    train, test = (tmp_path / f"{name}.jsonl" for name in ("train", "test"))
    for words in ([train, f"against={test}"], [f"[{train}, {test}]"]):
        data("check", *words, code=4)
        assert "test.jsonl: no usable row; no row can be read; for example " in said()


def test_the_step_has_the_same_rules(folder: Path) -> None:
    rows = f"{{path: {folder}/train.jsonl, on_bad_row: skip}}"
    recipe = write_recipe(folder, f"clean: {{step: clean, data: {rows}, languages: [en]}}")
    (removed,) = run(recipe).rglob("removed.jsonl")
    data("clean", folder / "train.jsonl", "--out", folder / "same.jsonl", "languages=[en]")
    by_step, by_command = (
        [(number(row), row["rule"]) for row in read_rows(file) if row["rule"] != "unreadable"]
        for file in (removed, folder / "same.removed.jsonl")
    )
    assert by_step == by_command and by_step


def test_check_says_what_a_file_holds(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data("check", folder / "train.jsonl", code=Repeated.exit_code)
    out = " ".join(capfd.readouterr().out.split())  # where lines break depends on the folder's name
    assert "train.jsonl: 482 conversations, 2 bad rows" in out
    assert len(re.findall(r"train.jsonl:\d+: \w+: ", out)) == 20  # examples
    assert "left out: unreadable 2" in out and "left out: duplicates 20" in out
    assert "lengths in characters" in out
    data("check", folder / "train.jsonl", "--json", code=Repeated.exit_code)
    facts = json.loads(capfd.readouterr().out)["result"]
    assert {**facts["faults"], "languages": 12} == PLANTED
    assert [*facts["faults"].values()] == [20, 20, 8, 2]
    assert facts["redacted"] == PERSONAL
