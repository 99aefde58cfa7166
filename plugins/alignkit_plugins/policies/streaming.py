"""An answer that is read while it is written: the text that no later token changes, cut before a
stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignkit.models.generate import ActiveSequence, Generation, generate
from alignkit.models.models import RolePolicy
from alignkit.sampling import Sampling
from alignkit.tokens.encoder import Ids


@dataclass(frozen=True)
class Answer:
    """A complete answer.

    text: without the stop string that ended it. ended: by an end token or a stop string, not by the
    length.
    """

    text: str
    tokens: Ids
    ended: bool


def answer(
    policy: RolePolicy,
    prompt: Ids,
    stream: int,
    sampling: Sampling,
    heard: Callable[[str], None] = lambda text: None,
    wanted: Callable[[], bool] = lambda: True,
) -> Answer:
    """Sample an answer, that of `alignkit.Policy.sample` without its stop; `heard` is given it in
    pieces.

    stream: its random numbers, as from `seeds.number`. wanted: asked after every token; once it is
    false, nothing more is written. With an engine all of the answer is heard at once.
    """
    sent, encoder = "", policy.encoder

    def hear(text: str) -> None:
        nonlocal sent
        if text.startswith(sent) and text != sent:
            heard(text[len(sent) :])
            sent = text

    def wrote(rows: Sequence[ActiveSequence]) -> None:
        for row in rows:
            if row.active and not wanted():
                row.abandon()
            elif row.active:
                # A character may take several tokens, and a lead-in may be left out.
                text = encoder.decode(row.tokens).rstrip("\ufffd")
                hear("" if encoder.lead.startswith(text) else _before(text, sampling.stop))

    role = policy.base.role(policy.reference)
    ((written,),) = generate(
        Generation(policy.model, role, encoder, [prompt], [[stream]], sampling), wrote=wrote
    )
    text = until_stop(encoder.decode(written.tokens), sampling.stop)
    hear(text)
    return Answer(text, written.tokens, written.ended)


def until_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    return text[
        : min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))
    ]


def _before(text: str, stops: Sequence[str]) -> str:
    """The text that is not the beginning of a stop string."""
    text = until_stop(text, stops)
    held = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return text[: len(text) - max(held, default=0)]
