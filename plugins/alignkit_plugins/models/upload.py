"""Uploads to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from alignkit.errors import RunFailed, refuse

LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check_target(repo: str, kind: str = "model") -> str:
    """Return a repository as OWNER/NAME; a new one is made, private. Call it before the work.

    Args:
        repo: OWNER/NAME, or the NAME of one of the user's own.
        kind: `model` or `dataset`.

    Raises:
        RecipeError: For what is no name of a repository, or without a token.
        RunFailed: If the hub refuses, or does not answer.
    """
    from huggingface_hub import HfApi, constants, get_token

    if constants.HF_HUB_OFFLINE:
        refuse("--push needs the hub, but HF_HUB_OFFLINE is set", "unset it, or leave --push out")
    if get_token() is None:
        refuse("--push needs a token of the hub, and there is none", LOGIN)
    create = partial(HfApi().create_repo, repo, repo_type=kind, private=True, exist_ok=True)
    return str(_asked(create, LOGIN).repo_id)


def push(folder: Path, repo: str, kind: str = "model") -> str:
    """Upload a folder to a repository from `check_target`; return its address, and who can read it.

    Raises RunFailed if the hub refuses; the folder stays.
    """
    from huggingface_hub import HfApi

    api, again = (
        HfApi(),
        f"it is in {folder}; push it with `hf upload {repo} {folder} --repo-type {kind}`",
    )
    upload = partial(api.upload_folder, repo_id=repo, repo_type=kind, folder_path=folder)
    _asked(partial(upload, commit_message="Exported with alignkit"), again)
    is_private = _asked(partial(api.repo_info, repo, repo_type=kind), again).private
    return f"{api.endpoint}/{repo}, which {'only you' if is_private else 'everybody'} can read"


def _asked(call: Callable[[], Any], help: str) -> Any:
    """The hub's answer."""
    from huggingface_hub.errors import HFValidationError

    try:
        return call()
    except HFValidationError as error:
        refuse(f"--push: this is no name of a repository: {error}", "write OWNER/NAME")
    except Exception as error:  # of the hub, or of the HTTP library, whose errors have many names
        raise RunFailed(f"the hub refused, or did not answer: {error}\nhelp: {help}") from error
