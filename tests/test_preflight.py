"""Before the first stage: data that can teach nothing are reported, so that no training is wasted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.errors import DataError
from alignkit.recipe.load import load_recipe
from alignkit.runs.preflight import check_data
from alignkit.runs.run import Run


def checked(folder: Path, data: Any, algorithm: str = "dpo") -> None:
    rows = [{"prompt": f"is it {n}?", "completion": "yes"} for n in range(3)]
    (folder / "demos.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "pairs.jsonl").write_text(
        json.dumps({"prompt": "is it?", "chosen": "yes", "rejected": "no"}), encoding="utf-8"
    )
    judged = {
        "step": "judge_pairs",
        "judge": {"local_judge": {"role": "base"}},
        "prompts": "demos.jsonl",
        "policy": "base",
    }
    stages = {"labels": judged, "align": {"algorithm": algorithm, "from": "base", "data": data}}
    text = yaml.safe_dump({"name": "small", "model": {"base": "tiny"}, "stages": stages}, sort_keys=False)
    (folder / "small.yaml").write_text(text, encoding="utf-8")
    recipe = load_recipe(folder / "small.yaml")
    run = Run(recipe, folder / "out")
    check_data(list(recipe.stages.values()), lambda stage, spec: run.load(spec, 0))


@pytest.mark.parametrize("algorithm", ["dpo", "reward_model"])
def test_data_without_pairs_are_reported(tmp_path: Path, algorithm: str) -> None:
    with pytest.raises(DataError, match=r"stage 'align': \w+ learns from pairs .* no row of .*demos.jsonl has a pair"):
        checked(tmp_path, "demos.jsonl", algorithm)


def test_one_source_with_a_pair_is_enough(tmp_path: Path) -> None:
    checked(tmp_path, ["demos.jsonl", "pairs.jsonl"])
    checked(tmp_path, "demos.jsonl", "sft")


def test_a_stage_may_produce_the_pairs_that_files_lack(tmp_path: Path) -> None:
    checked(tmp_path, ["demos.jsonl", {"stage": "labels"}])


def test_a_bad_row_is_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "is it?", "chosen": "yes"}', encoding="utf-8")
    with pytest.raises(DataError, match=r"bad\.jsonl"):
        checked(tmp_path, ["pairs.jsonl", "bad.jsonl"])
