"""Rankings of K responses to a prompt, as in InstructGPT (Ouyang et al. 2022, arXiv:2203.02155); rank 1 is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import BadRow, Format, Group, Pair, Register, Response, hookimpl

MAX_RESPONSES = 64  # K responses form up to K (K - 1) / 2 pairs


class Rankings(Format):
    """A prompt and its responses with ranks (ties allowed), or with a list of pairs [better, worse]."""

    summary = "rankings: prompt, responses [{text, rank}] or responses [text] and ranks; optional pairs"
    wants = "prompt and responses [{text, rank}], or responses [text] with ranks [1, 2, ...] or pairs [[0, 1], ...]"

    @classmethod
    def matches(cls, row: Any) -> bool:
        return cls.has(row, "prompt", "responses") and isinstance(row["responses"], list) and "alignkit" not in row

    def read(self, row: Any) -> Group:
        if not self.has(row, "prompt", "responses"):
            raise BadRow("columns 'prompt' and 'responses' are required")
        items = row["responses"]
        if not isinstance(items, list):
            raise BadRow(f"responses must be a list, not {type(items).__name__}")
        if not 2 <= len(items) <= MAX_RESPONSES:
            raise BadRow(f"a ranking has 2 to {MAX_RESPONSES} responses, not {len(items)}")
        ranks = self._ranks(row.get("ranks"), len(items))
        responses = tuple(self._response(item, rank) for item, rank in zip(items, ranks, strict=True))
        pairs = self._pairs(row.get("pairs"))
        if pairs is None and all(response.rank is None for response in responses):
            raise BadRow("the row has neither ranks nor pairs")
        meta = self.rest(row, "prompt", "responses", "ranks", "pairs")
        return Group(self.conversation(row["prompt"], "prompt"), responses, pairs, meta=meta)

    def _ranks(self, ranks: Any, count: int) -> Sequence[Any]:
        if ranks is None:
            return [None] * count
        if not isinstance(ranks, list) or len(ranks) != count:
            raise BadRow(f"ranks must be a list of {count}, one for each response")
        return ranks

    def _response(self, item: Any, rank: Any) -> Response:
        if isinstance(item, str):
            return Response(text=item, rank=self.number({"rank": rank}, "rank"))
        if not isinstance(item, Mapping):
            raise BadRow("a response must be text or {text, rank}")
        item_rank = self.number(item, "rank")
        source = self.text(item, "source", "") or None
        return Response(
            text=self.text(item, "text"),
            rank=self.number({"rank": rank}, "rank") if item_rank is None else item_rank,
            source=source,
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
            raise BadRow(f"a pair must be [better, worse] or {{better, worse, p, margin}}, not {pair!r}")
        p = self.number(pair, "p")
        return Pair(pair["better"], pair["worse"], 1.0 if p is None else p, self.margin(pair))


@hookimpl
def register_formats(register: Register) -> None:
    register("rankings", Rankings, summary=Rankings.summary)
