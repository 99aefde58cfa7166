"""What a card knows of a run: stages, data with licenses, evaluations of this very result, and no folders."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignkit.io.atomic import write_json
from alignkit.io.digest import digest, file_digest
from alignkit_apps.export.provenance import (
    base_license,
    differs,
    evaluations,
    licensed,
    lineage,
    portable,
    recipe_of,
    recipe_text,
)
from alignkit_apps.policies.source import find


@pytest.fixture
def run(lora_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to change."""
    return Path(shutil.copytree(lora_run, tmp_path / "run"))


def change(run: Path, stage: str, **values: Any) -> None:
    """Change a stage's record, which stays valid."""
    record = json.loads((run / stage / "stage.json").read_text())
    del record["check"]
    record |= values
    write_json(run / stage / "stage.json", {**record, "check": digest(record)})


def test_stages(run: Path) -> None:
    first, second = lineage(find(str(run / "liked")), recipe_of(run))
    assert (first.name, first.method, first.start) == ("sft", "sft", "the base model")
    assert (second.name, second.method, second.start) == ("liked", "reward_model", "sft")
    assert first.settings["learning_rate"] == 0.02 and first.settings["batch_size"] == 1
    assert second.settings["center_coefficient"] == 0.01 and second.settings["seed"] == 0
    assert "iterations" not in first.settings  # which only online stages have
    assert first.results["groups"] == 3 and not first.changed


def test_a_stage_that_was_trained_again_since(run: Path) -> None:
    change(run, "sft", hash="1" * 64)
    first, second = lineage(find(str(run / "liked")), None)
    assert first.changed and not second.changed


def test_data(run: Path, lora_run: Path) -> None:
    (facts,) = lineage(find(str(run / "sft")), recipe_of(run))[0].data
    assert (facts.use, facts.name, facts.rows) == ("data", "demos.jsonl", "3")
    assert (facts.license, facts.origin) == ("MIT", "a friend | of ours")
    assert facts.digest == file_digest(lora_run.parent / "demos.jsonl")


def test_data_that_are_gone(run: Path) -> None:
    (run / "recipe.resolved.yaml").write_text("model: {base: tiny}\nstages: {sft: {algorithm: sft, data: gone.jsonl}}")
    assert recipe_of(run) is None
    (facts,) = lineage(find(str(run / "sft")), None)[0].data
    assert facts.name == "a file" and facts.digest


def test_hub_data(run: Path) -> None:
    source = {"hub": "trl-lib/tldr", "split": "train", "limit": 5}
    record = json.loads((run / "sft" / "stage.json").read_text())
    record["depends_on"]["settings"]["data"]["sources"] = [source, {"hub": str(run)}, {"stage": "made"}]
    change(run, "sft", depends_on=record["depends_on"])
    one, two, three = lineage(find(str(run / "sft")), None)[0].data
    assert (one.hub, one.name, one.rows) == ("trl-lib/tldr", "trl-lib/tldr, train", "at most 5")
    assert (two.hub, two.name) == (None, "run") and three.name == "made by stage made"


def test_licenses_of_our_own_data() -> None:
    data = Path(__file__).parents[3] / "recipes" / "data"
    assert licensed(data / "helpful.jsonl.gz")[0] == "MIT"
    assert licensed(data / "rankings.jsonl")[0] == "Apache-2.0; Apache-2.0"
    assert licensed(data / "LICENSES.md") == ("", "")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"README.md": "---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n"}, "apache-2.0"),
        ({"README.md": "# A model\nlicense: mit\n"}, None),
        ({"alignkit_source.json": '{"license": "Apache-2.0"}'}, "apache-2.0"),
        ({"alignkit_source.json": "not JSON"}, None),
        ({}, None),
    ],
)
def test_the_license_of_a_base(files: dict[str, str], expected: str | None, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert base_license(tmp_path) == expected
    assert base_license(None) is None


def test_evaluations(run: Path) -> None:
    """Tables with intervals, without the answers; only of this result."""
    (title, text), *more = evaluations(find(str(run / "sft")))
    assert title == "report" and more == []
    assert re.search(r"\| liked \| -?\d[\d.]* \[-?[\d.]+, -?[\d.]+\] \| -?\d[\d.]* \[", text)
    assert "```" not in text and "bread is good" not in text
    assert evaluations(find(str(run / "liked")))[0][0] == "report"  # it judged
    change(run, "sft", hash="1" * 64)
    assert evaluations(find(str(run / "sft"))) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/data/rows.jsonl", "rows.jsonl"),
        ("~/rows.jsonl", "rows.jsonl"),
        ("/data", "data"),
        ("run /home/me/tool.py --fast", "run tool.py --fast"),
        ("http://host:80/v1/chat", "http://host:80/v1/chat"),
        ("HuggingFaceTB/SmolLM2", "HuggingFaceTB/SmolLM2"),
        ("a/b/c.jsonl", "a/b/c.jsonl"),
        ("<s>{{ x }}</s>", "<s>{{ x }}</s>"),
        ({"a": ["/x/y", 1]}, {"a": ["y", 1]}),
    ],
)
def test_paths_lose_their_folders(value: Any, expected: Any) -> None:
    assert portable(value) == expected


def test_the_recipe(run: Path, lora_run: Path) -> None:
    plain = yaml.safe_load((run / "recipe.resolved.yaml").read_text())
    assert plain["stages"]["sft"]["data"] == str(lora_run.parent / "demos.jsonl")
    plain["description"] = "with hf_" + "Ab1" * 12
    (run / "recipe.resolved.yaml").write_text(yaml.safe_dump(plain))
    text = recipe_text(find(str(run / "sft")), changed=False)
    assert yaml.safe_load(text)["stages"]["sft"]["data"] == "demos.jsonl"
    assert yaml.safe_load(text)["description"] == "with ***"
    assert "was changed after" not in text
    assert "It was changed after stage 'sft' was trained" in recipe_text(find(str(run / "sft")), changed=True)


def test_a_recipe_that_was_changed_since(run: Path) -> None:
    source = find(str(run / "sft"))
    assert not differs(source, recipe_of(run)) and not differs(source, None)
    assert not differs(find(str(run / "liked")), recipe_of(run))
    plain = yaml.safe_load((run / "recipe.resolved.yaml").read_text())
    plain["stages"]["sft"]["max_length"] = 99
    (run / "recipe.resolved.yaml").write_text(yaml.safe_dump(plain))
    assert differs(source, recipe_of(run))
