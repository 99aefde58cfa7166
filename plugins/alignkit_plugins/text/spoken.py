"""What is read of a prompt and of a response, which may be a conversation with an environment, as
text: by judges, rewards and people. Calls of tools are part of what the assistant says.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.data.group import Group, Message, Response
from alignkit_plugins.text.rows import calls_of, turns_of_response

# Around thoughts that a server leaves in the text.
TAGS = (
    "think",
    "thinking",
    "thought",
    "thoughts",
    "reasoning",
    "reflection",
    "scratchpad",
    "seed:think",
)
_TAG = "|".join(TAGS)
# Tags, and what Magistral, Kimi, OpenThoughts and gpt-oss write
_OPEN = (
    rf"(?:<(?:{_TAG})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>"
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?!final))"
)
_OPENED = re.compile(rf"\s*{_OPEN}", re.IGNORECASE)
_CLOSED = re.compile(
    rf"</(?:{_TAG})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>(?:\s*<\|begin_of_solution\|>)?"
    r"|<\|channel\|>final[^<]*<\|message\|>",
    re.IGNORECASE,
)
# A thought up to its end; one without an end, which stays unless its line begins with it
_THOUGHT = re.compile(
    rf"<(?P<tag>{_TAG})>.*?</(?P=tag)>|\[THINK\].*?\[/THINK\]|◁think▷.*?◁/think▷"
    r"|<\|begin_of_thought\|>.*?<\|end_of_thought\|>(?:\s*<\|begin_of_solution\|>)?"
    r"|<\|channel\|>(?!final).*?<\|channel\|>final[^<]*<\|message\|>"
    rf"|(?:(?<=[^\s>\]▷]\n)|(?<=[^\s>\]▷]\n\n)|(?<=</answer>\n)){_OPEN}.*|(?P<rest>{_OPEN}.*)",
    re.IGNORECASE | re.DOTALL,
)
_AFTER = re.compile(r"\s*<\|(?:end_of_solution|end|return)\|>\s*\Z")


def for_judges(group: Group) -> list[Message]:
    """The prompt as judges get it: what tools there are is said in its system turn."""
    turns = list(group.prompt)
    if group.tools:
        text = f"Tools: {json.dumps(group.tools, ensure_ascii=False)}"
        if turns and turns[0]["role"] == "system":
            text = f"{turns.pop(0)['content']}\n\n{text}"
        turns.insert(0, Message(role="system", content=text))
    return turns


def as_judged(response: Response) -> str:
    """What judges read of a response: all turns, also those of its tools, without thoughts."""
    return transcript(turns_of_response(response))


def transcript(turns: Sequence[Message]) -> str:
    """A conversation as text: one paragraph per turn, which begins with its role if there are
    several.
    """
    several = len({turn["role"] for turn in turns}) > 1
    texts = [f"{turn['role']}: " * several + _words(turn) for turn in turns]
    return "\n\n".join(filter(None, texts))


def all_turns(response: Response, *, thoughts: bool = False, calls: bool = True) -> str:
    """The text, or the assistant's turns with their calls, one after the other, without the
    thoughts before them.

    thoughts: as the policy wrote it. calls: false leaves them out.
    """
    return "\n\n".join(filter(None, _texts(response, thoughts, calls)))


def _texts(response: Response, thoughts: bool = True, calls: bool = False) -> list[str]:
    """What the assistant says, turn by turn."""
    turns = turns_of_response(response)
    return [_words(turn, thoughts, calls) for turn in turns if turn["role"] == "assistant"]


def _words(turn: Mapping[str, Any], thoughts: bool = False, calls: bool = True) -> str:
    """What a turn says. thoughts: with those of the assistant, in tags."""
    text = turn.get("content") or ""
    if turn["role"] == "assistant" and not thoughts:
        text = answer_in(text)
    elif thought := turn.get("reasoning_content"):
        text = f"<think>\n{thought}\n</think>\n\n{text}"
    return " ".join(filter(None, [text, *(calls_of(turn) if calls else ())]))


def last_turn(response: Response, *, calls: bool = False) -> str:
    """The text, or the assistant's last turn: the answer, as an environment may have the last
    word. calls: with those of tools, which are no answer.
    """
    return next(reversed(_texts(response, calls=calls)), "")


def answer_of(response: Response, *, calls: bool = False) -> str:
    """The last turn without the thoughts before it, which is what can be right or wrong; empty if
    they have no end. calls: as `last_turn` takes them.
    """
    return answer_in(last_turn(response, calls=calls))


def answer_in(text: str) -> str:
    """What stands around the thoughts, without white space around it; all of a text without any, as
    it is.
    """
    answer = after_thoughts(text)
    return text if answer == text else (answer or "").strip()


def after_thoughts(text: str) -> str | None:
    """What stands around the thoughts, all of the text without any; None if they have no end.

    What is before a closing tag without an opening one is a thought, which the prompt opened.
    """
    outside = _THOUGHT.sub(r"\g<rest>", text)
    rest = _CLOSED.split(outside)[-1]
    if _OPENED.match(outside) or _OPENED.match(rest):
        return None
    return rest if rest == text else _AFTER.sub("", rest)
