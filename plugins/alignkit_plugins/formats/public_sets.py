"""Public sets that evaluations read: SQuAD 1 and 2, and RewardBench 2."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from alignkit import BadRow, Format, Group, Message, Pair, Response
from alignkit.contract.formats import columns_of
from alignkit.data.files import NumberedRows
from alignkit.data.group import user_turn
from alignkit.errors import reason_of
from alignkit_plugins.formats.columns import ColumnFormat

QUESTION = "{context}\n\n{question} If the text does not say, answer: I don't know."
ABSTENTION = "I don't know."  # the demonstration if there is no answer
SQUAD = ("context", "question", "answers", "is_impossible", "plausible_answers")


class Squad(Format):
    """Questions about a text that may not answer them (Rajpurkar et al. 2018, "Know What You Don't
    Know: Unanswerable Questions for SQuAD", arXiv:1806.03822).

    The first known answer is the demonstration, or "I don't know." if there is none. Columns of the
    prompt: `answers`, a list of known answers without repetitions, which is empty if there is none,
    and `answerable`.

    A row is a question, as on the hub. A file of SQuAD itself holds one object, with paragraphs of
    several questions.
    """

    wants = "context, question and answers {text: [...]}, or SQuAD's own file {data: [...]}"
    example = (
        '{"context": "Ann is 7.", "question": "How old is Ben?", "answers": {"text": [], '
        '"answer_start": []}}'
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        has_columns = cls.has(row, "context", "question", "answers")
        return is_file(row) or (has_columns and isinstance(row["answers"], Mapping | list))

    def rows(self, rows: NumberedRows) -> NumberedRows:
        return opened(rows, questions=True)

    def read(self, row: Any) -> Group:
        words = dict[str, str]()
        for name in ("context", "question"):
            words[name] = self.text(row, name).strip()
            if not words[name]:
                raise BadRow(f"column '{name}' is blank")
        answers = _answers(row.get("answers"))
        if self.flag(row, "is_impossible") == bool(answers):
            raise BadRow(f"is_impossible does not agree with {len(answers)} answers")
        meta = {**self.rest(row, *SQUAD), "answers": answers, "answerable": bool(answers)}
        prompt = user_turn(QUESTION.format(**words))
        response = Response(text=[*answers, ABSTENTION][0])
        return Group((prompt,), (response,), meta=meta)


def _answers(value: Any) -> list[str]:
    """Different texts of {text: [...]} or [...], in order."""
    items = value.get("text") if isinstance(value, Mapping) else value
    if isinstance(items, list):  # SQuAD's own file has {text: ...}
        items = [item.get("text") if isinstance(item, Mapping) else item for item in items]
    if items is None or not _are_texts(items):
        raise BadRow("column 'answers' must be {text: [...]} or a list of texts")
    stripped = dict.fromkeys(text.strip() for text in items)
    return list(filter(None, stripped))


def is_file(row: Any) -> bool:
    """Whether a row is all of a SQuAD file."""
    articles = row.get("data") if isinstance(row, Mapping) else None
    return isinstance(articles, list) and Format.has(next(iter(articles), None), "paragraphs")


def opened(rows: NumberedRows, questions: bool) -> NumberedRows:
    """Rows, of which a SQuAD file becomes its passages as texts, or its questions with them."""
    for number, row in rows:
        if not is_file(row):
            yield number, row
            continue
        places = count(1)
        try:
            for article in row["data"]:
                for passage in article["paragraphs"]:
                    title, context = article.get("title"), passage["context"]
                    if not questions:
                        yield next(places), {"title": title, "text": context}
                    for question in passage["qas"] if questions else ():
                        yield next(places), {"title": title, "context": context} | question
        except (AttributeError, KeyError, TypeError) as error:
            why = f"not as in SQuAD's files ({reason_of(error)}), and nothing after it is read"
            yield next(places), BadRow(why)


class RewardBench2(ColumnFormat):
    """A prompt with several chosen and several rejected texts; every chosen one is better than
    every rejected one (Malik et al. 2025, arXiv:2506.01937).
    """

    example = (
        '{"prompt": "2 + 2?", "chosen": ["4"], "rejected": ["3", "5", "22"], "subset": "Math", '
        '"id": "1"}'
    )
    wants = "prompt, and chosen and rejected, which are lists of texts; optional id and subset"

    @classmethod
    def matches(cls, row: Any) -> bool:
        has_columns = cls.has(row, "prompt", "chosen", "rejected")
        return has_columns and _are_texts(row["chosen"]) and _are_texts(row["rejected"])

    def read(self, row: Any) -> Group:
        row = columns_of(row)
        for name in ("chosen", "rejected"):
            if not _are_texts(row.get(name)) or not row[name]:
                raise BadRow(f"column '{name}' must be a list of at least one text")
        prompt: tuple[Message, ...] = self.opened(
            self.conversation(row.get("prompt"), "prompt"), row
        )
        chosen, responses, pairs = len(row["chosen"]), list[Response](), list[Pair]()
        for place, text in enumerate([*row["chosen"], *row["rejected"]]):
            responses.append(Response(text=text))
            if place >= chosen:
                pairs += [Pair(better, place) for better in range(chosen)]
        meta = self.rest(row, "prompt", "chosen", "rejected")
        return Group(prompt, tuple(responses), tuple(pairs), meta=meta)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)
