"""What a stage's models make of encoded groups: log-probabilities of policy and reference, and values."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from alignkit.models import forward
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.encoding import Encoded
from alignkit.training.stage import StageWork


class Measuring:
    """Passes over a stage's groups, shared among the processes. temperature: of the distributions."""

    def __init__(self, work: StageWork, temperature: float):
        self.work, self.temperature = work, temperature

    def reference_logprobs(self, encoded: Sequence[Encoded]) -> tuple[list[torch.Tensor], list[Encoded]]:
        """The reference's log-probabilities, and the groups as it reads them."""
        read = self.work.reference_prompts.encoded(encoded)
        return self.logprobs(self.work.roles.reference, read, self.work.reference_models.model), read

    def logprobs(self, role: str, encoded: Sequence[Encoded], model: SharedModel | None = None) -> list[torch.Tensor]:
        """Of each response in order, float32 [tokens], in nats. model: the role's base; default: the stage's own."""
        base = model or self.work.model

        def measured(own: Sequence[int]) -> list[torch.Tensor]:
            groups = [encoded[index] for index in own]
            return forward.measure(base, role, groups, "logprobs", temperature=self.temperature)

        return self.work.context.reducer.deal([len(group.rows) for group in encoded], measured)

    def logprobs_and_values(self, encoded: Sequence[Encoded]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The policy's log-probabilities, and its values at the same tokens."""
        roles = self.work.roles
        assert roles.values is not None

        def measured(own: Sequence[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
            groups = [encoded[index] for index in own]
            both = forward.measure_with_values(
                self.work.model, roles.trained, str(roles.values), groups, temperature=self.temperature
            )
            return list(zip(*both, strict=True))

        both = self.work.context.reducer.deal([len(group.rows) for group in encoded], measured)
        return [logprobs for logprobs, _ in both], [values for _, values in both]
