"""Base models of the hub: from the hub, from its cache where it gives no answer, or why not, within seconds."""

from __future__ import annotations

import os
from pathlib import Path

from alignkit.errors import RunFailed

TIMEOUT = 5  # seconds for an answer; HF_HUB_ETAG_TIMEOUT says otherwise
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def locate(source: str, revision: str | None = None) -> str:
    """What transformers is to load: `source` itself, or the cached copy's folder where the hub does not give it.

    Asks for one file without retries: transformers would ask for several, each with half a minute of them.
    Raises RunFailed where there is neither an answer nor a copy.
    """
    if Path(source).is_dir():
        return source
    from huggingface_hub.errors import HFValidationError

    try:
        cached = _cached(source, revision)
        refused = _refused(source, revision)
    except HFValidationError as error:
        raise RunFailed(
            f"model.base '{source}' is neither a folder nor a hub id (owner/name)\nhelp: correct the path or the id"
        ) from error
    if refused is None:
        return source
    if cached is not None:
        return str(cached)
    what, help = refused
    raise RunFailed(f"model.base '{source}' is neither a folder nor in the hub's cache, and {what}\nhelp: {help}")


def _cached(source: str, revision: str | None) -> Path | None:
    """The folder of a copy that has a configuration and weights."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source, "config.json", revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder if any((folder / name).exists() for name in WEIGHTS) else None


def _refused(source: str, revision: str | None) -> tuple[str, str] | None:
    """Why the hub does not give the model, and what to do; None: it may, and transformers says the rest."""
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    hub = constants.ENDPOINT
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set", f"unset it, or {_instead(source)}"
    timeout = constants.HF_HUB_ETAG_TIMEOUT if "HF_HUB_ETAG_TIMEOUT" in os.environ else TIMEOUT
    try:
        get_hf_file_metadata(hf_hub_url(source, "config.json", revision=revision), timeout=timeout)
    except errors.GatedRepoError:
        return (
            f"it is gated: {hub} gives it only to those who accepted its terms",
            f"accept them at {hub}/{source}, then `hf auth login` (or set HF_TOKEN)",
        )
    except errors.EntryNotFoundError:
        return None  # no configuration: an adapter, perhaps
    except errors.RevisionNotFoundError:
        return (
            f"{hub} has no revision '{revision or 'main'}' of it",
            f"model.revision takes a branch, tag or commit of {hub}/{source}",
        )
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        if code == 404 or isinstance(error, errors.RepositoryNotFoundError):  # the hub's own way to say it has code 401
            return (
                f"{hub} has no such model, or it is private",
                "correct the name; for a private model `hf auth login` (or set HF_TOKEN)",
            )
        if code in (401, 403):
            return (
                f"{hub} does not let you read it ({code})",
                "`hf auth login` (or set HF_TOKEN) with a token that may",
            )
        if code >= 500:
            return f"{hub} answers with an error ({code})", f"try again later, or {_instead(source)}"
    except (
        Exception
    ) as error:  # the class is that of the HTTP library, another one with each major version of the hub's
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        return f"{hub} cannot be reached ({reason})", f"restore the network, or {_instead(source)}"
    return None


def _instead(source: str) -> str:
    from huggingface_hub import constants

    from alignkit.plugins import plugins

    known = ", ".join(plugins().registry.names("model"))
    return (
        f"set model.base to a local folder or an installed model ({known}), or fill the cache {constants.HF_HUB_CACHE} "
        f"where there is a network (`hf download {source}`), copy it here and set HF_HUB_OFFLINE=1"
    )
