"""The interface of a step: a stage that makes data or files and trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alignkit.data.group import Group
from alignkit.options import Options as _Options
from alignkit.reward import Context

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Artifact:
    """What a step leaves behind.

    groups: becomes `data.jsonl`, readable by later stages as `data: STAGE` or `prompts: STAGE`.
    policy: the stage reference this step stands for (`choose`), so that later stages may say `from: STAGE`.
    summary: small JSON kept in stage.json. table: rows (dicts) shown at the end of the run.
    text: printed at the end of the run.
    """

    groups: Sequence[Group] | None = None
    policy: str | None = None
    summary: Mapping[str, Any] | None = None
    text: str = ""


@dataclass(frozen=True)
class StepContext(Context):
    """out: the stage's folder. scorer: builds a RewardRef option, see `Scorer`.

    map(name, rows, f): f over rows, durable: results are kept on disk by row content, a killed run goes on after
    the last finished chunk. log: metrics. say: one line to the user.
    """

    out: Path
    scorer: Callable[[Any], Any]
    map: Callable[[str, Sequence[Any], Callable[[Sequence[Any]], Iterable[Any]]], list[Any]]
    log: Callable[..., None]
    say: Callable[[str], None]


class Step:
    """Base class of a step. Its Options' fields stand at stage level in the recipe."""

    class Options(_Options):
        """No options."""

    def __init__(self, options: Any):
        self.options = options

    def run(self, context: StepContext) -> Artifact:
        raise NotImplementedError
