"""Tokenizes groups for a stage's algorithm; counts and reports the groups that cannot be used.

What the reference reads before the policy's responses: a prompt of the algorithm's, or another chat template's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from alignkit.algorithm import Needs, Trains
from alignkit.data.files import SkippedRow, bad_rows_error
from alignkit.data.group import Group, Message, preview, previews, resolved_pairs
from alignkit.errors import DataError, RunFailed
from alignkit.tokens.encoder import WHOLE, Encoded, Encoder, Ids, RowRefused, chunks, counted, drop_reason, is_document
from alignkit.training.checked import CheckedAlgorithm
from alignkit.training.context import StageContext

Used = TypeVar("Used")
UNKNOWN = 1 / 1000  # of a source's tokens; more are a warning
AHEAD = 256  # groups that are tokenized together
ONCE = {
    "dropped_tools",
    "untold_tools",
    "dropped_messages",
    "dropped_names",
    "typed_tokens",
}  # told once, and not for the samples of each iteration


class StageEncoder:
    """Encodes groups for one stage.

    summary: the stage's summary; counts of unusable groups are added to it.
    """

    def __init__(self, context: StageContext, algorithm: CheckedAlgorithm, summary: dict[str, Any]):
        self.context, self.algorithm, self.summary = context, algorithm, summary
        self.encoder = context.models.encoder
        self._told: set[str] = set()
        reference = context.settings.reference
        read = context.models_of(reference).model.context if reference else context.model.context
        # The reference reads the same rows, so its context is a limit, too.
        self.max_length = min(context.settings.max_length, context.model.context, read)
        if self.max_length < context.settings.max_length:
            whose = "the model" if self.max_length == context.model.context else f"the reference '{reference}'"
            context.activity(f"max_length is {self.max_length}, the context of {whose}")

    def encode(self, groups: Sequence[Group], turns: str = "") -> list[Encoded]:
        """Encode the groups that fit, and report the others. turns: see `Encoder.encode`; default: the algorithm's."""
        encoded = self.encode_quietly(groups, turns)
        self._report(len(groups), self.count_unfit())
        return encoded

    def _report(self, groups: int, counts: Mapping[str, int]) -> None:
        """Print what was left out or changed."""
        new = {name: count for name, count in counts.items() if name not in self._told}
        self._told |= ONCE & counts.keys()
        facts = [f"{drop_reason(name, n)} ({previews(self.encoder.groups[name])})" for name, n in new.items()]
        if facts:
            self.context.say(f"{counted(groups, 'group')}: {'; '.join(facts)}")

    def encode_quietly(self, groups: Sequence[Group], turns: str = "") -> list[Encoded]:
        """Encode the groups that fit; `count_unfit` counts the others."""
        scoring = self.algorithm.algorithm.trains is Trains.REWARD
        turns = turns or self.algorithm.trained_turns()
        self.encoder.forget_counts()

        def encode(group: Group) -> Sequence[Encoded]:
            if not group.weight:
                self.encoder.count("weightless", group)
                return []
            if is_document(group) and not scoring:
                return self._chunks(group)
            encoded = self.encoder.encode(group, self.max_length, turns=turns, scoring=scoring)
            return [] if encoded is None else [encoded]

        encoded, _ = self._accepted(encode, self._read_ahead(groups, scoring))
        found = [e for parts in encoded for e in parts]
        self._warn_of_unknown(found)
        return found

    def _warn_of_unknown(self, encoded: Sequence[Encoded]) -> None:
        """Say once of each source that its words hold characters which the tokenizer lacks."""
        unknown = self.encoder.tokenizer.unk_token_id
        counts, totals = Counter[str](), Counter[str]()
        for e in encoded if unknown is not None else ():
            if e.group.origin is not None:
                tokens = [e.prompt, *(row.tokens for row in e.rows)]
                counts[e.group.origin.file] += sum(ids.count(unknown) for ids in tokens)
                totals[e.group.origin.file] += sum(map(len, tokens))
        for file, count in counts.items():
            if count > UNKNOWN * totals[file] and file not in self._told:
                self._told.add(file)
                self.summary.setdefault("unknown_tokens", {})[file] = [count, totals[file]]
                self.context.say(
                    f"warning: {file}: {count} of {totals[file]} tokens are "
                    f"{self.encoder.tokenizer.unk_token}: the tokenizer lacks characters of these texts, which are "
                    "learned as one unknown token; use a base model whose tokenizer has them"
                )

    def prompts(self, groups: Sequence[Group]) -> list[Group]:
        """The prompts that the chat template accepts."""
        accepted = self.renderable(groups)
        self.count_read(groups)
        self.encoder.forget_counts()
        self._report(len(accepted), self.count_unfit())
        return accepted

    def _read_ahead(self, groups: Sequence[Group], scoring: bool) -> Iterator[Group]:
        """The groups, tokenized in parts on all cores before they are asked for."""
        # Lazily: the encoder keeps what it has read ahead for one part only.
        for start in range(0, len(groups), AHEAD):
            self.encoder.ahead(groups[start : start + AHEAD], self.max_length, scoring=scoring)
            yield from groups[start : start + AHEAD]

    def _chunks(self, group: Group) -> Sequence[Encoded]:
        """A raw text in rows that fit, counted if there are several."""
        document = self.encoder.encode(group, WHOLE)
        parts = chunks(document, self.max_length) if document is not None else []
        if len(parts) != 1:
            for name, count in {"split": 1, "chunks": len(parts)}.items() if parts else [("no_room", 1)]:
                self.encoder.count(name, group, count)
        return parts

    def renderable(self, groups: Sequence[Group]) -> list[Group]:
        """The groups that the chat template accepts. Tokenizing them later cannot fail."""
        self.encoder.forget_counts()
        _, accepted = self._accepted(self.encoder.render, groups)
        if self.encoder.counts["refused"]:
            self._report(len(groups), self.count_unfit())
        return accepted

    def _accepted(self, use: Callable[[Group], Used], groups: Iterable[Group]) -> tuple[list[Used], list[Group]]:
        """The results of `use`, and the groups that have one.

        Refused groups are counted if their source allows it (`on_bad_row: skip`). Raises DataError with all others.
        """
        used, accepted, bad = [], [], []
        for group in groups:
            try:
                used.append(use(group))
                accepted.append(group)
            except RowRefused as refused:
                origin = group.origin
                if origin is None:
                    raise
                row = SkippedRow(origin.file, origin.row, refused.reason)
                if not origin.skip:
                    bad.append(row)
                    continue
                self.encoder.count("refused", group)
                self.summary.setdefault("refused_rows", []).append(str(row))
        if bad:
            raise bad_rows_error(bad)
        return used, accepted

    def count_unfit(self) -> dict[str, int]:
        """Add the counts of the last `encode_quietly` to the summary, and return them."""
        counts = {name: count for name, count in self.encoder.counts.items() if count}
        if counts:
            self.add_counts("encoding", counts)
        return counts

    def count_read(self, groups: Sequence[Group]) -> None:
        """Add the data that this stage encodes to the summary: `encoding` counts those of them that do not fit."""
        counts = {"rows": len(groups), "responses": sum([len(group.responses) for group in groups])}
        self.add_counts("encoded", counts)

    def add_counts(self, key: str, counts: Mapping[str, int]) -> None:
        """Add counts to those under a key of the summary."""
        before = self.summary.get(key, {})
        self.summary[key] = {name: before.get(name, 0) + counts.get(name, 0) for name in {**before, **counts}}

    # Learnable groups

    def learnable(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """The groups that the algorithm can learn from; others are reported."""
        usable, lost = self.split(encoded)
        self.count_lost(lost)
        if lost:
            self.context.say(
                f"left out {counted(len(lost), 'row')} without {requirement(self.algorithm.needs)}: {previews(lost)}"
            )
        return usable

    def split(self, encoded: Sequence[Encoded]) -> tuple[list[Encoded], list[Group]]:
        """Groups with the responses and pairs that the algorithm needs, and groups that never had them.

        A group whose pairs the encoder left out is in neither list: it is already counted.
        """
        needs = self.algorithm.needs
        usable, lost = [], []
        for e in encoded:
            counts = any(any(row.mask) for row in e.rows)
            if len(e.rows) >= needs.min_samples and (e.pairs if needs.pairs else counts):
                usable.append(e)
            elif not (needs.pairs and resolved_pairs(e.group)):
                lost.append(e.group)
        return usable, lost

    def count_lost(self, lost: Sequence[Group]) -> None:
        if lost:
            self.summary["without_signal"] = self.summary.get("without_signal", 0) + len(lost)


def requirement(needs: Needs) -> str:
    """The part that a row must have so that the algorithm can learn from it."""
    parts = []
    if needs.pairs:
        parts.append("a pair of a better and a worse response")
    if needs.min_samples > (2 if needs.pairs else 1):  # a pair implies two responses
        parts.append(f"{needs.min_samples} responses to its prompt")
    return " and ".join(parts) or "a response with a token that counts"


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
