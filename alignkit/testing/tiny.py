"""The model as all kits share it, and the models of a run's stages on it."""

from __future__ import annotations

import functools
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch

from alignkit.contract.settings import LoraSpec, ModelSpec
from alignkit.data.group import Group
from alignkit.host.plugins import plugins
from alignkit.models.models import LoadedModel, RolePolicy
from alignkit.models.shared_model import HeadKind, SharedModel
from alignkit.recipe.schema import BASE

ONE_BATCH = 1 << 20  # a token budget that no batch here exceeds
SPEC = ModelSpec(base="tests", dtype="float32", device="cpu", lora=LoraSpec(r=4, lora_alpha=8))


class TinyModel(SharedModel):
    """The model of the kits, with a token budget that can be set."""

    budget = ONE_BATCH

    @property
    def token_budget(self) -> int:
        return self.budget


@functools.cache
def tiny_model() -> TinyModel:
    """The model that all checks of a process share."""
    with tempfile.TemporaryDirectory(prefix="alignkit-testing-") as folder:
        return TinyModel(SPEC, tiny_folder(Path(folder)))


def tiny_folder(cache: Path) -> str:
    """The folder of the model that plugins provide for kits."""
    return str(plugins().only("model").implementation(cache))


def add_noise(model: SharedModel, role: str, size: float, seed: int) -> None:
    """Add noise to a role's weights: a fresh adapter changes nothing, and half of its gradient is
    zero.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters_of(role).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)


class TinyModels(LoadedModel):
    """The models of a run on the model of the kits: every stage has weights of its own."""

    def __init__(self) -> None:
        super().__init__(tiny_model(), artifact=Path)
        self.used: set[str] = set()  # stages whose models were used

    def __getitem__(self, reference: str) -> RolePolicy:
        return TinyPolicy(self, reference)

    def role(self, reference: str) -> str:
        self.add(reference, "language")
        return super().role(reference)

    def close(self) -> None:
        """Drop the roles from the model, which all checks of a process share."""
        for role in self.used - {BASE}:
            if role in self.model.roles:
                self.model.drop_role(role)

    def add(self, stage: str, head: HeadKind) -> None:
        """Add a stage's role, unless there is one."""
        self.used.add(stage)
        if stage != BASE and stage not in self.model.roles:
            self.model.add_role(stage, head=head)
            add_noise(self.model, stage, 0.05, zlib.crc32(stage.encode()))


class TinyPolicy(RolePolicy):
    """A policy or reward model on `tiny`, which reports what it is asked."""

    loaded: TinyModels

    def scores(self, groups: Sequence[Group]) -> list[float | None]:
        self.loaded.add(self.reference, "scalar")
        return super().scores(groups)
