"""alignkit's own engine as an object with the interface of all engines, for another process or
machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from alignkit.engine import Completion, Engine, EngineContext
from alignkit.models.generate import Generation, generate
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.sampling import Sampling
from alignkit.tokens.encoder import Encoder


class LocalEngine(Engine):
    """Samples exactly what a run without another engine would: the same tokens for the same seeds,
    in float32.
    """

    whole_models: ClassVar[bool] = True

    def prepare(self, context: EngineContext) -> None:
        self.context = context
        self._model = SharedModel(
            context.model, context.base, revision=context.revision, seed=context.seed
        )
        self._encoder = Encoder(self._model.tokenizer, self._model.chat, context.end_ids)
        self._policies: dict[str, tuple[str, int]] = {}  # role and version

    def publish(self, policy: str, adapter: Path | None, version: int) -> None:
        role = BASE if adapter is None else f"policy {policy}"
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
        request = Generation(self._model, role, self._encoder, ids, seeds, sampling)
        written = generate(request, done=self.context.progress)
        return [[Completion(one.tokens, one.logprobs, version) for one in each] for each in written]
