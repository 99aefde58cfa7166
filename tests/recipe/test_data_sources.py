"""Which keys of a data source are allowed where: a held-out share, weights, and the parts of a hub
data set.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.data.sources import DataSpec
from alignkit.errors import RecipeError, no_disk
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import Recipe

SPLIT = {"path": "p.jsonl", "validation": 0.2}
ONLINE = {"algorithm": "rloo", "reward": "length"}
EVALUATE = {"step": "evaluate", "policies": ["base"], "rewards": ["length"]}


def recipe(folder: Path, **stages: dict[str, Any]) -> Recipe:
    (folder / "p.jsonl").write_text('{"prompt": "q", "completion": "a"}\n')
    (folder / "recipe.yaml").write_text(
        yaml.safe_dump({"model": {"base": "tiny"}, "stages": stages})
    )
    return load_recipe(folder / "recipe.yaml")


def problems(folder: Path, **stages: dict[str, Any]) -> str:
    with pytest.raises(RecipeError) as error:
        recipe(folder, **stages)
    return str(error.value)


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ({**ONLINE, "prompts": SPLIT}, "prompts"),
        ({**ONLINE, "prompts": ["p.jsonl", SPLIT]}, "prompts"),
        ({**EVALUATE, "prompts": SPLIT}, "prompts"),
        ({"algorithm": "sft", "data": "p.jsonl", "validation": SPLIT}, "validation"),
        (
            {
                "algorithm": "sft",
                "data": "p.jsonl",
                "mix": {"data": SPLIT, "weight": 1, "objective": "sft"},
            },
            "mix.data",
        ),
    ],
)
def test_rows_are_held_out_only_where_something_reads_them(
    tmp_path: Path, stage: dict[str, Any], key: str
) -> None:
    text = problems(tmp_path, s=stage)
    assert (
        f"s.{key}: 'validation' holds out rows that nothing would read here" in text
        and "part: [0.2, 1]" in text
    )
    recipe(tmp_path, s={"algorithm": "sft", "data": SPLIT})


def test_an_unknown_algorithm_is_the_only_mistake(tmp_path: Path) -> None:
    text = problems(tmp_path, s={"algorithm": "sftt", "data": SPLIT})
    assert "no algorithm 'sftt'" in text and "validation" not in text


def test_a_part_is_a_share(tmp_path: Path) -> None:
    for part in ([0.6, 0.2], [0.2, 1.5]):
        text = problems(tmp_path, s={"algorithm": "sft", "data": {"path": "p.jsonl", "part": part}})
        assert "is no share" in text
    both = {"path": "p.jsonl", "part": [0.2, 1], "validation": 0.2}
    assert "leave one of them out" in problems(tmp_path, s={"algorithm": "sft", "data": both})


def test_the_keys_of_a_hub_data_set(tmp_path: Path) -> None:
    hub = {"hub": "openai/gsm8k", "name": "main", "revision": "v1", "data_files": ["a.csv"]}
    settings = (
        recipe(tmp_path, s={"algorithm": "sft", "data": {**hub, "limit": 3}}).stages["s"].settings
    )
    assert settings is not None and isinstance(settings.data, DataSpec)
    [source] = settings.data.sources
    assert (source.hub, source.config, source.revision) == ("openai/gsm8k", "main", "v1")
    assert (source.data_files, source.limit) == (["a.csv"], 3)
    assert source.name == "openai/gsm8k/main[train]"
    text = problems(
        tmp_path,
        s={"algorithm": "sft", "data": {"path": "p.jsonl", "name": "main", "split": "test"}},
    )
    assert "only a hub data set has 'name'" in text


def test_a_folder_of_data_files_is_found_from_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    monkeypatch.chdir("/")
    settings = recipe(tmp_path, s={"algorithm": "sft", "data": {"hub": "set"}}).stages["s"].settings
    assert settings is not None and settings.data.sources[0].hub == str(tmp_path / "set")


@pytest.mark.parametrize(
    ("written", "message", "help"),
    [
        ("~/none.jsonl", "no such file", "looked in /"),
        ("pipe.jsonl", "pipe.jsonl: this is a pipe or a device", "recipe.yaml:"),
    ],
)
def test_a_path_that_is_no_file(tmp_path: Path, written: str, message: str, help: str) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    text = (
        "name: a\n"
        f"model: {{base: tiny}}\n"
        "stages:\n"
        "  sft:\n"
        "    algorithm: sft\n"
        f"    data: {written}\n"
    )
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "recipe.yaml")
    assert message in str(error.value) and help in str(error.value)


def test_a_drive_that_fails_is_named() -> None:
    found = no_disk(OSError(errno.EIO, "Input/output error", "rows.jsonl"))
    assert "] Input/output error: 'rows.jsonl'" in str(found)
