"""What a critic and reviser is asked, and what counts as its answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from alignkit import Field, Message, Options
from alignkit.constitution import Principle

CRITIQUE = "{critique}\n\nWrite only the critique. If nothing is wrong by this measure, say so."
REVISION = (
    "{revise}\n\nWrite only the rewritten answer, as the user will read it, and not much longer than before: no "
    "introduction, and no word about what changed. If there is nothing to change, repeat the answer."
)
# "Here is the revised answer:", "Sure! Below is a rewritten version of the response:", "Revision:"
_REWRITTEN = r"(?:revis|rewrit|rewrote|reword|improv|updat|modif)\w*"
_LEAD_IN = re.compile(
    r"\A(?:(?:sure|certainly|of course|okay)\b[^\n:.!]{0,40}[.!,]\s*)?"
    rf"(?:(?:here(?:'s|’s| is)|below is|this is)\b[^\n:]{{0,60}}\b{_REWRITTEN}\b[^\n:]{{0,60}}"
    rf"|(?:\*\*)?(?:{_REWRITTEN} )?(?:revision|rewrite|version|answer|response)(?:\*\*)?)"
    r":(?:\*\*)?\s*(?=\S)",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"\A(?:\"([^\"]+)\"|“([^“”]+)”)\Z", re.DOTALL)


class Example(Options):
    """A conversation that shows how to criticize and revise."""

    principle: str = Field(min_length=1, description="name of the principle whose words ask the questions")
    prompt: str = Field(min_length=1, description="what the user says")
    answer: str = Field(min_length=1, description="the answer to be criticized")
    critique: str = Field(min_length=1, description="a good critique")
    revision: str = Field(min_length=1, description="a good revision")


def critique_question(shots: Sequence[Message], prompt: Sequence[Message], answer: str, by: Principle) -> list[Message]:
    """The conversation whose next turn is the critique. The prompt's system turns stay in front."""
    system = [turn for turn in prompt if turn["role"] == "system"]
    rest = [turn for turn in prompt if turn["role"] != "system"]
    return [*system, *shots, *rest, _said(answer), _asked(CRITIQUE.replace("{critique}", by.critique or ""))]


def revision_question(before: Sequence[Message], critique: str, by: Principle) -> list[Message]:
    """The conversation whose next turn is the revision. before: the conversation that led to the critique."""
    return [*before, _said(critique), _asked(REVISION.replace("{revise}", by.revise or ""))]


def few_shot(examples: Sequence[Example], principles: Sequence[Principle]) -> list[Message]:
    """The examples as turns, in the form of the questions."""
    named = {principle.name: principle for principle in principles}
    turns: list[Message] = []
    for example in examples:
        by, user = named[example.principle], [_asked(example.prompt)]
        turns += revision_question(critique_question((), user, example.answer, by), example.critique, by)
        turns.append(_said(example.revision))
    return turns


def without_lead_in(text: str) -> str:
    """A revision without "Here is the revised answer:" and quotation marks around it, which nobody should learn."""
    bare = _LEAD_IN.sub("", text, count=1)
    if bare == text:
        return text
    quoted = _QUOTED.match(bare)
    return (quoted[1] or quoted[2]).strip() if quoted else bare


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _asked(text: str) -> Message:
    return {"role": "user", "content": text}
