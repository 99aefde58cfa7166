"""The interface of an external trainer: a stage whose plugin does the training itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from alignkit.algorithm import Algorithm
from alignkit.settings import ModelSpec

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from alignkit.data.group import Group
    from alignkit.data.sources import Loaded
    from alignkit.settings import Settings


class TrainerContext(Protocol):
    """The parts of a stage that an external trainer can use.

    name: the stage's name. seed: the stage's seed. settings: its stage-level keys, such as `learning_rate`.
    base: folder or hub id of the base model's weights. dtype, device: those of the base model.
    tokenizer: the transformers tokenizer, with the recipe's chat template. end_ids: tokens that end a response.
    """

    name: str
    seed: int
    settings: Settings
    base: str
    dtype: torch.dtype
    device: torch.device
    tokenizer: Any
    end_ids: frozenset[int]

    def load(self, data: Any) -> Loaded:
        """Read a data entry of the settings, such as `settings.data` or `settings.prompts`."""
        ...

    def export_start(self, folder: Path, *, scalar_head: bool = False) -> None:
        """Write the adapter the stage starts from (its `from`) to `folder`, in peft's format.

        scalar_head: add the head of a reward model.
        """
        ...

    def import_adapter(self, folder: Path, *, scalar_head: bool = False) -> None:
        """Make the trained adapter in `folder` the stage's result. Raises RunFailed if it does not fit the base."""
        ...

    def score(self, groups: Sequence[Group]) -> list[float | None]:
        """The stage's reward of every response of these groups, in order; None if a response could not be scored.

        Responses with `truncated` set pay the recipe's `missing_eos_penalty`. The text of sampled tokens is read from
        them, as in other stages.
        """
        ...

    def start(self, steps: int) -> None:
        """Begin the progress display for this many steps."""
        ...

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step. The progress display advances if they have a `loss`."""
        ...

    def say(self, text: str) -> None:
        """Print one line to the user, after the stage's name."""
        ...

    def check_stop(self) -> None:
        """Raise if the user asked the run to stop; call it between steps."""
        ...


class ExternalTrainer(Algorithm):
    """Base class of a stage that another library trains; alignkit provides everything around the training.

    It cannot resume inside a stage: a stage that was killed starts over. packages: whose versions decide the result.
    """

    packages: ClassVar[tuple[str, ...]] = ()

    def check_model(self, model: ModelSpec) -> None:
        """Called before a run's first stage. Raise RunFailed if the trainer does not support this model."""

    def train(self, context: TrainerContext) -> Mapping[str, Any]:
        """Train, call `context.import_adapter`, and return a JSON summary for stage.json."""
        raise NotImplementedError(f"{type(self).__name__} does not train anything")
