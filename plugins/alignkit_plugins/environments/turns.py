"""Reads the calls of tools in what a policy wrote.

If the tokenizer says how its template writes calls (`response_template`), transformers reads them.
Otherwise a call is JSON in tags, as most templates write it: `<tool_call>{"name": ..., "arguments":
{...}}</tool_call>`.

What a chat template writes between two turns of the policy, without touching the tokens that the
policy sampled.

The template renders the conversation with the environment's messages and the next generation
prompt. Of that text, the piece after the policy's end of turn is tokenized, and nothing before it.
The policy's own words do not matter for the piece, so others stand for them: what a policy writes
cannot make a template fail.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from alignkit.data.group import Message
from alignkit.errors import DataError
from alignkit.tokens.encoder import Encoder, Ids
from alignkit.tokens.template import AFTER_REASONING, ANSWER, OPEN, QUESTION, REASONING, has_names

CALL, END_CALL = "<tool_call>", "</tool_call>"
_CALLS = re.compile(f"{CALL}(.*?)(?:{END_CALL}|(?={CALL})|\\Z)", re.DOTALL)


def read_turn(
    tokenizer: Any, text: str, prompt: str, tools: Sequence[Any] = (), first: int = 0
) -> Message:
    """A turn of the policy as a message with its calls. Nothing that a policy writes raises an
    error.

    prompt: a rendered prompt, behind which the text would be. first: the number of the first call,
    for its id.
    """
    turn = _by_template(tokenizer, text, prompt, tools) if tools else None
    turn = turn or _by_tags(text)
    for number, call in enumerate(turn.get("tool_calls", ()), first):
        # Nine letters and digits, as Mistral's templates want them
        call["id"] = f"call{number:05d}"
    return turn


def _by_template(tokenizer: Any, text: str, prompt: str, tools: Sequence[Any]) -> Message | None:
    """What transformers reads; None if it knows no calls of this template, or found nothing that it
    could read.
    """
    if getattr(tokenizer, "response_template", None) is None:
        return None
    try:
        found = tokenizer.parse_response(text, prefix=prompt, tools=list(tools))
        calls = [_checked(call["function"]) for call in found.get("tool_calls") or ()]
    except Exception:  # whatever a policy's text makes of foreign code
        return None
    turn = Message(role="assistant", content=str(found.get("content") or ""))
    if found.get("thinking"):
        turn["reasoning_content"] = str(found["thinking"])
    if calls:
        turn["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return turn


def _by_tags(text: str) -> Message:
    """The turn with its well-formed calls. Others stay in the content, and `call_errors` says what
    is wrong.
    """
    calls: list[dict[str, Any]] = []
    errors: list[str] = []
    thoughts = text.rfind(REASONING[1]) + 1  # a call that is only thought of is none

    def read(match: re.Match[str]) -> str:
        if match.start() < thoughts:
            return match[0]
        try:
            if not match[0].endswith(END_CALL):
                raise ValueError(f"the call does not end with {END_CALL}")
            calls.append({"type": "function", "function": _checked(json.loads(match[1]))})
        except (ValueError, RecursionError) as error:
            errors.append(
                f'a call must be {CALL}{{"name": ..., "arguments": {{...}}}}{END_CALL}: {error}'
            )
            return match[0]
        return ""

    content = _CALLS.sub(read, text)
    turn = Message(role="assistant", content=content.strip("\n") if calls else content)
    if calls:
        turn["tool_calls"] = calls
    if errors:
        turn["call_errors"] = errors
    return turn


def _checked(call: Any) -> dict[str, Any]:
    """A call's name and arguments. Raises ValueError if it has none."""
    if not isinstance(call, Mapping):
        raise ValueError(f"it is {type(call).__name__}, not an object")
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):  # JSON inside JSON
        arguments = json.loads(arguments)
    if not isinstance(name, str) or not name:
        raise ValueError("it has no 'name'")
    if not isinstance(arguments, Mapping):
        raise ValueError("its 'arguments' are not an object")
    return {"name": name, "arguments": dict(arguments)}


REPLY, THOUGHT = "It is five.", "Two and two."
_WORD = re.compile("[A-Za-z0-9]{1,20}")  # which templates neither trim nor escape
OTHER = (
    "set model.chat_template to one that only appends: hermes, if the model has no other format "
    "of calls"
)


class Turns:
    """The turns of conversations with tools."""

    def __init__(self, encoder: Encoder, tools: Sequence[dict[str, Any]] = ()):
        self.encoder, self.chat, self.tools = encoder, encoder.chat, tuple(tools)

    def read(self, tokens: Sequence[int], first: int = 0) -> Message:
        """A sampled turn as a message. first: the number of its first call."""
        words, said = self.encoder.decode(tokens), self.encoder.said(tokens)
        turn = read_turn(self.encoder.tokenizer, words, self.chat.shape.prompt, self.tools, first)
        if "reasoning_content" not in turn:  # as it is if transformers reads the turn
            turn["content"] = said.removesuffix(words) + turn["content"]
        return turn

    def between(
        self,
        before: Sequence[Message],
        turn: Message,
        answers: Sequence[Message],
        end: int,
        limit: int,
    ) -> Ids | None:
        """The tokens from a turn's end to the beginning of the policy's next one; None if there are
        more than `limit`.

        before: the conversation up to the turn. end: the turn's last token, after which the tokens
        continue. Raises DataError if the template refuses the conversation, or changes what was
        before.
        """
        standing = [*map(_stand_in, before), _stand_in(turn)]
        opened = self.chat.prompt(standing[:-1], self.tools)
        whole = self.chat.prompt([*standing, *answers], self.tools)
        found = self.chat.turn_end.search(whole, len(opened)) if whole.startswith(opened) else None
        if found is None:
            raise DataError(f"the chat template changes earlier turns when others follow; {OTHER}")
        ended = end in self.encoder.end_ids
        text = whole[found.end() if ended else found.start() :]
        for answer in answers:
            if (word := _WORD.search(answer["content"])) and word[0] not in text:
                raise DataError(
                    f"the chat template drops the message of the role '{answer['role']}'; {OTHER}"
                )
        ids = self.encoder.rendered.tokens(text, following=True)[0]
        return ids if len(ids) <= limit else None

    def check(self, role: str) -> None:
        """Find out on examples whether what follows a turn is appended. role: of the environment's
        messages.

        Raises DataError, with what to do, if the template ends no turn, does not write tools or
        answers, or changes earlier turns, as those that drop earlier reasoning do.
        """
        shape = self.chat.shape
        if not shape.close:
            raise DataError(
                f"the chat template writes no end of turn, so no turn can follow; {OTHER}"
            )
        question = Message(role="user", content=QUESTION)
        prompt = self.chat.prompt([question], self.tools)
        if not has_names(prompt, self.tools):
            raise DataError(
                f"the chat template does not write the tools that the policy may call; {OTHER}"
            )
        texts = [ANSWER]
        if REASONING[1] in self.chat.source:
            opening = "" if shape.opening else f"{OPEN}\n"
            texts.append(f"{opening}{THOUGHT}{AFTER_REASONING}{ANSWER}")
        for text in texts:
            dropped = ", such as earlier reasoning" if text != ANSWER else ""
            plain = Message(role="assistant", content=text)
            called = Message(role="assistant", content=text, tool_calls=[self._call])
            kinds = [plain, called] if self.tools and role == "tool" else [plain]
            if not any(self._appends([question], prompt, turn, role, 2) for turn in kinds):
                raise DataError(
                    f"the chat template changes earlier turns when a message of the role '{role}' "
                    f"follows{dropped}; the policy would be trained on conversations that it "
                    f"never sees; {OTHER}"
                )
        if self.tools and not self._writes_calls(question, prompt, role):
            raise DataError(
                f"the chat template does not write calls of tools and their results; {OTHER}"
            )

    def _appends(
        self, before: Sequence[Message], prompt: str, turn: Message, role: str, rounds: int
    ) -> bool:
        """Whether the prompt, the policy's words and the end of turn remain as they are when other
        turns follow.
        """
        shape, words = self.chat.shape, turn["content"]
        if "tool_calls" not in turn:
            words += shape.close
        after = [*before, turn, Message(role=role, content=REPLY)]
        try:
            whole = self.chat.prompt(after, self.tools)
        except DataError:
            return False
        leads = (prompt + words, prompt + shape.lead * shape.follows + words)
        if not whole.startswith(leads) or REPLY not in whole[len(prompt) :]:
            return False
        return rounds == 1 or self._appends(after, whole, turn, role, rounds - 1)

    def _writes_calls(self, question: Message, prompt: str, role: str) -> bool:
        turn = Message(role="assistant", content="", tool_calls=[self._call])
        whole = self.chat.prompt([question, turn, Message(role=role, content=REPLY)], self.tools)
        after = whole[len(prompt) :]
        return (
            whole.startswith(prompt) and self._call["function"]["name"] in after and REPLY in after
        )

    @cached_property
    def _call(self) -> dict[str, Any]:
        name = self.tools[0]["function"]["name"] if self.tools else "tool"
        return {"type": "function", "id": "call00000", "function": {"name": name, "arguments": {}}}


_CALL = {"type": "function", "id": "call00000", "function": {"name": "tool", "arguments": {}}}


def _stand_in(message: Message) -> Message:
    """A message whose words are others if the policy wrote them; its calls stay, because templates
    check their ids.
    """
    if message["role"] != "assistant":
        return message
    calls = message.get("tool_calls") or ([_CALL] if message.get("call_errors") else None)
    if not calls:
        return Message(role="assistant", content=ANSWER)
    return Message(role="assistant", content="", tool_calls=list(calls))
