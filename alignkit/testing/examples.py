"""Groups to check an algorithm on: demonstrations, preferences, and rollouts in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from alignkit.data.group import Group, Message, Pair, Response, assistant_turn, user_turn
from alignkit.tokens.encoder import Encoded, Encoder

_QUESTIONS = (
    "What is the capital of France?",
    "Name a color.",
    "Is 7 a prime number?",
    "Say something long, please.",
)
_ANSWERS = (
    ("Paris.", "The capital of France is Paris.", "I do not know.", "London, perhaps?"),
    ("Blue", "Red is a color, and so is green.", "No.", "A color is what the eye makes of light."),
    ("Yes, it is.", "It is not.", "Only 1 and 7 divide seven, so it is.", "7"),
    (
        "Once upon a time there was a river.",
        "No",
        "Well, well, well, well.",
        "The book was long and old.",
    ),
)
_REWARDS = (
    (0.3, 1.2, -0.8, -1.9),
    (0.1, 0.9, -0.4, 1.4),
    (1.1, -1.3, 1.6, 0.2),
    (0.7, -0.2, 0.05, 0.6),
)


def example_groups(samples: int = 3, encoder: Encoder | None = None) -> list[Group]:
    """Four prompts with `samples` responses each, of different lengths, with ranks, rewards,
    labels, and margins.

    One response of each group has several turns, and one turn does not count. With an encoder the
    responses are rollouts: given as tokens, some cut off, some with tokens that the policy did not
    write.

    Args:
        samples: Responses per prompt.
        encoder: Encodes the responses as rollouts; None: texts.
    """
    groups = []
    for number, (question, answers, rewards) in enumerate(
        zip(_QUESTIONS, _ANSWERS, _REWARDS, strict=True)
    ):
        rated = [
            (answers[i % 4] + " Indeed." * (i // 4), rewards[i % 4] - 0.01 * (i // 4))
            for i in range(samples)
        ]
        best_first = sorted((reward for _, reward in rated), reverse=True)
        responses = []
        for index, (text, reward) in enumerate(rated):
            feedback: dict[str, Any] = {
                "rank": 1.0 + best_first.index(reward),
                "label": reward > 0.5,
            }
            feedback["scores"] = {"reward": reward}
            responses.append(
                _written(index, text, feedback)
                if encoder is None
                else _sampled(encoder, index, text, feedback)
            )
        prompt = (user_turn(question),)
        groups.append(Group(prompt, tuple(responses), id=f"example-{number}"))
    if samples > 1:  # two groups have explicit pairs, the others ranks only
        groups[1] = replace(groups[1], pairs=(Pair(1, 0, p=0.8, margin="slightly"),))
        groups[2] = replace(
            groups[2], pairs=(Pair(0, 1, margin=1.5), *([Pair(2, 1, margin=2.0)] * (samples > 2)))
        )
    return groups


def _written(index: int, text: str, feedback: dict[str, Any]) -> Response:
    """A response as text; the first of a group in several turns."""
    if index:
        return Response(text=text, **feedback)
    turns = (
        Message(role="assistant", content="Let me think.", train=False),
        user_turn("Go on."),
        assistant_turn(text),
    )
    return Response(messages=turns, **feedback)


def _sampled(encoder: Encoder, index: int, text: str, feedback: dict[str, Any]) -> Response:
    """A response as tokens; the third is cut off, the second has tokens that the policy did not
    write.
    """
    cut = index % 3 == 2
    tokens = encoder.text(text) + (() if cut else encoder.end_of_turn)
    written = tuple(index != 1 or not 1 <= t <= 2 for t in range(len(tokens)))
    return Response(text=text, tokens=tokens, action_mask=written, truncated=cut, **feedback)


def encode_all(
    encoder: Encoder,
    groups: Sequence[Group],
    max_length: int,
    *,
    turns: str = "all",
    scoring: bool = False,
) -> list[Encoded]:
    """Encode all groups and return those that fit."""
    encoded = (encoder.encode(group, max_length, turns=turns, scoring=scoring) for group in groups)
    return [e for e in encoded if e is not None]
