"""Which keys of a data source are allowed where: a held-out share, weights, and the parts of a hub
data set.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest

from alignkit.data.sources import DataSpec
from alignkit.errors import RecipeError, no_disk
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe

PROBLEMS = """\
{algorithm: rloo, reward: length, prompts: SPLIT}            s.prompts: 'validation' holds out rows
{algorithm: rloo, reward: length, prompts: [p.jsonl, SPLIT]}  s.prompts: 'validation' holds out rows
{step: evaluate, policies: [base], rewards: [length], prompts: SPLIT}  part: [0.2, 1]
{algorithm: sft, data: p.jsonl, validation: SPLIT}           s.validation: 'validation' holds out rows
{algorithm: sft, data: p.jsonl, mix: {data: SPLIT, weight: 1, objective: sft}}  s.mix.data: 'validation'
{algorithm: sftt, data: SPLIT}                               no algorithm 'sftt'
{algorithm: sft, data: {path: p.jsonl, part: [0.6, 0.2]}}    is no share
{algorithm: sft, data: {path: p.jsonl, part: [0.2, 1.5]}}    is no share
{algorithm: sft, data: {path: p.jsonl, part: [0.2, 1], validation: 0.2}}  leave one of them out
{algorithm: sft, data: {path: p.jsonl, name: main, split: test}}  only a hub data set has 'name'
{algorithm: sft, data: ~/none.jsonl}                         looked in /
{algorithm: sft, data: pipe.jsonl}                           this is a pipe or a device
"""


def recipe(folder: Path, stage: str) -> Recipe:
    (folder / "p.jsonl").write_text('{"prompt": "q", "completion": "a"}\n', encoding="utf-8")
    stage = stage.replace("SPLIT", "{path: p.jsonl, validation: 0.2}")
    text = f"model: {{base: tiny}}\nstages:\n  s: {stage}\n"
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "recipe.yaml")


@pytest.mark.parametrize("line", PROBLEMS.splitlines())
def test_which_keys_of_a_source_are_allowed_where(tmp_path: Path, line: str) -> None:
    """Rows are held out only where something reads them; an unknown algorithm is the only
    mistake.
    """
    os.mkfifo(tmp_path / "pipe.jsonl")
    stage, said = re.split("   *", line)
    with pytest.raises(RecipeError) as error:
        recipe(tmp_path, stage)
    (problem,) = error.value.problems
    assert said in str(problem) and problem.line == 3


def test_a_source_that_something_reads_may_hold_out_rows(tmp_path: Path) -> None:
    assert recipe(tmp_path, "{algorithm: sft, data: SPLIT}")


def test_the_keys_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of data files is found from the recipe."""
    hub = "{hub: openai/gsm8k, name: main, revision: v1, data_files: [a.csv], limit: 3}"
    settings = recipe(tmp_path, f"{{algorithm: sft, data: {hub}}}").stages["s"].settings
    assert settings is not None and isinstance(settings.data, DataSpec)
    [source] = settings.data.sources
    assert (source.hub, source.config, source.revision) == ("openai/gsm8k", "main", "v1")
    assert (source.data_files, source.limit) == (["a.csv"], 3)
    assert source.name == "openai/gsm8k/main[train]"
    (tmp_path / "set").mkdir()
    monkeypatch.chdir("/")
    settings = recipe(tmp_path, "{algorithm: sft, data: {hub: set}}").stages["s"].settings
    assert settings is not None and settings.data.sources[0].hub == str(tmp_path / "set")


def test_a_drive_that_fails_is_named() -> None:
    found = no_disk(OSError(errno.EIO, "Input/output error", "rows.jsonl"))
    assert "] Input/output error: 'rows.jsonl'" in str(found)
