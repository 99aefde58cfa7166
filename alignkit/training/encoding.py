"""Tokenizes the groups of a stage for its algorithm, and the prompts that its reference reads before the responses."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from typing import Any

from alignkit import shapes
from alignkit.algorithm import Algorithm, Needs, Trains
from alignkit.calls import call
from alignkit.data.files import SkippedRow, bad_rows_error
from alignkit.data.group import Group, Message, preview, previews, resolved_pairs
from alignkit.errors import DataError, RunFailed
from alignkit.models.shared_model import SharedModel
from alignkit.tokens.encoder import WHOLE, Encoded, Encoder, Ids, RowRefused, chunks, counted, drop_reason, is_document
from alignkit.training.context import StageContext

BATCH = 256  # groups that are tokenized together
UNKNOWN = 1 / 1000  # of a source's tokens; more are a warning


class StageEncoder:
    """Encodes groups for one stage. Why rows are left out or changed is counted in the summary, and told once.

    summary: the stage's.
    """

    def __init__(self, context: StageContext, algorithm: Algorithm, summary: dict[str, Any]):
        self.context, self.algorithm, self.summary = context, algorithm, summary
        self.encoder = context.models.encoder
        self._told: set[tuple[str, str]] = set()  # reasons, with files
        # The reference reads the same rows, so its context is a limit, too.
        limits = {"the model": context.model.context}
        if reference := context.settings.reference:
            limits[f"the reference '{reference}'"] = context.models_of(reference).model.context
        whose = min(limits, key=lambda name: limits[name])
        self.max_length = min(context.settings.max_length, limits[whose])
        if self.max_length < context.settings.max_length:
            context.activity(f"max_length is {self.max_length}, the context of {whose}")

    def encode(self, groups: Sequence[Group], turns: str = "") -> list[Encoded]:
        """Encode the groups that fit, and say why others do not. turns: see `Encoder.encode`; default: the algorithm's.

        Raises DataError that lists the rows which the chat template refuses.
        """
        scoring = self.algorithm.trains is Trains.REWARD
        turns = turns or call(self.algorithm, "trained_turns")
        self.encoder.forget_counts()
        for group in groups:
            if not group.weight:
                self.encoder.count("weightless", group)
        weighted = [group for group in groups if group.weight]
        encoded: list[Encoded] = []
        refused: list[RowRefused] = []
        for start in range(0, len(weighted), BATCH):
            for whole, run in groupby(weighted[start : start + BATCH], lambda g: is_document(g) and not scoring):
                limit = WHOLE if whole else self.max_length
                for result in self.encoder.encode_batch([*run], limit, turns=turns, scoring=scoring):
                    if isinstance(result, RowRefused):
                        refused.append(result)
                    elif result is not None:
                        encoded += map(compact, self._chunks(result) if whole else [result])
        self._leave_out(refused)
        self._tell(len(groups))
        self._warn_of_unknown(encoded)
        return encoded

    def _chunks(self, document: Encoded) -> Sequence[Encoded]:
        """A raw text in rows that fit, counted if there are several."""
        parts = chunks(document, self.max_length)
        if not parts:
            self.encoder.count("no_room", document.group)
        elif len(parts) > 1:
            self.encoder.count("split", document.group)
            self.encoder.count("chunks", document.group, len(parts))
        return parts

    def prompts(self, groups: Sequence[Group]) -> list[Group]:
        """The prompts that the chat template accepts, counted as read. Tokenizing them later cannot fail."""
        self.encoder.forget_counts()
        accepted: list[Group] = []
        refused: list[RowRefused] = []
        for group in groups:
            try:
                self.encoder.render(group)
                accepted.append(group)
            except RowRefused as error:
                refused.append(error)
        self._leave_out(refused)
        self._tell(len(groups))
        self.count_read(groups)
        return accepted

    def _leave_out(self, refused: Sequence[RowRefused]) -> None:
        """Count refused groups if their source allows it (`on_bad_row: skip`). Raises DataError with all others."""
        bad: list[SkippedRow] = []
        for error in refused:
            origin = error.group.origin
            if origin is None:
                raise error
            row = SkippedRow(origin.file, origin.row, error.reason)
            if origin.skip:
                self.encoder.count("refused", error.group)
                self.summary.setdefault("refused_rows", []).append(str(row))
            else:
                bad.append(row)
        if bad:
            raise bad_rows_error(bad)

    def _tell(self, total: int) -> None:
        """Count what the encoder left out or changed, and print a reason once for a file. total: groups."""
        if self.encoder.counts:
            self._add("encoding", self.encoder.counts)
        facts = []
        for name, number in self.encoder.counts.items():
            groups = self.encoder.groups[name]
            if self._is_new(name, groups):
                facts.append(f"{drop_reason(name, number)} ({previews(groups)})")
        if facts:
            self.context.say(f"{counted(total, 'group')}: {'; '.join(facts)}")

    def _is_new(self, reason: str, groups: Sequence[Group]) -> bool:
        """Whether a reason was not told before of a file of these groups; from now on, it was."""
        new = {(reason, _source(group)) for group in groups} - self._told
        self._told |= new
        return bool(new)

    def _warn_of_unknown(self, encoded: Sequence[Encoded]) -> None:
        """Say once of each source that its words hold characters which the tokenizer lacks."""
        tokenizer = self.encoder.tokenizer
        counts, totals, rows = Counter[str](), Counter[str](), dict[str, Group]()
        for e in encoded:
            file = _source(e.group)
            if tokenizer.unk_token_id is None or not file:
                continue
            for ids in (e.prompt, *(row.tokens for row in e.rows)):
                counts[file] += ids.count(tokenizer.unk_token_id)
                totals[file] += len(ids)
            rows[file] = e.group
        for file, count in counts.items():
            if count > UNKNOWN * totals[file] and self._is_new("unknown", [rows[file]]):
                self.summary.setdefault("unknown_tokens", {})[file] = [count, totals[file]]
                self.context.say(
                    f"warning: {file}: {count} of {totals[file]} tokens are {tokenizer.unk_token}: the tokenizer lacks "
                    "characters of these texts, which are learned as one unknown token; use a base model whose "
                    "tokenizer has them"
                )

    def count_read(self, groups: Sequence[Group]) -> None:
        """Add the data that this stage encodes to the summary: `encoding` counts those of them that do not fit."""
        responses = sum([len(group.responses) for group in groups])
        self._add("encoded", {"rows": len(groups), "responses": responses})

    def _add(self, key: str, counts: Mapping[str, int]) -> None:
        """Add counts to those under a key of the summary."""
        total = self.summary.setdefault(key, {})
        for name, count in counts.items():
            total[name] = total.get(name, 0) + count

    def learnable(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """The groups with the responses and pairs that the algorithm needs.

        Others are counted and told, but for those whose pairs the encoder left out, which it has counted.
        """
        needs = self.algorithm.needs
        usable: list[Encoded] = []
        lost: list[Group] = []
        for e in encoded:
            if len(e.rows) >= needs.min_samples and has_signal(e, needs):
                usable.append(e)
            elif not (needs.pairs and resolved_pairs(e.group)):
                lost.append(e.group)
        if lost:
            self.summary["without_signal"] = self.summary.get("without_signal", 0) + len(lost)
            if self._is_new("without_signal", lost):
                text = f"left out {counted(len(lost), 'row')} without {requirement(needs)}: {previews(lost)}"
                self.context.say(text)
        return usable


def compact(encoded: Encoded) -> Encoded:
    """The same in 4 bytes for each number instead of 36: a data set may have a million rows."""
    rows = [replace(row, tokens=array("i", row.tokens), mask=array("f", row.mask)) for row in encoded.rows]  # type: ignore[arg-type]
    return replace(encoded, prompt=array("i", encoded.prompt), rows=tuple(rows))  # type: ignore[arg-type]


def _source(group: Group) -> str:
    """The file that a group was read from; empty if it was made."""
    return group.origin.file if group.origin is not None else ""


def has_signal(encoded: Encoded, needs: Needs) -> bool:
    """Whether a loss of it has a gradient: it has a pair whose responses count, or a token that counts."""
    if needs.pairs:
        return bool(encoded.pairs)
    return any(any(row.mask) for row in encoded.rows)


def requirement(needs: Needs) -> str:
    """The part that a row must have so that the algorithm can learn from it."""
    parts, fewest = [], 1
    if needs.pairs:
        parts.append("a pair of a better and a worse response")
        fewest = 2
    if needs.min_samples > fewest:
        parts.append(f"{needs.min_samples} responses to its prompt")
    return " and ".join(parts) or "a response with a token that counts"


@dataclass
class ReferencePrompts:
    """Puts responses behind the reference's prompts.

    A whole model as reference reads prompts in its own chat template, and the policy's tokens behind them.

    encoder, model: the reference's. where: begins errors. policy: the policy's encoder, if the reference is a
    whole model.
    """

    algorithm: Algorithm
    encoder: Encoder
    model: SharedModel
    where: str = ""
    policy: Encoder | None = None

    def encoded(self, groups: Sequence[Encoded]) -> list[Encoded]:
        """The same response tokens and masks behind the reference's prompts.

        A group whose prompt is the same for both is returned as it is. Raises DataError if a prompt does not leave room
        for the responses in the model's context, and RunFailed for a token that the reference does not have.
        """
        if not self._may_differ:
            return list(groups)
        return [self._encoded(group) for group in groups]

    def check(self, prompts: Sequence[Group], new_tokens: int) -> None:
        """Raise DataError if a prompt leaves no room for `new_tokens`."""
        if self._may_differ:
            for group in prompts:
                self._ids(group, self._messages(group), new_tokens)

    @property
    def _may_differ(self) -> bool:
        return self.policy is not None or type(self.algorithm).reference_prompt is not Algorithm.reference_prompt

    def _messages(self, group: Group) -> tuple[Message, ...]:
        wanted = shapes.reference_prompt(group)
        return tuple(call(self.algorithm, "reference_prompt", group, returns=wanted))

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
        most = self.model.model.config.get_text_config().vocab_size
        tokens = chain.from_iterable(row.tokens for row in encoded.rows)
        unknown = [token for token in tokens if token >= most]
        if unknown:
            raise RunFailed(
                f"{self.where}a response to {preview(encoded.group)} has token {unknown[0]}, which no text has and the "
                f"reference does not know: it has {most}\n"
                "help: 'rollout: {top_p: 0.99}' keeps the policy from sampling it, and so does training with sft first"
            )

    def _ids(self, group: Group, messages: Sequence[Message], longest: int) -> Ids:
        """A prompt's tokens, with room for a response of `longest` tokens."""
        try:
            ids = self.encoder.prompt(messages, group.tools)
        except DataError as error:
            raise DataError(f"{self.where}the reference's prompt of {_named(group)}: {error}") from error
        if len(ids) + longest > (most := self.model.context):
            raise DataError(
                f"{self.where}the reference's prompt of {_named(group)} has {len(ids)} tokens, which leaves no room "
                f"for {longest} response tokens in the model's context of {most}: put less in front of it"
            )
        return ids


def _named(group: Group) -> str:
    return f"{group.origin} ({preview(group)})" if group.origin is not None else f"the row {preview(group)}"
