"""alignkit's own engine as an object with the interface of all engines, for another process or
machine; and engines as a stage asks them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from alignkit.contract.engine import Completion, Engine, EngineSetup
from alignkit.contract.settings import Sampling
from alignkit.host.registry import Component, Registration
from alignkit.models.generate import SamplingRequest, generate
from alignkit.models.packing import measure
from alignkit.models.shared_model import UNMODIFIED, SharedModel
from alignkit.tokens.encoder import Encoded, Encoder
from alignkit_plugins.processes.engine import PluginEngine


class LocalEngine(Engine):
    """Samples exactly what a run without another engine would: the same tokens for the same seeds,
    in float32.
    """

    whole_models: ClassVar[bool] = True

    def prepare(self, setup: EngineSetup) -> None:
        self.setup = setup
        self._model = SharedModel(setup.model, setup.base, revision=setup.revision, seed=setup.seed)
        self._encoder = Encoder(self._model.tokenizer, self._model.chat, setup.end_ids)
        self._policies: dict[str, tuple[str, int]] = {}  # role and version

    def publish(self, policy: str, adapter: Path | None, version: int) -> None:
        role = UNMODIFIED if adapter is None else f"policy {policy}"
        if adapter is not None:
            if role in self._model.roles:
                self._model.drop_role(role)
            self._model.add_role(role, start=adapter)
        self._policies[policy] = role, version

    def sample(
        self,
        policy: str,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        sampling: Sampling,
    ) -> list[list[Completion]]:
        role, version = self._policies[policy]
        ids = [tuple(prompt) for prompt in prompts]
        request = SamplingRequest(self._model, role, self._encoder, ids, seeds, sampling)
        written = generate(request, done=self.setup.progress)
        return [[replace(one, version=version) for one in each] for each in written]


def stage_engine(
    folder: Path, cls: type[Engine], say: Callable[[str], None] = print, **options: Any
) -> PluginEngine:
    """An engine of stage 's', with its files in a folder that it makes."""
    name, made = cls.__name__.lower(), cls.Options(**options)
    component = Component("engine", name, Registration(name, cls), made)
    return PluginEngine(component, folder / "engine", stage="s", seed=0, say=say)


def asked(
    model: SharedModel,
    role: str = UNMODIFIED,
    seeds: Sequence[Sequence[int]] = ((1,),),
    **more: Any,
) -> SamplingRequest:
    """Samples of a few tokens. more: prompts and other fields, and keys of the sampling."""
    fields = {name: more.pop(name) for name in ("prompts", "labels", "rooms") if name in more}
    fields = {"prompts": [(1, 30, 31)], **fields}
    sampling = Sampling(**{"max_new_tokens": 3, **more})
    return SamplingRequest(model, role, model.encoder(), streams=seeds, sampling=sampling, **fields)


def measured(model: SharedModel, role: str, prompt: Any, response: Any) -> list[float]:
    """The log-probabilities of a response as training computes them."""
    (found,) = measure(model, role, [Encoded.of(prompt, response)])["logprobs"]
    values: list[float] = found.tolist()
    return values
