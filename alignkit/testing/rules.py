"""What all kits share: the error, and comparisons of what a plugin returns."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

Variants = Mapping[str, tuple[Sequence[Any], str]]  # what they are -> their results, and what to do


class ConformanceError(AssertionError):
    """The plugin breaks a rule; the message says which one and what to look for."""


class Problems(list[str]):
    """The rules that a plugin breaks, a line each."""

    @contextmanager
    def unchanged(self, what: str, *arguments: Any) -> Iterator[None]:
        """Check that a call in the block leaves its arguments as they are."""
        before = copy.deepcopy(arguments)
        yield
        if not _equal(before, arguments):
            self.append(f"{what} that it is given: make new ones, as with dataclasses.replace")

    def compare(
        self, text: str, expected: Sequence[Any], variants: Variants, tolerance: float = 0.0
    ) -> None:
        """Add a line about the first result of each variant that differs.

        text: of a line, with `{}` for what the variant is. tolerance: of numbers, relative above 1.
        """
        for cause, (actual, help) in variants.items():
            for index, (old, new) in enumerate(zip(expected, actual, strict=True)):
                if not _near(old, new, tolerance):
                    self.append(
                        f"{text.format(cause)} {index} from {old!r:.200} to {new!r:.200}: {help}"
                    )
                    break

    def must_be_json(self, what: str, value: Any) -> None:
        """Check that a value is JSON, and the same when it is read again."""
        try:
            again = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError) as error:
            self.append(f"{what} is not JSON: {error}")
        else:
            if again != value:
                self.append(f"{what} changes when saved as JSON and loaded: {value!r}")


def _near(old: Any, new: Any, tolerance: float) -> bool:
    if isinstance(old, int | float) and isinstance(new, int | float):
        return abs(new - old) <= tolerance * max(1.0, abs(old), abs(new))
    return bool(old == new)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _equal(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)
