"""Everything that a stage read is in its hash: contents, commits, recognized formats, and the code
behind plugins.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignkit.data.sources import DataSource
from alignkit.errors import RunFailed
from alignkit.io import digest
from alignkit.io.digest import commit_of
from alignkit.models import shared_model
from alignkit.plugins import plugins
from alignkit.recipe.load import load_recipe
from alignkit.registry import Registration
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit.runs.run import Run
from alignkit.runs.stage import TrainingStage
from alignkit.settings import Settings
from alignkit_plugins.data import tables
from tests.rows import write_recipe, write_rows

ROWS = [{"prompt": f"q{n}", "completion": "a"} for n in range(3)]


def hash_of(folder: Path, stages: Any, **model: Any) -> list[str]:
    """The hashes of a recipe's stages."""
    recipe = load_recipe(write_recipe(folder, stages, {"base": "tiny", **model}))
    found = []
    for stage in recipe.stages.values():
        parts = stage_parts(stage, recipe, "base", {}, RunData(Path, 0))
        found.append(digest.digest({**parts, "seed": None}))  # which is in every hash
    return found


def hashed(folder: Path, **stage: Any) -> str:
    """The hash of one stage."""
    stage = stage if "step" in stage else {"algorithm": "sft", **stage}
    (found,) = hash_of(folder, {"s": stage})
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_rows(path, rows)


def test_a_big_file_that_changes_under_its_old_time_is_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "BIG", 1)
    path = tmp_path / "big"
    path.write_bytes(b"one")
    os.utime(path, ns=(10**18, 10**18))
    before = digest.file_digest(path)
    assert digest.file_digest(path) == before
    changed = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == changed:  # until the file system's clock has moved on
        path.write_bytes(b"two")
        os.utime(path, ns=(10**18, 10**18))
    assert digest.file_digest(path) != before


def _replace_format(monkeypatch: pytest.MonkeyPatch, changed: Registration) -> None:
    others = [one for one in plugins()._all if (one.kind, one.name) != (changed.kind, changed.name)]
    monkeypatch.setattr(plugins(), "_all", [*others, changed])


def test_the_code_of_a_recognized_format_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A format that the recipe does not name is in the hash like one that it names."""
    write(tmp_path / "d.jsonl", ROWS)
    registry = plugins()
    found = {}
    whose = Registration.source_path.fget
    code = tmp_path / "format_plugin.py"
    own = property(lambda self: code if self.name == "prompt_completion" else whose(self))
    monkeypatch.setattr(Registration, "source_path", own)
    for version, source in (("1", "x = 1"), ("1", "x = 2"), ("2", "x = 2")):
        code.write_text(source, encoding="utf-8")
        _replace_format(
            monkeypatch, replace(registry.get("format", "prompt_completion"), version=version)
        )
        found[version, source] = hashed(tmp_path, data="d.jsonl")
    assert len(set(found.values())) == 3
    _replace_format(monkeypatch, replace(registry.get("format", "alpaca"), version="99"))
    assert hashed(tmp_path, data="d.jsonl") == found["2", "x = 2"]


def test_a_folder_that_an_option_names_counts_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so does the version of the package that does the work of a step."""
    step = {"step": "lm_eval", "policies": ["base"], "tasks": ["even"], "include_path": "tasks"}
    task = tmp_path / "tasks" / "even.yaml"
    task.parent.mkdir()
    found = []
    for text in ("task: even", "task: odd", "task: even"):
        task.write_text(text, encoding="utf-8")
        found.append(hashed(tmp_path, **step))
    assert found[0] == found[2] != found[1]
    version = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "9" if name == "lm_eval" else version(name)
    )
    assert hashed(tmp_path, **step) != found[0]


def test_modules_that_a_reward_imports_count(tmp_path: Path) -> None:
    code = "import words\ndef score(prompt, response): return 0.0\n"
    (tmp_path / "mine.py").write_text(code, encoding="utf-8")
    stage = {
        "algorithm": "rloo",
        "prompts": "prompts.jsonl",
        "reward": {"python": {"path": "mine.py", "function": "score"}},
    }
    found = set()
    for text in ("x = 1\n", "x = 2\n"):
        (tmp_path / "words.py").write_text(text, encoding="utf-8")
        found.add(hashed(tmp_path, **stage))
    assert len(found) == 2


# Hub data sets


class Hub:
    """`datasets` and the hub, which knows one data set whose main branch moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.main, self.asked = "a" * 40, list[Any]()
        monkeypatch.setitem(sys.modules, "datasets", self)
        monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda _, name, **__: self)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    @property
    def sha(self) -> str:
        return self.main

    def load_dataset(self, path: str, **where: Any) -> list[dict[str, Any]]:
        self.asked.append((path, where))
        return ROWS


def test_a_hub_data_set_counts_by_its_commit_and_is_read_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Hub(monkeypatch)
    data = {"hub": "org/set", "name": "main", "data_files": "a*.json", "split": "test"}
    one = hashed(tmp_path, data=data)
    assert hashed(tmp_path, data=data) == one
    where = {"name": "main", "data_files": "a*.json", "split": "test", "revision": "a" * 40}
    assert server.asked[-1] == ("org/set", where)
    server.main = "b" * 40
    assert hashed(tmp_path, data=data) != one
    assert server.asked[-1][1]["revision"] == "b" * 40


def test_a_commit_is_asked_for_once_per_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, commits = Hub(monkeypatch), RunData(lambda stage: tmp_path, 0)._commits
    first = commits("org/set", None)
    server.main = "b" * 40
    assert commits("org/set", None) == first == "a" * 40
    assert commits("org/set", "c" * 40) == "c" * 40


def test_without_a_network_the_cached_copy_tells_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert commit_of("dataset", "org/set", None) is None
    assert commit_of("dataset", "org/set", "v1") == "v1"
    assert commit_of("dataset", "./no folder", None) is None  # which is no id, as loading it says
    copy = tmp_path / "datasets--org--set"
    (copy / "snapshots" / ("e" * 40)).mkdir(parents=True)
    assert commit_of("dataset", "org/set", None) is None
    (copy / "refs").mkdir()
    (copy / "refs" / "main").write_text("e" * 40)
    assert commit_of("dataset", "org/set", None) == "e" * 40


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in a folder with two configurations, read by the real `datasets`."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "set"
    for name in ("main", "socratic"):
        rows = [{"question": f"{name} {n}", "answer": "a"} for n in range(4)]
        write(here / name / "train.jsonl", rows)
        write(here / name / "test.jsonl", [{"question": f"{name} test", "answer": "a"}])
    (here / "README.md").write_text(
        """---
configs:
- config_name: main
  data_files: [{split: train, path: main/train.jsonl}, {split: test, path: main/test.jsonl}]
- config_name: socratic
  data_files: [{split: train, path: socratic/train.jsonl}, {split: test, path: socratic/test.jsonl}]
---
""",
        encoding="utf-8",
    )
    return here


def questions(name: Path | str, config: str | None = None, **keys: Any) -> list[str]:
    source = DataSource(hub=str(name), config=config, **keys)
    return [
        row["question"] for _, row in tables.Hub().rows_of(source, lambda name, revision: revision)
    ]


def test_configurations_splits_and_files_of_a_real_data_set(folder: Path) -> None:
    name = str(folder)
    assert questions(name, "socratic") == [f"socratic {n}" for n in range(4)]
    assert questions(name, "main", split="train[1:3]") == ["main 1", "main 2"]
    assert questions(name, data_files="main/train*") == [f"main {n}" for n in range(4)]


def test_a_folder_counts_by_its_content_and_is_never_read_from_an_old_copy(folder: Path) -> None:
    columns = {"prompt": "question", "completion": "answer"}
    stage = {"data": {"hub": "set", "name": "main", "columns": columns}}
    one = hashed(folder.parent, **stage)
    assert questions(folder, "main")[0] == "main 0"
    path = folder / "main" / "train.jsonl"
    times = path.stat()
    path.write_text(path.read_text().replace("main 0", "MAIN 0"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hashed(folder.parent, **stage) != one
    assert questions(folder, "main")[0] == "MAIN 0"


def test_a_result_that_changes_while_later_stages_run_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {"algorithm": "sft", "data": "demos.jsonl", "max_steps": 1}
    run = Run(load_recipe(write_recipe(tmp_path, {"one": stage, "two": stage})), tmp_path / "run")
    train = TrainingStage.run

    def damaging(self: TrainingStage) -> Any:
        if self.name == "two":
            (tmp_path / "run" / "one" / "metrics.jsonl").unlink()
        return train(self)

    monkeypatch.setattr(TrainingStage, "run", damaging)
    with pytest.raises(RunFailed, match=r"one/metrics\.jsonl is not as the stage wrote it, while"):
        run.execute()


def test_an_algorithm_that_sorts_its_rows_does_not_sort_those_of_other_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def select(self: Any, groups: list[Any], context: Any) -> list[Any]:
        groups.reverse()
        return groups

    monkeypatch.setattr("alignkit_plugins.algorithms.sft.SFT.select", select)
    hashed(tmp_path, data=str(write(tmp_path / "rows.jsonl", ROWS)))
    stage = Run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run").stages["s"]
    assert isinstance(stage, TrainingStage)
    loaded = stage.load(stage.settings.data)
    assert stage.select(loaded.groups) == loaded.groups[::-1]
    assert [group.origin.row for group in loaded.groups if group.origin] == [1, 2, 3]


def test_a_base_model_on_the_hub_counts_by_its_commit_and_is_loaded_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Hub(monkeypatch)
    write(tmp_path / "d.jsonl", ROWS)
    stages = {"s": {"algorithm": "sft", "data": "d.jsonl"}}
    model = {"base": "org/model", "chat_template": "plain"}
    recipe, loaded = load_recipe(write_recipe(tmp_path, stages, model)), []

    def hash_now() -> str:
        run = Run(recipe, tmp_path)
        found = digest.digest(run.stages["s"].key())
        with pytest.raises(RunFailed, match="no weights here"):
            _ = run.models.of("base")
        return found

    def load(*_: Any, revision: str, **__: Any) -> Any:
        loaded.append(revision)
        raise OSError("no weights here")

    monkeypatch.setattr(shared_model, "SharedModel", load)
    first = hash_now()
    server.main = "b" * 40
    assert hash_now() != first and loaded == ["a" * 40, "b" * 40]


def test_a_new_optional_key_starts_no_stage_over(tmp_path: Path) -> None:
    """Only if it is set."""

    class Later(Settings):
        added: int | None = None

    hashed(tmp_path, data="demos.jsonl")
    recipe = load_recipe(tmp_path / "recipe.yaml")
    settings = dict(recipe.stages["s"].settings or ())

    def with_key(added: int | None) -> str:
        stage = replace(recipe.stages["s"], settings=Later.model_construct(**settings, added=added))
        return digest.digest(stage_parts(stage, recipe, "base", {}, RunData(Path, 0)))

    before = digest.digest(stage_parts(recipe.stages["s"], recipe, "base", {}, RunData(Path, 0)))
    assert with_key(None) == before != with_key(1)


QUANTIZED = {"quantization": "nf4"}


@pytest.mark.parametrize(
    ("package", "sft", "dpo"),
    [("trl", False, True), ("bitsandbytes", False, False), ("torch", True, True)],
)
def test_only_what_a_stage_uses_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, sft: bool, dpo: bool
) -> None:
    """Another version of TRL must not train SFT again."""
    stages = """
    sft: {algorithm: sft, data: demos.jsonl}
    dpo: {algorithm: trl, data: pairs.jsonl}
    """
    before, quantized = (hash_of(tmp_path, stages, **more) for more in ({}, QUANTIZED))
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "99" if name == package else real(name)
    )
    after = zip(before, hash_of(tmp_path, stages), strict=True)
    assert [old != new for old, new in after] == [sft, dpo]
    assert (quantized[0] != hash_of(tmp_path, stages, **QUANTIZED)[0]) == (package != "trl")


def test_an_option_that_changes_no_result_is_no_part_of_the_key(tmp_path: Path) -> None:
    def of(no_judge: str = "stop", **server: Any) -> str:
        where = {"base_url": "http://localhost:1/v1", "model": "m", **server}
        judge = {"openai_judge": {"server": where}}
        step = {"step": "judge_pairs", "prompts": "prompts.jsonl", "policy": "base"}
        return hashed(tmp_path, judge=judge, no_judge=no_judge, **step)

    same = {
        of(),
        of("warn"),
        of(api_key_env="A_KEY"),
        of(concurrency=2),
        of(timeout_seconds=9),
        of(max_retries=1),
    }
    assert len(same) == 1 and of(model="other") not in same and of(request={"seed": 1}) not in same
