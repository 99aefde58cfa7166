"""Everything that a stage read is in its hash: contents, commits, recognized formats, and the code
behind plugins.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from alignkit.contract.settings import Settings
from alignkit.errors import RunFailed
from alignkit.host.plugins import plugins
from alignkit.host.registry import Registration
from alignkit.io import digest
from alignkit.io.digest import commit_of
from alignkit.models import shared_model
from alignkit.recipe.load import load_recipe
from alignkit.recipe.sources import DataSource
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit.runs.run import Run
from alignkit.runs.stage import TrainingStage
from alignkit_plugins.data_tools import tables
from tests.rows import cells, write_recipe, write_rows

ROWS = [{"prompt": f"q{n}", "completion": "a"} for n in range(3)]


def hash_of(folder: Path, stages: Any, **model: Any) -> list[str]:
    """The hashes of a recipe's stages."""
    recipe = load_recipe(write_recipe(folder, stages, {"base": "tiny", **model}))
    found = []
    for stage in recipe.stages.values():
        parts = stage_parts(stage, recipe, "base", {}, RunData(Path))
        assert parts["seed"] == recipe.seed  # which is in every hash
        found.append(digest.digest({**parts, "seed": None}))
    return found


def hashed(folder: Path, **stage: Any) -> str:
    """The hash of one stage."""
    stage = stage if "step" in stage else {"algorithm": "sft", **stage}
    (found,) = hash_of(folder, {"s": stage})
    return found


def test_a_big_file_that_changes_under_its_old_time_is_hashed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "BIG", 1)
    path = tmp_path / "big"

    def write(content: bytes) -> int:
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
        return path.stat().st_ctime_ns

    first = write(b"one")
    before = digest.file_digest(path)
    assert digest.file_digest(path) == before
    while write(b"two") == first:  # until the file system's clock has moved on
        pass
    assert digest.file_digest(path) != before


def test_the_code_of_a_recognized_format_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A format that the recipe does not name is in the hash like one that it names."""
    write_rows(tmp_path / "d.jsonl", ROWS)
    code, whose = tmp_path / "format_plugin.py", Registration.source_path.fget
    named, before = [""], hashed(tmp_path, data="d.jsonl")
    own = property(lambda self: code if [self.name] == named else whose(self))
    monkeypatch.setattr(Registration, "source_path", own)
    found = []
    for named[0], text in (
        ("alpaca", "x = 1"),
        ("prompt_completion", "x = 1"),
        ("prompt_completion", "x = 2"),
    ):
        code.write_text(text, encoding="utf-8")
        found.append(hashed(tmp_path, data="d.jsonl"))
    monkeypatch.setitem(vars(plugins().get("format", "prompt_completion")), "version", "9")
    found.append(hashed(tmp_path, data="d.jsonl"))
    assert found[0] == before and len(set(found)) == 4
    write_rows(tmp_path / "e.jsonl", ROWS)
    assert hashed(tmp_path, data="e.jsonl") == found[-1]  # its name does not count
    monkeypatch.setitem(vars(plugins().get("algorithm", "sft")), "version", "9")
    assert hashed(tmp_path, data="d.jsonl") not in found


READ = """
{step: lm_eval, policies: [base], tasks: [even], include_path: tasks} | tasks/a.yaml
{algorithm: rloo, prompts: prompts.jsonl, reward: {python: {path: a.py, function: f}}} | words.py
{algorithm: rloo, prompts: prompts.jsonl, reward: {folder: rm}} | rm/config.json
{step: sample, prompts: prompts.jsonl, reward: {python: {function: "mine_of_test:f"}}} | mine_of_test.py
"""


@pytest.mark.parametrize(("stage", "file"), cells(READ))
def test_files_in_a_folder_and_modules_that_are_imported_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, file: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a.py").write_text("import words\ndef f(prompt, response): return 0.0\n")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    found = []
    for text in ("x = 1", "x = 2", "x = 1"):
        (tmp_path / file).write_text(text)
        importlib.invalidate_caches()
        found.append(hashed(tmp_path, **yaml.safe_load(stage)))
    assert found[0] == found[2] != found[1]


# Hub data sets


class Hub:
    """`datasets` and the hub, which knows one data set whose branches move."""

    def __init__(self) -> None:
        self.main, self.branch, self.asked = "a", "d", list[Any]()

    @property
    def sha(self) -> str:
        return self.main * 40

    def at(self, name: str, *, revision: str | None, **_: Any) -> Any:
        return SimpleNamespace(sha=self.branch * 40) if revision else self

    def load_dataset(self, path: str, **where: Any) -> list[dict[str, Any]]:
        self.asked.append((path, where))
        return ROWS


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub()
    monkeypatch.setitem(sys.modules, "datasets", found)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", found.at)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return found


def test_a_hub_data_set_counts_by_its_commit_and_is_read_at_it(tmp_path: Path, server: Hub) -> None:
    """Which is asked for once per run."""
    where = {"name": "main", "data_files": "a*.json", "split": "test"}
    commits = RunData(lambda stage: tmp_path)._commits
    found = []
    for server.main in "aab":
        found.append(hashed(tmp_path, data={"hub": "org/set", **where}))
        assert server.asked[-1] == ("org/set", {**where, "revision": server.sha})
        assert commits("org/set", None) == "a" * 40
    assert found[0] == found[1] != found[2]
    assert commits("org/set", "c" * 40) == "c" * 40
    for server.branch in "de":
        found.append(hashed(tmp_path, data={"hub": "org/set", "revision": "v1"}))
        assert server.asked[-1][1]["revision"] == server.branch * 40
    assert found[-1] != found[-2]


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


CONFIGURATIONS = """---
configs:
- config_name: main
  data_files: [{split: train, path: train.jsonl}]
---
"""


def test_a_real_data_set_in_a_folder_counts_by_its_content_and_is_never_read_from_an_old_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the real `datasets`."""
    pytest.importorskip("datasets")
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path / "cache"))
    here = tmp_path / "set"
    here.mkdir()
    path = write_rows(here / "train.jsonl", ROWS)
    (here / "README.md").write_text(CONFIGURATIONS, encoding="utf-8")
    source, found = DataSource(hub=str(here), config="main", split="train[1:3]"), []
    times = path.stat()
    for asked in ("q1", "Q1"):
        path.write_text(path.read_text().replace("q1", asked))
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        found.append(hashed(tmp_path, data={"hub": "set", "name": "main"}))
        rows = tables.Hub().rows_of(source, lambda name, revision: revision)
        assert [row["prompt"] for _, row in rows] == [asked, "q2"]
    assert found[0] != found[1]


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
    recipe = load_recipe(write_recipe(tmp_path, "s: {algorithm: sft, data: demos.jsonl}"))
    stage = Run(recipe, tmp_path / "run").stages["s"]
    assert isinstance(stage, TrainingStage)
    loaded = stage.load(stage.settings.data)
    before = list(loaded.groups)
    assert stage.select(loaded.groups) == before[::-1] != loaded.groups == before


def test_a_base_model_on_the_hub_counts_by_its_commit_and_is_loaded_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: Hub
) -> None:
    model = {"base": "org/model", "chat_template": "plain"}
    recipe = load_recipe(write_recipe(tmp_path, "s: {algorithm: sft, data: demos.jsonl}", model))
    keys, loaded = set(), []

    def load(*_: Any, revision: str, **__: Any) -> Any:
        loaded.append(revision)
        raise OSError("no weights here")

    monkeypatch.setattr(shared_model, "SharedModel", load)
    for server.main in "ab":
        run = Run(recipe, tmp_path)
        keys.add(digest.digest(run.stages["s"].key()))
        with pytest.raises(RunFailed, match="no weights here"):
            _ = run.models.of("base")
    assert len(keys) == 2 and loaded == ["a" * 40, "b" * 40]


def test_a_new_optional_key_starts_no_stage_over(tmp_path: Path) -> None:
    """Only if it is set."""

    class Later(Settings):
        added: int | None = None

    recipe = load_recipe(write_recipe(tmp_path, "s: {algorithm: sft, data: demos.jsonl}"))
    stage = recipe.stages["s"]
    later = [Later.model_construct(**dict(stage.settings or ()), added=n) for n in (None, 1, 0)]
    before, same, *others = (
        digest.digest(stage_parts(replace(stage, settings=each), recipe, "base", {}, RunData(Path)))
        for each in (stage.settings, *later)
    )
    assert before == same and len({before, *others}) == 3
    both = ["demos.jsonl", "pairs.jsonl"]
    assert hashed(tmp_path, data=both) != hashed(tmp_path, data=both[::-1])


def test_the_seed_of_a_run_does_not_decide_what_is_held_out(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "completion": "a"} for n in range(20)]
    data = {"path": str(write_rows(tmp_path / "d.jsonl", rows)), "validation": 0.5}
    recipe = write_recipe(tmp_path, {"s": {"algorithm": "sft", "data": data}})
    held: list[Any] = []
    for seed in (0, 1):
        run = Run(load_recipe(recipe, [f"seed={seed}"]), tmp_path / "run")
        settings: Any = run.recipe.stages["s"].settings
        held.append(run.data.read(settings.data).validation)
    assert len(held[0]) and held[0] == held[1]


# A package, and the stages that are other ones with another version of it
VERSIONS = """
trl          | dpo
lm_eval      | measured
py3langid    | german
math-verify  | sums
bitsandbytes | small quantized
torch        | sft dpo measured german sums small quantized
"""


@pytest.mark.parametrize(("package", "changed"), cells(VERSIONS))
def test_only_what_a_stage_uses_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, changed: str
) -> None:
    """Another version of TRL must not train SFT again."""
    stages = """
    sft: {algorithm: sft, data: demos.jsonl}
    dpo: {algorithm: trl, data: pairs.jsonl}
    measured: {step: lm_eval, policies: [base], tasks: [even]}
    german: {algorithm: rloo, prompts: prompts.jsonl, reward: {language: {language: de}}}
    sums: {algorithm: rloo, prompts: prompts.jsonl, reward: math_verify}
    small: {algorithm: sft, data: demos.jsonl, optimizer: adamw_8bit}
    """

    def hashes() -> list[str]:
        return [*hash_of(tmp_path, stages), *hash_of(tmp_path, stages, quantization="nf4")[:1]]

    before, real = hashes(), importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: "99" if name == package else real(name)
    )
    names = ["sft", "dpo", "measured", "german", "sums", "small", "quantized"]
    both = zip(names, before, hashes(), strict=True)
    assert [name for name, old, new in both if old != new] == changed.split()


def test_an_option_that_changes_no_result_is_no_part_of_the_key(tmp_path: Path) -> None:
    def of(no_judge: str = "stop", **server: Any) -> str:
        where = {"base_url": "http://localhost:1/v1", "model": "m", **server}
        judge = {"openai_judge": {"server": where}}
        step = {"step": "judge_pairs", "prompts": "prompts.jsonl", "policy": "base"}
        return hashed(tmp_path, judge=judge, no_judge=no_judge, **step)

    same = yaml.safe_load("""
    [no_judge: warn, api_key_env: A_KEY, concurrency: 2, timeout_seconds: 9, max_retries: 1]
    """)
    assert {of(**each) for each in same} == {of()}
    assert of() not in (of(model="other"), of(request={"seed": 1}))


def test_backends_of_others_are_part_of_the_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version of alignkit's own is alignkit's."""
    known = list(plugins()._all)
    found = [hashed(tmp_path, data="demos.jsonl")]
    one = Registration("own", None, kind="_backend", file=Path(__file__))
    for distribution, version in (("alignkit", "9"), ("theirs", "1"), ("theirs", "2")):
        added = replace(one, distribution=distribution, version=version)
        monkeypatch.setattr(plugins(), "_all", [*known, added])
        found.append(hashed(tmp_path, data="demos.jsonl"))
    assert found[0] == found[1] and len(set(found)) == 3
