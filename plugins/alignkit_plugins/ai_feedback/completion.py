"""Chat completions of OpenAI-compatible servers, as they are read and stored."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.evaluation.answers import bare
from alignkit_plugins.ai_feedback.form import CUT, spoken
from alignkit_plugins.ai_feedback.question import Answers
from alignkit_plugins.ai_feedback.remote import Malformed
from alignkit_plugins.ai_feedback.server import is_refusal, used_tokens
from alignkit_plugins.ai_feedback.verdict import Answer
from alignkit_plugins.formats.spoken import TAGS

REFUSED = "the judge refused"
THINKS = "the judge thinks before it answers, and one token is not enough"
_MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError)


def stored_answer(text: bytes, answers: Answers) -> list[Any]:
    """The answer of one token in a chat completion: log-probabilities, reason, bound, and tokens,
    as it is cached.
    """
    answer = read_answer(text, answers)
    return [answer.one, answer.two, answer.reason, answer.bound, *used_tokens(json.loads(text))]


def stored_words(text: bytes) -> list[Any]:
    """The text of a chat completion, or the reason why it has none, and tokens, as it is cached."""
    try:
        reply = json.loads(text)
        choice = reply["choices"][0]
        words, reason = choice["message"].get("content") or "", ""
        if not isinstance(words, str):
            raise ValueError("not a text")
        if is_refusal(choice):
            words, reason = "", REFUSED
        elif choice.get("finish_reason") == "length":  # a number could have more digits
            words, reason = "", CUT
        return [words, reason, *used_tokens(reply)]
    except _MALFORMED:
        raise Malformed("the judge's reply is not a chat completion") from None


def read_answer(text: bytes, answers: Answers = ("1", "2")) -> Answer:
    """The answer in a chat completion: from the log-probabilities of its first token, or else from
    its text.
    """
    try:
        choice = json.loads(text)["choices"][0]
        tops = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
        if is_refusal(choice):
            return Answer(reason=REFUSED)
        return (
            _from_logprobs(tops, answers)
            if tops
            else _from_words(_text(choice["message"]), answers)
        )
    except _MALFORMED:
        raise Malformed("the judge's reply is not a chat completion") from None


def _text(message: Mapping[str, Any]) -> str | None:
    """What a model says; without words, and with thoughts in a field of their own, an open
    thought.
    """
    words = message["content"]
    thinks = any(message.get(name) for name in ("reasoning_content", "reasoning"))
    return f"<{TAGS[0]}>" if thinks and not words else words


def _from_logprobs(tops: Sequence[Mapping[str, Any]], answers: Answers) -> Answer:
    """The answer by the likeliest tokens; "1" and " 1" are the same. Another token is no likelier
    than any of them.
    """
    mass = dict.fromkeys(answers, 0.0)
    for top in tops:
        if isinstance(top["logprob"], bool) or not top["logprob"] <= 1e-3:  # also false for NaN
            raise ValueError("not a log-probability")
        word = top["token"].strip()
        if word in mass:
            mass[word] += math.exp(top["logprob"])
    if sum(mass.values()) > 1.01:  # a token occurs twice
        raise ValueError("not probabilities")
    one, two = (math.log(p) if p > 0 else -math.inf for p in mass.values())
    return Answer(one, two, bound=min(float(top["logprob"]) for top in tops))


def _from_words(words: str | None, answers: Answers) -> Answer:
    """The answer by its text: a lone answer is certain, and anything else, such as a refusal, is no
    answer.
    """
    try:
        word = bare(spoken(words or ""))
    except ValueError:
        return Answer(reason=THINKS)
    if word not in answers:
        return Answer(reason=f"the judge answered neither {answers[0]} nor {answers[1]}")
    return Answer(0.0, -math.inf) if word == answers[0] else Answer(-math.inf, 0.0)
