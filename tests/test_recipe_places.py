"""A mistake that shows only after the recipe was read has the file, line and caret of those that
show before.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_bases import make_model

from alignkit.cli import main
from alignkit.models import loading

SMALL: dict[str, Any] = {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}}
SFT: dict[str, Any] = {"algorithm": "sft", "data": "demos.jsonl"}
STUDENT: dict[str, Any] = {"algorithm": "distillation", "prompts": "demos.jsonl", "iterations": 1}


def written(folder: Path, stages: dict[str, Any], **keys: Any) -> Path:
    (folder / "demos.jsonl").write_text(
        json.dumps({"prompt": "is it?", "completion": "yes"}), encoding="utf-8"
    )
    path = folder / "recipe.yaml"
    recipe = json.loads(json.dumps({"model": SMALL, **keys, "stages": stages}))  # without aliases
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def pointed(
    path: Path, capsys: pytest.CaptureFixture[str], command: str = "run", code: int = 2
) -> tuple[str, str]:
    """The error of a command that is refused, and the text of the recipe above its caret."""
    out = ["--out", str(path.parent / "out")] if command == "run" else []
    assert main([command, str(path), *out]) == code
    err = capsys.readouterr().err
    lines = err.splitlines()
    (at,) = (index for index, line in enumerate(lines) if line.lstrip().startswith("-->"))
    file, line, column = lines[at].split()[1].rsplit(":", 2)
    assert file == str(path)
    source, carets = path.read_text(encoding="utf-8").splitlines()[int(line) - 1], lines[at + 2]
    assert lines[at + 1] == f"{line} | {source}" and carets.strip("^ ") == ""
    return err, source[int(column) - 1 : int(column) - 1 + carets.count("^")]


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_teacher_with_another_tokenizer(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {**SMALL, "base": str(make_model(tmp_path / "a", 0))}
    make_model(tmp_path / "b", 7)
    path = written(tmp_path, {"student": STUDENT | {"reference": "./b"}}, model=model)
    err, place = pointed(path, capsys, command)
    assert "has another tokenizer" in err and place == "./b"


@pytest.mark.parametrize("device", ["cuda:99", "hpu"])
def test_a_device_that_is_not_here(
    device: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a kind that this torch knows, or that a package brings."""
    path = written(tmp_path, {"student": SFT}, model=SMALL | {"device": device})
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert f"'device: {device}': " in err and "help: 'device: auto'" in err and f"{path}:" in err


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_base_that_cannot_be_loaded(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = make_model(tmp_path / "broken", 7)
    load = loading.load_text

    def fail(spec: Any, source: Any, revision: Any) -> Any:
        if spec.base == str(broken):
            raise ValueError("it is odd")
        return load(spec, source, revision)

    monkeypatch.setattr(loading, "load_text", fail)
    model = {**SMALL, "base": str(make_model(tmp_path / "a", 0))}
    path = written(tmp_path, {"student": STUDENT | {"reference": str(broken)}}, model=model)
    err, place = pointed(path, capsys, command, code=1)
    assert (
        f"stages.student.reference '{broken}' cannot be loaded with these settings: ValueError: "
        "it is odd" in err
    )
    assert place == str(broken)
    monkeypatch.undo()
    (broken / "config.json").write_text("{}", encoding="utf-8")
    err, place = pointed(path, capsys, command, code=1)
    assert "its configuration cannot be read" in err and "  help: " in err and place == str(broken)


def test_an_adapter_for_another_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where a stage names its folder, however deep, as a path from the recipe's folder."""
    other = make_model(tmp_path / "other", 7)
    alone = written(tmp_path, {"sft": SFT | {"epochs": 1}}, model=SMALL | {"base": str(other)})
    assert main(["run", str(alone), "--out", str(tmp_path / "first")]) == 0
    for stage in (
        SFT | {"from": "first/sft/adapter"},
        {
            "step": "evaluate",
            "policies": ["base"],
            "rewards": [{"folder": "first/sft/adapter"}],
            "limit": 1,
        }
        | {"prompts": "demos.jsonl"},
    ):
        path = written(tmp_path, {"again": stage})
        err, place = pointed(path, capsys)
        assert "stage 'again': " in err and place == "first/sft/adapter"


def test_a_judge_without_a_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = {
        "openai_judge": {
            "server": {
                "base_url": "http://localhost:9/v1",
                "model": "m",
                "api_key_env": "NOT_SET_KEY",
            }
        }
    }
    stage = {"algorithm": "rloo", "prompts": "demos.jsonl", "reward": {"rlaif": {"judge": judge}}}
    path = written(tmp_path, {"first": SFT, "align": stage})
    err, place = pointed(path, capsys)
    assert "stage 'align': " in err and "NOT_SET_KEY" in err and place == "align"


def test_a_trackers_missing_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    path = written(tmp_path, {"sft": SFT}, trackers=["wandb"])
    err, place = pointed(path, capsys)
    assert "wandb" in err and place == "wandb"
