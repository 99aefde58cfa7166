"""Base models on the hub: one request, then the cached copy, then an error that says what to do."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from tiny import shared

from alignkit import RunFailed
from alignkit.io.console import Reporter
from alignkit.io.text import cache_folder
from alignkit.models.loading import locate
from alignkit.recipe.load import load_recipe
from alignkit.recipe.schema import BASE
from alignkit.runs.model_source import ModelSource
from alignkit_plugins.bases import tiny
from tests.rows import write_recipe

ID = "somebody/small"


class Hub(list[tuple[str, Any]]):
    """Replaces the network: holds the requests, and raises the error it is given."""

    error: Exception | None = None

    def __call__(self, url: str, *, timeout: float) -> None:
        self.append((url, timeout))
        if self.error is not None:
            raise self.error


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found, cache = Hub(), tmp_path / "hub"
    # The function bound its default when it was defined.
    lookup = huggingface_hub.try_to_load_from_cache
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    point_to("https://hub.test", monkeypatch)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", found)
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda *args, **more: lookup(*args, cache_dir=cache, **more),
    )
    return found


@pytest.fixture
def cached(hub: Hub, tmp_path: Path) -> Path:
    """The copy of a model in the hub's cache."""
    place = tmp_path / "hub" / f"models--{ID.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    return Path(shutil.copytree(tiny.source(cache_folder()), place / "snapshots" / ("0" * 40)))


UNREACHABLE = OSError("Name or service not known")


def test_what_is_asked_of_the_hub(hub: Hub, cached: Path) -> None:
    """Nothing for a folder; a cached model is still looked up, as a newer version would be found."""
    assert locate(str(cached)) == str(cached) and hub == []
    assert locate("another/one", "v2") == "another/one" and locate(ID) == ID
    urls = ["another/one/resolve/v2/config.json", f"{ID}/resolve/main/config.json"]
    assert hub == [(f"https://hub.test/{url}", 5) for url in urls]


def test_refusals_say_what_to_do(hub: Hub) -> None:
    hub.error = UNREACHABLE
    with pytest.raises(RunFailed) as caught:
        locate(ID)
    first, second = str(caught.value).split("\nhelp: ")
    assert f"'{ID}' is neither a folder nor in the hub's cache" in first
    assert "https://hub.test does not serve it (OSError: Name or service not known)" in first
    assert "`hf auth login`" in second and "`hf download`" in second
    assert len(hub) == 1, "no retries"


def test_offline_needs_no_request(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunFailed, match="OfflineModeIsEnabled"):
        locate(ID)
    with pytest.raises(RunFailed, match="'models/my/own' is neither a folder nor in the hub's"):
        locate("models/my/own")


def test_a_check_takes_a_whole_copy_of_the_revision(cached: Path, tmp_path: Path) -> None:
    def source(**model: str) -> str:
        path = write_recipe(
            tmp_path, "s: {algorithm: sft, data: demos.jsonl}", {"base": ID, **model}
        )
        return ModelSource(BASE, load_recipe(path), Reporter(), download=False).source

    assert source() == str(cached) and source(revision="v9") == ""
    (cached / "model.safetensors").rename(cached / "adapter_model.safetensors")
    assert source() == ""


def test_an_incomplete_copy_does_not_count(hub: Hub, cached: Path) -> None:
    (cached / "model.safetensors").unlink()
    hub.error = UNREACHABLE
    with pytest.raises(RunFailed, match="Name or service not known"):
        locate(ID)


@pytest.mark.parametrize("offline", [False, True])
def test_a_cached_model_loads_without_a_network(
    offline: bool, hub: Hub, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its adapters name the hub's model, not the folder of the cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    hub.error = UNREACHABLE
    policy = shared(Path(ID))
    policy.add_role("new")
    policy.save("new", tmp_path / "adapter")
    with pytest.raises(RunFailed, match="neither a folder"):
        locate(ID, "v9")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == ID
    policy.add_role("again", start=tmp_path / "adapter")


def test_a_missing_network_costs_no_retries(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real request, to a port without a listener."""
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    point_to("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits to try again"))
    with pytest.raises(RunFailed, match=r"http://127\.0\.0\.1:9 does not serve it \(ConnectError"):
        locate("nobody/has-this-model")
