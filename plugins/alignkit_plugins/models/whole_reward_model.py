"""Reward models in a folder that is no adapter, such as the hub's: with their own tokenizer and
chat template.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from alignkit.data.group import Group, Response
from alignkit.errors import DataError
from alignkit.models.loading import load_tokenizer, load_weights
from alignkit.models.memory import within_memory
from alignkit.models.models import LoadedBase, RolePolicy
from alignkit.tokens.encoder import Encoder, Ids, RowRefused, answers_of

DEFAULT_CONTEXT = 2048  # tokens, if the model's configuration names no limit


class WholeRewardModel(RolePolicy):
    """Scores text with the device and dtype of a base model of the run."""

    def __init__(self, base: LoadedBase, reference: str):
        """Raises RunFailed if the folder holds no complete reward model."""
        super().__init__(base, reference)
        folder, trust = base.artifact(reference), self.model.spec.trust_remote_code
        # The folder may still hold the language head of the original model.
        options = {"dtype": self.model.dtype, "num_labels": 1, "trust_remote_code": trust}
        self.network = load_weights(
            AutoModelForSequenceClassification, folder, ("lm_head.weight",), **options
        )
        self.network.to(self.model.device).eval()
        self.memory = self.model.memory
        self.encoder = Encoder(load_tokenizer(folder, str(folder), trust_remote_code=trust))

    @torch.no_grad()
    def scores(self, groups: Sequence[Group]) -> list[float | None]:
        """Score all responses in order; None if the prompt does not fit."""
        limit = getattr(self.network.config, "max_position_embeddings", DEFAULT_CONTEXT)
        scores: list[float | None] = []
        rows: list[Ids] = []
        places: list[int] = []  # of the rows in scores
        for group in groups:
            for response in group.responses:
                # Text, because this model has another vocabulary than the policy.
                row = self._row(group, response, limit)
                if row is not None:
                    places.append(len(scores))
                    rows.append(row)
                scores.append(None)
        for place, score in zip(
            places, within_memory(self.memory, lambda: self._score(rows)), strict=True
        ):
            scores[place] = score
        self.report_unread()
        return scores

    def _row(self, group: Group, response: Response, limit: int) -> Ids | None:
        """A conversation as the template renders it; None if the prompt does not fit.

        It needs no prompt of its own in front of the answer. Counts as `Encoder.encode` does, and
        raises RowRefused.
        """
        encoder = self.encoder
        try:
            text = encoder.chat.render(
                encoder.chat.prepare([*group.prompt, *answers_of(response)]), False, group.tools
            )
            ids = encoder.rendered.ids(text)
            if len(ids) <= limit:
                return ids
            prompt = encoder.prompt(group.prompt, group.tools)
        except DataError as error:
            raise RowRefused(group, str(error)) from error
        if len(prompt) + 1 + len(encoder.closing) > limit:
            encoder.count("no_room", group)
            return None
        encoder.count("cut", group)
        return ids[: limit - len(encoder.closing)] + encoder.closing

    def _score(self, rows: Sequence[Ids]) -> list[float]:
        """Score rows of similar lengths together, padded on the right."""
        scores = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        while order:
            longest = len(rows[order[-1]])
            # As many tokens as any pass without gradients
            batch = order[-max(1, 4 * self.memory.tokens // longest) :]
            del order[-len(batch) :]
            for index, score in zip(
                batch, self._logits([rows[index] for index in batch]).tolist(), strict=True
            ):
                scores[index] = score
        return scores

    def _logits(self, rows: Sequence[Ids]) -> Tensor:
        """The scores of some rows, [rows]. Transformers reads each at its last token that does not
        count as padding.
        """
        config = self.network.config
        own = config.pad_token_id
        used = set() if own is not None else {token for row in rows for token in row}
        pad = (
            own
            if own is not None
            else next(token for token in range(len(used) + 1) if token not in used)
        )
        width = max(map(len, rows))
        tokens = torch.tensor(
            [[*row, *[pad] * (width - len(row))] for row in rows], device=self.network.device
        )
        lengths = torch.tensor([len(row) for row in rows], device=self.network.device)
        mask = (torch.arange(width, device=self.network.device) < lengths[:, None]).long()
        config.pad_token_id = pad if len(rows) > 1 else own
        try:
            logits: Tensor = self.network(input_ids=tokens, attention_mask=mask).logits[:, 0]
        finally:
            config.pad_token_id = own
        return logits
