"""Base models on the hub: one request, then the cached copy, then an error that says what to do."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from alignkit import RunFailed
from alignkit.models.loading import locate
from alignkit.models.shared_model import SharedModel
from alignkit.settings import LoraSpec, ModelSpec
from alignkit_plugins.models import tiny

ID = "somebody/small"


class Hub:
    """Replaces the network: records requests and raises the error it is given."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.error: Exception | None = None

    def __call__(self, url: str, *, timeout: float) -> None:
        self.asked.append((url, timeout))
        if self.error is not None:
            raise self.error


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    point_to("https://hub.test", monkeypatch)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", found)
    # The function bound its default when it was defined.
    lookup = huggingface_hub.try_to_load_from_cache
    cache = tmp_path / "hub"
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
    shutil.copytree(tiny.source(tmp_path / "tiny"), place / "snapshots" / ("0" * 40))
    return place / "snapshots" / ("0" * 40)


def answer(kind: Callable[..., Exception], code: int) -> Exception:
    class Answer:
        status_code = code
        headers: dict[str, str] = {}  # noqa: RUF012
        request = None

    return kind(f"{code} of the test", response=Answer())


def unreachable() -> Exception:
    return OSError("Name or service not known")


def test_a_folder_needs_no_request(hub: Hub, tmp_path: Path) -> None:
    assert locate(str(tmp_path)) == str(tmp_path)
    assert hub.asked == []


def test_a_model_on_the_hub_is_left_to_transformers(hub: Hub) -> None:
    assert locate(ID, "v2") == ID
    assert hub.asked == [(f"https://hub.test/{ID}/resolve/v2/config.json", 5)]


def test_a_cached_model_is_still_looked_up(hub: Hub, cached: Path) -> None:
    assert locate(ID) == ID  # a newer version would be found
    assert len(hub.asked) == 1


@pytest.mark.parametrize(
    ("error", "wrong"),
    [
        (unreachable(), "(OSError: Name or service not known)"),
        (answer(errors.RepositoryNotFoundError, 401), "RepositoryNotFoundError: 401 of the test"),
        (answer(errors.GatedRepoError, 403), "GatedRepoError"),
        (answer(errors.RevisionNotFoundError, 404), "RevisionNotFoundError"),
        (answer(errors.HfHubHTTPError, 503), "503 of the test"),
    ],
)
def test_refusals_say_what_to_do(hub: Hub, error: Exception, wrong: str) -> None:
    hub.error = error
    with pytest.raises(RunFailed) as caught:
        locate(ID)
    first, second = str(caught.value).split("\nhelp: ")
    assert (
        f"model.base '{ID}' is neither a folder nor in the hub's cache, and https://hub.test"
        in first
    )
    assert wrong in first and "`hf auth login`" in second and "`hf download`" in second
    assert len(hub.asked) == 1, "no retries"


def test_offline_needs_no_request(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunFailed, match="OfflineModeIsEnabled"):
        locate(ID)


def test_an_incomplete_copy_does_not_count(hub: Hub, cached: Path) -> None:
    (cached / "model.safetensors").unlink()
    hub.error = unreachable()
    with pytest.raises(RunFailed, match="OSError: Name or service not known"):
        locate(ID)


def test_an_invalid_hub_id_is_an_error(hub: Hub) -> None:
    with pytest.raises(
        RunFailed, match=r"'models/my/own' is neither a folder nor in the hub's cache"
    ):
        locate("models/my/own")


@pytest.mark.parametrize("offline", [False, True])
def test_a_cached_model_loads_without_a_network(
    offline: bool, hub: Hub, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its adapters name the hub's model, not the folder of the cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    hub.error = unreachable()
    lora = LoraSpec(r=2, lora_alpha=4)
    policy = SharedModel(ModelSpec(base=ID, dtype="float32", device="cpu", lora=lora), ID)
    policy.add_role("new")
    policy.save("new", tmp_path / "adapter")
    assert (
        json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]
        == ID
    )
    policy.add_role("again", start=tmp_path / "adapter")


def test_a_missing_network_costs_no_retries(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real request, to a port without a listener."""
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    point_to("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(
        time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s to try again")
    )
    with pytest.raises(RunFailed, match=r"http://127\.0\.0\.1:9 does not serve it \(ConnectError"):
        locate("nobody/has-this-model")
