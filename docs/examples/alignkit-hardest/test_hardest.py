"""The means by hand, the conformance kit, and a run with a full batch."""

import json
from importlib.metadata import entry_points
from pathlib import Path

import alignkit_hardest
import pytest

from alignkit import Group, Response
from alignkit.cli import main
from alignkit.testing import check_monitor

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_hardest" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_hardest.py")]


def group(name: str, *rewards: float | None) -> Group:
    return Group(
        ({"role": "user", "content": name},),
        tuple(Response(name, scores={"reward": r}) for r in rewards),
        id=name,
    )


def test_means_of_prompts() -> None:
    monitor = alignkit_hardest.Hardest(alignkit_hardest.Hardest.Options())
    seen = monitor.observe(
        1, [group("some", 0, 1, None), group("easy", 1, 1), group("hard", 0, 0)], {}
    )
    assert seen.metrics == {"hardest/share": pytest.approx(1 / 3)}
    monitor.observe(2, [group("hard", 1, 1)], {})
    assert monitor.solved["hard"] == ("hard", 2, 0.5)
    assert monitor.finish("").summary["hardest"][-1] == ("easy", 1, 1.0)


def test_it_conforms() -> None:
    check_monitor(alignkit_hardest.Hardest, {"memory": 0.2})


def test_a_run_fills_its_batch_and_keeps_the_hardest_prompts(tmp_path: Path) -> None:
    assert main(["run", str(HERE / "recipe.yaml"), "--out", str(tmp_path), *PLUGIN]) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "align" / "metrics.jsonl").read_text().splitlines()
    ]
    assert any(row["gen_batches"] > 1 for row in rows) and all(
        "hardest/share" in row for row in rows
    )
    record = json.loads((tmp_path / "align" / "stage.json").read_text(encoding="utf-8"))
    assert "Who wrote this story?" in [words for words, _, _ in record["summary"]["hardest"]]
