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
import yaml
from scipy import stats

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
from tests.rows import json_rows, user

DATA = FOLDER / "data"
RECIPES = FOLDER.parents[1] / "recipes" / "data"
# What the papers' recipes learn from and validate on: of some files, this many of the first rows.
READ = yaml.safe_load("""
helpful.jsonl.gz: 480
safety.jsonl.gz: 480
prompts.jsonl: null
red_team.jsonl: null
demos.jsonl: null
rankings.jsonl: null
graded.jsonl: null
helpful_heldout.jsonl.gz: 150
safety_heldout.jsonl.gz: 150
demos_validation.jsonl: 150
rankings_heldout.jsonl: 150
""")


def questions(*files: Path, limit: int | None = None) -> set[str]:
    """The first user turns of rows by their letters and digits."""
    found = set()
    for file in files:
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode()
        for row in json_rows(text)[:limit]:
            turns = row.get("prompt") or row.get("messages") or row["chosen"]
            asked = turns if isinstance(turns, str) else turns[0]["content"]
            asked = asked.removeprefix("\n\nHuman:").split("\n\nAssistant:")[0]
            found.add("".join(filter(str.isalnum, asked.lower())))
    assert found
    return found


def test_no_recipe_reads_what_gold_judges_learn_or_are_asked() -> None:
    gold = questions(*DATA.glob("gold_*.jsonl.gz"), *(DATA / "prompts").glob("*.jsonl"))
    for file, limit in READ.items():
        assert not questions(RECIPES / file, limit=limit) & gold, file


def test_the_yardstick_is_new_to_the_judge_and_to_every_stage_of_the_quick_start() -> None:
    yardstick = RECIPES / "quickstart" / "heldout.jsonl"
    learned = [file for file in yardstick.parent.glob("*.jsonl") if file != yardstick]
    assert len(learned) == 8
    assert not questions(*learned, DATA / "gold_helpful.jsonl.gz") & questions(yardstick)


@pytest.mark.parametrize("name", command.METHODS)
def test_every_method_is_a_valid_recipe(name: str) -> None:
    recipe, _ = recipe_of(command.METHODS[name], 3)
    assert recipe.seed == 3
    aligned = recipe.stages.get("align")
    assert next(iter(aligned.upstream)) == "sft" if aligned else name in ("sft", "best_of_4")


def test_rows_are_told_apart_by_recipe_data_judge_and_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(*extra: str, seed: int = 3) -> str:
        return key_of(recipe_of(methods()["hir"], seed, extra)[0])

    copy = Path(shutil.copy(RECIPES / "quickstart" / "heldout.jsonl", tmp_path))
    judge = Path(shutil.copytree(JUDGES / "gold_helpful", tmp_path / "judge"))
    asked = f"stages.report.prompts={copy}"
    judged = f"stages.report.metrics.helpfulness by gold.reward={{folder: {judge}}}"
    first = key()
    assert key() == key(asked) == key(judged) == first
    keys = [first, key(seed=4), key("stages.align.learning_rate=1"), key("model.dtype=bfloat16")]
    copy.write_text(copy.read_text(encoding="utf-8").replace("eyes", "ears"), encoding="utf-8")
    (judge / "adapter_model.safetensors").write_bytes(b"other")
    keys += [key(asked), key(judged)]
    monkeypatch.setattr(HIR, "defaults", replace(HIR.defaults, learning_rate=2e-6))
    keys.append(key())
    assert len(set(keys)) == len(keys)
    found = _in_effect(recipe_of(methods()["hir"], 3)[0].stages["align"])
    assert (found["learning_rate"], found["contrast_coefficient"]) == (2e-6, 1.0)
    assert found["instructions"][0].startswith("Generate an incorrect answer")
    assert (found["temperature"], found["max_new_tokens"]) == (0.8, 24)
    assert found["rewards"]["llama2"]["threshold"] == 0


def test_best_of_n_takes_the_answer_that_the_own_reward_prefers() -> None:
    scores = [-3.0, -1.0, -2.0]
    answers = tuple(
        Response(f"{n}", scores={OWN: score, "refused": n / 10}, source="sft")
        for n, score in enumerate(scores)
    )
    best = _asked(Group((user("why?"),), answers, meta={"kind": "facts"})).answers["sft"]
    assert (best.text, best.scores["refused"]) == ("1", 0.1)


def row(method: str, policy: str, seed: int, values: Sequence[float | None]) -> Row:
    """What gold thinks of a policy's answers to ordinary prompts."""
    asked = []
    for place, value in enumerate(values):
        scores = {} if value is None else {"helpfulness by gold": value}
        answer = Answer("some words", scores, 9, False)
        asked.append(Asked(f"ordinary {place}", "ordinary", {policy: answer}))
    return Row(method, seed, "k", [], {"sft": 60.0, "align": 120.0}, 2.5, asked)


def test_policies_meet_at_their_prompts_whatever_lacks_a_score() -> None:
    """Both are 0.5 above base at every prompt; the values differ so much that another pairing would
    show.
    """
    base = [10.0 * place for place in range(5)]
    ours: list[Any] = [value + 0.5 for value in base]
    starts = [row("sft", "base", seed, base) for seed in (3, 4)]
    for first, second in (([None, *ours[1:]], ours), (ours, [None, *ours[1:]])):
        rows = [row("ppo", "align", 3, first), row("ppo", "align", 4, second)]
        *_, line = tables.methods_table([starts, rows])
        assert line[0] == "ppo" and line[7] == "+0.50 [0.50, 0.50]"
    *_, line = tables.methods_table([starts, [row("ppo", "align", 3, [None] * 5)]])
    assert line[7] == "-"


def test_an_interval_grows_with_the_difference_between_seeds() -> None:
    """Ten prompts each: if seeds agree, only prompts vary; if they differ, another seed could do
    either.
    """
    alike = np.tile(np.arange(10) % 2, (3, 1)).T.astype(float)
    unlike = np.stack([np.ones(10), np.zeros(10), np.arange(10) % 2], axis=1)
    narrow, wide = tables.interval(alike), tables.interval(unlike)
    assert wide[0] < narrow[0] < alike.mean() == unlike.mean() < narrow[1] < wide[1]
    assert tables.interval(unlike) == wide


@pytest.mark.parametrize(
    ("values", "mean_square", "freedom"),
    [
        # Mean squares by hand, of prompts, seeds and the rest: 9, 4, 1
        ([[1, 2], [3, 6]], 9 + 4 - 1, 1),
        # 8/3, 24, 8: with what prompts add, it would be less than what seeds do
        ([[0, 4], [4, 4], [0, 8]], 24, 1),
        # 109/6, 0, 1/2: the same of prompts; degrees of freedom by Satterthwaite
        ([[1, 2], [4, 4], [8, 7]], 109 / 6, (53 / 3) ** 2 / ((109 / 6) ** 2 / 2 + 1 / 8)),
        ([[1], [2], [6]], 7, 2),  # one seed: a t interval
    ],
)
def test_intervals_over_prompts_and_seeds(
    values: list[list[float]], mean_square: float, freedom: float
) -> None:
    scores = np.array(values, dtype=float)
    half = stats.t.ppf(0.975, freedom) * (mean_square / scores.size) ** 0.5
    assert tables.interval(scores) == pytest.approx((scores.mean() - half, scores.mean() + half))


def test_a_difference_of_equal_shares_is_not_certain() -> None:
    """A prompt that was won and one that was lost are added to every seed."""
    ones = np.ones((98, 5))
    mean, low, high = tables.difference_of_shares(ones, ones)
    half = stats.t.ppf(0.975, 99) * (5 * 2 / 99 / (100 * 5)) ** 0.5
    assert (mean, low, high) == pytest.approx((0, -half, half))


def test_rows_that_come_with_the_project_are_of_its_recipe() -> None:
    files = sorted(STORED.iterdir())
    assert files
    for file in files:
        method, seed, key = file.name.removesuffix(".json.gz").rsplit("-", 2)
        assert key_of(recipe_of(methods()[method], int(seed))[0])[:12] == key, file.name
        assert json.loads(gzip.decompress(file.read_bytes()))["method"] == method
