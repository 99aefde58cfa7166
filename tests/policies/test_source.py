"""Finding the model to export: each wrong name has an error with the nearest right ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from exported import train

from alignkit.errors import RecipeError, RunFailed
from alignkit_plugins.models.find import find


@pytest.fixture
def run(lora_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to damage."""
    return Path(shutil.copytree(lora_run, tmp_path / "runs" / "mine", symlinks=True))


def message(text: str | Path) -> str:
    """What is said of a name that cannot be exported."""
    with pytest.raises((RecipeError, RunFailed)) as raised:
        find(str(text))
    return str(raised.value)


def test_wrong_names(run: Path) -> None:
    assert "kept versions: 1" in message(f"{run / 'sft'}@7")
    assert "stages with a model: liked, sft" in message(run / "policy")
    assert f"did you mean '{run.parent / 'mine'}'?" in message(run.parent / "mime" / "sft")


def test_a_step(run: Path) -> None:
    text = message(run / "report")
    assert "stage 'report'" in text and "is a step (evaluate) and has no model" in text
    assert "stages with a model: liked, sft" in text


def test_a_stage_that_is_not_finished(run: Path) -> None:
    from alignkit.io.results import Results

    Results(run).begin("sft", "0" * 64, {})
    text = message(run / "sft")
    assert "stage 'sft'" in text and "is not finished" in text and "it resumes" in text


def test_damaged_weights(run: Path) -> None:
    file = run / "sft" / "adapter" / "adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert "adapter_model.safetensors is not as the stage wrote it" in message(run / "sft")


def test_a_damaged_record(run: Path) -> None:
    (run / "sft" / "stage.json").write_text(json.dumps({"complete": True}))
    assert "stage.json is missing or damaged" in message(run / "sft")


def test_a_step_that_selected_a_policy(tmp_path: Path) -> None:
    stages = {
        "sft": {"algorithm": "sft", "data": "demos.jsonl", "epochs": 2, "keep_versions": True},
        "best": {
            "step": "select_best",
            "policies": ["sft@1", "sft@2"],
            "reward": "length",
            "prompts": "demos.jsonl",
        },
    }
    run = train(tmp_path, {}, stages)
    selected = find(str(run / "best"))
    assert selected.name in ("sft@1", "sft@2")
    assert selected.folder is not None and selected.folder.parent.name == "kept"
