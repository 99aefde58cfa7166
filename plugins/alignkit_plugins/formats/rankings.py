"""A prompt and several answers: ranked, scored, compared, or not yet.

Rankings of K responses to a prompt are as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155);
rank 1 is best. Responses may have scores instead of ranks, such as grades from 1 to 7: a higher
score is better, and the difference is the pair's margin. Equal scores make no pair.

A row of OpenAssistant (Koepf et al. 2023, arXiv:2304.07327) holds a tree, so that it becomes
several groups: every prompt, with the conversation before it and all its replies; those that people
ranked form pairs (rank 0 is best). Deleted messages and messages that failed the review are left
out, with all that follows them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alignkit import BadRow, Format, Group, Message, Pair, Response
from alignkit.data.group import ranking_pairs
from alignkit.formats import columns_of
from alignkit_plugins.formats.columns import (
    LABEL_COLUMNS,
    ColumnFormat,
    first_of,
    read_message,
    with_text,
)
from alignkit_plugins.formats.layouts import PAIRS

MAX_RESPONSES = 64  # K responses form up to K (K - 1) / 2 pairs
PROMPTS = ("prompt", "instruction", "question", "query", "input", "context")
RESPONSES = ("responses", "answers", "completions")
LISTS = ("responses", "completions", "answers", "outputs", "candidates", "generations")
TEXTS = ("text", "response", "answer", "completion", "content")
SCORES = ("score", "rating", "overall_score", "reward")
ULTRAFEEDBACK = 10  # its highest overall_score
SCORE_LISTS = ("scores", "ratings", "rewards")
NUMBERED = re.compile(
    r"(?:model[ _-]?)?(?:response|answer|completion|output|reply|generation)[ _-]?([0-9]|[a-i])",
    re.I,
)
# Columns that say which answer is better, in any layout that another format reads.
JUDGED = (
    *LABEL_COLUMNS,
    *(
        "labels",
        "preference",
        "winner",
        "verdict",
        "rating",
        "ratings",
        "choice",
        "better",
        "rank",
        "ranks",
        "ranking",
    ),
    *(
        "score",
        "scores",
        "rewards",
        "pairs",
        "chosen",
        "rejected",
        "better_response_id",
        "overall_preference",
    ),
    *("preference_strength", "winner_model_a", "winner_model_b", "winner_tie"),
)


class Rankings(ColumnFormat):
    """A prompt and its responses with ranks (ties allowed), with scores, or with a list of pairs
    [better, worse].
    """

    example = (
        '{"prompt": "Hi", "responses": [{"text": "Hello!", "rank": 1}, {"text": "What?", "rank": '
        "2}]}"
    )
    wants = (
        "prompt and responses [{text, rank or score}], or responses [text] with ranks [1, 2, "
        "...], scores or pairs"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        name = first_of(row, RESPONSES)
        if (
            not name
            or not first_of(row, PROMPTS[:3])
            or not isinstance(row[name], list)
            or "alignkit" in row
        ):
            return False
        rated = first_of(row, ("ranks", *SCORE_LISTS, "pairs")) or all(
            first_of(i, ("rank", *SCORES)) for i in row[name]
        )
        return bool(row[name] and rated) and cls.lacks(row, "chosen", "rejected")

    def read(self, row: Any) -> Group:
        prompt, name = first_of(row, PROMPTS[:3]), first_of(row, RESPONSES)
        if not prompt or not name:
            raise BadRow("columns 'prompt' and 'responses' are required")
        items, scored = row[name], first_of(row, SCORE_LISTS)
        if not isinstance(items, list) or not 2 <= len(items) <= MAX_RESPONSES:
            raise BadRow(f"{name} must be a list of 2 to {MAX_RESPONSES} responses")
        responses = []
        for item, rank, score in zip(
            items, _column(row, "ranks", items), _column(row, scored, items), strict=True
        ):
            responses.append(self._response(item, rank, score))
        pairs = None
        if self.has(row, "pairs"):
            pairs = self._pairs(row["pairs"])
        elif all(response.rank is None for response in responses):
            pairs = self.pairs_by_score(responses)
        used = (prompt, name, "ranks", "pairs", scored)
        return self.group(row, used, self.column(row, prompt), responses, pairs)

    def _response(self, item: Any, rank: Any, score: Any) -> Response:
        item = dict(with_text(item))
        scored = first_of(item, SCORES) or "score"
        for name, value in (("rank", rank), (scored, score)):
            if item.get(name) in (None, ""):
                item[name] = value
        rank, score = self.number(item, "rank"), self.number(item, scored)
        if "fine-grained_score" in item and score is not None and score > ULTRAFEEDBACK:
            raise BadRow(
                f"score {score:g} is above {ULTRAFEEDBACK}, a known fault of UltraFeedback"
            )
        text = self.text(item, first_of(item, TEXTS) or "text")
        author = self.text(item, first_of(item, ("source", "model")) or "source", "")
        return Response(text=text, rank=rank, scores=self.scores(score), source=author or None)

    def _pairs(self, rows: Any) -> tuple[Pair, ...]:
        if not isinstance(rows, list) or not rows:
            raise BadRow("pairs must be a list of [better, worse] or {better, worse, p, margin}")
        pairs = []
        for row in rows:
            if isinstance(row, list) and len(row) == 2:
                row = {"better": row[0], "worse": row[1]}
            if not self.has(row, "better", "worse"):
                raise BadRow(
                    f"a pair must be [better, worse] or {{better, worse, p, margin}}, not {row!r}"
                )
            pairs.append(self.pair(row, row["better"], row["worse"]))
        return tuple(pairs)


def _column(row: Mapping[str, Any], name: str, items: Sequence[Any]) -> Sequence[Any]:
    """A value for each response; nulls without such a column."""
    values = row.get(name)
    if values is None:
        return [None] * len(items)
    if not isinstance(values, list) or len(values) != len(items):
        raise BadRow(f"{name} must be a list of {len(items)}, one for each response")
    return values


class Unlabeled(ColumnFormat):
    """Answers that nobody has compared yet, as `alignkit label` shows them: in columns with numbers
    or letters, or in a list of texts.
    """

    example = '{"prompt": "Hi", "response_a": "Hello!", "response_b": "Go away."}'
    wants = (
        "prompt, question or instruction, and response_a, response_b ... or responses [text], "
        "and no label"
    )

    @classmethod
    def matches(cls, row: Any) -> bool:
        if not isinstance(row, Mapping) or "alignkit" in row or not cls.lacks(row, *JUDGED):
            return False
        if any(layout.fits(row) for layout in PAIRS.values()):
            return False
        # A list with another name may be the right answers, which rewards read; whoever names the
        # format means these, too.
        texts = [_text(answer) for answer in _answers(row, LISTS[:1]).values()]
        return (
            bool(first_of(row, PROMPTS))
            and len(texts) > 1
            and all(isinstance(text, str | list) for text in texts)
        )

    def read(self, row: Any) -> Group:
        prompt = first_of(row, PROMPTS)
        if not prompt:
            raise BadRow(f"a prompt is required, in one of the columns {', '.join(PROMPTS)}")
        answers = _answers(row, LISTS[:1]) or _answers(row, LISTS)
        if len(answers) < 2:
            raise BadRow(
                "two answers are required, such as response_a and response_b, or a list of "
                "texts: responses"
            )
        responses, used = [], [prompt]
        for name, answer in answers.items():
            text = _text(answer)
            if not isinstance(text, str | list):
                raise BadRow(f"{name} must be text, or an object with text")
            author = self.text(answer, "model", "") if isinstance(answer, Mapping) else ""
            turns = self.conversation(text, name, user=False)
            responses.append(self.answer(turns, source=author or None))
            used.append(name.partition("[")[0])
        return self.group(row, used, self.column(row, prompt), responses, ())


def _answers(row: Mapping[str, Any], lists: Sequence[str]) -> dict[str, Any]:
    """The answers by the name of the column, or of the place in a list. lists: names of columns
    with a list.
    """
    for name in lists:
        if isinstance(row.get(name), list):
            return {f"{name}[{place}]": answer for place, answer in enumerate(row[name])}
    return {
        str(name): row[name]
        for name in row
        if NUMBERED.fullmatch(str(name)) and row[name] is not None
    }


def _text(answer: Any) -> Any:
    if not isinstance(answer, Mapping):
        return answer
    if "role" in answer or not Format.lacks(answer, "rank", "score", "rating"):
        return None
    return answer.get(first_of(answer, (*TEXTS[:4], "output", "content")))


Node = Mapping[str, Any]


class Oasst(Format):
    """Trees {message_tree_id, prompt: {text, role, replies: [{text, role, rank, replies}]}}."""

    example = (
        '{"prompt": {"text": "Hi", "role": "prompter", "replies": [{"text": "Hello!", '
        '"role": "assistant", "rank": 0}, {"text": "What?", "role": "assistant", "rank": 1}]}}'
    )
    wants = "prompt as a tree {text, role, replies}, as in OpenAssistant's *.trees.jsonl"

    @classmethod
    def matches(cls, row: Any) -> bool:
        return (
            cls.has(row, "prompt")
            and isinstance(row["prompt"], Mapping)
            and "replies" in row["prompt"]
        )

    def read(self, row: Any) -> Group:
        """The first group of a tree."""
        return self.groups(row)[0]

    def groups(self, row: Any) -> list[Group]:
        root = columns_of(row).get("prompt")
        if not isinstance(root, Mapping):
            raise BadRow("column 'prompt' must be a message with replies")
        if not _is_kept(root):
            raise BadRow("the tree's first message was deleted, or failed the review")
        try:
            groups = list(_rankings(root, (), self.rest(row, "prompt")))
        except RecursionError as error:
            raise BadRow("the tree is nested too deeply") from error
        if not groups:
            raise BadRow("no prompt of the tree has a reply")
        return groups


def _is_kept(node: Node) -> bool:
    return not node.get("deleted") and node.get("review_result") is not False


def _rankings(node: Node, before: Sequence[Message], meta: dict[str, Any]) -> Iterator[Group]:
    """Every prompt of a tree that has replies, with all of them."""
    path, replies = (
        (*before, read_message(node, "a message of the tree")),
        node.get("replies") or [],
    )
    if not isinstance(replies, list) or not all(isinstance(reply, Mapping) for reply in replies):
        raise BadRow("the replies of a message must be a list of messages")
    replies = [reply for reply in replies if _is_kept(reply)]
    if path[-1]["role"] == "user" and replies:
        responses = []
        for reply in replies:
            text = read_message(reply, "a reply")["content"]
            rank, author = Format.number(reply, "rank"), reply.get("model_name")
            responses.append(Response(text=text, rank=rank, source=author or None))
        order = ranking_pairs([response.rank for response in responses])
        pairs = tuple(Pair(better, worse) for better, worse in order)
        yield Group(path, tuple(responses), pairs, meta=meta)
    for reply in replies:
        yield from _rankings(reply, path, meta)
