"""Blocks of rows that others carry out: what is found, stored, begun again and reported."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from alignkit.errors import AlignkitError, DataError, PluginError, RunFailed
from alignkit.runs.durable_map import durable_map
from alignkit_distributed.row_blocks import Block, map_in_blocks

ROWS = [[number, f"row {number}"] for number in range(23)]
Function = Callable[[Sequence[Any]], list[Any]]


class Counting:
    """Doubles the numbers of rows, and counts the rows that it has seen. bad: rows that fail. dies: ends a worker."""

    def __init__(self, bad: Sequence[int] = (), dies: int | None = None) -> None:
        self.seen: list[int] = []
        self.sizes: list[int] = []
        self.bad, self.dies = bad, dies

    def __call__(self, rows: Sequence[Any]) -> list[Any]:
        self.sizes.append(len(rows))
        for number, _ in rows:
            if number in self.bad:
                raise DataError(f"row {number} is bad")
            if number == self.dies:
                raise KeyboardInterrupt
            self.seen.append(number)
        return [2 * number for number, _ in rows]


def carried(
    folder: Path, function: Function, *, rows: Any = ROWS, order: int = 1, most: int | None = None, **options: Any
) -> list[Any]:
    """A map by one worker, which takes the blocks in this order, and no more than `most`."""

    def carry_out(blocks: Sequence[str], stop: Any) -> Iterator[str]:
        for block in list(blocks)[::order][:most]:
            yield Block(folder / "map" / "name", **json.loads(block)).reply(function, 4, lambda: None)

    path = folder / "map" / "name.jsonl"
    return map_in_blocks(path, rows, carry_out, size=4, **{"block_rows": 8, **options})


@pytest.mark.parametrize("order", [1, -1])
def test_blocks_give_what_one_process_finds_from_the_same_chunks(tmp_path: Path, order: int) -> None:
    here, there = Counting(), Counting()
    wanted = durable_map(tmp_path / "here.jsonl", ROWS, here, size=4)
    assert carried(tmp_path, there, order=order) == wanted
    assert sorted(there.sizes) == sorted(here.sizes) == [3, 4, 4, 4, 4, 4]
    assert {path.name for path in (tmp_path / "map" / "name").iterdir() if path.suffix != ".jsonl"} == set()


def test_a_run_that_leaves_its_executor_out_keeps_finished_rows(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    with pytest.raises(RunFailed, match="nothing for the block of row 17"):
        carried(tmp_path, first, most=2)
    assert durable_map(tmp_path / "map" / "name.jsonl", ROWS, second, size=4) == [2 * number for number, _ in ROWS]
    assert sorted(first.seen + second.seen) == list(range(23))


def test_finished_rows_are_not_carried_out_again(tmp_path: Path) -> None:
    first, second, third = Counting(), Counting(), Counting()
    with pytest.raises(RunFailed, match="nothing for the block of row 17"):
        carried(tmp_path, first, most=2)
    done: list[int] = []
    assert carried(tmp_path, second, done=done.append) == [2 * number for number, _ in ROWS]
    assert sorted(first.seen + second.seen) == list(range(23)) and done == [16, 23]
    assert carried(tmp_path, third) == [2 * number for number, _ in ROWS] and third.seen == []


def test_the_chunks_of_an_unfinished_block_and_of_a_run_without_an_executor_count(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        durable_map(tmp_path / "map" / "name.jsonl", ROWS, Counting(bad=[9]), size=4)  # 8 rows are stored
    with pytest.raises(DataError):
        carried(tmp_path, Counting(bad=[13]))  # the chunk before it is stored in the block's file
    again = Counting()
    assert carried(tmp_path, again) == [2 * number for number, _ in ROWS]
    assert again.seen == list(range(12, 23))


def test_other_rows_are_other_blocks(tmp_path: Path) -> None:
    carried(tmp_path, Counting())
    changed, again = [[number, "other"] for number in range(23)], Counting()
    assert carried(tmp_path, again, rows=changed) == [2 * number for number in range(23)]
    assert again.seen == list(range(23))


@pytest.mark.parametrize("order", [1, -1])
def test_the_error_is_that_of_the_first_bad_row_whoever_meets_it_first(tmp_path: Path, order: int) -> None:
    with pytest.raises(DataError, match=r"^row 6 is bad$"):
        carried(tmp_path, Counting(bad=[6, 20]), order=order)


def test_errors_keep_their_kind(tmp_path: Path) -> None:
    def failing(error: Exception) -> Function:
        def fail(rows: Sequence[Any]) -> list[Any]:
            raise error

        return fail

    expected: list[tuple[Exception, type[AlignkitError], str]] = [
        (PluginError("plugin 'x': no"), PluginError, "plugin 'x': no"),
        (KeyError("column"), RunFailed, "KeyError: 'column'"),
        (MemoryError("8 GiB"), AlignkitError, "out of memory"),
    ]
    for number, (raised, kind, text) in enumerate(expected):
        with pytest.raises(kind, match=text):
            carried(tmp_path / str(number), failing(raised))


def test_a_block_on_which_workers_die_is_given_up_with_its_rows(tmp_path: Path) -> None:
    deaths = 0

    def carry_out(blocks: Sequence[str], stop: Any) -> Iterator[str]:
        nonlocal deaths
        for block in blocks:
            while True:  # as an executor does that knows nothing of retries
                try:
                    yield Block(tmp_path / "name", **json.loads(block)).reply(Counting(dies=10), 4, lambda: None)
                except KeyboardInterrupt:
                    deaths += 1
                else:
                    break

    with pytest.raises(RunFailed, match="rows 9 to 16: 3 workers died on them"):
        map_in_blocks(tmp_path / "name.jsonl", ROWS, carry_out, size=4, block_rows=8, retries=2)
    assert deaths == 3
    assert carried(tmp_path, Counting()) == [2 * number for number, _ in ROWS]  # and the count begins anew


def test_a_block_that_two_workers_finish_counts_once(tmp_path: Path) -> None:
    def carry_out(blocks: Sequence[str], stop: Any) -> Iterator[str]:
        for block in [blocks[0], *blocks]:
            yield Block(tmp_path / "name", **json.loads(block)).reply(Counting(), 4, lambda: None)

    done: list[int] = []
    found = map_in_blocks(tmp_path / "name.jsonl", ROWS, carry_out, done=done.append, size=4, block_rows=8)
    assert found == [2 * number for number, _ in ROWS] and done == [0, 8, 16, 23]


def test_a_damaged_block_is_carried_out_again(tmp_path: Path) -> None:
    carried(tmp_path, Counting())
    file = min((tmp_path / "map" / "name").glob("block-*.jsonl"))
    file.write_text(file.read_text().replace("[0, 2, 4, 6]", "[0, 2, 4, 8]"))
    again = Counting()
    assert carried(tmp_path, again) == [2 * number for number, _ in ROWS] and again.seen == [0, 1, 2, 3]
