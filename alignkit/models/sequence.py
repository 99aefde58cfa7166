"""A response while it is sampled: its tokens, turn by turn, and whether anything can follow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from alignkit.tokens.encoder import Ids

# (prompt, sample, tokens of the policy's last turn, room) -> the tokens that follow; None if the response is complete.
# prompt, sample: indices. room: most tokens that may follow.
Reply = Callable[[int, int, Sequence[int], int], Ids | None]


@dataclass(frozen=True)
class Partner:
    """Who answers the policy's turns.

    max_length: most tokens of a prompt with all turns after it. counts: `read` gets the number of tokens that were read
    as prompts and answers, and `saved` of those that would have been read again without the cache.
    """

    reply: Reply
    max_length: int
    counts: Counter[str] = field(default_factory=Counter)


# Given the rows: the active ones have just got a token.
Wrote = Callable[[Sequence["ActiveSequence"]], None]


@dataclass(eq=False)
class ActiveSequence:
    """A response being written.

    prompt, sample: index of its prompt and its number among that prompt's samples. draws: uniform in [0, 1), one for
    each token that the policy may write. most: tokens that it may have, with those of others. written: for each token,
    whether the policy wrote it; others have a log-probability of 0. turn: where the policy's last turn begins. ended:
    that turn, by an end token or a stop string. complete: no turn follows. unread: tokens at the end of `tokens` that
    no forward pass has read: an answer, and the token before it.
    """

    prompt: int
    sample: int
    draws: np.ndarray
    most: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    sampled: int = 0
    turn: int = 0
    unread: int = 0
    ended: bool = False
    complete: bool = False

    @property
    def active(self) -> bool:
        return not self.ended and self.room > 0

    @property
    def waiting(self) -> bool:
        """Whether the policy has ended a turn that may be answered."""
        return self.ended and not self.complete

    @property
    def over(self) -> bool:
        return not self.active and not self.waiting

    @property
    def room(self) -> int:
        """Tokens that the policy may still write."""
        return min(len(self.draws) - self.sampled, self.most - len(self.tokens))

    def write(self, token: int, logprob: float) -> None:
        self.tokens.append(token)
        self.logprobs.append(logprob)
        self.written.append(True)
        self.sampled += 1

    def read(self, tokens: Ids) -> None:
        """Append tokens that the policy did not write, and begin its next turn."""
        self.tokens += tokens
        self.logprobs += [0.0] * len(tokens)
        self.written += [False] * len(tokens)
        self.turn, self.unread, self.ended = len(self.tokens), len(tokens) + 1, False

    def abandon(self) -> None:
        """Write no more, because nobody wants the rest."""
        self.most, self.complete = len(self.tokens), True

    def restart_turn(self) -> None:
        self.sampled -= len(self.tokens) - self.turn
        del self.tokens[self.turn :], self.logprobs[self.turn :], self.written[self.turn :]


def last_turn(tokens: Sequence[int], written: Sequence[bool] | None) -> Ids:
    """The tokens that the policy wrote after those of others. written: see `Response.written`."""
    start = max((place + 1 for place, own in enumerate(written or ()) if not own), default=0)
    return tuple(tokens[start:])


def key_of(row: ActiveSequence) -> tuple[int, int]:
    """Equal for rows with the same context: the samples of a prompt, before anything is written."""
    return (row.prompt, row.sample if row.tokens else -1)
