"""CUDA graphs for sampling: the operators of a step are recorded once, and started by one call from then on.

`ALIGNKIT_CUDA_GRAPHS=1` turns them on. A graph holds for one set of rows and one number of columns; the first step with
new ones runs as usual, the second is recorded. Nobody has tried this on hardware.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from alignkit.errors import Problem, RecipeError, RunFailed, memory_ran_out

VARIABLE = "ALIGNKIT_CUDA_GRAPHS"

Step = Callable[[Tensor, Tensor], Tensor]  # (tokens, positions) -> logits


def wanted(device: torch.device) -> bool:
    """Whether the variable asks for graphs. Raises RecipeError for an unknown value, and where there are none."""
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise RecipeError([Problem(f"{VARIABLE} is '{value}'; it must be 0 or 1", help="unset it for 0")])
    if value == "1" and device.type != "cuda":
        message = f"{VARIABLE} is 1, but the model is on the device '{device.type}', which has no CUDA graphs"
        raise RecipeError([Problem(message, help="unset it, or choose a GPU in 'model.device'")])
    return value == "1"


class Replayed:
    """A step that is recorded once its shapes repeat."""

    def __init__(self) -> None:
        self._key: Hashable = None
        self._replay: Callable[[], None] | None = None
        self._tokens = self._positions = self._logits = torch.zeros(0)  # the memory that the graph reads and writes

    def run(self, key: Hashable, step: Step, tokens: Tensor, positions: Tensor) -> Tensor:
        """`step(tokens, positions)`. key: of everything else that it reads; the same key means the same memory."""
        if key != self._key:
            self._key, self._replay = key, None
            return step(tokens, positions)
        if self._replay is None:
            self._tokens, self._positions = tokens.clone(), positions.clone()
            self._replay, self._logits = _recorded(lambda: step(self._tokens, self._positions))
        self._tokens.copy_(tokens)
        self._positions.copy_(positions)
        self._replay()
        return self._logits.clone()  # the next replay overwrites it


def _recorded(step: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A function that runs the step again, and the tensor that it writes. Raises RunFailed if it cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            result = step()
    except RuntimeError as error:
        if memory_ran_out(error):
            raise
        raise RunFailed(
            f"the steps of this model cannot become a CUDA graph: {error}\nhelp: unset {VARIABLE}"
        ) from error
    return graph.replay, result
