"""Adapters know their base by its weights: they work on another machine, and on no other model."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import alignkit_plugins.models.tiny
from alignkit.errors import RunFailed
from alignkit.models.adapters import ORIGIN, Base
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec

SPEC = ModelSpec(base="tiny", dtype="float32", device="cpu", lora=LoraSpec(r=2, lora_alpha=4))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(alignkit_plugins.models.tiny.source(tmp_path_factory.mktemp("models")))


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    model = SharedModel(SPEC, str(tiny))
    model.add_role("train")
    folder = tmp_path / "adapter"
    folder.mkdir()
    model.save("train", folder)
    return folder


def moved(tiny: Path, tmp_path: Path) -> Path:
    """The base model as another machine has it."""
    return Path(shutil.copytree(tiny, tmp_path / "elsewhere" / "model"))


def load(source: Path, adapter: Path) -> None:
    SharedModel(SPEC, str(source)).add_role("train", start=adapter)


def test_an_adapter_works_where_the_base_has_another_path(
    tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    load(moved(tiny, tmp_path), adapter)


def test_another_base_is_refused_also_at_the_same_path(
    tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    other = moved(tiny, tmp_path)
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values()))[0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RunFailed, match="for the base model 'tiny', not for 'tiny', or for other weights"
    ):
        load(other, adapter)
    config = adapter / "adapter_config.json"
    saved = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps(saved | {"base_model_name_or_path": str(other)}), encoding="utf-8")
    with pytest.raises(RunFailed, match="or for other weights"):
        load(other, adapter)


def test_an_adapter_of_plain_peft_is_told_by_its_path(
    tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    (adapter / ORIGIN).unlink()
    load(tiny, adapter)
    with pytest.raises(
        RunFailed, match=f"is an adapter for the base model '{tiny}', not for 'tiny'"
    ):
        load(moved(tiny, tmp_path), adapter)


def test_a_file_where_the_run_is_started_is_not_of_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base is on the hub, and not on this machine."""
    monkeypatch.chdir(tmp_path)
    for folder, size in ((tmp_path, 7), (tmp_path / "whole", 8)):
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"vocab_size": size}), encoding="utf-8")
    Base("owner/name", "owner/name").check(tmp_path / "whole")


def test_weights_that_are_not_here_have_no_digest(tmp_path: Path) -> None:
    assert Base("a", str(tmp_path)).weights is None
    assert Base("owner/name", "owner/name").weights is None


@pytest.mark.parametrize(
    "content", ['{"base": 1}', '{"base": null}', "{}", '{"base": {"weights": null}}']
)
def test_an_origin_that_says_nothing_leaves_the_path(
    content: str, tiny: Path, adapter: Path
) -> None:
    (adapter / ORIGIN).write_text(content, encoding="utf-8")
    load(tiny, adapter)
