"""The turns of a conversation with tools: how the policy's calls are read, and what a chat template
writes between two of its turns.

A call is JSON in tags, as most templates write it:
`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`.

Between two turns, the tokens that the policy sampled stay as they are. The template renders the
conversation with the environment's messages and the next generation prompt. Only the piece
after the policy's end of turn is tokenized. The policy's own words do not
matter for the piece, so others stand for them: what a policy writes cannot make a template fail.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.data.files import parse
from alignkit.data.group import Message, assistant_turn, user_turn
from alignkit.errors import BadRow, DataError
from alignkit.tokens.encoder import Encoder, Ids
from alignkit.tokens.template import AFTER_REASONING, ANSWER, OPEN, QUESTION, REASONING, has_names

CALL, END_CALL = "<tool_call>", "</tool_call>"
_CALLS = re.compile(f"{CALL}(.*?)(?:{END_CALL}|(?={CALL})|\\Z)", re.DOTALL)


# What the policy wrote


def read_turn(text: str, first: int = 0) -> Message:
    """A turn of the policy as a message with its well-formed calls. Others stay in the content, and
    `call_errors` says what is wrong: nothing that a policy writes raises an error.

    first: the number of the first call, for its id.
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
            calls.append(_checked(parse(match[1])))
        except (ValueError, BadRow) as error:
            form = f'{CALL}{{"name": ..., "arguments": {{...}}}}{END_CALL}'
            errors.append(f"a call must be {form}: {str(error).removeprefix('not valid JSON: ')}")
            return match[0]
        return ""

    turn = assistant_turn(_CALLS.sub(read, text))
    for number, call in enumerate(calls, first):
        call["id"] = f"call{number:05d}"  # nine letters and digits, as Mistral's templates want
    if calls:
        turn["content"] = turn["content"].strip("\n")
        turn["tool_calls"] = calls
    if errors:
        turn["call_errors"] = errors
    return turn


def _checked(call: Any) -> dict[str, Any]:
    """A call of a function with its name and arguments. Raises ValueError if it has none."""
    if not isinstance(call, Mapping):
        raise ValueError(f"it is {type(call).__name__}, not an object")
    name, arguments = call.get("name"), call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):  # JSON inside JSON
        arguments = parse(arguments)
    if not isinstance(name, str) or not name:
        raise ValueError("it has no 'name'")
    if not isinstance(arguments, Mapping):
        raise ValueError("its 'arguments' are not an object")
    return {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}


# What the template writes

CHANGES = "the chat template changes earlier turns when others follow"
REPLY, THOUGHT = "Twelve.", "Two and two."
_WORD = re.compile("[A-Za-z0-9]{1,20}")  # words that templates neither trim nor escape
OTHER = (
    "set model.chat_template to one that only appends: hermes, if the model has no other format of "
    "calls"
)


class Turns:
    """The turns of conversations with tools."""

    def __init__(self, encoder: Encoder, tools: Sequence[dict[str, Any]] = ()):
        self.encoder, self.chat, self.tools = encoder, encoder.chat, tuple(tools)

    def read(self, tokens: Sequence[int], first: int = 0) -> Message:
        """A sampled turn as a message. first: the number of its first call."""
        words, whole = self.encoder.decode(tokens), self.encoder.shown_text(tokens)
        turn = read_turn(words, first)
        turn["content"] = whole.removesuffix(words) + turn["content"]
        return turn

    def between(
        self, before: Sequence[Message], turn: Message, answers: Sequence[Message], end: int
    ) -> Ids:
        """The tokens from a turn's end to the beginning of the policy's next one.

        before: the conversation up to the turn. end: the turn's last token, after which the tokens
        continue. Raises DataError if the template refuses the conversation, or changes what was
        before.
        """
        standing = list(map(self._stand_in, (*before, turn)))
        opened = self.chat.prompt(standing[:-1], self.tools)
        whole = self.chat.prompt([*standing, *answers], self.tools)
        close = self.chat.turn_end.search(whole, len(opened)) if whole.startswith(opened) else None
        if close is None:
            raise DataError(f"{CHANGES}; {OTHER}")
        text = whole[close.end() if end in self.encoder.end_ids else close.start() :]
        for answer in answers:
            word = _WORD.search(answer["content"])
            if word and word[0] not in text:
                role = answer["role"]
                raise DataError(
                    f"the chat template drops the message of the role '{role}'; {OTHER}"
                )
        return self.encoder.rendered.tokens(text, following=True)[0]

    def check(self, role: str) -> None:
        """Find out on examples whether what follows a turn is appended. role: of the environment's
        messages.

        Raises DataError, with what to do, if the template ends no turn, does not write tools or
        answers, or changes earlier turns, as those that drop earlier reasoning do.
        """
        if not self.chat.markers.close:
            raise DataError(
                f"the chat template writes no end of turn, so no turn can follow; {OTHER}"
            )
        question, reply = user_turn(QUESTION), Message(role=role, content=REPLY)
        prompt = self.chat.prompt([question], self.tools)
        if not has_names(prompt, self.tools):
            raise DataError(
                f"the chat template does not write the tools that the policy may call; {OTHER}"
            )
        turn = assistant_turn(ANSWER)
        if self.tools and role == "tool":
            turn = self._calling
            whole = self.chat.prompt([question, turn, reply], self.tools)
            if turn["tool_calls"][0]["function"]["name"] not in whole.removeprefix(prompt):
                raise DataError(
                    f"the chat template does not write calls of tools and their results; {OTHER}"
                )
        end = self.encoder.end_of_turn[-1]
        self.between([question], turn, [reply], end)
        self.between([question, turn, reply], turn, [reply], end)
        if REASONING[1] in self.chat.source:
            opening = "" if self.chat.markers.opening else f"{OPEN}\n"
            thinking = f"{opening}{THOUGHT}{AFTER_REASONING}{ANSWER}"
            turn = {**turn, "content": thinking}
            if THOUGHT not in self.chat.prompt([question, turn, reply], self.tools):
                raise DataError(
                    f"{CHANGES}, such as earlier reasoning; the policy would be trained on "
                    f"conversations that it never sees; {OTHER}"
                )

    def _stand_in(self, message: Message) -> Message:
        """A message whose words are others if the policy wrote them; its calls stay, because
        templates check their ids.
        """
        if message["role"] != "assistant":
            return message
        if message.get("tool_calls"):
            return {**self._calling, "tool_calls": message["tool_calls"]}
        if message.get("call_errors"):
            return self._calling
        return assistant_turn(ANSWER)

    @property
    def _calling(self) -> Message:
        """A turn that calls the first tool."""
        name = self.tools[0]["function"]["name"] if self.tools else "tool"
        function: dict[str, Any] = {"name": name, "arguments": {}}
        call = {"type": "function", "id": "call00000", "function": function}
        return Message(role="assistant", content="", tool_calls=[call])
