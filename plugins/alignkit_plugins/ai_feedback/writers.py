"""Who writes texts for steps that make data: a policy of the run, or a model behind an
OpenAI-compatible server.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from typing import Any, Protocol

from alignkit import Context, Group, Message, SamplingOptions, StepContext, seeds
from alignkit_plugins.ai_feedback.chat import Chat, other_name
from alignkit_plugins.ai_feedback.replies import Malformed, Reply
from alignkit_plugins.ai_feedback.server import Server, is_refusal, used_tokens
from alignkit_plugins.ai_feedback.service import Remote, model_in
from alignkit_plugins.formats.rows import prompt_to_row, prompts_from_rows
from alignkit_plugins.formats.spoken import after_thoughts

REFUSED = "the server refused"
NO_ROOM = "the conversation leaves no room"
EMPTY = "an empty reply"
CALLED = "the model called a tool instead of answering in words"
SENT = ("role", "content", "name", "tool_call_id")  # of a turn, besides its calls
UNTOLD = ("min_new_tokens", "stop", "top_k")  # sampling options that requests leave out


@dataclass(frozen=True)
class Written:
    """What a model wrote. reason: why it wrote nothing that can be used, if so; `text` is then
    empty.

    model: as the server calls it. tokens: that the model read and wrote. cost: by the price. None:
    nobody says.
    """

    text: str = ""
    truncated: bool = False
    reason: str = ""
    model: str = ""
    tokens: int | None = None
    cost: float | None = None


class Writer(Protocol):
    """A model that continues conversations. name: of a policy, or of the model on its server.
    origin: for rows.
    """

    name: str
    origin: dict[str, Any]

    def write(
        self, conversations: Sequence[Group], most: int, seed: int, samples: int = 1
    ) -> list[Written]:
        """What it says next in each, in order; several samples of one come one after the other.
        most: tokens.
        """
        ...


class PolicyWriter:
    """A policy of this run. sampling: as in training; how long a text may be is said each time."""

    def __init__(self, context: Context, role: str, sampling: Mapping[str, Any]):
        self.name, self.origin, self._context = (
            role,
            {"policy": role, "seed": context.seed},
            context,
        )
        self._sampling = {key: value for key, value in sampling.items() if key != "max_new_tokens"}

    def write(
        self, conversations: Sequence[Group], most: int, seed: int, samples: int = 1
    ) -> list[Written]:
        sampling = {"samples_per_prompt": samples, "max_new_tokens": most, **self._sampling}
        if "min_new_tokens" in sampling:
            sampling["min_new_tokens"] = min(sampling["min_new_tokens"], most)
        groups = self._context.models[self.name].sample(conversations, seed=seed, **sampling)
        written: list[Written] = []
        for group in groups:
            if not group.responses:
                written += [Written(reason=NO_ROOM)] * samples
            written += [
                Written(_answer(response.text), response.truncated) for response in group.responses
            ]
        return written


class ServerWriter:
    """Asks a chat-completions endpoint. Replies are stored on disk, so that none is paid for
    twice.
    """

    def __init__(self, context: Context, name: str, options: Server, sampling: Mapping[str, Any]):
        """name: of the step, for messages and the file of stored replies."""
        self.name, self._context, self._options = options.model, context, options
        self._sampling = {key: sampling[key] for key in ("temperature", "top_p") if key in sampling}
        # What the request says, in which the recipe's `request` wins.
        told = {
            key: value
            for key, value in options.body(self._sampling).items()
            if key in ("temperature", "top_p")
        }
        self.origin = {
            "model": options.model,
            "address": options.base_url,
            "seed": context.seed,
            **told,
        }
        remote = Remote(name, options, "chat/completions", context.cache, _stored)
        self._chat = Chat(remote)

    def write(
        self, conversations: Sequence[Group], most: int, seed: int, samples: int = 1
    ) -> list[Written]:
        # Equal requests have one reply, so several samples differ in their seed. One sample needs
        # none.
        bodies = [
            self._body(
                conversation,
                {"max_tokens": most, **({"seed": seed + number} if samples > 1 else {})},
            )
            for conversation in conversations
            for number in range(samples)
        ]
        replies = self._chat.ask(
            bodies,
            # An empty text is not the server's fault
            lambda place, reply: reply.reason or str(reply.value[2]),
            lambda reason: (
                other_name(reason, most)
                or "ask the server the same question by hand, and change 'model' or 'request'"
            ),
            self._context.progress,
        )
        return [self._written(reply) for reply in replies]

    def _body(self, conversation: Group, more: Mapping[str, Any]) -> dict[str, Any]:
        """The request's JSON."""
        body = {"messages": list(map(_sent, conversation.prompt)), **self._sampling, **more}
        return self._options.body(
            {**body, "tools": list(conversation.tools)} if conversation.tools else body
        )

    def _written(self, reply: Reply) -> Written:
        if reply.reason:
            return Written(reason=reply.reason)
        text, truncated, reason, model, tokens, written = reply.value
        return Written(text, truncated, reason, model, tokens, self._options.cost(tokens, written))


def writer_of(
    context: Context, name: str, who: str | Server, sampling: Mapping[str, Any]
) -> Writer:
    """A policy or a model on a server. name: of the step."""
    if isinstance(who, Server):
        return ServerWriter(context, name, who, sampling)
    return PolicyWriter(context, who, sampling)


def check_sampling(who: str | Server | None, options: SamplingOptions) -> None:
    """Raise ValueError for an option that the recipe sets and requests to a server leave out."""
    chosen = [key for key in UNTOLD if key in options.sampling.model_fields_set]
    if isinstance(who, Server) and chosen:
        raise ValueError(
            f"servers differ in '{chosen[0]}'; write it as this one takes it, in its 'request'"
        )


def ask(
    context: StepContext,
    name: str,
    writer: Writer,
    conversations: Sequence[Group],
    most: int,
    samples: int = 1,
) -> list[Written]:
    """What a writer says next in each conversation, as `Writer.write`, in chunks that a resumed run
    finds again.

    name: of the rows. Each name has random numbers of its own.
    """

    def written(rows: Sequence[Any]) -> list[list[dict[str, Any]]]:
        # The 31 bits that all servers take
        seed = seeds.number(context.seed, context.stage, name, rows[0][0]) >> 32
        said = [vars(each) for each in writer.write(prompts_from_rows(rows), most, seed, samples)]
        said = [
            each if each["text"] or each["reason"] else {**each, "reason": EMPTY} for each in said
        ]
        return [said[start : start + samples] for start in range(0, len(said), samples)]

    rows = [prompt_to_row(number, each) for number, each in enumerate(conversations)]
    return [Written(**each) for row in context.map(name, rows, written) for each in row]


def origin_of(origin: Mapping[str, Any], written: Iterable[Written], **more: Any) -> dict[str, Any]:
    """Who wrote a row, for a column of it. origin: of the writer. more: such as sampling
    options.
    """
    models = list(dict.fromkeys(each.model for each in written if each.model))
    return {**origin, **({"replied_as": models} if models else {}), **more}


def bill(written: Iterable[Written]) -> dict[str, Any]:
    """What texts cost, stored ones included, and why some are of no use. None: nobody says."""
    every = list(written)
    tokens = [each.tokens for each in every if each.tokens is not None]
    costs = [each.cost for each in every if each.cost is not None]
    return {
        "questions": len(every),
        "tokens": sum(tokens) if tokens else None,
        "cost": fsum(costs) if costs else None,
        "refused": dict(
            Counter(kind_of(each.reason) for each in every if each.reason).most_common()
        ),
    }


def billed(facts: Mapping[str, Any]) -> str:
    """A `bill` in words: `40 questions, 12,345 tokens, cost 0.12`."""
    tokens = f", {facts['tokens']:,} tokens" if facts["tokens"] is not None else ""
    return f"{facts['questions']:,} questions{tokens}" + (
        f", cost {facts['cost']:.4g}" if facts["cost"] else ""
    )


def kind_of(reason: str) -> str:
    """A reason without what differs from row to row, such as the words of a server's error."""
    return reason.partition(": ")[0]


def _stored(text: bytes) -> list[Any]:
    """The fields of a chat completion, as they are stored: those of `Written`, and the tokens that
    were written.
    """
    try:
        reply = json.loads(text)
        choice = reply["choices"][0]
        message, end = choice["message"], choice.get("finish_reason")
        more = [model_in(text) or "", *used_tokens(reply)]
        if is_refusal(choice):
            return ["", False, REFUSED, *more]
        said = _answer(message.get("content") or "")
        return [
            said,
            end == "length",
            CALLED if message.get("tool_calls") and not said else "",
            *more,
        ]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Malformed("the reply is not a chat completion") from None


def _sent(turn: Message) -> dict[str, Any]:
    """A turn as servers read it: with the arguments of calls as JSON."""
    sent: dict[str, Any] = {key: value for key, value in turn.items() if key in SENT}
    if calls := turn.get("tool_calls"):
        called = [
            {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}
            for call in calls
        ]
        sent["tool_calls"] = [
            {**call, "function": function} for call, function in zip(calls, called, strict=True)
        ]
    return sent


def _answer(text: str) -> str:
    """The text without the thoughts before it; empty if they have no end."""
    return (after_thoughts(text) or "").strip()
