"""Uploads to the hub: who can read them, and what a hub that refuses leaves behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
from huggingface_hub import HfApi, constants

from alignkit.errors import RecipeError, RunFailed
from alignkit_plugins.people.sharing import check_target, upload


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """An object with the hub's interface, which takes everything."""
    found = create_autospec(HfApi, instance=True, endpoint="https://hub.example")
    found.create_repo.return_value.repo_id = "me/sft"
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: found)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "a-token")
    return found


@pytest.mark.parametrize(("private", "readers"), [(True, "only you"), (False, "everybody")])
def test_an_upload(hub: Any, private: bool, readers: str, tmp_path: Path) -> None:
    """A new repository is private."""
    hub.repo_info.return_value.private = private
    where = upload(tmp_path, check_target("sft"))
    assert where == f"https://hub.example/me/sft, which {readers} can read"
    hub.create_repo.assert_called_once_with("sft", repo_type="dataset", private=True, exist_ok=True)
    sent = hub.upload_folder.call_args.kwargs
    assert (sent["repo_id"], sent["repo_type"]) == ("me/sft", "dataset")
    assert sent["folder_path"] == tmp_path
    assert hub.repo_info.call_args.kwargs == {"repo_type": "dataset"}


def test_what_is_checked_before_the_work(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create_repo.side_effect = HfApi().create_repo
    with pytest.raises(RecipeError, match="--push: this is no name of a repository"):
        check_target("a b")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub.create_repo.side_effect = HfApi().create_repo
    with pytest.raises(RunFailed, match="the hub refused, or did not answer"):
        check_target("me/sft")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(RecipeError, match=r"there is none(?s:.)*hf auth login"):
        check_target("me/sft")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError, match="HF_HUB_OFFLINE is set"):
        check_target("me/sft")


def test_a_hub_that_refuses(hub: Any, tmp_path: Path) -> None:
    """What was made stays, and the message says how to upload it later."""
    hub.upload_folder.side_effect = OSError("storage quota exceeded")
    with pytest.raises(RunFailed, match=r"storage quota exceeded(?s:.)*push it with `hf upload"):
        upload(tmp_path, "me/sft")
