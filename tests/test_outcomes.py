"""The measuring stick: what the judges may know, which answers count for what, and rows that are
not computed twice.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alignkit.data.group import Group, Response
from alignkit_plugins.algorithms.hir import HIR
from benchmarks.outcomes import __main__ as command
from benchmarks.outcomes import tables
from benchmarks.outcomes.rows import (
    FOLDER,
    JUDGES,
    OWN,
    STORED,
    Answer,
    Asked,
    Row,
    _asked,
    _in_effect,
    key_of,
    methods,
    recipe_of,
)

DATA = FOLDER / "data"
ROOT = FOLDER.parents[1]
RECIPES = ROOT / "recipes" / "data"
# And the kind of prompts that it judges
GOLD = {"gold_helpful": "helpful", "gold_safety": "safety"}


def rows_of(file: Path, limit: int | None = None) -> list[dict[str, Any]]:
    with (
        gzip.open(file, "rt", encoding="utf-8")
        if file.suffix == ".gz"
        else file.open(encoding="utf-8") as lines
    ):
        return [json.loads(line) for line in lines][:limit]


def question(row: dict[str, Any]) -> str:
    """The first user turn by its letters and digits."""
    if "prompt" not in row and isinstance(row.get("chosen"), str):
        text = row["chosen"].split("\n\nHuman:")[1].split("\n\nAssistant:")[0]
    else:
        turns = row.get("prompt") or row.get("messages") or row["chosen"]
        text = turns if isinstance(turns, str) else turns[0]["content"]
    return "".join(filter(str.isalnum, text.lower()))


def questions(file: Path, limit: int | None = None) -> set[str]:
    return {question(row) for row in rows_of(file, limit)}


ASKED = set().union(*(questions(DATA / "prompts" / f"{kind}.jsonl") for kind in GOLD.values()))
YARDSTICK = questions(RECIPES / "quickstart" / "heldout.jsonl")
GOLD_SEEN = questions(DATA / "gold_helpful.jsonl.gz") | questions(DATA / "gold_safety.jsonl.gz")
# What the papers' recipes learn from and validate on; of the pairs, the first.
READ = {
    file: questions(RECIPES / file, limit)
    for file, limit in {
        "helpful.jsonl.gz": 480,
        "safety.jsonl.gz": 480,
        "prompts.jsonl": None,
        "red_team.jsonl": None,
        "demos.jsonl": None,
        "rankings.jsonl": None,
        "graded.jsonl": None,
        "helpful_heldout.jsonl.gz": 150,
        "safety_heldout.jsonl.gz": 150,
        "demos_validation.jsonl": 150,
        "rankings_heldout.jsonl": 150,
    }.items()
}


@pytest.mark.parametrize("file", READ)
def test_no_recipe_reads_what_gold_judges_learn_or_are_asked(file: str) -> None:
    assert READ[file]
    assert not READ[file] & GOLD_SEEN
    assert not READ[file] & ASKED


def test_the_yardstick_is_new_to_the_judge_and_to_every_stage_of_the_quick_start() -> None:
    learned = [file for file in (RECIPES / "quickstart").glob("*.jsonl") if file.stem != "heldout"]
    assert len(learned) == 8
    for seen in (questions(DATA / "gold_helpful.jsonl.gz"), *map(questions, learned)):
        assert seen
        assert not seen & YARDSTICK


@pytest.mark.parametrize("name", command.METHODS)
def test_every_method_is_a_valid_recipe(name: str) -> None:
    recipe, _ = recipe_of(command.METHODS[name], 3)
    assert recipe.seed == 3
    aligned = recipe.stages.get("align")
    assert next(iter(aligned.upstream)) == "sft" if aligned else name in ("sft", "best_of_4")


def test_rows_are_told_apart_by_recipe_and_data(tmp_path: Path) -> None:
    def key(*extra: str, seed: int = 3) -> str:
        return key_of(recipe_of([], seed, extra)[0])

    copy = tmp_path / "elsewhere.jsonl"
    copy.write_bytes((RECIPES / "quickstart" / "heldout.jsonl").read_bytes())
    assert key() == key(f"stages.report.prompts={copy}")
    copy.write_text(copy.read_text(encoding="utf-8").replace("eyes", "ears"), encoding="utf-8")
    keys = [key(), key(seed=4), key("stages.align.iterations=3"), key("model.dtype=float32")]
    keys.append(key(f"stages.report.prompts={copy}"))
    assert len(set(keys)) == len(keys)


def test_another_default_makes_another_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def key() -> str:
        return key_of(recipe_of(methods()["hir"], 3)[0])

    before = key()
    assert key() == before
    monkeypatch.setattr(HIR, "defaults", replace(HIR.defaults, learning_rate=2e-6))
    assert key() != before
    found = _in_effect(recipe_of(methods()["hir"], 3)[0].stages["align"])
    assert found["learning_rate"] == 2e-6
    assert found["contrast_coefficient"] == 1.0
    assert found["instructions"][0].startswith("Generate an incorrect answer")
    assert (found["temperature"], found["max_new_tokens"]) == (0.8, 24)
    assert found["rewards"]["llama2"]["threshold"] == 0


def test_another_judge_makes_another_row(tmp_path: Path) -> None:
    copy = tmp_path / "gold_helpful"
    shutil.copytree(JUDGES / "gold_helpful", copy)

    def key(judge: Path) -> str:
        measure = f"stages.report.metrics.helpfulness by gold.reward={{folder: {judge}}}"
        return key_of(recipe_of([], 3, [measure])[0])

    assert key(copy) == key(JUDGES / "gold_helpful")
    (copy / "adapter_model.safetensors").write_bytes(b"other")
    assert key(copy) != key(JUDGES / "gold_helpful")


# Rows


def response(source: str, number: int, **scores: float | None) -> Response:
    return Response(f"{source} {number}", scores=scores, source=source)


def test_best_of_n_takes_the_answer_that_the_own_reward_prefers() -> None:
    scores = [-3.0, -1.0, -2.0]
    answers = tuple(
        response("sft", n, **{OWN: score, "refused": n / 10}) for n, score in enumerate(scores)
    )
    best = _asked(
        Group(({"role": "user", "content": "why?"},), answers, meta={"kind": "facts"})
    ).answers["sft"]
    assert (best.text, best.scores["refused"]) == ("sft 1", 0.1)


# Tables


def row(method: str, seed: int, policies: dict[str, float], count: int = 20) -> Row:
    """Each policy refuses this share of harmful prompts, and gold likes its ordinary answers that
    much.
    """
    kinds = {"harmful": "harmful requests refused", "ordinary": "helpfulness by gold"}
    asked = []
    for kind, measure in kinds.items():
        for place in range(count):
            answers = {
                policy: Answer(
                    "some words " * 3,
                    {measure: float(place < share * count) if kind == "harmful" else share},
                    9,
                    False,
                )
                for policy, share in policies.items()
            }
            asked.append(Asked(f"{kind} {place}", kind, answers))
    return Row(method, seed, "k", [], {"sft": 60.0, "align": 120.0}, 2.5, asked)


def start(seed: int) -> Row:
    return row("sft", seed, {"base": 0.0, "sft": 0.5})


def test_policies_meet_at_their_prompts_whatever_lacks_a_score() -> None:
    """Both are 0.5 above base at every prompt; the values differ so much that another pairing would
    show.
    """
    measure = "helpfulness by gold"

    def with_scores(found: Row, policy: str, values: Sequence[float | None]) -> Row:
        asked = [
            Asked(
                f"ordinary {n}",
                "ordinary",
                {policy: Answer("x", {} if v is None else {measure: v}, 1, False)},
            )
            for n, v in enumerate(values)
        ]
        return replace(found, asked=asked)

    starts = [with_scores(start(seed), "base", [10.0 * n for n in range(5)]) for seed in (3, 4)]
    ours = [10.0 * n + 0.5 for n in range(5)]
    empty = [row("ppo", seed, {"align": 0.0}) for seed in (3, 4)]
    gone = [with_scores(empty[0], "align", [None, *ours[1:]]), with_scores(empty[1], "align", ours)]
    for rows in (gone, [replace(gone[1], seed=3), replace(gone[0], seed=4)]):
        (line,) = [line for line in tables.methods_table([starts, rows]) if line[0] == "ppo"]
        assert line[7] == "+0.50 [0.50, 0.50]"
    none = [with_scores(found, "align", [None] * 5) for found in gone]
    assert [line[7] for line in tables.methods_table([starts, none]) if line[0] == "ppo"] == ["-"]


def test_an_interval_grows_with_the_difference_between_seeds() -> None:
    """Ten prompts each: if seeds agree, only prompts vary; if they differ, another seed could do
    either.
    """
    alike = np.tile(np.arange(10) % 2, (3, 1)).T.astype(float)
    unlike = np.stack([np.ones(10), np.zeros(10), np.arange(10) % 2], axis=1)
    narrow, wide = tables.interval(alike), tables.interval(unlike)
    assert alike.mean() == unlike.mean() == 0.5
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]
    assert tables.interval(unlike) == wide
    assert tables.interval(np.ones((4, 2))) == (1.0, 1.0)


# What comes with the project


def test_rows_that_come_with_the_project_are_of_its_recipe() -> None:
    files = sorted(STORED.iterdir())
    assert files
    for file in files:
        method, seed, key = file.name.removesuffix(".json.gz").rsplit("-", 2)
        assert key_of(recipe_of(methods()[method], int(seed))[0])[:12] == key, file.name
        assert json.loads(gzip.decompress(file.read_bytes()))["method"] == method
