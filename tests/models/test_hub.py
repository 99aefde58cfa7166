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
from alignkit.models.hub import locate
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
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", found)
    # The function bound its default when it was defined.
    lookup = huggingface_hub.try_to_load_from_cache
    cache = tmp_path / "hub"
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *args, **more: lookup(*args, cache_dir=cache, **more)
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


def test_the_users_timeout_counts(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "30")
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 30)
    locate(ID)
    assert hub.asked[0][1] == 30


@pytest.mark.parametrize(
    ("error", "wrong", "help"),
    [
        (unreachable(), "cannot be reached (OSError: Name or service not known)", "HF_HUB_OFFLINE=1"),
        (
            unreachable(),
            "neither a folder nor in the hub's cache",
            "a local folder or an installed model (see `alignkit plugins`)",
        ),
        (answer(errors.RepositoryNotFoundError, 401), "no such model, or it is private", "correct the name"),
        (answer(errors.HfHubHTTPError, 404), "no such model, or it is private", "correct the name"),
        (answer(errors.GatedRepoError, 403), "it is gated", f"accept them at https://hub.test/{ID}, then run `hf auth"),
        (answer(errors.RevisionNotFoundError, 404), "no revision 'main' of it", "model.revision must be a branch"),
        (answer(errors.HfHubHTTPError, 401), "denies access to it (401)", "HF_TOKEN"),
        (answer(errors.HfHubHTTPError, 503), "answered with an error (503)", "try again later, or set model.base to"),
    ],
)
def test_refusals_say_what_to_do(hub: Hub, error: Exception, wrong: str, help: str) -> None:
    hub.error = error
    with pytest.raises(RunFailed) as caught:
        locate(ID)
    first, second = str(caught.value).split("\nhelp: ")
    assert f"model.base '{ID}'" in first and wrong in first
    assert help in second
    assert len(hub.asked) == 1, "no retries"


def test_offline_needs_no_request(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RunFailed, match=r"HF_HUB_OFFLINE is set\nhelp: unset it, or set model.base to"):
        locate(ID)
    assert hub.asked == []


@pytest.mark.parametrize(("kind", "code"), [(errors.RemoteEntryNotFoundError, 404), (errors.HfHubHTTPError, 429)])
def test_other_errors_are_left_to_transformers(hub: Hub, kind: type[Exception], code: int) -> None:
    hub.error = answer(kind, code)
    assert locate(ID) == ID


def test_an_incomplete_copy_does_not_count(hub: Hub, cached: Path) -> None:
    (cached / "model.safetensors").unlink()
    hub.error = unreachable()
    with pytest.raises(RunFailed, match="cannot be reached"):
        locate(ID)


def test_an_invalid_hub_id_is_an_error(hub: Hub) -> None:
    with pytest.raises(RunFailed, match=r"'models/my/own' is neither a folder nor a hub id"):
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
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == ID
    policy.add_role("again", start=tmp_path / "adapter")


def test_a_missing_network_costs_no_retries(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real request, to a port without a listener."""
    monkeypatch.undo()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    point_to("http://127.0.0.1:9", monkeypatch)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"waits {seconds} s to try again"))
    with pytest.raises(RunFailed, match=r"http://127\.0\.0\.1:9 cannot be reached \(ConnectError"):
        locate("nobody/has-this-model")
