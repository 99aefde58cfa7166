"""The prompt behind which the reference reads the policy's responses, if an algorithm gives it another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alignkit.data.group import Group, Message, preview
from alignkit.errors import DataError
from alignkit.models.encoding import Encoded, Encoder
from alignkit.models.text_tokens import Ids
from alignkit.training.checked import CheckedAlgorithm


class ReferencePrompts:
    """Puts responses behind the reference's prompts. context: the model's, in tokens, which a prompt may fill."""

    def __init__(self, algorithm: CheckedAlgorithm, encoder: Encoder, context: int, where: str = ""):
        self.algorithm, self.encoder, self.context, self.where = algorithm, encoder, context, where

    def encoded(self, groups: Sequence[Encoded]) -> list[Encoded]:
        """The same response tokens and masks behind the reference's prompts.

        A group whose prompt is the same for both is returned as it is. Raises DataError if a prompt does not leave room
        for the responses in the model's context.
        """
        if self.algorithm.reads_its_own_prompt:
            return list(groups)
        return [self._encoded(group) for group in groups]

    def check(self, prompts: Sequence[Group], new_tokens: int) -> None:
        """Raise DataError if a prompt leaves no room for `new_tokens`."""
        for group in prompts if not self.algorithm.reads_its_own_prompt else ():
            self._ids(group, self.algorithm.reference_prompt(group), new_tokens)

    def _encoded(self, encoded: Encoded) -> Encoded:
        group = encoded.group
        messages = self.algorithm.reference_prompt(group)
        if messages == group.prompt:
            return encoded
        longest = max((len(row.tokens) for row in encoded.rows), default=0)
        return replace(encoded, group=replace(group, prompt=messages), prompt=self._ids(group, messages, longest))

    def _ids(self, group: Group, messages: Sequence[Message], longest: int) -> Ids:
        """A prompt's tokens, with room for a response of `longest` tokens."""
        try:
            ids = self.encoder.prompt(messages, group.tools)
        except DataError as error:
            raise DataError(f"{self.where}the reference's prompt of {_named(group)}: {error}") from error
        if len(ids) + longest > self.context:
            raise DataError(
                f"{self.where}the reference's prompt of {_named(group)} has {len(ids)} tokens, which leaves no room "
                f"for {longest} response tokens in the model's context of {self.context}: put less in front of it"
            )
        return ids


def _named(group: Group) -> str:
    return f"{group.origin} ({preview(group)})" if group.origin is not None else f"the row {preview(group)}"
