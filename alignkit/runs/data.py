"""Read a run's data entries. Entries checked before the first stage are not read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from alignkit.data.sources import DataSource, DataSpec, Loaded, content_digest, load, recognized_format
from alignkit.formats import Format
from alignkit.io.commits import commit_of
from alignkit.io.digest import folder_digest
from alignkit.io.source_code import plugin_digests
from alignkit.plugins import GROUP, plugins
from alignkit.readers import registration_of

MOST_KEPT = 50_000  # rows of an entry, until its stage asks for them
FileFacts = tuple[tuple[str, str], ...]  # name and digest of each file


@dataclass(frozen=True, eq=False)
class _Preloaded:
    """A data entry that was read before the first stage. files: their state just before reading."""

    spec: DataSpec
    files: FileFacts
    loaded: Loaded


class RunData:
    """Reads data entries. stage_data: returns the file with the groups of a stage. seed: of the validation split."""

    def __init__(self, stage_data: Callable[[str], Path], seed: int):
        self._stage_data, self._seed = stage_data, seed
        self._preloaded: list[_Preloaded] = []
        # Each asked for once, so that what a run reads is what its hashes say.
        self._commits = cache(partial(commit_of, "dataset"))

    def preload(self, spec: DataSpec) -> Loaded:
        """Read a data entry that a stage will soon ask for. `load` does not read it again unless its files change."""
        files = file_facts(spec)
        same = [entry for entry in self._preloaded if entry.spec == spec and entry.files == files]
        loaded = same[0].loaded if same else self.read(spec)
        if len(loaded.groups) <= MOST_KEPT:
            self._preloaded.append(_Preloaded(spec, files, loaded))
        return loaded

    def load(self, spec: DataSpec, seed: int | None = None) -> Loaded:
        """The rows of a data entry. Rereads changed files, because the stage's hash covers their current contents."""
        if seed is not None:
            return self.read(spec, seed)
        known = [entry for entry in self._preloaded if entry.spec == spec]
        if known and known[0].files == file_facts(spec):
            self._preloaded.remove(known[0])  # so that the stage can free the rows
            return known[0].loaded
        return self.read(spec)

    def read(self, spec: DataSpec, seed: int | None = None) -> Loaded:
        """Read a data entry from its files. seed: of the validation split, if it is not the run's."""
        seed = self._seed if seed is None else seed
        return load(spec, formats=_formats(), seed=seed, stage_data=self._stage_data, commit=self._commits)

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


def skipped_rows(loaded: Loaded, record: Path) -> str:
    """That a source has bad rows, in words. record: the file that will list them."""
    count = len(loaded.skipped)
    rows = f"{count} bad row{'s' if count > 1 else ''}"
    return f"skipped {rows}, the first: {loaded.skipped[0]} ({record} lists all of them once the stage is done)"


def _formats() -> dict[str, type[Format]]:
    return {entry.name: entry.implementation for entry in plugins().registry.usable("format")}


def file_facts(spec: DataSpec) -> FileFacts:
    """The files of a data entry, and folders that a named format reads, as they are now."""
    named = [(source.path, source.format) for source in spec.sources if source.path is not None]
    files = [path for path, format in named if path.is_file() or (format is not None and path.is_dir())]
    return tuple((str(file), content_digest(file)) for file in files)
