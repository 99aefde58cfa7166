"""One way to ask a model in words: a policy of the run, or a model behind an OpenAI-compatible
server.

    writer = writer_of(context, "my_step", options.writer, options.sampled())
    for written in writer.write(conversations, most=200, seed=context.seed):
        print(written.text or written.reason)

A server's replies are stored on disk, so that none is paid for twice. Its first four questions are
asked alone, so that a wrong setting costs no more than those.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from alignkit import Context, Field, Group, Message, RunFailed, SamplingOptions, StepContext, seeds
from alignkit.contract.reward import Progress, no_progress
from alignkit_plugins.servers.remote import Malformed, Remote, RemoteOptions
from alignkit_plugins.text.rows import prompt_to_row, prompts_from_rows
from alignkit_plugins.text.spoken import after_thoughts

REFUSED = "the server refused"
NO_ROOM = "the conversation leaves no room"
EMPTY = "an empty reply"
THINKING = "the reply ends before its thoughts do"
CALLS = "the reply calls a tool, which nobody answers"
NO_LOGPROBS = "the server returned no log-probabilities"
SENT = ("role", "content", "name", "tool_call_id")  # a turn's keys, besides its calls
REQUEST_OPTIONS = ("temperature", "top_p")  # sampling options that requests have
UNTOLD = ("min_new_tokens", "stop", "top_k")  # sampling options that requests leave out
PROBE = 4  # questions that are asked first

HELP = (
    "ask the server the same question by hand. Its `request` adds a field, or leaves it out: "
    "{max_tokens: null, max_completion_tokens: 4000}, {temperature: null}, {top_logprobs: 5}. A "
    "judge of a model that thinks, or of a server without log-probabilities, needs `reasons: "
    "true`, and room: `max_tokens: 8000`"
)


class Server(RemoteOptions):
    """A model behind an OpenAI-compatible server."""

    model: str = Field(min_length=1, description="model name on the server")

    def body(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return super().body({"model": self.model, **body})


@dataclass(frozen=True)
class Written:
    """What a model wrote, without the thoughts before it.

    reason: why it wrote nothing that can be used, if so; `text` is then empty. tokens: that the
    model read and wrote; None: nobody says. likeliest: the likeliest first tokens with their
    log-probabilities (nats), if they were asked for.
    """

    text: str = ""
    truncated: bool = False
    reason: str = ""
    tokens: int | None = None
    likeliest: Sequence[Any] = ()


def spoken(text: str, truncated: bool, **more: Any) -> Written:
    """What follows a model's thoughts."""
    answer = after_thoughts(text)
    if answer is None:
        return Written(truncated=truncated, reason=THINKING, **more)
    return Written(answer.strip(), truncated, "" if answer.strip() else EMPTY, **more)


class PolicyWriter:
    """A policy of this run that continues conversations.

    name: the policy's. origin: who it is, for rows. sampling: as in training; how long a text may be
    is said each time.
    """

    def __init__(self, context: Context, role: str, sampling: Mapping[str, Any]):
        self.name, self.origin = role, {"policy": role, "seed": context.seed}
        self._models = context.models
        self._sampling = dict(sampling)
        self._sampling.pop("max_new_tokens", None)

    def write(
        self, conversations: Sequence[Group], most: int, seed: int, samples: int = 1, **more: Any
    ) -> list[Written]:
        """What it says next in each, in order; several samples of one come one after the other.

        most: tokens. more: what only a server needs to know.
        """
        sampling = {"samples_per_prompt": samples, "max_new_tokens": most, **self._sampling}
        sampling["min_new_tokens"] = min(sampling.get("min_new_tokens", 0), most)
        written: list[Written] = []
        for group in self._models[self.name].sample(conversations, seed=seed, **sampling):
            if not group.responses:
                written += [Written(reason=NO_ROOM)] * samples
            written += [spoken(response.text, response.truncated) for response in group.responses]
        return written


Check = Callable[[int, Written], str]
"""Why the reply to a question, by its place, cannot be used; empty if it can."""


def fault_of(place: int, written: Written) -> str:
    """The check of whoever takes any text. An empty one is not the server's fault."""
    return "" if written.reason in (EMPTY, THINKING) else written.reason


class ServerWriter:
    """Asks a chat-completions endpoint. name: in the constructor of the step, for messages and the
    file of replies; then of the model.
    """

    def __init__(self, context: Context, name: str, options: Server, sampling: Mapping[str, Any]):
        self.name, self._context, self._options = options.model, context, options
        self._sampling = {key: sampling[key] for key in REQUEST_OPTIONS if key in sampling}
        # What the request says, in which the recipe's `request` wins.
        body = options.body(self._sampling)
        self.origin = {"model": options.model, "address": options.base_url, "seed": context.seed}
        self.origin |= {key: body[key] for key in REQUEST_OPTIONS if key in body}
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
    ) -> list[Written]:
        """See `PolicyWriter.write`. Raises RunFailed if none of the first questions has a reply of use,
        all for the same reason.
        """
        terms = self._sampling | {"max_tokens": most}
        if logprobs:
            terms |= {"logprobs": True, "top_logprobs": 20}
        bodies = []
        for conversation in conversations:
            body = terms | {"messages": list(map(_sent, conversation.prompt))}
            if conversation.tools:
                body["tools"] = list(conversation.tools)
            for number in range(samples):
                if samples > 1:  # equal requests have one reply, so samples differ in their seed
                    body = body | {"seed": seed + number}
                bodies.append(self._options.body(body))
        if not self._useful and len(bodies) > PROBE:
            reasons = dict[str, str]()
            for place, written in enumerate(self._replies(bodies[:PROBE], no_progress)):
                reason = check(place, written)
                reasons[kind_of(reason)] = reason
            if len(reasons) == 1 and reason:
                what = f"no reply of use to the first questions: {reason}"
                raise RunFailed(f"{self._remote.name}: {what}\nhelp: {HELP}")
            self._useful = True
        return self._replies(bodies, self._context.progress)

    def _replies(self, bodies: Sequence[Mapping[str, Any]], progress: Progress) -> list[Written]:
        replies = []
        for reply in self._remote.ask(bodies, progress):
            refused = Written(reason=reply.reason)
            replies.append(refused if reply.reason else Written(**reply.value))
        return replies


def _sent(turn: Message) -> dict[str, Any]:
    """A turn as servers read it: with the arguments of calls as JSON."""
    sent: dict[str, Any] = {key: value for key, value in turn.items() if key in SENT}
    calls = []
    for call in turn.get("tool_calls") or ():
        arguments = call["function"]["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments)
        calls.append({**call, "function": {**call["function"], "arguments": arguments}})
    return sent | {"tool_calls": calls} if calls else sent


def stored(text: bytes) -> dict[str, Any]:
    """A chat completion as it is stored: the fields of `Written`."""
    try:
        reply = json.loads(text)
        choice = reply["choices"][0]
        message, end = choice.get("message") or {}, choice.get("finish_reason")
        tokens = (reply.get("usage") or {}).get("total_tokens")
        tokens = tokens if isinstance(tokens, int) else None
        if message.get("refusal") or end == "content_filter":
            return vars(Written(reason=REFUSED, tokens=tokens))
        if message.get("tool_calls"):
            return vars(Written(reason=CALLS, tokens=tokens))
        tops, words = _likeliest(choice), message.get("content") or ""
        return vars(spoken(words, end == "length", tokens=tokens, likeliest=tops))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Malformed("the reply is not a chat completion") from None


def _likeliest(choice: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The likeliest first tokens with their log-probabilities; empty without any."""
    content = (choice.get("logprobs") or {}).get("content") or [{}]
    tops, mass = [], 0.0
    for top in content[0].get("top_logprobs") or ():
        token, logprob = top["token"], top["logprob"]
        # NaN is refused, too.
        if isinstance(logprob, bool) or not logprob <= 1e-3 or token != str(token):
            raise ValueError("not a log-probability")
        tops.append((token, logprob))
        mass += exp(logprob)
    if mass > 1.01:  # a token occurs twice
        raise ValueError("not probabilities")
    return tops


# Steps that ask

Writer = PolicyWriter | ServerWriter


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
        texts = list(map(vars, writer.write(prompts_from_rows(rows), most, number, samples)))
        return [texts[start : start + samples] for start in range(0, len(texts), samples)]

    rows = [prompt_to_row(number, each) for number, each in enumerate(conversations)]
    replies = itertools.chain.from_iterable(context.map(name, rows, written))
    return [Written(**each) for each in replies]


def bill(written: Sequence[Written]) -> dict[str, Any]:
    """What texts cost, stored ones included, and why some cannot be used. None: nobody says."""
    tokens, refused = None, Counter[str]()
    for each in written:
        if each.tokens is not None:
            tokens = (tokens or 0) + each.tokens
        if each.reason:
            refused[kind_of(each.reason)] += 1
    return {"questions": len(written), "tokens": tokens, "refused": dict(refused.most_common())}


def billed(facts: Mapping[str, Any]) -> list[str]:
    """A `bill` in lines: `40 questions, 12,345 tokens`, and why some cannot be used."""
    tokens = "" if facts["tokens"] is None else f", {facts['tokens']:,} tokens"
    lines = [f"{facts['questions']:,} questions{tokens}"]
    return lines + [f"  no text, {why}: {count}" for why, count in facts["refused"].items()]


def kind_of(reason: str) -> str:
    """A reason without what differs from row to row, such as the words of a server's error."""
    return reason.partition(": ")[0]
