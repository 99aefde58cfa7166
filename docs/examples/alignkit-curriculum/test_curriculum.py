"""The draws by hand, the conformance kit, a run with a full batch, its report, and one that is resumed."""

import json
import shutil
from importlib.metadata import entry_points
from pathlib import Path

import alignkit_curriculum
import numpy as np
import pytest

from alignkit import Group, Response, RunFailed
from alignkit.cli import main
from alignkit.testing import check_monitor

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_curriculum" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_curriculum.py")]


def group(name: str, *rewards: float | None) -> Group:
    return Group(
        ({"role": "user", "content": name},), tuple(Response(name, scores={"reward": r}) for r in rewards), id=name
    )


def test_prompts_that_are_solved_now_and_then_come_first() -> None:
    """Means 1/2, 1, 0 and none: weights 0.25, 0, 0 and 0.25, each with the floor."""
    monitor = alignkit_curriculum.Curriculum(alignkit_curriculum.Curriculum.Options(floor=0.05))
    seen = monitor.look(1, [group("some", 0, 1, None), group("easy", 1, 1), group("hard", 0, 0)], None)
    assert seen.metrics == {"curriculum/hard": pytest.approx(1 / 3)}
    prompts = [group(name) for name in ("some", "easy", "hard", "new")]
    orders = [monitor.next_prompts(2, prompts, np.random.default_rng(seed)) for seed in range(2000)]
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    first = np.bincount([order[0] for order in orders], minlength=4) / len(orders)
    np.testing.assert_allclose(first, np.array([0.3, 0.05, 0.05, 0.3]) / 0.7, atol=0.04)
    monitor.look(2, [group("hard", 1, 1)], None)
    assert monitor.solved["hard"] == ("hard", 2, 0.5)


def test_it_conforms() -> None:
    check_monitor(alignkit_curriculum.Curriculum, {"floor": 0.2})


def rollouts(run: Path) -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((run / "align" / "rollouts").glob("*.jsonl"))]


def test_a_run_fills_its_batch_and_reports_its_curriculum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALIGNKIT_REPORT", raising=False)
    assert main(["run", str(HERE / "recipe.yaml"), "--out", str(tmp_path), *PLUGIN]) == 0
    rows = [json.loads(line) for line in (tmp_path / "align" / "metrics.jsonl").read_text().splitlines()]
    assert any(row["gen_batches"] > 1 for row in rows) and all("curriculum/hard" in row for row in rows)
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "align: the hardest prompts" in text and "Who wrote this story?" in text
    (part,) = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["parts"]
    assert part["title"] == "Curriculum"


STOPS = """
import os
from alignkit import hookimpl

@hookimpl
def checkpoint_saved(run, path):
    if path.endswith("2") and os.environ.get("STOP"):
        run.request_stop("a test")
"""


def test_a_resumed_run_asks_the_same_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stops.py").write_text(STOPS, encoding="utf-8")
    monkeypatch.setenv("ALIGNKIT_REUSE", "0")
    words = [
        "run",
        str(HERE / "recipe.yaml"),
        "stages.align.iterations=3",
        *PLUGIN,
        "--plugin",
        str(tmp_path / "stops.py"),
        "--out",
    ]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*words, str(whole)]) == 0
    monkeypatch.setenv("STOP", "1")
    assert main([*words, str(stopped)]) == 75
    monkeypatch.delenv("STOP")
    torn = shutil.copytree(stopped, tmp_path / "torn", symlinks=True)
    assert main([*words, str(stopped)]) == 0
    assert rollouts(stopped) == rollouts(whole)
    adapter = Path("align", "adapter", "adapter_model.safetensors")
    assert (stopped / adapter).read_bytes() == (whole / adapter).read_bytes()
    # Without what it has seen, it would choose other prompts.
    (torn / "align" / "rollouts" / "0002.jsonl").unlink()
    assert main([*words, str(torn)]) == RunFailed.exit_code
