"""Stages that wait for labels of people: others run meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from alignkit.recipe.schema import Stage
from alignkit.runs.stage_store import StageStore
from alignkit.stopping import StageWaits


@dataclass
class Waiting:
    """The stages of a run that wait, by name, and all that cannot run before they are done, in order."""

    errors: dict[str, StageWaits] = field(default_factory=dict)
    blocked: dict[str, None] = field(default_factory=dict)

    @contextmanager
    def until_labeled(self, store: StageStore, say: Callable[[str], None]) -> Iterator[None]:
        """The block runs a stage, which may wait."""
        try:
            yield
        except StageWaits as error:
            self.errors[error.stage] = error
            self.blocked[error.stage] = None
            store.wait(error.stage, error.missing, error.store)
            say(f"{error.stage}: waits for {error.missing} label{'s' * (error.missing != 1)}")

    def blocks(self, stage: Stage) -> bool:
        """Whether a stage needs one that waits."""
        if found := any(name in self.blocked for name in stage.upstream):
            self.blocked[stage.name] = None
        return found

    def end(self, say: Callable[[str], None]) -> None:
        """Raise StageWaits if a stage waits."""
        errors, later = list(self.errors.values()), [name for name in self.blocked if name not in self.errors]
        if later:
            say(f"not yet, because they need these labels: {', '.join(later)}")
        if len(errors) == 1:
            raise errors[0]
        if errors:
            missing = sum(error.missing for error in errors)
            names = ", ".join(self.errors)
            raise StageWaits("\n".join(map(str, errors)), missing=missing, stage=names, store=errors[0].store)
