"""Answers with their sources: each claim quotes the text that it is from, and a reward checks the
quotes.

Against invention, Schulman 2023 ("Reinforcement Learning from Human Feedback: Progress and
Challenges", Berkeley) first asks for answers that cite what they rely on; Menick et al. 2022,
GopherCite, arXiv:2203.11147, quote verbatim. A claim is a sentence or a line, and its quotes follow
it: `Mill Street ["The Old Shop is on Mill Street."]` The check is of words: a quote that is in the
text may still not mean what a claim says, which is for judges or people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import model_validator

import alignkit
from alignkit import (
    Add,
    BadRow,
    DataError,
    Field,
    Format,
    Group,
    Message,
    Response,
    Reward,
    hookimpl,
)
from alignkit_plugins.rewards.honesty import Match, abstains, known_answers, matches
from alignkit_plugins.text.rows import column_of, row_of
from alignkit_plugins.text.spoken import answer_of

PROMPT = (
    "{context}\n"
    "\n"
    '{question} Quote the sentence, as in: 7 ["Ann is 7."] If there is none, answer: I don\'t '
    "know."
)
_KEYS = ("text", "answer_start")
_QUOTE = re.compile(r'\[\s*["“](.*?)["”]\s*\]', re.DOTALL)
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n")
_WORD = re.compile(r"\w+(?:[.,'’-]\w+)*")
_ARTICLES = {"a", "an", "the"}


def claims_in(answer: str) -> list[tuple[str, list[str]]]:
    """The claims of an answer, each with its quotes: those that follow it before the next claim."""
    found: list[tuple[str, list[str]]] = []
    for place, part in enumerate(_QUOTE.split(answer)):  # text and quotes in turns
        if place % 2 == 0:
            found += [(claim, []) for claim in _SENTENCES.split(part) if re.search(r"\w", claim)]
        elif found:
            found[-1][1].append(part)
        else:
            found.append(("", [part]))  # a quote alone says what it quotes
    return found


def _words(text: str) -> list[str]:
    return [word for word in _WORD.findall(text.casefold()) if word not in _ARTICLES]


def is_supported(
    claim: str, quotes: Sequence[str], text: str, covered: float = 1.0, least_words: int = 3
) -> bool:
    """Whether all quotes are verbatim in the text, but for white space, and have enough of the
    claim's words.
    """
    squeezed, bare = " ".join(text.split()), [" ".join(quote.split()) for quote in quotes]
    if not all(re.search(rf"(?<!\w){re.escape(quote)}(?!\w)", squeezed) for quote in bare):
        return False
    if not any(len(quote.split()) >= least_words for quote in bare):
        return False
    words, given = _words(claim), set(_words(" ".join(bare)))
    return sum(word in given for word in words) >= covered * len(words)


class Quoted(Format):
    """Rows of SQuAD 2 whose demonstration is the first known answer with the sentence that has
    it.
    """

    wants = (
        "context, question and answers {text: [...], answer_start: [...]}; never detected, so "
        "name the format"
    )
    example = (
        '{"context": "Ben is 9. Ann is 7.", "question": "How old is Ann?",'
        ' "answers": {"text": ["7"], "answer_start": [17]}}'
    )

    def read(self, row: Any) -> Group:
        context, answers = self.text(row, "context"), row.get("answers")
        if not isinstance(answers, Mapping) or not all(
            isinstance(answers.get(key), list) for key in _KEYS
        ):
            raise BadRow("column 'answers' must be {text: [...], answer_start: [...]}")
        texts, said = [str(text) for text in answers["text"]], "I don't know."
        for text, start in list(zip(texts, answers["answer_start"], strict=False))[:1]:
            if not isinstance(start, int) or context[start : start + len(text)] != text:
                raise BadRow(
                    f"the context does not have {text!r:.60} at answer_start {start!r:.20}"
                )
            ends = [match.end() for match in _SENTENCES.finditer(context)]
            begin = max((end for end in ends if end <= start), default=0)
            end = min((end for end in ends if end >= start + len(text)), default=len(context))
            said = f'{text} ["{context[begin:end].strip()}"]'
        words = {"context": context.strip(), "question": self.text(row, "question").strip()}
        meta = self.rest(row, "question", "answers") | {"answers": texts, "answerable": bool(texts)}
        prompt = Message(role="user", content=PROMPT.format(**words))
        return Group((prompt,), (Response(text=said),), meta=meta)


class Sources(Reward):
    """Supported claims are worth most, silence less, and any unsupported claim less than
    silence.
    """

    class Options(alignkit.Options):
        text: str = Field("context", description="column of the prompts with the text to quote")
        answers: str | None = Field(
            None, description="column with the known answers, if a claim must also be right"
        )
        match: Match = Field(
            "exact", description="how the claims, without quotes, match a known answer"
        )
        covered: float = Field(
            1.0, ge=0, le=1, description="least share of a claim's words that its quotes have"
        )
        least_words: int = Field(3, ge=1, description="words of the longest quote, at least")
        supported: float = Field(
            1.0, description="if all claims are supported, or nobody knows and none is made"
        )
        silent: float = Field(0.0, description="reward of 'I don't know' and of no claim")
        unsupported: float = Field(
            -1.0, description="if no claim is supported; of some, as much less than silence"
        )

        @model_validator(mode="after")
        def _ordered(self) -> Any:
            if not self.supported > self.silent > self.unsupported:
                raise ValueError("supported must be above silent, and silent above unsupported")
            return self

    options: Options

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            if not isinstance(column_of("sources", group, self.options.text), str):
                raise DataError(
                    f"sources: {row_of(group)}: column '{self.options.text}' must be a text"
                )
            if self.options.answers is not None:
                known_answers(group, self.options.answers)

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        return [self._score(answer_of(each), group) for group in groups for each in group.responses]

    def _score(self, answer: str, group: Group) -> float:
        o, claims = self.options, claims_in(answer)
        known = None if o.answers is None else known_answers(group, o.answers)
        if not claims or abstains(answer):
            return o.supported if known == [] else o.silent
        text = str(group.meta[o.text])
        invented = [
            not is_supported(claim, quotes, text, o.covered, o.least_words)
            for claim, quotes in claims
        ]
        said = " ".join(claim for claim, _ in claims)
        if not any(invented) and (known is None or matches(said, known, o.match)):
            return o.supported
        # Supported, but no answer to the question: as bad as invented
        share = sum(invented) / len(invented) or 1.0
        return o.silent + share * (o.unsupported - o.silent)


@hookimpl
def register(add: Add) -> None:
    add(
        "format",
        "quoted",
        Quoted,
        "SQuAD 2, with the sentence of the answer quoted in the demonstration",
    )
    add(
        "reward",
        "sources",
        Sources,
        "claims with verbatim quotes above silence, and that above invention",
    )
