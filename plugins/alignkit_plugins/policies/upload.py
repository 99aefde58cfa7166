"""Uploads an export to the Hugging Face hub; token and name are checked before the work begins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignkit.commands import refuse
from alignkit.errors import RunFailed

LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True)
class Target:
    """A repository to upload to. public: whether everybody can read it; None: there is none yet."""

    repo: str
    public: bool | None


def check_target(repo: str) -> Target:
    """The repository, with its owner. Raises RecipeError if it cannot be written to, RunFailed if
    the hub is away.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        refuse(f"--push {repo} is no name of a repository: {error}", "write OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        refuse("--push needs the hub, but HF_HUB_OFFLINE is set", "unset it, or leave --push out")
    api = HfApi()
    user = _asked(api.whoami, "who you are")
    owners = [str(user.get("name")), *(str(owner.get("name")) for owner in user.get("orgs") or ())]
    owner, _, name = repo.rpartition("/")
    owner = owner or owners[0]
    if owner not in owners:
        refuse(
            f"--push {repo}: you are {owners[0]} and cannot write to {owner}",
            f"owners: {', '.join(owners)}",
        )
    whole = f"{owner}/{name}"
    try:
        return Target(whole, not _asked(lambda: api.repo_info(whole), f"about {whole}").private)
    except RepositoryNotFoundError:
        return Target(whole, None)


def push(folder: Path, target: Target) -> str:
    """Upload a folder; returns its address. Raises RunFailed if the hub refuses; the folder
    stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()

    def upload() -> Any:
        if target.public is None:
            api.create_repo(target.repo, private=True, exist_ok=True)
        return api.upload_folder(
            repo_id=target.repo, folder_path=folder, commit_message="Exported with alignkit"
        )

    again = f"the export is in {folder}; push it with `hf upload {target.repo} {folder}`"
    _asked(upload, f"to store {target.repo}", again)
    return (
        f"{api.endpoint}/{target.repo}, which {'everybody' if target.public else 'only you'} can "
        "read"
    )


def _asked(call: Callable[[], Any], what: str, help: str = LOGIN) -> Any:
    """The hub's answer. Raises RunFailed with its reason."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return call()
    except RepositoryNotFoundError:
        raise
    except LocalTokenNotFoundError:
        refuse("--push needs a token of the hub, and there is none", LOGIN)
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        reason = error.server_message or str(error).split("\n")[0]
        raise RunFailed(
            f"the hub, asked {what}, refused ({status}): {reason}\nhelp: {help}"
        ) from error
    except (
        Exception
    ) as error:  # from the HTTP library, which differs between versions of huggingface_hub
        raise RunFailed(f"the hub, asked {what}, did not answer: {error}\nhelp: {help}") from error
