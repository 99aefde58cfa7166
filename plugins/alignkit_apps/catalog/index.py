"""The index of plugins: packages of others, from a file that grows by pull requests."""

from __future__ import annotations

import importlib.metadata
from datetime import date
from pathlib import Path

from packaging.specifiers import SpecifierSet
from pydantic import BaseModel, ConfigDict, TypeAdapter

from alignkit import __version__

INDEX = Path(__file__).with_name("index.json")


class Entry(BaseModel):
    """A package.

    provides: names as recipes write them, by kind; of a command, as `alignkit` does. alignkit: the range of its
    dependency on alignkit. tested_with: the alignkit with which its tests passed. install: what pip takes.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    package: str
    summary: str
    provides: dict[str, list[str]]
    alignkit: str
    tested_with: str
    tested_on: date
    home: str
    install: str

    @property
    def names(self) -> list[str]:
        """`algorithm prm`, one for each name."""
        return [f"{kind} {name}" for kind, names in self.provides.items() for name in names]

    @property
    def fits(self) -> bool:
        """Whether it was written for this alignkit."""
        return SpecifierSet(self.alignkit).contains(__version__, prereleases=True)

    @property
    def installed(self) -> str | None:
        """The version that is installed here."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def has(self, word: str) -> bool:
        """Whether a word occurs in its name, its summary, or what it provides."""
        return word.casefold() in f"{self.package} {self.summary} {' '.join(self.names)}".casefold()

    def __str__(self) -> str:
        installed = f"{self.installed} is installed" if self.installed else f"pip install '{self.install}'"
        here = "" if self.fits else f", and this is alignkit {__version__}"
        return (
            f"{self.package}: {self.summary}\n"
            f"  {', '.join(self.names)}\n"
            f"  for alignkit{self.alignkit}{here}; tested with {self.tested_with} on {self.tested_on}\n"
            f"  {self.home}\n"
            f"  {installed}"
        )


def entries() -> list[Entry]:
    """The index, by package. Raises pydantic's ValidationError for a file that is not as `Entry` says."""
    return TypeAdapter(list[Entry]).validate_json(INDEX.read_text(encoding="utf-8"))
