"""`alignkit verify`: equal results are confirmed; of others the first difference and its likely
cause are named.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from alignkit.cli import main
from alignkit.errors import NotReproduced
from alignkit.io.results import manifest, read_record, write_record
from tests.ai_feedback.judge_server import serving
from tests.ai_feedback.test_openai_judge import honest
from tests.rows import Said, read_rows, run, write_recipe, write_rows


def verify(target: Path) -> int:
    return main(["verify", str(target)])


def changed(stage: Path, line: int, **values: Any) -> Path:
    """Let a line of a stage's metrics have other values."""
    rows = read_rows(stage / "metrics.jsonl")
    rows[line] |= values
    write_rows(stage / "metrics.jsonl", rows)
    write_record(stage, {**read_record(stage), "files": manifest(stage)})
    return stage


def contents(folder: Path) -> dict[Path, Any]:
    """Bytes and times of all files in a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_run_is_reproduced_and_not_touched(house_copy: Path, printed: Said) -> None:
    changed(house_copy / "sft", 0, time=0.0, tokens_per_second=1.0)
    before = contents(house_copy.parent)
    assert verify(house_copy) == 0
    lines = printed().splitlines()
    stages = ("sft", "liked", "dpo", "ppo", "online", "report")
    assert lines == [f"{name}: equal" for name in stages]
    assert contents(house_copy.parent) == before


def test_the_first_difference_is_named_with_its_size(
    house_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = house_copy / "sft"
    weights = stage / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[min(tensors)][0, 0] += 0.5
    save_file(tensors, weights, {"format": "pt"})
    (stage / "more.txt").touch()
    assert verify(changed(stage, 1, loss=1000.0, time=0.0)) == NotReproduced.exit_code == 7
    out, err = capsys.readouterr()
    first, *lines = out.splitlines()
    assert first == "sft: DIFFERENT" and "error: not reproduced: sft" in err
    assert lines[0] == "  adapter/adapter_model.safetensors: other bytes"
    assert lines[1].startswith("  metrics.jsonl: line 2.loss: 1000.0 -> ")
    assert lines[2] == "  more.txt: only in one of the two"
    assert lines[3] == "  different here: nothing that the record knows, so perhaps the machine"


def test_the_likely_causes_are_named(house_copy: Path, printed: Said) -> None:
    stage = changed(house_copy / "sft", 0, step=9)
    record = read_record(stage)
    del record["files"]["adapter/adapter_config.json"]
    text = json.dumps(record)
    for old in ('"torch": "', '"sft.py": "'):
        text = text.replace(old, f"{old}0")
    write_record(stage, json.loads(text))
    assert verify(stage) == 7
    differences, _, causes = printed().rpartition("different here: ")
    assert "  adapter/adapter_config.json: only in one of the two\n" in differences
    assert "versions.torch: 0" in causes and "source.sft.py" in causes


def test_replies_that_are_not_stored_are_not_asked_for(tmp_path: Path, said: Said) -> None:
    write_rows(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "2", "rejected": "1"}])
    with serving(honest) as server:
        judge = f"{{openai_judge: {{server: {{base_url: '{server.url}', model: m}}}}}}"
        stage = f"labels: {{step: judge_pairs, data: pairs.jsonl, judge: {judge}}}"
        labels = run(write_recipe(tmp_path, stage)) / "labels"
        asked = len(server.requests)
        assert verify(labels) == 0
        (tmp_path / "run" / "cache" / "openai_judge.sqlite").unlink()
        before = sorted(tmp_path.iterdir())
        assert verify(labels) == 6 and len(server.requests) == asked > 0
    err = said()
    assert "replies are not stored" in err and "nothing is asked or paid for here" in err
    assert sorted(tmp_path.iterdir()) == before
