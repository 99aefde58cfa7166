"""What the reference reads before the policy's responses: a prompt of the algorithm's, or another chat template's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alignkit.data.group import Group, Message, preview
from alignkit.errors import DataError, RunFailed
from alignkit.tokens.encoding import Encoded, Encoder
from alignkit.tokens.text_tokens import Ids
from alignkit.training.checked import CheckedAlgorithm


class ReferencePrompts:
    """Puts responses behind the reference's prompts.

    A reference on another base model reads prompts in its own chat template, and the policy's tokens behind them.
    """

    def __init__(
        self,
        algorithm: CheckedAlgorithm,
        encoder: Encoder,
        context: int,
        where: str = "",
        *,
        policy: Encoder | None = None,
        vocabulary: int | None = None,
    ):
        """encoder, context: of the reference's base model; the context, in tokens, may be filled.

        policy: the policy's encoder, if that is on another base model. vocabulary: token ids of the reference are below
        it.
        """
        self.algorithm, self.encoder, self.context, self.where = algorithm, encoder, context, where
        self.policy, self.vocabulary = policy, vocabulary

    def encoded(self, groups: Sequence[Encoded]) -> list[Encoded]:
        """The same response tokens and masks behind the reference's prompts.

        A group whose prompt is the same for both is returned as it is. Raises DataError if a prompt does not leave room
        for the responses in the model's context, and RunFailed for a token that the reference's base does not have.
        """
        if not self._may_differ:
            return list(groups)
        return [self._encoded(group) for group in groups]

    def check(self, prompts: Sequence[Group], new_tokens: int) -> None:
        """Raise DataError if a prompt leaves no room for `new_tokens`."""
        for group in prompts if self._may_differ else ():
            self._ids(group, self._messages(group), new_tokens)

    @property
    def _may_differ(self) -> bool:
        return self.policy is not None or not self.algorithm.reads_its_own_prompt

    def _messages(self, group: Group) -> tuple[Message, ...]:
        own = self.algorithm.reads_its_own_prompt
        return group.prompt if own else self.algorithm.reference_prompt(group)

    def _encoded(self, encoded: Encoded) -> Encoded:
        group = encoded.group
        messages = self._messages(group)
        self._check_tokens(encoded)
        longest = max((len(row.tokens) for row in encoded.rows), default=0)
        if messages == group.prompt and (self.policy is None or not messages):
            return encoded
        ids = self._ids(group, messages, longest)
        if messages == group.prompt and self.policy is not None and ids == self.policy.prompt(messages, group.tools):
            return encoded
        return replace(encoded, group=replace(group, prompt=messages), prompt=ids)

    def _check_tokens(self, encoded: Encoded) -> None:
        """Raise RunFailed for a token that the reference cannot read: models may know more tokens than tokenizers."""
        most = self.vocabulary
        unknown = [token for row in encoded.rows for token in row.tokens if most is not None and token >= most]
        if unknown:
            raise RunFailed(
                f"{self.where}a response to {preview(encoded.group)} has token {unknown[0]}, which no text has and the "
                f"reference's base model does not know: it has {most}\n"
                "help: 'rollout: {top_p: 0.99}' keeps the policy from sampling it, and so does training with sft first"
            )

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
