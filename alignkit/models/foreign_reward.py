"""Reward models with their own base, tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from alignkit.data.group import Group, Response
from alignkit.models.encoding import Encoder
from alignkit.models.loading import load_weights
from alignkit.models.shared_model import SharedModel

DEFAULT_CONTEXT = 2048  # tokens, if the model's configuration names no limit


class ForeignRewardModel:
    """Scores text, one sequence at a time, with the policy's device and dtype."""

    def __init__(self, folder: Path, model: SharedModel):
        """Raises RunFailed if the folder holds no complete reward model."""
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        # Unused weights are not reported: the folder may still hold the language head of the original model.
        self.network, _ = load_weights(AutoModelForSequenceClassification, folder, dtype=model.dtype, num_labels=1)
        self.network.to(model.device).eval()
        self.encoder = Encoder(AutoTokenizer.from_pretrained(folder))

    @torch.no_grad()
    def scores(self, groups: Sequence[Group]) -> list[float | None]:
        """Score all responses in order; None if the prompt does not fit."""
        limit = getattr(self.network.config, "max_position_embeddings", DEFAULT_CONTEXT)
        scores: list[float | None] = []
        for group in groups:
            # Encode text, because this model has another vocabulary than the policy.
            responses = tuple(Response(text=r.text, messages=r.messages) for r in group.responses)
            encoded = self.encoder.encode(replace(group, responses=responses, pairs=()), limit, scoring=True)
            if encoded is None:
                scores += [None] * len(responses)
                continue
            for row in encoded.rows:
                ids = torch.tensor([encoded.prompt + row.tokens], device=self.network.device)
                scores.append(float(self.network(input_ids=ids).logits[0, 0]))
        return scores
