"""Adapters know their base by its weights: they work on another machine, and on no other model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from alignkit.errors import RunFailed
from alignkit.io.text import cache_folder
from alignkit.models.adapters import ORIGIN, ModelOrigin
from alignkit_plugins.bases import tiny
from tests.models.tiny import shared


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    model = shared(base="tiny")
    model.add_role("train")
    model.save("train", tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """The base model as another machine has it."""
    return Path(shutil.copytree(tiny.source(cache_folder()), tmp_path / "elsewhere" / "model"))


def load(source: Path | None, adapter: Path) -> None:
    shared(source, base="tiny").add_role("train", start=adapter)


def test_an_adapter_works_where_the_base_has_another_path(adapter: Path, moved: Path) -> None:
    load(moved, adapter)


def test_another_base_is_refused_also_at_the_same_path(adapter: Path, moved: Path) -> None:
    weights = load_file(moved / "model.safetensors")
    next(iter(weights.values()))[0] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    config = adapter / "adapter_config.json"
    saved = json.loads(config.read_text(encoding="utf-8"))
    for path in (saved["base_model_name_or_path"], str(moved)):
        config.write_text(json.dumps(saved | {"base_model_name_or_path": path}), encoding="utf-8")
        with pytest.raises(RunFailed, match=r"model 'tiny', .* or for other weights"):
            load(moved, adapter)


def test_an_adapter_of_plain_peft_is_told_by_its_path(adapter: Path, moved: Path) -> None:
    (adapter / ORIGIN).unlink()
    load(None, adapter)
    own = tiny.source(cache_folder())
    with pytest.raises(RunFailed, match=f"for the base model '{own}', not for 'tiny'"):
        load(moved, adapter)


def test_a_file_where_the_run_is_started_is_not_of_the_base(
    here: Path,
) -> None:
    """The base is on the hub, and not on this machine."""
    for folder, size in ((here, 7), (here / "whole", 8)):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"vocab_size": size}), encoding="utf-8")
    base = ModelOrigin("owner/name", "owner/name")
    base.check(here / "whole")
    assert base.weights is None is ModelOrigin("a", str(here)).weights


def test_an_origin_that_says_nothing_leaves_the_path(adapter: Path) -> None:
    for content in ('{"base": 1}', "{}", '{"base": {"weights": null}}'):
        (adapter / ORIGIN).write_text(content, encoding="utf-8")
        load(None, adapter)
