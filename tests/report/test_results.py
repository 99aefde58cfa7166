"""`alignkit show` lists what a run's folder holds, and deletes what the recipe does not use."""

from pathlib import Path

import pytest

from alignkit import cli
from alignkit.io.results import Results, damage_of
from alignkit_plugins.report.show import pruned, results_table
from tests.rows import Said


@pytest.fixture
def store(tmp_path: Path) -> Results:
    """Three results of `sft`, one of them damaged, and an interrupted `align`."""
    store = Results(tmp_path)
    (tmp_path / "recipe.resolved.yaml").write_text(
        "stages: {sft: {algorithm: sft}, align: {algorithm: ppo}}\n"
    )
    for stage_hash in ("1" * 64, "2" * 64, "3" * 64):
        store.begin("sft", stage_hash, {})
        folder = (tmp_path / "sft").resolve()
        (folder / "adapter").mkdir()
        (folder / "adapter" / "weights").write_bytes(bytes(1_600_000))
        store.finish("sft", {"hash": stage_hash, "complete": True, "plugin": "sft"})
        if stage_hash.startswith("2"):
            (store.folder / "sft" / "adapter" / "weights").unlink()
    store.begin("align", "4" * 64, {})
    return store


LISTED = """
align unfinished 0.0 align
sft current 1.6 sft
sft earlier 1.6 .results/sft-1111111111111111
sft damaged 0.0 .results/sft-2222222222222222
"""


def test_all_results_are_listed(store: Results, printed: Said) -> None:
    found = [" ".join(row) for row in results_table(store.folder).rows]
    assert found == LISTED.strip().splitlines()
    assert cli.main(["show", str(store.folder)]) == 0
    assert "earlier results: sft, sft (damaged)" in printed()


def test_pruning_keeps_what_the_recipe_uses(store: Results) -> None:
    assert pruned([store.folder]) == "deleted 2 results, 2 MB"
    assert [row[1] for row in results_table(store.folder).rows] == ["unfinished", "current"]
    assert damage_of(store.folder / "sft") is None


def test_another_folder_is_refused(tmp_path: Path, said: Said) -> None:
    assert cli.main(["show", str(tmp_path), "--prune"]) == 2
    assert "is no run" in said()
