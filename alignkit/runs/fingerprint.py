"""The data entries of a run, and the hash of all that a stage's result depends on. Equal hashes
reuse a stage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from alignkit.contract.settings import ModelSpec
from alignkit.errors import DataError
from alignkit.host.plugins import GROUP, plugins, reader_of, registration_of
from alignkit.host.registry import Component, Registration
from alignkit.io.digest import (
    commit_of,
    file_digest,
    folder_digest,
    model_digest,
    module_file,
    source_digests,
    versions,
)
from alignkit.io.text import is_dir, is_file
from alignkit.recipe.schema import Recipe, RewardSpec, Stage, specs
from alignkit.recipe.sources import (
    DataSource,
    DataSpec,
    Keys,
    Loaded,
    SourceReader,
    content_digest,
    keys_of_split,
    load,
)
from alignkit.tokens.chat_templates import named_template


class RunData:
    """Reads data entries. stage_data: returns the file with the groups of a stage. recipe: whose
    sources that are split share one split.
    """

    def __init__(self, stage_data: Callable[[str], Path], recipe: Recipe | None = None):
        self._stage_data = stage_data
        self._split: list[DataSource] = []
        stages = recipe.stages.values() if recipe else ()
        parts = [(stage.component.options, stage.settings) for stage in stages]
        for spec in specs(parts, DataSpec):
            for source in spec.sources:
                split = (source.part or source.validation) and not source.stage
                if split and source.whole not in self._split:
                    self._split.append(source.whole)
        # Each asked for once, so that what a run reads is what its hashes say.
        self._commits = cache(partial(commit_of, "dataset"))

    def read(self, spec: DataSpec) -> Loaded:
        """The rows of a data entry."""
        return load(
            spec,
            formats=plugins().usable("format"),
            stage_data=self._stage_data,
            commit=self._commits,
            keys=self._keys,
        )

    def _keys(self, source: DataSource) -> Keys:
        if source.whole in self._split:
            return self._shared
        return keys_of_split([self._reader(source.whole)])

    @cached_property
    def _shared(self) -> Keys:
        """The keys of the recipe's split."""
        return keys_of_split(map(self._reader, self._split))

    def _reader(self, source: DataSource) -> SourceReader:
        return SourceReader(source, plugins().usable("format"), self._stage_data, self._commits)

    def _content(self, source: DataSource) -> Any:
        """What a source holds now: a digest, or the commit of a data set on the hub."""
        if source.hub is not None and not is_dir(source.hub):
            return self._commits(source.hub, source.revision)
        path = source.path or Path(source.hub or self._stage_data(source.stage or ""))
        return content_digest(path) if path.exists() else str(path)

    def identity(self, source: DataSource) -> dict[str, Any]:
        """What decides a source's groups besides its keys: the content and the recognized
        format.
        """
        if source.stage is not None:  # its key counts
            return {}
        facts = {"content": self._content(source)}
        if source.whole in self._split and (source.part or source.validation):
            facts["split"] = list(map(self._content, self._split))
        if (
            source.path is not None
            and (reader := registration_of(source.path))
            and reader.distribution != GROUP
        ):
            facts["reader"] = _code_of(reader)
        if source.format is None:
            first = self._reader(source)
            with suppress(DataError):  # reported when the stage reads its data
                any(first.format_name for _ in first.rows())
            if name := first.format_name:
                facts["recognized"] = _code_of(plugins().get("format", name))
        return facts


def stage_parts(
    stage: Stage, recipe: Recipe, base: Any, upstream: Mapping[str, str], data: RunData
) -> dict[str, Any]:
    """Everything that the stage's result depends on, as plain data.

    base: digest of the base model. upstream: hashes of the stages it refers to. data: knows what
    each source holds.
    """
    plain = partial(_plain, recipe.folder, data)
    backends = plugins().registrations("_backend")
    others = [_code_of(one) for one in backends if one.distribution != GROUP]
    return {
        **({"backends": others} if others else {}),  # the version of ours is alignkit's
        "component": plain(stage.component),
        "settings": plain(stage.settings and stage.settings.model_copy(update={"engine": None})),
        "engine": plain(stage.engine),  # the stage's, or the recipe's
        "upstream": dict(upstream),
        **_model_parts(recipe.folder, recipe.model),
        "base": base,
        "folders": {folder: model_digest(folder) for folder in stage.folders},
        "seed": recipe.seed,
        "versions": versions(_packages(stage, recipe.model)),
    }


def _code_of(registration: Registration) -> list[Any]:
    """Name, version and source of an implementation."""
    source = source_digests(registration.source_path)
    return [registration.name, registration.version, source]


def _model_parts(folder: Path, spec: ModelSpec) -> dict[str, Any]:
    """The settings of a base model, and what decides how messages become text. folder: the
    recipe's.
    """
    plain, name = spec.model_dump(), spec.chat_template or ""
    if is_file(folder / name):  # its content counts as `template`; its folder does not matter
        plain["chat_template"] = Path(name).name
    template = {"code": named_template(name), "kwargs": spec.chat_template_kwargs}
    return {"model": plain, "template": template | _files_named(folder, spec)}


def _packages(stage: Stage, model: ModelSpec) -> list[str]:
    """The packages whose versions decide this stage's result, but not every stage's."""
    packages: list[str] = []
    for component in specs([stage.component, stage.settings, stage.engine], Component):
        for place in (component.options, component.registration.implementation):
            packages += getattr(place, "packages", ())
    if model.quantization != "none" or getattr(stage.settings, "optimizer", "adamw") != "adamw":
        packages.append("bitsandbytes")
    return packages


def _plain(folder: Path, data: RunData, value: Any) -> Any:
    """A value of a recipe as plain data that changes with it: files count by content, plugins by
    source. folder: the recipe's.
    """
    plain = partial(_plain, folder, data)
    if isinstance(value, Component):
        return {
            "name": value.name,
            "version": value.registration.version,
            "source": source_digests(value.registration.source_path),
            "options": plain(value.options),
            "files": _files_named(folder, value.options),
        }
    if isinstance(value, DataSource):
        keys = {name: plain(item) for name, item in dict(value).items() if name != "path"}
        return {"format": plain(value.format), **keys, **data.identity(value)}
    if isinstance(value, BaseModel):
        # A key that is not set is left out: a new optional key must not start everyone's stages
        # over.
        ignored = getattr(value, "changes_no_result", ())
        return {
            name: plain(item)
            for name, item in dict(value).items()
            if item is not None and name not in ignored
        }
    if isinstance(value, DataSpec | RewardSpec):
        named = plain(vars(value))
        if isinstance(value, RewardSpec) and value.kind == "folder":
            named["files"] = model_digest(value.name)
        return named
    if isinstance(value, Path):
        path = folder / value
        if is_dir(path):
            return folder_digest(path)
        if (reader := reader_of(path)) and reader.grows:  # its place does not matter
            return path.name
        return _content_of(path) or path.name
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(plain, value))
    return value


def _content_of(path: Path) -> Any:
    """The digest of a file; that of Python code includes the user's modules that it imports, as does
    that of a user's `module:name`.
    """
    if not is_file(path):
        return source_digests(module_file(path.name)) if ":" in path.name else None
    return source_digests(path) if path.suffix == ".py" else file_digest(path)


def _files_named(folder: Path, options: BaseModel) -> dict[str, Any]:
    """Digests of the files that options name as text, by a path relative to `folder`: templates,
    for example.
    """
    texts = {name: value for name, value in dict(options).items() if isinstance(value, str)}
    return {
        name: found
        for name, value in texts.items()
        if (found := _content_of(folder / value)) is not None
    }
