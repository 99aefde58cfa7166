"""What the processes that do not lead print and write: nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from alignkit.io.progress import Metrics, Reporter


class SilentReporter(Reporter):
    """Prints nothing: process 0 says everything once."""

    def say(self, text: str) -> None: ...

    def result(self, text: str) -> None: ...

    def start(self, stage: str, total: int, done: int = 0, unit: str = "step") -> None: ...

    def advance(self, done: int, metrics: Mapping[str, float]) -> None: ...

    def sample(self, prompt: str, response: str, facts: str = "") -> None: ...

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda done: None


class UnwrittenMetrics(Metrics):
    """Metrics that process 0 writes."""

    def __init__(self) -> None: ...

    def write(self, **values: Any) -> None: ...

    def sync(self) -> int:
        return 0
