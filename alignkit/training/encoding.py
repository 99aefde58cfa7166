"""Tokenizes the groups of a stage for its algorithm, and the prompts that its reference reads
before the responses.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from alignkit.contract.algorithm import Algorithm, Needs, Trains
from alignkit.data.group import Group, Message, preview, previews, responses_of
from alignkit.errors import DataError
from alignkit.host import returns
from alignkit.host.calls import call
from alignkit.models.shared_model import SharedModel
from alignkit.recipe.schema import BASE
from alignkit.tokens.counts import counted, drop_reason
from alignkit.tokens.encoder import Encoded, Encoder, Ids
from alignkit.training.active_stage import ActiveStage

BATCH = 256  # groups that are tokenized together
UNKNOWN = 1 / 1000  # share of tokens; more are a warning


class StageEncoder:
    """Encodes groups for one stage. Reasons of rows left out or changed are counted in its summary
    and told once.
    """

    def __init__(self, stage: ActiveStage, algorithm: Algorithm):
        self.stage, self.algorithm, self.summary = stage, algorithm, stage.summary
        self.encoder = stage.models.encoder
        self._reported: set[str] = set()  # reasons
        # The reference reads the same rows.
        reference = stage.models_of(stage.settings.reference or BASE)
        self.max_length = min(
            stage.settings.max_length, stage.model.context_length, reference.model.context_length
        )

    def encode(
        self, groups: Sequence[Group], turns: str = "", new_tokens: int = 1
    ) -> list[Encoded]:
        """Encode the groups that fit, and say why others do not. turns: see `Encoder.encode`;
        default: the algorithm's.

        new_tokens: for which a prompt must leave room. Raises DataError that lists the rows which
        the chat template refuses.
        """
        scoring = self.algorithm.trains is Trains.REWARD
        turns = turns or call(self.algorithm, "trained_turns")
        self.encoder.forget_counts()
        weighted: list[Group] = []
        for group in groups:
            if group.weight:
                weighted.append(group)
            else:
                self.encoder.count("weightless", group)
        encoded: list[Encoded] = []
        limit = self.max_length + 1 - new_tokens  # with the first of them
        for start in range(0, len(weighted), BATCH):
            rendered = self.encoder.accepted(weighted[start : start + BATCH], scoring)
            encoded += map(
                compact, self.encoder.encode_batch(rendered, limit, turns=turns, scoring=scoring)
            )
        self.encoder.count_refused()
        self._report_refused(len(groups))
        self._warn_of_unknown(encoded)
        return encoded

    def _report_refused(self, total: int) -> None:
        """Count what the encoder left out or changed, and print new reasons. total: groups."""
        counts = self.encoder.counts
        if counts:
            self._add("encoding", counts)
        facts = []
        for reason, count in counts.items():
            if reason not in self._reported:
                facts.append(
                    f"{drop_reason(reason, count)} ({previews(self.encoder.groups[reason])})"
                )
        if facts:
            self.stage.say(f"{counted(total, 'group')}: {'; '.join(facts)}")
        self._reported |= counts.keys()

    def _warn_of_unknown(self, encoded: Sequence[Encoded]) -> None:
        """Say once that texts hold characters which the tokenizer lacks."""
        tokenizer = self.encoder.tokenizer
        if tokenizer.unk_token_id is None or "unknown" in self._reported:
            return
        unknown = total = 0
        for e in encoded:
            for ids in (e.prompt, *(response.tokens for response in e.responses)):
                unknown += ids.count(tokenizer.unk_token_id)
                total += len(ids)
        if unknown > UNKNOWN * total:
            self._reported.add("unknown")
            self.stage.say(
                f"warning: {unknown} of {total} tokens are {tokenizer.unk_token}: the tokenizer "
                "lacks characters of these texts, which are learned as one unknown token; use a "
                "base model whose tokenizer has them"
            )

    def count_read(self, groups: Sequence[Group]) -> None:
        """Add the numbers of encoded rows and responses to the summary, next to `encoding`, which
        counts those that do not fit.
        """
        self._add("encoded", {"rows": len(groups), "responses": len(responses_of(groups))})

    def _add(self, key: str, counts: Mapping[str, int]) -> None:
        """Add counts to those under a key of the summary."""
        total = Counter[str](self.summary.get(key))
        total.update(counts)
        self.summary[key] = dict(total)


def compact(encoded: Encoded) -> Encoded:
    """The same in 4 bytes for each number instead of 36: a data set may have a million rows."""
    responses = []
    for response in encoded.responses:
        tokens, mask = array("i", response.tokens), array("f", response.mask)
        responses.append(replace(response, tokens=tokens, mask=mask))  # type: ignore[arg-type]
    prompt = array("i", encoded.prompt)
    return replace(encoded, prompt=prompt, responses=tuple(responses))  # type: ignore[arg-type]


def has_gradient(encoded: Encoded, needs: Needs) -> bool:
    """Whether a loss of it has a gradient: it has a pair whose responses count, or a token that
    counts.
    """
    if needs.pairs:
        return bool(encoded.pairs)
    return any(any(response.mask) for response in encoded.responses)


@dataclass
class ReferencePrompts:
    """Puts responses behind the reference's prompts.

    A whole model as reference reads prompts in its own chat template, and the policy's tokens
    behind them.

    encoder, model: the reference's. policy: the policy's encoder, another one if the reference is a
    whole model. where: begins errors.
    """

    algorithm: Algorithm
    encoder: Encoder
    model: SharedModel
    policy: Encoder
    where: str = ""

    def encoded(self, groups: Sequence[Encoded]) -> list[Encoded]:
        """The same response tokens and masks behind the reference's prompts.

        A group whose prompt is the same for both is returned as it is. Raises DataError if a prompt
        does not leave room for the responses in the model's stage, and RunFailed for a token that
        the reference does not have.
        """
        if not self.may_differ:
            return list(groups)
        return list(map(self._encoded, groups))

    def check(self, prompts: Sequence[Group], new_tokens: int) -> None:
        """Raise DataError if a prompt leaves no room for `new_tokens`."""
        if self.may_differ:
            for group in prompts:
                self._prompt(group, new_tokens)

    @property
    def may_differ(self) -> bool:
        """Whether the reference may read other prompts than the policy."""
        return (
            self.policy is not self.encoder
            or type(self.algorithm).reference_prompt is not Algorithm.reference_prompt
        )

    def _encoded(self, encoded: Encoded) -> Encoded:
        group = encoded.group
        if not group.prompt:
            return encoded
        messages, ids = self._prompt(
            group, max((len(response.tokens) for response in encoded.responses), default=0)
        )
        if messages == group.prompt and ids == self.policy.prompt(messages, group.tools):
            return encoded
        return replace(encoded, group=replace(group, prompt=messages), prompt=ids)

    def _prompt(self, group: Group, longest: int) -> tuple[tuple[Message, ...], Ids]:
        """A reference's prompt and its tokens, with room for a response of `longest` tokens."""
        messages = tuple(
            call(self.algorithm, "reference_prompt", group, returns=partial(returns.prompt, group))
        )
        ids = self.encoder.prompt(messages, group.tools)
        if len(ids) + longest > self.model.context_length:
            raise DataError(
                f"{self.where}the reference's prompt of {group.origin or preview(group)} has "
                f"{len(ids)} tokens, which leaves no room for {longest} response tokens in the "
                f"model's context of {self.model.context_length}"
            )
        return messages, ids
