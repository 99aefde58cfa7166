"""The judge `openai_judge`: a model behind an OpenAI-compatible server."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from alignkit import Context, Field, Judge, Message, RunFailed, Verdict
from alignkit.judges import Item, Rubric
from alignkit.remote import Malformed, Remote, RemoteOptions, key_of
from alignkit_plugins.judges.question import Answers, Asking, both_orders, question
from alignkit_plugins.judges.verdict import Answer, verdicts

PROBE = 4  # comparisons that are asked for before all others
_LIMIT = re.compile(r"(greater|less|more|fewer) than|at most|maximum|max allowed")  # of top_logprobs


class OpenAIJudge(Judge):
    """Ask a chat-completions endpoint. Answers are cached on disk, so that no question is paid for twice."""

    compares_by_rubric: ClassVar[bool] = True

    class Options(Asking, RemoteOptions):
        base_url: str = Field(description="address of the API, such as http://localhost:8000/v1")
        model: str = Field(min_length=1, description="model name on the server")
        use_logprobs: bool = Field(True, description="request log-probabilities; false: only the reply's text counts")
        request: dict[str, Any] = Field({}, description="additional fields of the request; null removes a field")

    options: Options

    def question(self, item: Item) -> list[Message]:
        return question(self.options, item)

    def check(self, folder: Path) -> None:
        key_of("openai_judge", self.options)

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        model = self.options.model.replace("{", "{{").replace("}", "}}")
        help = {
            403: f"the key in {{variable}} may not use the model {model}",
            404: f"{{path}} or the model {model} does not exist there; base_url usually ends in /v1",
        }
        read = partial(_stored, answers=self.options.answers)
        self._useful = False  # whether a reply could be used
        self.remote = Remote("openai_judge", self.options, "chat/completions", context.cache, read, help)

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> list[Verdict]:
        if not self._useful and len(items) > PROBE:  # not to pay for thousands of replies that cannot be used
            self._check_use(self._ask(items[:PROBE], rubric))
        found = self._ask(items, rubric)
        self._useful = self._useful or any(verdict.p_first is not None for verdict in found)
        return found

    def _check_use(self, found: Sequence[Verdict]) -> None:
        """Raise RunFailed, with what to change, if no reply can be used, all for the same reason."""
        reasons = {verdict.reason for verdict in found}
        if len(reasons) == 1 and all(verdict.p_first is None for verdict in found):
            (reason,) = reasons
            raise RunFailed(
                f"openai_judge: none of the first {len(found)} comparisons has a verdict: {reason}\n"
                f"help: {_advice(reason, self.options.use_logprobs)}"
            )

    def _ask(self, items: Sequence[Item], rubric: Rubric) -> list[Verdict]:
        bodies = [self.body(messages) for messages in both_orders(self.options, items, self.context.seed, rubric)]
        replies = self.remote.ask(bodies, self.context.progress)
        answers = [Answer(reason=r.reason) if r.reason else Answer(*r.value) for r in replies]
        return verdicts(answers, self.options.min_mass)

    def body(self, messages: Sequence[Message]) -> dict[str, Any]:
        """The request's JSON."""
        body: dict[str, Any] = {"model": self.options.model, "messages": messages, "max_tokens": 1, "temperature": 0}
        if self.options.use_logprobs:
            body |= {"logprobs": True, "top_logprobs": 20}
        return {name: value for name, value in (body | self.options.request).items() if value is not None}


def _advice(reason: str, use_logprobs: bool) -> str:
    """What to change if no reply can be used."""
    if "max_completion_tokens" in reason or "max_tokens" in reason:
        return "set the judge's option 'request: {max_tokens: null, max_completion_tokens: 16}'"
    if "logprobs" in reason and _LIMIT.search(reason):
        return (
            "this server returns fewer log-probabilities at once: set the judge's option 'request: {top_logprobs: 5}' "
            "to a number that it allows, or raise its limit (vLLM's is --max-logprobs)"
        )
    if "logprobs" in reason:
        return "this server has no log-probabilities: set the judge's option 'use_logprobs: false'"
    if "answered neither" in reason:
        more = "'use_logprobs: false' and " if use_logprobs else ""
        return f"a model that reasons first needs room: set {more}'request: {{max_tokens: 2000}}'; or change 'template'"
    return "ask the server the same question by hand, and change 'model', 'request' or 'use_logprobs'"


def _stored(text: bytes, answers: Answers) -> list[Any]:
    """The answer in a chat completion, as it is cached."""
    return list(astuple(read_answer(text, answers)))


def read_answer(text: bytes, answers: Answers = ("1", "2")) -> Answer:
    """The answer in a chat completion: from the log-probabilities of its first token, or else from its text."""
    try:
        reply = json.loads(text)
        choice = reply["choices"][0]
        tops = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs")
        if (choice.get("message") or {}).get("refusal") or choice.get("finish_reason") == "content_filter":
            answer = Answer(reason="the judge refused")
        else:
            answer = _from_logprobs(tops, answers) if tops else _from_words(choice["message"]["content"], answers)
        return replace(answer, tokens=_tokens(reply.get("usage")))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Malformed("the judge's reply is not a chat completion") from None


def _tokens(usage: Any) -> int | None:
    total = usage.get("total_tokens") if isinstance(usage, Mapping) else None
    return total if isinstance(total, int) and not isinstance(total, bool) and total >= 0 else None


def _from_logprobs(tops: Sequence[Mapping[str, Any]], answers: Answers) -> Answer:
    """The answer by the likeliest tokens; "1" and " 1" are the same. Another token is no likelier than any of them."""
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
    """The answer by its text: a lone answer is certain, and anything else, such as a refusal, is no answer."""
    word = (words or "").strip()
    if word not in answers:
        return Answer(reason=f"the judge answered neither {answers[0]} nor {answers[1]}")
    return Answer(0.0, -math.inf) if word == answers[0] else Answer(-math.inf, 0.0)
