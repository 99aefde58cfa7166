"""The measuring stick: what the judges may know, and the cells that come with the project."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import yaml

from alignkit.recipe.load import load_recipe
from alignkit_plugins.cells.axes import Cell, cells_of
from alignkit_plugins.cells.rows import rows_of
from alignkit_plugins.cells.running import base_of
from benchmarks.outcomes.tuning import Setting, chosen, settings
from tests.rows import json_rows

FOLDER = Path(__file__).parent.parent / "benchmarks" / "outcomes"
DATA = FOLDER / "data"
RECIPES = FOLDER.parents[1] / "recipes" / "data"
# What the papers' recipes learn from and validate on: of some files, this many of the first rows.
READ = yaml.safe_load("""
helpful.jsonl.gz: 480
safety.jsonl.gz: 480
prompts.jsonl: null
red_team.jsonl: null
demos.jsonl: null
rankings.jsonl: null
graded.jsonl: null
helpful_heldout.jsonl.gz: 150
safety_heldout.jsonl.gz: 150
demos_validation.jsonl: 150
rankings_heldout.jsonl: 150
""")


def questions(*files: Path, limit: int | None = None) -> set[str]:
    """The first user turns of rows by their letters and digits."""
    found = set()
    for file in files:
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode()
        for row in json_rows(text)[:limit]:
            turns = row.get("prompt") or row.get("messages") or row["chosen"]
            asked = turns if isinstance(turns, str) else turns[0]["content"]
            asked = asked.removeprefix("\n\nHuman:").split("\n\nAssistant:")[0]
            found.add("".join(filter(str.isalnum, asked.lower())))
    assert found
    return found


def test_no_recipe_reads_what_gold_judges_learn_or_are_asked() -> None:
    gold = questions(*DATA.glob("gold_*.jsonl.gz"), *(DATA / "prompts").glob("*.jsonl"))
    for file, limit in READ.items():
        assert not questions(RECIPES / file, limit=limit) & gold, file


def test_the_yardstick_is_new_to_the_judge_and_to_every_stage_of_the_quick_start() -> None:
    yardstick = RECIPES / "quickstart" / "heldout.jsonl"
    learned = [file for file in yardstick.parent.glob("*.jsonl") if file != yardstick]
    assert len(learned) == 8
    assert not questions(*learned, DATA / "gold_helpful.jsonl.gz") & questions(yardstick)


METHODS = f"methods={FOLDER}/methods.yaml"


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the command is run, whose overrides name files of the project."""
    monkeypatch.chdir(FOLDER.parents[1])


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("cell", cells_of(["seed=3..3", METHODS]), ids=lambda cell: cell.address)
def test_every_method_is_a_valid_recipe(cell: Cell) -> None:
    recipe = load_recipe(FOLDER / "outcomes.yaml", cell.overrides)
    report = recipe.stages["report"]
    assert recipe.seed == 3 and list(recipe.stages)[-1] == "report"
    assert list(report.component.options.named) == ["sft", "align"]
    # best_of_4 has no stage of its own
    assert next(iter(recipe.stages.get("align", report).upstream)) == "sft"


def test_cells_that_come_with_the_project_are_of_its_recipe() -> None:
    """A method has the seeds of the others, or its numbers are not shown next to theirs."""
    rows, seeds = rows_of(FOLDER), dict[str, set[int]]()
    base = base_of(load_recipe(FOLDER / "outcomes.yaml"))
    for row in rows:
        assert row["base"] == base, row["values"]
        seeds.setdefault(row["values"]["methods"], set()).add(row["seed"])
    assert rows and len(set(map(frozenset, seeds.values()))) == 1
    assert set(seeds) <= set(yaml.safe_load((FOLDER / "methods.yaml").read_text()))
    assert min(map(min, seeds.values())) > 2  # settings were chosen on others


def test_the_rule_of_the_tuning() -> None:
    slow, fast, faster = (
        Setting("ppo", rate, [0, 1], gain, facts)
        for rate, gain, facts in ((2e-4, 0.115, 0.0), (5e-4, 0.12, -0.05), (1e-3, 0.3, -0.06))
    )
    assert chosen([faster, fast, slow]) == slow  # within a point of the best whose facts hold
    assert chosen([faster, fast, slow._replace(gain=0.1)]) == fast
    assert chosen([faster, faster._replace(facts=-0.5)]) == faster
    assert all(one.method != "sft" and abs(one.facts) < 0.2 for one in settings())


def test_rates_are_those_that_the_tuning_chose() -> None:
    variants = yaml.safe_load((FOLDER / "methods.yaml").read_text())
    variants["rlaif"] = variants.pop("dpo_on_own_samples")
    own = dict[str, list[Setting]]()
    for one in settings():
        own.setdefault(one.method, []).append(one)
    for method, tried in own.items():
        named = variants[method] or {}
        rate = named.get(
            "stages.align.learning_rate", named.get("stages.align", {}).get("learning_rate", 5e-4)
        )
        assert (method, rate) == (method, chosen(tried).rate)
