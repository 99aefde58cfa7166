"""CUDA graphs of sampling, recorded by a stand-in: there is no GPU here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from alignkit.errors import RecipeError, RunFailed
from alignkit.kernels import cuda_graphs
from alignkit.kernels.cuda_graphs import Replayed, wanted


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replays run the recorded function again, and write to the memory of its first result."""
    count: list[int] = []

    def record(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        count.append(0)
        result = torch.empty_like(step())

        def replay() -> None:
            count[-1] += 1
            result.copy_(step())

        return replay, result

    monkeypatch.setattr(cuda_graphs, "_recorded", record)
    return count


def test_a_step_is_recorded_once_its_shapes_repeat(recorded: list[int]) -> None:
    """And gives each call its own result."""
    replayed, memory = Replayed(), torch.tensor([1.0])
    results = []

    def step(tokens: Tensor, positions: Tensor) -> Tensor:
        return tokens + positions + memory

    for number, key in enumerate(["a", "a", "a", "b", "b", "b", "a"]):
        tokens, positions = torch.tensor([float(number)]), torch.tensor([10.0 * number])
        results.append(replayed.run(key, step, tokens, positions))
        memory.add_(100)
    assert [float(result) for result in results] == [11.0 * n + 1 + 100 * n for n in range(7)]
    assert recorded == [2, 2]  # the last key would be recorded at its next step


@pytest.mark.parametrize(
    ("value", "device", "message"),
    [("1", "cpu", "on the device 'cpu', which has no CUDA graphs"), ("yes", "cuda", "must be 0 or 1")],
)
def test_graphs_are_refused_where_there_are_none(
    value: str, device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cuda_graphs.VARIABLE, value)
    with pytest.raises(RecipeError, match=message):
        wanted(torch.device(device))


@pytest.mark.parametrize(("value", "found"), [("1", True), ("0", False), ("", False)])
def test_the_variable_turns_graphs_on(value: str, found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cuda_graphs.VARIABLE, value)
    assert wanted(torch.device("cuda")) is found


def test_a_step_that_cannot_be_recorded_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        def __init__(self, *_: object) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    def waits() -> Tensor:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", type("Graph", (), {"replay": None}))
    monkeypatch.setattr(torch.cuda, "graph", Refusing)
    with pytest.raises(RunFailed, match=r"not permitted(.|\n)*unset ALIGNKIT_CUDA_GRAPHS"):
        cuda_graphs._recorded(waits)
