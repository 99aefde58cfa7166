"""The judge `openai_judge`: a model behind an OpenAI-compatible server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict

from alignkit import Context, Field, Judge, Message, Rating, Verdict
from alignkit.judges import Item, Rated, Rubric
from alignkit_plugins.ai_feedback.chat import TOO_MUCH_ROOM, Chat, other_name
from alignkit_plugins.ai_feedback.completion import THINKS, stored_answer, stored_words
from alignkit_plugins.ai_feedback.form import CUT, NO_LINE, OUT_OF_SCALE, THINKING
from alignkit_plugins.ai_feedback.question import both_orders, question
from alignkit_plugins.ai_feedback.remote import Remote, Reply, key_of
from alignkit_plugins.ai_feedback.server import Server
from alignkit_plugins.ai_feedback.verdict import Answer, verdicts
from alignkit_plugins.ai_feedback.words import Question, Said, Speaking, Words

# Of top_logprobs
_LIMIT = re.compile(r"(greater|less|more|fewer) than|at most|maximum|max allowed")
_ENDS = "the judge's reply was cut off below max_tokens: the server's context may end there"
_CONTEXT = (
    "give the server a longer context (vLLM: --max-model-len; llama.cpp: --ctx-size, which its "
    "slots share), or leave long texts out"
)
_THINKS = "a model that thinks before it answers: set the judge's option 'reasons: true'"


class OpenAIJudge(Judge):
    """Ask a chat-completions endpoint. Answers are cached on disk, so that no question is paid for
    twice.
    """

    compares_by_rubric: ClassVar[bool] = True

    class Options(Speaking):
        model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a password

        server: Server = Field(description="the model, `{base_url: ..., model: ...}`")

    options: Options

    @property
    def server(self) -> Server:
        """The model and where it is."""
        return self.options.server

    def check(self, folder: Path) -> None:
        key_of("openai_judge", self.options.server)

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        model = self.server.model.replace("{", "{{").replace("}", "}}")
        help = {
            403: f"the key in {{variable}} may not use the model {model}",
            404: (
                f"{{path}} or the model {model} does not exist there; base_url usually ends in /v1"
            ),
        }
        read = partial(stored_answer, answers=self.options.answers)
        remote = Remote("openai_judge", self.server, "chat/completions", context.cache, read, help)
        self._tokens = Chat(remote, hopeless=[THINKS])
        self._chat = Chat(replace(remote, read=stored_words), [OUT_OF_SCALE])

    @property
    def scale(self) -> tuple[float, float]:
        return self.options.scale

    def question(self, item: Item) -> Sequence[Message]:
        return (
            self._words(0).pair(item, "").messages
            if self.options.reasons
            else question(self.options, item)
        )

    def compare(self, items: Sequence[Item], rubric: Rubric = "") -> list[Verdict]:
        if self.options.reasons:
            return self._words(self.context.seed).compare(items, rubric)
        questions = [
            question(self.options, item, self.context.seed, rubric) for item in both_orders(items)
        ]

        def unusable(place: int, reply: Reply) -> str:
            return self._answer(reply).unusable(self.options.min_mass)

        bodies = [self.body(messages) for messages in questions]
        replies = self._tokens.ask(bodies, unusable, self._advice, self.context.progress)
        return verdicts([self._answer(reply) for reply in replies], self.options.min_mass)

    def rate(self, items: Sequence[Rated], rubric: Rubric = "") -> list[Rating]:
        return self._words(self.context.seed).rate(items, rubric)

    @property
    def _most_tokens(self) -> int:
        """The limit of a reply, as it is asked for."""
        own = self.server.request
        chosen = (
            own.get("max_completion_tokens") or own.get("max_tokens") or self.options.max_tokens
        )
        return chosen if isinstance(chosen, int) else 0

    def _words(self, seed: int) -> Words:
        return Words(self.options, seed, self._said)

    def _said(self, questions: Sequence[Question]) -> list[Said]:
        """Replies in words."""

        def said(reply: Reply) -> Said:
            if reply.reason:
                return Said(reason=reply.reason)
            words, reason, *used = reply.value
            total, written = used
            if reason == CUT and written is not None and written < self._most_tokens:
                reason = _ENDS  # vLLM and llama.cpp shorten a reply to what fits
            return Said(words, reason, total, self.server.cost(*used))

        def unusable(place: int, reply: Reply) -> str:
            return said(reply).unusable(questions[place])

        bodies = [self._body_in_words(one) for one in questions]
        return [
            said(reply)
            for reply in self._chat.ask(bodies, unusable, self._advice, self.context.progress)
        ]

    def _answer(self, reply: Reply) -> Answer:
        """The answer of one token."""
        if reply.reason:
            return Answer(reason=reply.reason)
        one, two, reason, bound, *used = reply.value
        return Answer(one, two, reason, bound, tokens=used[0], cost=self.server.cost(*used))

    def body(self, messages: Sequence[Message]) -> dict[str, Any]:
        """The request's JSON, for the answer of one token."""
        terms = {"max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20}
        return self.server.body({"messages": messages, **terms})

    def _body_in_words(self, question: Question) -> dict[str, Any]:
        terms = {"max_tokens": self.options.max_tokens, "temperature": 0}
        return self.server.body({"messages": question.messages, **terms})

    def _advice(self, reason: str) -> str:
        """What to change if no reply can be used."""
        if TOO_MUCH_ROOM.search(reason):
            return (
                "this server allows no reply of that length: set the judge's option 'max_tokens' "
                "to a lower number"
            )
        if reason.startswith("HTTP ") and "context" in reason:
            return _CONTEXT
        if reason == _ENDS:  # or thoughts are not among the tokens that it counts
            return (
                f"{_CONTEXT}; if the model thinks, set the judge's option 'max_tokens: "
                f"{4 * self.options.max_tokens}'"
            )
        if reason in (CUT, THINKING):
            return (
                f"give it room: set the judge's option 'max_tokens: {4 * self.options.max_tokens}'"
            )
        names_limit = "max_completion_tokens" in reason or "max_tokens" in reason
        if reason == THINKS or (names_limit and not self.options.reasons):
            return f"this seems to be {_THINKS}"
        if other := other_name(reason, self.options.max_tokens):
            return other
        if "logprobs" in reason and _LIMIT.search(reason):
            return (
                "this server returns fewer log-probabilities at once: set the server's 'request: "
                "{top_logprobs: 5}' to a number that it allows, or raise its limit (vLLM's is "
                "--max-logprobs)"
            )
        if "logprobs" in reason:
            return (
                "this server has no log-probabilities: set the judge's option 'reasons: true', "
                "or the server's 'request: {logprobs: null, top_logprobs: null}', so that the "
                "reply's text counts"
            )
        if "answered neither" in reason:
            return f"this may be {_THINKS}; or change 'template'"
        if reason == NO_LINE:
            return "use a larger model"
        return (
            "ask the server the same question by hand, and change 'model', 'request' or 'reasons'"
        )
