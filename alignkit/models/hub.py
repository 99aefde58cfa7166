"""Base models on the Hugging Face hub: download, cached copy, or an error within seconds.

Transformers would ask for several files and retry each for half a minute. This asks for one file, once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alignkit.errors import RunFailed

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError

TIMEOUT = 5  # seconds to wait for the hub, unless HF_HUB_ETAG_TIMEOUT is set
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class _Refusal:
    """Why the hub does not serve a model, and what to do."""

    reason: str
    help: str


def locate(source: str, revision: str | None = None) -> str:
    """Return a name that transformers can load: `source` itself, or its cached copy if the hub does not serve it.

    source: a folder or hub id. Raises RunFailed with advice if there is neither.
    """
    if Path(source).is_dir():
        return source
    from huggingface_hub.errors import HFValidationError

    try:
        cached = cached_snapshot(source, revision)
        refusal = _refusal(source, revision)
    except HFValidationError as error:
        raise RunFailed(
            f"model.base '{source}' is neither a folder nor a hub id (owner/name)\nhelp: correct the path or the id"
        ) from error
    if refusal is None:
        return source
    if cached is not None:
        return str(cached)
    raise RunFailed(
        f"model.base '{source}' is neither a folder nor in the hub's cache, and {refusal.reason}\nhelp: {refusal.help}"
    )


def cached_snapshot(source: str, revision: str | None) -> Path | None:
    """The folder of a cached copy, if it has a configuration and weights."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source, "config.json", revision=revision)
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    return folder if any((folder / name).exists() for name in WEIGHTS) else None


def _refusal(source: str, revision: str | None) -> _Refusal | None:
    """Ask the hub for the model's configuration. None: let transformers load the model or report the problem."""
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return _Refusal("HF_HUB_OFFLINE is set", f"unset it, or {_alternatives(source)}")
    timeout = constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else TIMEOUT
    try:
        get_hf_file_metadata(hf_hub_url(source, "config.json", revision=revision), timeout=timeout)
    except errors.EntryNotFoundError:
        pass  # the repository has no configuration; it may be an adapter
    except errors.HfHubHTTPError as error:
        return _refusal_of(error, source, revision)
    except Exception as error:  # from the HTTP library, which differs between versions of huggingface_hub
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        return _Refusal(
            f"{constants.ENDPOINT} cannot be reached ({reason})", f"check the network, or {_alternatives(source)}"
        )
    return None


def _refusal_of(error: HfHubHTTPError, source: str, revision: str | None) -> _Refusal | None:
    """Translate the hub's answer."""
    from huggingface_hub import constants, errors

    hub, code = constants.ENDPOINT, error.response.status_code
    log_in = "run `hf auth login` (or set HF_TOKEN)"
    if isinstance(error, errors.GatedRepoError):
        return _Refusal(
            f"it is gated: {hub} only serves it to users who accepted its terms",
            f"accept them at {hub}/{source}, then {log_in}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return _Refusal(
            f"{hub} has no revision '{revision or 'main'}' of it",
            f"model.revision must be a branch, tag or commit of {hub}/{source}",
        )
    if code == 404 or isinstance(error, errors.RepositoryNotFoundError):  # the hub sends this one with code 401
        return _Refusal(f"{hub} has no such model, or it is private", f"correct the name; for a private model {log_in}")
    if code in (401, 403):
        return _Refusal(f"{hub} denies access to it ({code})", f"{log_in} with a token that has access")
    if code >= 500:
        return _Refusal(f"{hub} answered with an error ({code})", f"try again later, or {_alternatives(source)}")
    return None


def _alternatives(source: str) -> str:
    from huggingface_hub import constants

    return (
        "set model.base to a local folder or an installed model (see `alignkit plugins`), or run "
        f"`hf download {source}` on a machine with a network, copy its cache to {constants.HF_HUB_CACHE} here, and set "
        "HF_HUB_OFFLINE=1"
    )
