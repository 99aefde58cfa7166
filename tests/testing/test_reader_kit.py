"""The kit of readers finds each broken rule, and nothing in a good reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit import DataError, Reader
from alignkit.testing import check_reader
from alignkit.testing.surroundings import ConformanceError


class Lines(Reader):
    """A JSON list of prompts."""

    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        try:
            prompts = json.loads(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{path}: no list of prompts: {error}") from error
        for number, prompt in enumerate(prompts, 1):
            yield number, {"prompt": prompt}


class FromZero(Lines):
    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        return ((number - 1, row) for number, row in super().rows(path))


class Changes(Lines):
    seen: int = 0

    def rows(self, path: Path) -> Iterator[tuple[int, Any]]:
        Changes.seen += 1
        yield from [*super().rows(path), (9, {"prompt": str(Changes.seen)})]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.list"
    path.write_text('["a", "b"]', encoding="utf-8")
    return path


def test_a_good_reader_conforms(file: Path) -> None:
    check_reader(Lines, file)


@pytest.mark.parametrize(
    ("cls", "said"),
    [
        (FromZero, "number them upward from 1, so that an error can name a row; these are [0, 1]"),
        (Changes, "a second read has other rows"),
        (dict, "must be a subclass of alignkit.Reader"),
    ],
)
def test_broken_readers_are_reported(cls: Any, said: str, file: Path) -> None:
    with pytest.raises(ConformanceError) as error:
        check_reader(cls, file)
    assert said in str(error.value)


def test_a_file_without_rows_proves_nothing(file: Path) -> None:
    file.write_text("[]", encoding="utf-8")
    with pytest.raises(ConformanceError, match="there is none: pass another file"):
        check_reader(Lines, file)
