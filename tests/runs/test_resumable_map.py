"""A resumable map computes each chunk once, however often the run is killed."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from alignkit.runs.services import CHUNK, resumable_map
from tests.faults.disk import synced

ROWS = list(range(2 * CHUNK + 3))
DOUBLED = [2 * row for row in ROWS]


def double(rows: Sequence[int]) -> list[int]:
    return [2 * row for row in rows]


def test_changed_rows_are_computed_again(tmp_path: Path) -> None:
    for row in ({"n": 1}, {"n": 2}):
        assert resumable_map(tmp_path / "x.jsonl", [row], partial(map, list)) == [row]
    same, handles = [0] * 2 * CHUNK, list[int]()
    with synced(handles.append):
        assert resumable_map(tmp_path / "x.jsonl", same, partial(map, zip)) == [[0] for _ in same]
    assert len(handles) == 1


def test_a_chunk_whose_bits_have_changed_is_computed_again(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    resumable_map(file, ROWS, partial(map, double))
    whole = file.read_bytes()
    for place in range(0, len(whole), 61):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        assert resumable_map(file, ROWS, partial(map, double)) == DOUBLED, place


def test_it_says_how_many_rows_are_done_and_asks_whether_to_stop(tmp_path: Path) -> None:
    """Also of rows that an earlier run has done."""
    stops: list[int] = []
    for asked in (3, 6):
        done: list[int] = []
        resumable_map(
            tmp_path / "x.jsonl",
            ROWS,
            partial(map, double),
            lambda: stops.append(1),
            done=done.append,
        )
        assert done == [CHUNK, 2 * CHUNK, len(ROWS)] and len(stops) in (3, asked)


def test_a_result_per_row_is_required(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a result per row: 3 rows, 0 results"):
        resumable_map(tmp_path / "map.jsonl", [1, 2, 3], partial(map, lambda rows: []))
    assert resumable_map(tmp_path / "map.jsonl", [1, 2, 3], partial(map, list)) == [1, 2, 3]


def test_only_missing_chunks_are_computed_in_order(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def elsewhere(chunks: Iterable[Sequence[int]]) -> Iterator[list[int]]:
        asked.extend(map(list, chunks))
        return map(double, asked)

    file = tmp_path / "x.jsonl"
    resumable_map(file, ROWS[:CHUNK], partial(map, double))
    assert resumable_map(file, ROWS, elsewhere) == DOUBLED
    assert asked == [ROWS[CHUNK : 2 * CHUNK], ROWS[2 * CHUNK :]]


def test_a_chunk_is_in_the_file_before_the_next_one_also_behind_half_a_line(tmp_path: Path) -> None:
    file, lines = tmp_path / "x.jsonl", list[int]()
    file.write_text('["of a run that was killed', encoding="utf-8")

    def noted(rows: Sequence[int]) -> list[int]:
        lines.append(file.read_text(encoding="utf-8").count("\n"))
        return double(rows)

    resumable_map(file, ROWS, partial(map, noted))
    assert lines == [0, 1, 2]
    assert resumable_map(file, ROWS, lambda chunks: iter(())) == DOUBLED
