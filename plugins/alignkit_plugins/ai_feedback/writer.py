"""One way to ask a model in words: a policy of the run, or a model behind an OpenAI-compatible
server.

    writer = writer_of(context, "my_step", options.writer, options.sampled())
    for written in writer.write(conversations, most=200, seed=context.seed):
        print(written.text or written.reason)

A server's replies are stored on disk, so that none is paid for twice. Its first questions are asked
alone, so that a wrong setting costs no more than those.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, fsum
from typing import Any, Protocol

from pydantic import field_validator

from alignkit import Context, Field, Group, Message, RunFailed, SamplingOptions, StepContext, seeds
from alignkit.reward import Progress, no_progress
from alignkit_plugins.ai_feedback.remote import Malformed, Remote, RemoteOptions, Reply
from alignkit_plugins.formats.rows import prompt_to_row, prompts_from_rows
from alignkit_plugins.formats.spoken import after_thoughts

REFUSED = "the server refused"
NO_ROOM = "the conversation leaves no room"
EMPTY = "an empty reply"
THINKING = "the reply ends before its thoughts do"
CALLED = "the model called a tool instead of answering in words"
NO_LOGPROBS = "the server returned no log-probabilities"
SENT = ("role", "content", "name", "tool_call_id")  # of a turn, besides its calls
TOLD = ("temperature", "top_p")  # sampling options that requests have
UNTOLD = ("min_new_tokens", "stop", "top_k")  # sampling options that requests leave out
PROBE = 4  # questions that are asked one by one, as long as none has a reply of use

HELP = (
    "ask the server the same question by hand. Its `request` adds a field, or leaves it out: "
    "{max_tokens: null, max_completion_tokens: 4000}, {temperature: null}, {top_logprobs: 5}. A "
    "judge of a model that thinks, or of a server without log-probabilities, needs `reasons: "
    "true`, and room: `max_tokens: 8000`"
)


class Server(RemoteOptions):
    """A model behind an OpenAI-compatible server."""

    model: str = Field(min_length=1, description="model name on the server")
    price: tuple[float, float] | None = Field(
        None,
        description="price of 1,000 tokens that the model reads, and of 1,000 that it writes, for "
        "the report",
    )

    @field_validator("price")
    @classmethod
    def _none_below_0(cls, price: tuple[float, float] | None) -> tuple[float, float] | None:
        if price is not None and min(price) < 0:
            raise ValueError("price must be two numbers of at least 0")
        return price

    def cost(self, tokens: int | None, written: int | None) -> float | None:
        """What tokens cost, by the price; None if that is unknown.

        tokens: all. written: those that the model wrote.
        """
        if self.price is None or tokens is None or written is None:
            return None
        reading, writing = self.price
        return ((tokens - written) * reading + written * writing) / 1000

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return super().body({"model": self.model, **body})


@dataclass(frozen=True)
class Written:
    """What a model wrote, without the thoughts before it.

    reason: why it wrote nothing that can be used, if so; `text` is then empty. model: as the server
    calls it. tokens: that the model read and wrote. written: those that it wrote. cost: by the
    price. None: nobody says. likeliest: the likeliest first tokens with their log-probabilities
    (nats), if they were asked for.
    """

    text: str = ""
    truncated: bool = False
    reason: str = ""
    model: str = ""
    tokens: int | None = None
    written: int | None = None
    cost: float | None = None
    likeliest: Sequence[Any] = ()


def spoken(text: str, truncated: bool, **more: Any) -> Written:
    """What follows a model's thoughts."""
    said = after_thoughts(text)
    if said is None:
        return Written(truncated=truncated, reason=THINKING, **more)
    return Written(said.strip(), truncated, "" if said.strip() else EMPTY, **more)


class Writer(Protocol):
    """A model that continues conversations. name: of a policy, or of the model on its server.

    origin: who it is, for rows.
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
        self.name, self.origin = role, {"policy": role, "seed": context.seed}
        self._models = context.models
        self._sampling = {key: value for key, value in sampling.items() if key != "max_new_tokens"}

    def write(
        self, conversations: Sequence[Group], most: int, seed: int, samples: int = 1
    ) -> list[Written]:
        sampling = {"samples_per_prompt": samples, "max_new_tokens": most, **self._sampling}
        if "min_new_tokens" in sampling:
            sampling["min_new_tokens"] = min(sampling["min_new_tokens"], most)
        written: list[Written] = []
        for group in self._models[self.name].sample(conversations, seed=seed, **sampling):
            if not group.responses:
                written += [Written(reason=NO_ROOM)] * samples
            written += [spoken(response.text, response.truncated) for response in group.responses]
        return written


Check = Callable[[int, Written], str]
"""Why the reply to a question, by its place, is of no use; empty if it is."""


def fault_of(place: int, written: Written) -> str:
    """The check of whoever takes any text. An empty one is not the server's fault."""
    return "" if written.reason in (EMPTY, THINKING) else written.reason


class ServerWriter:
    """Asks a chat-completions endpoint. name: of the step, for messages and the file of replies."""

    def __init__(self, context: Context, name: str, options: Server, sampling: Mapping[str, Any]):
        self.name, self._context, self._options = options.model, context, options
        self._sampling = {key: sampling[key] for key in TOLD if key in sampling}
        # What the request says, in which the recipe's `request` wins.
        told = options.body(self._sampling)
        self.origin = {"model": options.model, "address": options.base_url, "seed": context.seed}
        self.origin |= {key: told[key] for key in TOLD if key in told}
        self._remote = Remote(name, options, "chat/completions", context.cache, stored)
        self._useful = False  # whether a reply could be used

    def write(
        self,
        conversations: Sequence[Group],
        most: int,
        seed: int,
        samples: int = 1,
        *,
        logprobs: bool = False,
        check: Check = fault_of,
        again: tuple[str, ...] = (),
    ) -> list[Written]:
        """As `Writer.write`. Raises RunFailed if none of the first questions has a reply of use,
        all for the same reason.

        again: beginnings of reasons that are the server's fault, which may have been repaired, so
        that a stored reply is asked for again. Any other one is the model's own: at temperature 0,
        it would say and cost the same.
        """
        terms = self._sampling | {"max_tokens": most}
        if logprobs:
            terms |= {"logprobs": True, "top_logprobs": 20}
        bodies = []
        for conversation in conversations:
            body = terms | {"messages": list(map(_sent, conversation.prompt))}
            if conversation.tools:
                body["tools"] = list(conversation.tools)
            # Equal requests have one reply, so several samples differ in their seed.
            seeded = [{"seed": seed + number} for number in range(samples)] if samples > 1 else [{}]
            bodies += [self._options.body(body | more) for more in seeded]
        replies: list[Written] = []

        def ask(end: int, progress: Progress) -> None:
            start = len(replies)

            def fault(place: int, reply: Reply) -> str:
                reason = check(start + place, self._written(reply))
                return reason if reason.startswith(again) else ""

            found = self._remote.ask(bodies[start:end], progress, fault)
            replies.extend(self._written(reply) for reply in found)

        reasons: list[str] = []
        while not self._useful and len(replies) < min(PROBE, len(bodies)):
            ask(len(replies) + 1, no_progress)
            reasons.append(check(len(reasons), replies[-1]))
            self._useful = not reasons[-1]
        alike = len(reasons) == PROBE < len(bodies) and len(set(map(kind_of, reasons))) == 1
        if alike and reasons[-1]:
            what = f"no reply of use to the first questions: {reasons[-1]}"
            raise RunFailed(f"{self._remote.name}: {what}\nhelp: {HELP}")
        ask(len(bodies), self._context.progress)
        return replies

    def _written(self, reply: Reply) -> Written:
        if reply.reason:
            return Written(reason=reply.reason)
        written = Written(**reply.value)
        return replace(written, cost=self._options.cost(written.tokens, written.written))


def _sent(turn: Message) -> dict[str, Any]:
    """A turn as servers read it: with the arguments of calls as JSON."""
    sent: dict[str, Any] = {key: value for key, value in turn.items() if key in SENT}
    for call in turn.get("tool_calls") or ():
        arguments = json.dumps(call["function"]["arguments"])
        function = {**call["function"], "arguments": arguments}
        sent.setdefault("tool_calls", []).append({**call, "function": function})
    return sent


def stored(text: bytes) -> dict[str, Any]:
    """A chat completion as it is stored: the fields of `Written`."""
    try:
        reply = json.loads(text)
        choice = reply["choices"][0]
        message, end = choice.get("message") or {}, choice.get("finish_reason")
        usage = reply.get("usage")
        total, written = (_count(usage, name) for name in ("total_tokens", "completion_tokens"))
        more: dict[str, Any] = {
            "model": str(reply.get("model") or ""),
            "tokens": total,
            "written": written,
        }
        if message.get("refusal") or end == "content_filter":
            return vars(Written(reason=REFUSED, **more))
        found = spoken(
            message.get("content") or "", end == "length", likeliest=_likeliest(choice), **more
        )
        called = message.get("tool_calls") and not found.text
        return vars(replace(found, reason=CALLED) if called else found)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Malformed("the reply is not a chat completion") from None


def _likeliest(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The likeliest first tokens with their log-probabilities; empty without any."""
    content = (choice.get("logprobs") or {}).get("content") or [{}]
    tops = [(top["token"], top["logprob"]) for top in content[0].get("top_logprobs") or ()]
    for token, logprob in tops:
        if isinstance(logprob, bool) or not logprob <= 1e-3 or token != str(token):  # or NaN
            raise ValueError("not a log-probability")
    if fsum(exp(logprob) for _, logprob in tops) > 1.01:  # a token occurs twice
        raise ValueError("not probabilities")
    return tops


def _count(usage: Any, name: str) -> int | None:
    """A number of tokens; None if the server does not say it."""
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if type(value) is int and value >= 0 else None


# Steps that ask


def writer_of(
    context: Context, name: str, who: str | Server, sampling: Mapping[str, Any]
) -> PolicyWriter | ServerWriter:
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
    *,
    seed: Callable[[int], int] | None = None,
) -> list[Written]:
    """What a writer says next in each conversation, in chunks that a resumed run finds again.

    name: of the rows. Each name has random numbers of its own. seed: another one of a chunk, by the
    place of its first row.
    """

    def seed_of(place: int) -> int:
        # The 31 bits that all servers take.
        return seeds.number(context.seed, context.stage, name, place) >> 32

    def written(rows: Sequence[Any]) -> list[list[dict[str, Any]]]:
        number = (seed or seed_of)(rows[0][0])
        said = list(map(vars, writer.write(prompts_from_rows(rows), most, number, samples)))
        return [said[start : start + samples] for start in range(0, len(said), samples)]

    rows = [prompt_to_row(number, each) for number, each in enumerate(conversations)]
    replies = itertools.chain.from_iterable(context.map(name, rows, written))
    return [Written(**each) for each in replies]


def origin_of(origin: Mapping[str, Any], written: Iterable[Written], **more: Any) -> dict[str, Any]:
    """Who wrote a row, for a column of it. origin: of the writer. more: such as sampling
    options.
    """
    models = list(dict.fromkeys(each.model for each in written if each.model))
    return {**origin, **({"replied_as": models} if models else {}), **more}


def bill(written: Sequence[Written]) -> dict[str, Any]:
    """What texts cost, stored ones included, and why some are of no use. None: nobody says."""
    tokens = [each.tokens for each in written if each.tokens is not None]
    costs = [each.cost for each in written if each.cost is not None]
    refused = Counter(kind_of(each.reason) for each in written if each.reason)
    return {
        "questions": len(written),
        "tokens": sum(tokens) if tokens else None,
        "cost": fsum(costs) if costs else None,
        "refused": dict(refused.most_common()),
    }


def billed(facts: Mapping[str, Any]) -> str:
    """A `bill` in words: `40 questions, 12,345 tokens, cost 0.12`."""
    text = f"{facts['questions']:,} questions"
    if facts["tokens"] is not None:
        text += f", {facts['tokens']:,} tokens"
    if facts["cost"]:
        text += f", cost {facts['cost']:.4g}"
    return text


def kind_of(reason: str) -> str:
    """A reason without what differs from row to row, such as the words of a server's error."""
    return reason.partition(": ")[0]
