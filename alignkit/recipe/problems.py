"""Collects everything that is wrong with a recipe, so that one run reports it all."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignkit.errors import MOST_SHOWN, Problem, RecipeError
from alignkit.recipe.advice import advice
from alignkit.recipe.document import Document, Keys

PLUGIN_ERROR = 3  # exit code if only plugins are wrong, not the recipe


@dataclass
class Problems:
    """The problems of one document. Compare `len(problems)` before and after a check to see whether it added any."""

    document: Document
    items: list[Problem] = field(default_factory=list)
    _known: set[Problem] = field(default_factory=set)
    of_plugins: int = 0
    _missing: dict[Problem, Keys] = field(default_factory=dict)
    _meant: set[Keys] = field(default_factory=set)  # the keys that the help of unknown keys names

    def __len__(self) -> int:
        return len(self.items)

    def error(self, keys: Keys, message: str, *, at_key: bool = False, help: str = "", plugin: bool = False) -> Problem:
        """Add a problem, unless it is already known. Returns it.

        at_key: point at the key instead of its value. plugin: the plugin is wrong, not the recipe.
        """
        problem = self.document.problem(keys, message, at_key=at_key, help=help)
        if problem not in self._known:
            self._known.add(problem)
            self.items.append(problem)
            self.of_plugins += plugin
        return problem

    def missing(self, keys: Keys, why: str = "", help: str = "") -> None:
        """Add a missing key. It is left out of the report if an unknown key next to it is its likely misspelling."""
        self._missing[self.error(keys, f"'{path_text(keys)}' is missing{why}", at_key=True, help=help)] = keys

    def unknown_key(self, keys: Keys, allowed: Iterable[str], help: str = "") -> None:
        """Add an unknown key. Without a help text, suggest the nearest allowed key or the place where it belongs."""
        key = str(keys[-1])
        if len(self.items) < MOST_SHOWN:  # the search for a similar name takes longest
            help = help or advice(key, list(allowed))
        self.error(keys, f"unknown key '{key}'", at_key=True, help=help)
        if meant := re.match("did you mean '([^']+)'", help):
            self._meant.add((*keys[:-1], meant[1]))

    def as_error(self, sources: Sequence[Any] = (), partial: Any = None) -> RecipeError:
        """Return the error that reports every problem in the order of the file. Arguments: as its attributes."""
        items = [problem for problem in self.items if self._missing.get(problem) not in self._meant]
        error = RecipeError(sorted(items, key=lambda problem: (problem.file, problem.line, problem.column)))
        if self.of_plugins == len(self.items):
            error.exit_code = PLUGIN_ERROR
        error.sources, error.partial = sources, partial
        return error


def path_text(keys: Iterable[str | int]) -> str:
    """Return a path as people write it: `stages.align.epochs`."""
    return ".".join(str(key) for key in keys)


def shown(value: Any) -> str:
    """Return a value as an error shows it: as YAML writes it, and at most 60 characters."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
