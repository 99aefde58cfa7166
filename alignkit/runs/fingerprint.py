"""The hash of everything a stage's result depends on. A complete stage with the same hash is reused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignkit import kernels
from alignkit.data.sources import DataSource, DataSpec
from alignkit.io.digest import digest, file_digest, model_digest, versions
from alignkit.recipe.schema import Recipe, RewardSpec, Stage, fields_of
from alignkit.registry import Component


def stage_hash(stage: Stage, recipe: Recipe, base: Any, seed: int, upstream: Mapping[str, str]) -> str:
    """The stage's hash. base: digest of the base model. upstream: hashes of the stages it refers to."""
    model = recipe.model.model_dump()
    template = recipe.folder / (recipe.model.chat_template or "")
    if template.is_file():  # its name here and its content below; its folder does not matter
        model["chat_template"] = template.name
    return digest(
        {
            "component": _fingerprint(stage.component, recipe.folder),
            "settings": _fingerprint(stage.settings, recipe.folder),
            "upstream": dict(upstream),
            "model": model,
            "from": model_digest(stage.settings.from_) if stage.settings and stage.settings.from_ else None,
            "template": _files_named(recipe.model, recipe.folder),
            "base": base,
            "seed": seed,
            "kernels": kernels.mode(),
            "versions": versions(),
        }
    )


def _source_digest(source: Path | None) -> Any:
    """The digest of a plugin's file, or of every file of its package; None if it has no file."""
    if source is None or not source.is_file():
        return None
    if source.name != "__init__.py":
        return file_digest(source)
    files = sorted(source.parent.rglob("*.py"))
    return {str(file.relative_to(source.parent)): file_digest(file) for file in files}


def _fingerprint(value: Any, folder: Path) -> Any:
    """Plain data that changes with the value: files count by content, plugins by version and source."""
    if isinstance(value, Component):
        return {
            "name": value.name,
            "version": value.registration.version,
            "source": _source_digest(getattr(value.registration, "source_path", None)),
            "options": _fingerprint(value.options, folder),
            "files": _files_named(value.options, folder),
        }
    if isinstance(value, BaseModel):
        return {name: _fingerprint(item, folder) for name, item in fields_of(value).items()}
    if isinstance(value, DataSource | DataSpec | RewardSpec):
        pairs = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        plain = {name: _fingerprint(item, folder) for name, item in pairs}
        if isinstance(value, RewardSpec) and value.kind == "folder":
            plain["files"] = model_digest(value.name)
        return plain
    if isinstance(value, Path):
        path = folder / value
        return file_digest(path) if path.is_file() else str(value)
    if isinstance(value, Mapping):
        return {key: _fingerprint(item, folder) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_fingerprint(item, folder) for item in value]
    return value


def _files_named(options: Any, folder: Path) -> dict[str, str]:
    """Digests of the files that options name as text, by a relative path: templates, for example."""
    digests = {}
    for name, value in fields_of(options).items() if isinstance(options, BaseModel) else ():
        if isinstance(value, str) and 0 < len(value) < 1024 and "\n" not in value:
            path = folder / value
            if path.is_file():
                digests[name] = file_digest(path)
    return digests
