"""Guesses a template from the columns of a file that no format reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from alignkit.data.reading import ASKED, BETTER, SAID, WORSE

_ANSWERS = SAID | {"answers", "label", "gold", "correct", "correct_answer", "answer_key", "answer_idx", "cop"}
PASSAGES = {"passage", "context", "article", "story", "document", "background", "paragraph", "text", "facts", "fact1"}
_NO_WORDS = re.compile(r"(.*[_ -])?(id|idx|index|uuid|key|url|source|split)s?", re.I)
_OPTION = re.compile(r"(?:option|choice|answer|ending|op)?[ _-]?([0-9]|[a-e])", re.I)
_SYNTAX = re.compile(r"[.{}\[\]:!?]")  # in the name of a column


def templates(kind: str, row: Any) -> Iterator[dict[str, str]]:
    """Templates that may read a row, the likeliest first; none if nothing says what its columns are.

    kind: demos, pairs or prompts.
    """
    if not isinstance(row, Mapping) or any(_SYNTAX.search(str(name)) for name in row):
        return
    texts = [name for name, value in row.items() if isinstance(value, str) and not _NO_WORDS.fullmatch(name)]
    if kind == "pairs":
        better, worse = ([name for name in texts if name.lower() in some] for some in (BETTER | {"chosen"}, WORSE))
        if len(better) == len(worse) == 1:
            asked = _prompt([name for name in texts if name not in (*better, *worse)])
            yield {"prompt": asked, "chosen": f"{{{better[0]}}}", "rejected": f"{{{worse[0]}}}"}
        return
    choices = next((name for name, value in row.items() if _are_choices(value)), "")
    answers = [name for name in row if name.lower() in _ANSWERS and name != choices]
    marks = {name: match[1] for name in texts if name not in answers and (match := _OPTION.fullmatch(name))}
    marks = marks if answers and len(marks) > 1 and not choices else {}
    shown = [f"{{{choices}:letters}}"] * bool(choices)
    shown += [f"{letter}. {{{name}}}" for letter, name in zip(ascii_uppercase, marks, strict=False)]
    for answer in answers or texts[-1:]:
        asked = _prompt([name for name in texts if name != answer and name not in marks])
        for text in _answers(row[answer], answer, choices, [*marks.values()]) if asked else ():
            kept = {"answer": text} if shown or kind == "prompts" else {}
            response = {"response": text} if kind == "demos" else {}
            yield {"prompt": "\n".join([asked, *shown]), **response, **kept}


def _prompt(names: Sequence[str]) -> str:
    """Passages and the question; all columns if none is called a question. Others may give away the answer."""
    asked = [name for name in names if name.lower() in ASKED | {"prompt"}]
    read = [name for name in names if name.lower() in PASSAGES] if asked else names
    return "\n\n".join(f"{{{name}}}" for name in (*read, *asked))


def _are_choices(value: Any) -> bool:
    """Whether a value is a list of several texts, as `{column:letters}` takes it."""
    texts = value.get("text") if isinstance(value, Mapping) and "label" in value else value
    if not isinstance(texts, list) or len(texts) < 2:
        return False
    return all(isinstance(one, str) or (isinstance(one, Mapping) and {"text", "label"} <= one.keys()) for one in texts)


def _answers(value: Any, name: str, choices: str, marks: Sequence[str]) -> Iterator[str]:
    """What the answer may be. Whoever reads all rows finds out which one fits. marks: of options in columns."""
    if choices:
        yield from (f"{{{choices}[{name}{first}]:letter}}" for first in ("", "-1"))
    elif marks:
        for numbered in (marks, range(len(marks)), range(1, len(marks) + 1)):
            parts = [f"{mark}={letter}" for mark, letter in zip(numbered, ascii_uppercase, strict=False)]
            yield f"{{{name}:{'|'.join(parts)}}}"
    elif isinstance(value, bool):
        yield f"{{{name}:true=yes|false=no}}"
    elif isinstance(value, Mapping) and "text" in value:
        yield f"{{{name}.text[0]}}"
    else:
        yield f"{{{name}[0]}}" if isinstance(value, list) else f"{{{name}}}"
