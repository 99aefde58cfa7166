"""Rankings of K responses to a prompt, as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155);
rank 1 is best.

Responses may have scores instead of ranks, such as grades from 1 to 7: a higher score is better,
and the difference is the pair's margin. Equal scores make no pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import BadRow, Format, Group, Pair, Response
from alignkit_plugins.formats.columns import SYSTEM_COLUMNS, ColumnFormat

MAX_RESPONSES = 64  # K responses form up to K (K - 1) / 2 pairs
PROMPTS = ("prompt", "instruction", "question")
RESPONSES = ("responses", "answers", "completions")
TEXTS = ("text", "response", "answer", "completion", "content")
SCORES = ("score", "rating", "overall_score", "reward")
ULTRAFEEDBACK = 10  # its highest overall_score
SCORE_LISTS = ("scores", "ratings", "rewards")


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
        prompt, name = _first(row, PROMPTS), _first(row, RESPONSES)
        if not prompt or not name or not isinstance(row[name], list) or "alignkit" in row:
            return False
        rated = _first(row, ("ranks", *SCORE_LISTS, "pairs")) or all(
            _first(i, ("rank", *SCORES)) for i in row[name]
        )
        return bool(row[name] and rated) and cls.lacks(row, "chosen", "rejected")

    def read(self, row: Any) -> Group:
        prompt, name = _first(row, PROMPTS), _first(row, RESPONSES)
        if not prompt or not name:
            raise BadRow("columns 'prompt' and 'responses' are required")
        items, scored = row[name], _first(row, SCORE_LISTS)
        if not isinstance(items, list):
            raise BadRow(f"{name} must be a list, not {type(items).__name__}")
        if not 2 <= len(items) <= MAX_RESPONSES:
            raise BadRow(f"a ranking has 2 to {MAX_RESPONSES} responses, not {len(items)}")
        ranks = self._numbers(row.get("ranks"), "ranks", len(items))
        scores = self._numbers(row.get(scored) if scored else None, scored or "scores", len(items))
        responses = tuple(self._response(*each) for each in zip(items, ranks, scores, strict=True))
        pairs = self._pairs(row.get("pairs"))
        if pairs is None and all(response.rank is None for response in responses):
            pairs = self.pairs_by_score(responses)
        used = (
            prompt,
            name,
            "ranks",
            "pairs",
            *([scored] if scored else []),
            *SYSTEM_COLUMNS,
            "tools",
        )
        turns = self.opened(self.conversation(row[prompt], prompt), row)
        return Group(turns, responses, pairs, meta=self.rest(row, *used), tools=self.tools(row))

    def _numbers(self, values: Any, name: str, count: int) -> Sequence[Any]:
        if values is None:
            return [None] * count
        if not isinstance(values, list) or len(values) != count:
            raise BadRow(f"{name} must be a list of {count}, one for each response")
        return values

    def _response(self, item: Any, rank: Any, score: Any) -> Response:
        rank, score = self.number({"rank": rank}, "rank"), self.number({"score": score}, "score")
        if isinstance(item, str):
            return Response(text=item, rank=rank, scores=self.scores(score))
        if not isinstance(item, Mapping):
            raise BadRow("a response must be text or {text, rank}")
        item_rank = self.number(item, "rank")
        item_score = self.number(item, _first(item, SCORES) or "score")
        if "fine-grained_score" in item and item_score is not None and item_score > ULTRAFEEDBACK:
            raise BadRow(
                f"overall_score {item_score:g} is above {ULTRAFEEDBACK}, a known fault of "
                "UltraFeedback"
            )
        return Response(
            text=self.text(item, _first(item, TEXTS) or "text"),
            rank=rank if item_rank is None else item_rank,
            scores=self.scores(score if item_score is None else item_score),
            source=self.text(item, _first(item, ("source", "model")) or "source", "") or None,
        )

    def _pairs(self, pairs: Any) -> tuple[Pair, ...] | None:
        if pairs is None:
            return None
        if not isinstance(pairs, list) or not pairs:
            raise BadRow("pairs must be a list of [better, worse] or {better, worse, p, margin}")
        return tuple(self._pair(pair) for pair in pairs)

    def _pair(self, pair: Any) -> Pair:
        if isinstance(pair, list) and len(pair) == 2:
            return Pair(pair[0], pair[1])
        if not self.has(pair, "better", "worse"):
            raise BadRow(
                f"a pair must be [better, worse] or {{better, worse, p, margin}}, not {pair!r}"
            )
        p = self.number(pair, "p")
        return Pair(pair["better"], pair["worse"], 1.0 if p is None else p, self.margin(pair))


def _first(row: Any, names: Sequence[str]) -> str | None:
    """The first of these columns that the row has."""
    return next((name for name in names if Format.has(row, name)), None)
