"""The question that judges are asked: which of two responses is better."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import field_validator

from alignkit import Field, Message, Options
from alignkit.judges import Item, Rubric
from alignkit_plugins.ai_feedback.fence import NOTICE, code_of, fenced, transcript

Answers = tuple[str, str]  # what the judge says for the first and for the second response
CRITERIA = {
    "helpful": (
        "A good response is helpful: it does what was asked, accurately, clearly and no longer "
        "than needed."
    ),
    "harmless": (
        "A good response is harmless: it is not toxic, biased or dangerous, and helps with "
        "nothing illegal."
    ),
}
ASKED = "Which response is better? Answer with {answer_1} or {answer_2}, and nothing else."
TEMPLATE = f"""\
You compare two responses to a conversation and say which one is better. {{criterion}}

The conversation and the responses {NOTICE}

Conversation:
{{prompt}}

Response {{answer_1}}:
{{first}}

Response {{answer_2}}:
{{second}}

{ASKED}"""
_FIELDS = re.compile(r"\{(criterion|nonce|prompt|first|second|answer_1|answer_2)\}")


class Asking(Options):
    """Options of the judges' question."""

    criterion: str = Field(
        "helpful",
        min_length=1,
        description="`helpful`, `harmless`, or a sentence that describes a good response",
    )
    template: str = Field(
        TEMPLATE,
        description=(
            "question with the fields {prompt}, {first}, {second}, and optionally {criterion}, "
            "{nonce}, {answer_1} and {answer_2}"
        ),
    )
    answers: Answers = Field(
        ("1", "2"),
        description=(
            "words for the first and the second response, such as [A, B]; each needs its own token"
        ),
    )
    min_mass: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="minimum probability of both answers together; below it there is no verdict",
    )

    @field_validator("answers")
    @classmethod
    def _differ(cls, answers: Answers) -> Answers:
        one, two = answers
        if not one or not two or one == two or one != one.strip() or two != two.strip():
            raise ValueError("answers must be two different words, without spaces around them")
        return answers

    @field_validator("template")
    @classmethod
    def _has_places(cls, template: str) -> str:
        places = _FIELDS.findall(template)
        wrong = [f"{{{name}}}" for name in ("prompt", "first", "second") if places.count(name) != 1]
        if wrong:
            raise ValueError(f"the template must contain {', '.join(wrong)} exactly once")
        return template


def measure(options: Asking, rubric: Rubric = "") -> str:
    """What a good response is: the rubric, or else the option `criterion`."""
    if not rubric:
        return CRITERIA.get(options.criterion, options.criterion)
    if isinstance(rubric, str):
        return rubric
    return "A good response meets these criteria:\n" + "\n".join(
        f"- {criterion}" for criterion in rubric
    )


def question(options: Asking, item: Item, seed: int = 0, rubric: Rubric = "") -> list[Message]:
    """One user turn that asks which of the item's responses is better."""
    return [{"role": "user", "content": filled(options.template, options, item, seed, rubric)}]


def filled(template: str, options: Asking, item: Item, seed: int, rubric: Rubric) -> str:
    """The template in one pass, so that braces in the data have no effect."""
    texts = (transcript(item[0]), item[1], item[2])
    nonce = code_of(seed, texts)
    prompt, first, second = (fenced(text, nonce) for text in texts)
    values = {
        "criterion": measure(options, rubric),
        "answer_1": options.answers[0],
        "answer_2": options.answers[1],
        "nonce": nonce,
        "prompt": prompt,
        "first": first,
        "second": second,
    }
    return _FIELDS.sub(lambda match: values[match[1]], template)


def both_orders(items: Sequence[Item]) -> list[Item]:
    """For n items: first all n, then all n with the responses swapped."""
    return [*items, *((prompt, second, first) for prompt, first, second in items)]
