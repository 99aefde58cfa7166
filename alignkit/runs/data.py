"""Reads the data entries of a run. What one stage still holds is not read again for another one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from alignkit.data.sources import DataSource, DataSpec, Loaded, content_digest, load, recognized_format
from alignkit.formats import Format
from alignkit.io.digest import commit_of, folder_digest, plugin_digests
from alignkit.kinds import registration_of
from alignkit.plugins import GROUP, plugins


class RunData:
    """Reads data entries. stage_data: returns the file with the groups of a stage. seed: of the validation split."""

    def __init__(self, stage_data: Callable[[str], Path], seed: int):
        self._stage_data, self._seed = stage_data, seed
        self._held = WeakValueDictionary[str, Loaded]()
        # Each asked for once, so that what a run reads is what its hashes say.
        self._commits = cache(partial(commit_of, "dataset"))

    def read(self, spec: DataSpec, seed: int | None = None) -> Loaded:
        """The rows of a data entry: those that somebody holds, unless a file has changed since they were read.

        seed: of the validation split, if it is not the run's.
        """
        seed = self._seed if seed is None else seed
        made = [self._stage_data(source.stage) for source in spec.sources if source.stage is not None]
        formats = [source.format for source in spec.sources]  # which the text of a source does not name
        earlier = [content_digest(file) for file in made if file.exists()]
        state = f"{spec} {formats} {seed} {file_facts(spec)} {earlier}"
        loaded = self._held.get(state)
        if loaded is None:
            loaded = load(spec, formats=_formats(), seed=seed, stage_data=self._stage_data, commit=self._commits)
            self._held[state] = loaded
        return loaded

    def identity(self, source: DataSource) -> dict[str, Any]:
        """What decides a source's groups besides its keys: contents, the commit, the recognized format, the split."""
        facts: dict[str, Any] = {"split_seed": self._seed} if source.validation else {}
        if source.path is not None:
            facts["path"] = content_digest(source.path) if source.path.exists() else str(source.path)
            if (reader := registration_of(source.path)) is not None and reader.distribution != GROUP:
                facts["reader"] = [reader.name, reader.version, plugin_digests(reader.source_path)]
        if source.hub is not None and Path(source.hub).is_dir():
            facts["hub"] = folder_digest(Path(source.hub))
        elif source.hub is not None:
            facts["commit"] = self._commits(source.hub, source.revision)
        if name := recognized_format(source, _formats(), self._stage_data, self._commits):
            registration = plugins().registry.get("format", name)
            facts["recognized"] = [name, registration.version, plugin_digests(registration.source_path)]
        return facts


def _formats() -> dict[str, type[Format]]:
    return {entry.name: entry.implementation for entry in plugins().registry.usable("format")}


def file_facts(spec: DataSpec) -> dict[str, str]:
    """The digests of the files of a data entry, and of the folders that it reads, by name."""
    named = [(source.path, source.format) for source in spec.sources if source.path is not None]
    files = [path for path, format in named if path.is_file() or (format is not None and path.is_dir())]
    folders = [Path(source.hub) for source in spec.sources if source.hub is not None and Path(source.hub).is_dir()]
    return {str(file): content_digest(file) for file in [*files, *folders]}
