"""The model card: a header that the hub reads, the records of the run, how to load the export, and
no folders.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported import export, train
from huggingface_hub import ModelCard

from alignkit.io.atomic import write_json
from alignkit.io.digest import digest
from alignkit.models.adapters import Base
from alignkit_plugins.models.find import Model, find
from alignkit_plugins.policies.export_folder import (
    behind,
    card,
    evaluations,
    portable,
    recipe_text,
)

BASE = Base("tiny", "/models/tiny")


@pytest.fixture
def run(lora_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to change."""
    return Path(shutil.copytree(lora_run, tmp_path / "run", symlinks=True))


def changed(run: Path, stage: str, **values: Any) -> Model:
    """A stage whose record was changed, and stays valid."""
    record = json.loads((run / stage / "stage.json").read_text())
    del record["check"]
    record |= values
    write_json(run / stage / "stage.json", {**record, "check": digest(record)})
    return find(str(run / stage))


def spec_of(run: Path, stage: str = "sft", **keys: Any) -> Model:
    """A stage on a base with other settings."""
    record = json.loads((run / stage / "stage.json").read_text())
    record["depends_on"]["model"] |= keys
    return changed(run, stage, depends_on=record["depends_on"])


@pytest.mark.parametrize(
    ("stage", "form", "library", "task", "tags"),
    [
        ("sft", [], "peft", "text-generation", ["alignkit", "sft"]),
        ("liked", ["--merge"], "transformers", "text-classification", ["alignkit", "reward-model"]),
    ],
)
def test_the_header(
    stage: str,
    form: list[str],
    library: str,
    task: str,
    tags: list[str],
    lora_run: Path,
    tmp_path: Path,
) -> None:
    assert export(lora_run / stage, tmp_path / "out", *form, "--license", "mit") == 0
    found = ModelCard.load(tmp_path / "out" / "README.md")
    data = found.data
    assert (data.library_name, data.pipeline_tag, data.tags) == (
        library,
        task,
        list(dict.fromkeys(tags)),
    )
    assert (data.base_model, data.license, data.datasets) == (None, "mit", None)


def test_bases_and_data_of_the_hub(run: Path) -> None:
    record = json.loads((run / "sft" / "stage.json").read_text())
    record["depends_on"]["settings"]["data"]["sources"] = [
        {"hub": "trl-lib/tldr"},
        {"hub": str(run)},
    ]
    source = changed(run, "sft", depends_on=record["depends_on"])
    text = card(source, "out", BASE, True, None, ["\x1b[31mred"])
    data = ModelCard(text).data
    assert (data.base_model, data.license, data.datasets) == (None, None, ["trl-lib/tldr"])
    assert "\x1b" not in text and "`tiny`, which is not on the hub" in text
    assert "from_pretrained" not in text and "export it with --merge" in text
    hub = ModelCard(card(source, "out", Base("tiny", "me/tiny"), True, None, [])).data
    assert hub.base_model == "me/tiny"


@pytest.mark.silent_bug(
    "export: licenses",
    "A model card names no license of the data that taught its reward model.",
    "The card lists the licenses that rows state, of all data behind the model.",
)
def test_licenses_of_rows_reach_the_card(tmp_path: Path) -> None:
    prompt, answers = [{"role": "user", "content": "bread?"}], {"chosen": "good", "rejected": "bad"}
    rows = [
        {"prompt": prompt, **answers, "license": name}
        for name in ("cc-by-nc-4.0", "cc-by-nc-4.0", "")
    ]
    (tmp_path / "rated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    steps = {"max_steps": 1, "batch_size": 1}
    stages = {
        "liked": {"algorithm": "reward_model", "data": "rated.jsonl", **steps},
        "align": {
            "algorithm": "grpo",
            "prompts": "demos.jsonl",
            "reward": "liked",
            "iterations": 1,
            "batch_size": 1,
        },
    }
    stages["align"]["rollout"] = {"samples_per_prompt": 2, "max_new_tokens": 4}
    source = find(str(train(tmp_path, {}, stages) / "align"))
    text = card(source, "out", BASE, True, None, [])
    assert "- License of rows: `rated.jsonl`: cc-by-nc-4.0 (2 rows), not stated (1 rows)\n" in text
    depends_on = json.loads((tmp_path / "run" / "liked" / "stage.json").read_text())["depends_on"]
    depends_on["settings"]["data"]["sources"] = [{"hub": "trl-lib/tldr"}]
    changed(tmp_path / "run", "liked", depends_on=depends_on)
    text = card(source, "out", BASE, True, None, [])
    assert ModelCard(text).data.datasets == ["trl-lib/tldr"]


def test_stages(run: Path) -> None:
    liked = find(str(run / "liked"))
    assert list(behind(run, "liked", liked.record)) == ["sft", "liked"]


def test_evaluations(run: Path) -> None:
    """Tables with intervals, without the answers; only of this result."""
    (text,) = evaluations(find(str(run / "sft")))
    assert text.startswith("### report\n")
    assert re.search(r"\| liked \| -?\d[\d.]* \[-?[\d.]+, -?[\d.]+\] \| -?\d[\d.]* \[", text)
    assert "```" not in text and "bread is good" not in text
    assert len(evaluations(find(str(run / "liked")))) == 1  # it judged
    assert evaluations(changed(run, "sft", hash="1" * 64)) == []


@pytest.mark.silent_bug(
    "export: templates",
    "A served model gets other template arguments than in training.",
    "The model card names them.",
    "ggml-org/llama.cpp#13160",
)
def test_how_conversations_were_rendered(run: Path) -> None:
    source = spec_of(run, chat_template_kwargs={"enable_thinking": False})
    text = card(source, "out", BASE, True, None, [])
    assert "`{'enable_thinking': False}`" in text
    assert "logits without a sigmoid" not in text


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/data/rows.jsonl", "rows.jsonl"),
        ("~/rows.jsonl", "rows.jsonl"),
        ("run /home/me/tool.py --fast", "run tool.py --fast"),
        ("http://host:80/v1/chat", "http://host:80/v1/chat"),
        ("HuggingFaceTB/SmolLM2", "HuggingFaceTB/SmolLM2"),
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
    text = yaml.safe_load(recipe_text(run))
    assert text["stages"]["sft"]["data"] == "demos.jsonl" and text["description"] == "with ***"
