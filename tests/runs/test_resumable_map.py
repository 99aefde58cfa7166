"""A resumable map computes each chunk once, however often the run is killed."""

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from alignkit.runs.services import CHUNK, resumable_map


class Doubling:
    """Doubles numbers, counts its calls, and is killed at a call if told to."""

    def __init__(self, fail_at: int = 0):
        self.calls, self.fail_at = 0, fail_at

    def __call__(self, rows: Sequence[int]) -> list[int]:
        self.calls += 1
        if self.calls == self.fail_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return [2 * row for row in rows]


ROWS = list(range(2 * CHUNK + 3))
DOUBLED = [2 * row for row in ROWS]


def test_results_are_in_order_and_not_computed_again(tmp_path: Path) -> None:
    function = Doubling()
    for _ in range(2):
        found = resumable_map(tmp_path / "map" / "x.jsonl", ROWS, partial(map, function))
        assert found == DOUBLED and function.calls == 3


def test_a_killed_run_continues_after_the_last_complete_chunk(tmp_path: Path) -> None:
    if (child := os.fork()) == 0:
        resumable_map(tmp_path / "x.jsonl", ROWS, partial(map, Doubling(fail_at=3)))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    function = Doubling()
    assert resumable_map(tmp_path / "x.jsonl", ROWS, partial(map, function)) == DOUBLED
    assert function.calls == 1


def test_changed_rows_are_computed_again(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Row:
        value: int

    def values(rows: Sequence[Row]) -> list[int]:
        return [row.value for row in rows]

    for value in (1, 2):
        assert resumable_map(tmp_path / "x.jsonl", [Row(value)], partial(map, values)) == [value]


def test_a_chunk_whose_bits_have_changed_is_computed_again(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    resumable_map(file, ROWS, partial(map, Doubling()))
    whole = file.read_bytes()
    for place in range(0, len(whole), 61):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        file.write_bytes(flipped)
        assert resumable_map(file, ROWS, partial(map, Doubling())) == DOUBLED, place


def test_it_says_how_many_rows_are_done_and_asks_whether_to_stop(tmp_path: Path) -> None:
    """Also of rows that an earlier run has done."""
    stops: list[int] = []
    for asked in (3, 6):
        done: list[int] = []
        resumable_map(
            tmp_path / "x.jsonl",
            ROWS,
            partial(map, Doubling()),
            lambda: stops.append(1),
            done=done.append,
        )
        assert done == [CHUNK, 2 * CHUNK, len(ROWS)] and len(stops) in (3, asked)


def test_a_result_per_row_is_required(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a result per row: 3 rows, 0 results"):
        resumable_map(tmp_path / "map.jsonl", [1, 2, 3], partial(map, lambda rows: []))
    assert resumable_map(tmp_path / "map.jsonl", [1, 2, 3], partial(map, list)) == [1, 2, 3]


def test_missing_chunks_are_computed_elsewhere_in_order(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def elsewhere(chunks: Iterable[Sequence[int]]) -> Iterator[list[int]]:
        every = [list(chunk) for chunk in chunks]
        asked.extend(every)
        return ([2 * row for row in chunk] for chunk in every)

    file = tmp_path / "x.jsonl"
    resumable_map(file, ROWS[:CHUNK], partial(map, Doubling()))
    assert resumable_map(file, ROWS, elsewhere) == DOUBLED
    assert asked == [ROWS[CHUNK : 2 * CHUNK], ROWS[2 * CHUNK :]]
