"""What `alignkit data` finds in files in which it was planted: all of it, and nothing else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from planted_rows import CLEAN, LEAKS, PERSONAL, PLANTED, ROWS, plant

from alignkit.cli import main
from alignkit.errors import Repeated


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("planted")
    plant(made)
    return made


def run(*words: object, code: int = 0) -> None:
    assert main(["data", *map(str, words)]) == code


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def number(row: Any) -> int:
    return int(row["row"].rpartition(":")[2])


def test_clean_leaves_out_what_was_planted_and_nothing_else(folder: Path) -> None:
    run("clean", folder / "train.jsonl", "--out", folder / "clean.jsonl", "languages=[en]")
    removed = lines(folder / "clean.removed.jsonl")
    assert Counter(row["rule"] for row in removed) == PLANTED
    kept = lines(folder / "clean.jsonl")
    before = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) + len(removed) == len(before)
    assert sum("[e-mail]" in row["completion"] for row in kept) == PERSONAL
    # The first of equal rows stays as it was
    assert kept[:ROWS] == [json.loads(line) for line in before[:ROWS]]
    assert all(number(row) > ROWS for row in removed)


def test_the_same_bytes_every_time(folder: Path) -> None:
    for name in ("one", "two"):
        run("clean", folder / "train.jsonl", "--out", folder / f"{name}.jsonl.gz")
    for end in (".jsonl.gz", ".removed.jsonl"):
        assert (folder / f"one{end}").read_bytes() == (folder / f"two{end}").read_bytes()


def test_a_rule_is_off_by_one_option(folder: Path) -> None:
    off = ("near=0", "markdown=false", "personal=false")
    run("clean", folder / "train.jsonl", "--out", folder / "all.jsonl", *off)
    always = ("duplicates", "stock_phrases", "unreadable")
    found = Counter(row["rule"] for row in lines(folder / "all.removed.jsonl"))
    assert found == {rule: PLANTED[rule] for rule in always}
    assert "@example.org" in (folder / "all.jsonl").read_text(encoding="utf-8")


def test_check_finds_the_leaks(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    both = f"[{folder / 'dialogues.jsonl'}, {folder / 'train.jsonl'}]"
    words = ("check", both, "--against", folder / "heldout.jsonl", "--json")
    run(*words, code=Repeated.exit_code)
    result = json.loads(capfd.readouterr().out)["result"]
    found = {one["what"]: one for one in result["leaks"]}
    prompts, answers = found["prompt"], found["response"]
    assert prompts["equal"] == LEAKS["equal prompts"] + LEAKS["prompts in later turns"]
    assert prompts["near"] == LEAKS["near prompts"] and prompts["of"] == CLEAN + 25
    assert (answers["equal"], answers["near"]) == (LEAKS["equal answers"], 0)
    own = result["files"][0]["faults"]
    assert (own["duplicates"], own["near"]) == (PLANTED["duplicates"], PLANTED["near"])
    run(
        "check",
        folder / "dialogues.jsonl",
        "--against",
        folder / "heldout.jsonl",
        code=Repeated.exit_code,
    )
    assert "equals dialogues.jsonl:1 (turn 3)" in " ".join(capfd.readouterr().out.split())
    run(
        "clean",
        folder / "train.jsonl",
        f"against={folder / 'heldout.jsonl'}",
        "--out",
        folder / "without.jsonl",
    )
    run("check", folder / "without.jsonl", "--against", folder / "heldout.jsonl")


def test_check_of_a_recipe_knows_the_role_of_each_file(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stages = {
        "sft": {"algorithm": "sft", "data": {"path": "clean.jsonl", "validation": 0.2}},
        "align": {
            "step": "select_best",
            "policies": ["sft", "base"],
            "reward": "refusal",
            "prompts": "heldout.jsonl",
        },
    }
    run("clean", folder / "train.jsonl", "--out", folder / "clean.jsonl")
    (folder / "r.yaml").write_text(
        yaml.safe_dump({"model": {"base": "tiny"}, "stages": stages}), encoding="utf-8"
    )
    capfd.readouterr()
    run("check", folder / "r.yaml", "--json", code=Repeated.exit_code)
    facts = json.loads(capfd.readouterr().out)["result"]
    roles = Counter(one["stage"] for one in facts["files"])
    assert roles == {"training": 1, "validation": 1, "evaluation": 1}
    leaks = {(one["what"], one["held_out"].rpartition("(")[2]) for one in facts["leaks"]}
    assert leaks == {("prompt", "evaluation)"), ("response", "evaluation)")}


def test_check_of_a_recipe_follows_the_rows_that_steps_make(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("own", "train", "test"):
        row = {"prompt": name, "completion": "x"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    asked = {"step": "instruct", "instruction": "Be brief."}
    stages = {
        "asked": {**asked, "data": "train.jsonl"},
        "demos": {"step": "sample", "prompts": "asked"},
        "asked_later": {**asked, "data": "test.jsonl"},
        "sft": {"algorithm": "sft", "data": ["own.jsonl", "demos"]},
        "best": {
            "step": "select_best",
            "policies": ["sft", "base"],
            "reward": "refusal",
            "prompts": "asked_later",
        },
    }
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump({"model": {"base": "tiny"}, "stages": stages}, sort_keys=False)
    )
    run("check", tmp_path / "r.yaml")
    said = capfd.readouterr().out.splitlines()
    assert [line for line in said if line.endswith("): 1 conversation")] == [
        "train.jsonl (training): 1 conversation",
        "test.jsonl (evaluation): 1 conversation",
        "own.jsonl (training): 1 conversation",
    ]


def test_a_file_of_which_no_row_can_be_compared_is_no_pass(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, prompt in (("train", "Hi"), ("test", 7)):
        row = {"prompt": prompt, "completion": "Hello!"}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    run("check", tmp_path / "train.jsonl", "--against", tmp_path / "test.jsonl", code=4)
    assert "test.jsonl: no usable row; no row can be read; for example " in capfd.readouterr().err


def test_the_step_has_the_same_rules(folder: Path) -> None:
    good = folder / "good.jsonl"
    rows = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    good.write_text(
        "".join(row for row in rows if not row.startswith(('{"prompt": 7', "{\n"))),
        encoding="utf-8",
    )
    stages = {"clean": {"step": "clean", "data": "good.jsonl", "languages": ["en"]}}
    (folder / "s.yaml").write_text(
        yaml.safe_dump({"model": {"base": "tiny"}, "stages": stages}), encoding="utf-8"
    )
    assert main(["run", str(folder / "s.yaml"), "--out", str(folder / "run")]) == 0
    (removed,) = (folder / "run").rglob("removed.jsonl")
    run("clean", good, "--out", folder / "good.clean.jsonl", "languages=[en]")
    left_out = lines(folder / "good.clean.removed.jsonl")
    by_command = [(number(row), row["rule"]) for row in left_out]
    by_step = [(number(row), row["rule"]) for row in lines(removed)]
    assert by_step == by_command and by_step


def test_check_says_what_a_file_holds(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run("check", folder / "train.jsonl", code=Repeated.exit_code)
    out = " ".join(capfd.readouterr().out.split())  # where lines break depends on the folder's name
    assert "unreadable: 2 (0%)" in out and "duplicates: 20 (4%)" in out
    assert "train.jsonl (training): 487 conversations, 2 bad rows" in out
    assert "train.jsonl:482: unreadable: column 'prompt'" in out
    assert "lengths in characters" in out
    run("check", folder / "train.jsonl", "--json", code=Repeated.exit_code)
    (facts,) = json.loads(capfd.readouterr().out)["result"]["files"]
    assert facts["faults"] == {
        **{rule: count for rule, count in PLANTED.items() if rule != "languages"},
        "personal": PERSONAL,
    }
    assert facts["response_characters"]["count"] == facts["responses"]
