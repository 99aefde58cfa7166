"""From text to tokens: the encoder, compared with transformers' `apply_chat_template` on the same
conversations.

The encoder also finds the assistant's tokens, checks that each answer follows its prompt, and reads
a prompt once for both answers; transformers only renders and tokenizes.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import trl
from benchmarks.worker import Gate, Job

if TYPE_CHECKING:
    from alignkit.data.group import Group

DATA = Path(__file__).parent.parent / "recipes" / "data"
MAX_LENGTH = 100_000  # tokens: nothing is truncated


def rows(job: Job) -> list[Group]:
    """The pairs and the demonstrations of the bundled recipes."""
    from alignkit.host.plugins import plugins

    found: list[Group] = []
    with gzip.open(DATA / "helpful.jsonl.gz", "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    demonstrations = [
        json.loads(line) for line in (DATA / "demos.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    for name, read in (("hh_rlhf", pairs), ("messages", demonstrations)):
        format_ = plugins().get("format", name).implementation()
        found += [format_.read(row) for row in (read[:20] if job.short else read)]
    return found


def ours(job: Job, gate: Gate) -> None:
    from alignkit.testing.examples import encode_all
    from alignkit.tokens.encoder import Encoder

    tokenizer, groups = trl.tokenizer(job), rows(job)
    texts = sum(len(group.responses) for group in groups)
    while True:
        gate.begin()
        encoded = encode_all(Encoder(tokenizer), groups, MAX_LENGTH, scoring=True)
        gate.end(
            texts,
            _sums(
                [
                    [*group.prompt, *response.tokens]
                    for group in encoded
                    for response in group.responses
                ]
            ),
        )


def peer(job: Job, gate: Gate) -> None:
    tokenizer = trl.tokenizer(job)
    conversations = [
        [dict(message) for message in (*group.prompt, *_answer(response))]
        for group in rows(job)
        for response in group.responses
    ]
    while True:
        gate.begin()
        ids = [
            tokenizer.apply_chat_template(one, tokenize=True, return_dict=False)
            for one in conversations
        ]
        gate.end(len(conversations), _sums(ids))


def _answer(response: Any) -> Sequence[Any]:
    return response.messages or ({"role": "assistant", "content": response.text},)


def _sums(ids: Sequence[Sequence[int]]) -> dict[str, float]:
    """Two numbers that differ if any token does: the tokens, and their ids weighted by place."""
    place = sum(index * token for row in ids for index, token in enumerate(row, 1))
    return {"loss": float(sum(map(len, ids))), "places": float(place)}
