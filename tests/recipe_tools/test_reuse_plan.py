"""What has changed since the last run is named, and a run's plan is shown without running
anything.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from alignkit import cli
from alignkit_plugins.cells.changes import change_in_words, changes
from tests.rows import write_recipe

OLD = """
{settings: {epochs: 2, data: [{path: DIGEST}]}, component: {options: {beta: 0.1}},
 versions: {torch: 2.12.0}, upstream: {sft: DIGEST}, seed: 1, date: null}
""".replace("DIGEST", "a" * 64)
CHANGES = """\
epochs: 2 -> 3
data.0.path has changed
beta: 0.1 -> not set
versions.torch: 2.12.0 -> 2.13.0
upstream.sft has changed"""


def test_differences() -> None:
    new = OLD.replace("a" * 64, "b" * 64).replace("epochs: 2", "epochs: 3")
    new = new.replace("2.12", "2.13").replace("{beta: 0.1}", "{}")
    found = changes(yaml.safe_load(OLD), yaml.safe_load(new))
    assert "\n".join(map(change_in_words, found)) == CHANGES


@pytest.mark.silent_bug(
    "resume: data",
    "After a change of the data set, its first rows are skipped.",
    "The stage starts over and says why.",
    "NVIDIA-NeMo/RL#2519",
)
def test_a_run_and_its_preview_say_what_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    stage = {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 1}
    recipe = write_recipe(tmp_path, {"one": stage, "two": {**stage, "from": "one"}}, name="r")
    rows = tmp_path / "demos.jsonl"
    monkeypatch.chdir(tmp_path)

    def planned(*overrides: str) -> list[str]:
        capsys.readouterr()
        assert cli.main(["check", str(recipe), *overrides]) == 0
        return re.findall("^((?:one|two): .*)", capsys.readouterr().out, re.MULTILINE)

    def ran(*overrides: str) -> str:
        assert cli.main(["run", str(recipe), *overrides]) == 0
        return capsys.readouterr().err

    assert planned() == [] and not (tmp_path / "runs").exists()
    ran()
    assert planned() == ["one: reused", "two: reused"]
    change = "stages.one.learning_rate=0.003"
    assert cli.main(["check", str(recipe), "--plan", "stages.two.max_steps=2"]) == 0
    out = capsys.readouterr().out
    assert "one: reused" in out and re.findall("^(one|two) +sft", out, re.MULTILINE) == ["two"]
    what = "(learning_rate: not set -> 0.003)"
    assert planned(change) == [f"one: starts over {what}", "two: starts over (one has changed)"]
    assert f"one: changed since the last run {what}, starting over" in ran(change)
    assert planned() == ["one: an earlier result is restored", "two: an earlier result is restored"]
    err = ran()
    assert err.count("restored an earlier result for these settings") == 2
    assert err.count("unchanged, reused") == 2
    weights = Path("runs") / "r" / "one" / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert planned()[0] == f"one: runs again, because {weights} is not as the stage wrote it"
    assert "is not as the stage wrote it; the stage runs again" in ran()
    assert planned() == ["one: reused", "two: reused"]
    made = Path("runs/r/two").resolve()
    work = made.parents[1] / ".work" / made.name
    made.rename(work)
    assert planned() == ["one: reused", "two: continues"]
    work.rename(made)
    rows.write_text(rows.read_text(encoding="utf-8") * 2, encoding="utf-8")
    assert planned()[0] == "one: starts over (data: the file has changed)"
