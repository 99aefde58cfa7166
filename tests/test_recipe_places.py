"""A mistake that shows only after the recipe was read has the file, line and caret of those that
show before.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from test_bases import make_model

from alignkit.cli import main
from alignkit.models import loading
from tests.rows import Said, write_rows

RECIPE = """\
model: {base: BASE, dtype: float32, lora: {r: 4, lora_alpha: 8}, device: DEVICE}
trackers: [TRACKER]
stages:
  first: {algorithm: sft, data: demos.jsonl, epochs: 1}
"""
STUDENT = "{algorithm: distillation, prompts: demos.jsonl, iterations: 1, reference: REFERENCE}"


def written(
    folder: Path, stage: str = "", base: Path | str = "tiny", device: str = "cpu", tracker: str = ""
) -> Path:
    """A recipe with one stage, or with a second one."""
    write_rows(folder / "demos.jsonl", [{"prompt": "is it?", "completion": "yes"}])
    text = RECIPE.replace("BASE", str(base)).replace("DEVICE", device).replace("TRACKER", tracker)
    (folder / "recipe.yaml").write_text(text + (stage and f"  second: {stage}\n"), encoding="utf-8")
    return folder / "recipe.yaml"


def pointed(path: Path, said: Said, command: str = "run", code: int = 2) -> tuple[str, str]:
    """The error of a command that is refused, and the text of the recipe above its caret."""
    out = ["--out", str(path.parent / "out")] if command == "run" else []
    assert main([command, str(path), *out]) == code
    err = said()
    lines = err.splitlines()
    (at,) = (index for index, line in enumerate(lines) if line.lstrip().startswith("-->"))
    file, line, column = lines[at].split()[1].rsplit(":", 2)
    assert file == str(path)
    source, carets = path.read_text(encoding="utf-8").splitlines()[int(line) - 1], lines[at + 2]
    assert lines[at + 1] == f"{line} | {source}" and carets.strip("^ ") == ""
    return err, source[int(column) - 1 : int(column) - 1 + carets.count("^")]


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_teacher_with_another_tokenizer(command: str, tmp_path: Path, said: Said) -> None:
    base = make_model(tmp_path / "a", 0)
    make_model(tmp_path / "b", 7)
    path = written(tmp_path, STUDENT.replace("REFERENCE", "./b"), base)
    err, place = pointed(path, said, command)
    assert "has another tokenizer" in err and place == "./b"


@pytest.mark.parametrize("device", ["cuda:99", "hpu"])
def test_a_device_that_is_not_here(device: str, tmp_path: Path, said: Said) -> None:
    """Of a kind that this torch knows, or that a package brings."""
    path = written(tmp_path, device=device)
    assert main(["run", str(path), "--out", str(tmp_path / "out")]) == 1
    err = said()
    assert f"'device: {device}': " in err and "help: 'device: auto'" in err and f"{path}:" in err


@pytest.mark.parametrize("command", ["run", "check"])
def test_a_base_that_cannot_be_loaded(
    command: str,
    tmp_path: Path,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = make_model(tmp_path / "broken", 7)
    load = loading.load_text

    def fail(spec: Any, source: Any, revision: Any) -> Any:
        if spec.base == str(broken):
            raise ValueError("it is odd")
        return load(spec, source, revision)

    monkeypatch.setattr(loading, "load_text", fail)
    base = make_model(tmp_path / "a", 0)
    path = written(tmp_path, STUDENT.replace("REFERENCE", str(broken)), base)
    err, place = pointed(path, said, command, code=1)
    assert (
        f"stages.second.reference '{broken}' cannot be loaded with these settings: ValueError: "
        "it is odd" in err
    )
    assert place == str(broken)
    monkeypatch.undo()
    (broken / "config.json").write_text("{}", encoding="utf-8")
    err, place = pointed(path, said, command, code=1)
    assert "its configuration cannot be read" in err and "  help: " in err and place == str(broken)


def test_an_adapter_for_another_base(tmp_path: Path, said: Said) -> None:
    """Where a stage names its folder, however deep, as a path from the recipe's folder."""
    alone = written(tmp_path, base=make_model(tmp_path / "other", 7))
    assert main(["run", str(alone), "--out", str(tmp_path / "other_run")]) == 0
    adapter = "other_run/first/adapter"
    for stage in (
        f"{{algorithm: sft, data: demos.jsonl, from: {adapter}}}",
        f"{{step: evaluate, policies: [base], rewards: [{{folder: {adapter}}}], prompts: demos.jsonl}}",
    ):
        err, place = pointed(written(tmp_path, stage), said)
        assert "stage 'second': " in err and place == adapter


def test_a_judge_without_a_key(tmp_path: Path, said: Said) -> None:
    server = "{base_url: 'http://localhost:9/v1', model: m, api_key_env: NOT_SET_KEY}"
    reward = f"{{rlaif: {{judge: {{openai_judge: {{server: {server}}}}}}}}}"
    path = written(tmp_path, f"{{algorithm: rloo, prompts: demos.jsonl, reward: {reward}}}")
    err, place = pointed(path, said)
    assert "stage 'second': " in err and "NOT_SET_KEY" in err and place == "second"


def test_a_trackers_missing_package(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    err, place = pointed(written(tmp_path, tracker="wandb"), said)
    assert "wandb" in err and place == "wandb"
