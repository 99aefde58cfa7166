"""Read a run's data entries. Entries checked before the first stage are not read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from alignkit.data.sources import DataSpec, Loaded, load
from alignkit.plugins import plugins

FileFacts = tuple[tuple[str, int, int], ...]  # name, time of change in ns and size in bytes of each file


@dataclass(frozen=True, eq=False)
class _Preloaded:
    """A data entry that was read before the first stage. files: their state just before reading."""

    spec: DataSpec
    seed: int
    files: FileFacts
    loaded: Loaded


class RunData:
    """Reads data entries. stage_data: returns the file with the groups of a stage."""

    def __init__(self, stage_data: Callable[[str], Path]):
        self._stage_data = stage_data
        self._preloaded: list[_Preloaded] = []

    def preload(self, spec: DataSpec, seed: int) -> Loaded:
        """Read a data entry that a stage will soon ask for. `load` does not read it again unless its files change."""
        files = _file_facts(spec)
        loaded = self.read(spec, seed)
        self._preloaded.append(_Preloaded(spec, seed, files, loaded))
        return loaded

    def load(self, spec: DataSpec, seed: int) -> Loaded:
        """The rows of a data entry. Rereads changed files, because the stage's hash covers their current contents."""
        wanted = (spec, seed, _file_facts(spec))
        for entry in self._preloaded:
            if (entry.spec, entry.seed, entry.files) == wanted:
                self._preloaded.remove(entry)  # so that the stage can free the rows
                return entry.loaded
        return self.read(spec, seed)

    def forget(self) -> None:
        """Free the entries that no stage asked for."""
        self._preloaded.clear()

    def read(self, spec: DataSpec, seed: int) -> Loaded:
        """Read a data entry from its files."""
        formats = {entry.name: entry.implementation for entry in plugins().registry.registrations("format")}
        return load(spec, formats=formats, seed=seed, stage_data=self._stage_data)


def _file_facts(spec: DataSpec) -> FileFacts:
    files = [source.path for source in spec.sources if source.path is not None and source.path.is_file()]
    stats = [file.stat() for file in files]
    return tuple((str(file), stat.st_mtime_ns, stat.st_size) for file, stat in zip(files, stats, strict=True))
