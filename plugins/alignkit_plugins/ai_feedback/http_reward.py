"""A reward from a service of your own over HTTP.

A request is `{"items": [{"id": "0", "prompt": [messages], "response": [messages], "columns":
{...}}]}`, and the reply is `{"scores": [{"id": "0", "score": 0.7}]}` in any order, with null for a
response that cannot be scored. Replies are stored, so that no response is scored or paid for twice.
A reply that breaks these rules is asked for again and then ends the run, which can be resumed: it
never becomes a score. A response that the service refuses, for instance because it is too long
(HTTP 400, 413 or 422), has no score.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, model_validator

import alignkit
from alignkit import Context, Field, Group, Response, Reward, RunFailed
from alignkit.errors import RemoteError
from alignkit.reward import Progress, no_progress
from alignkit_plugins.ai_feedback.remote import Malformed, Remote, RemoteOptions, Reply, key_of
from alignkit_plugins.formats.rows import column_of

ALL_REFUSED = 4  # requests: if a service refuses as many and all, the mistake is in the recipe


class HTTP(Reward):
    """The score that a service gives each response."""

    class Options(alignkit.Options):
        model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a password

        server: RemoteOptions = Field(description="the service, `{base_url: ...}`")
        path: str = Field("score", description="path that is appended to the server's address")
        columns: list[str] = Field(
            [], description="columns of the prompts that the service receives"
        )
        low: float | None = Field(
            None, description="lowest score that is possible; a lower one is a failure"
        )
        high: float | None = Field(
            None, description="highest score that is possible; a higher one is a failure"
        )
        batch_size: int = Field(1, ge=1, le=1024, description="responses per request")

        @model_validator(mode="after")
        def _range(self) -> HTTP.Options:
            if self.low is not None and self.high is not None and self.low >= self.high:
                raise ValueError(f"low {self.low:g} is not below high {self.high:g}")
            if "items" in self.server.request:
                raise ValueError(
                    "'server.request' must not contain 'items', which are the responses"
                )
            return self

    options: Options

    def check(self, folder: Path) -> None:
        key_of("http", self.options.server)

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self._columns(group)

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.remote = Remote(
            "http", self.options.server, self.options.path, context.cache, _read, fits=self._fits
        )

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        items = [self._item(group, response) for group in groups for response in group.responses]
        size = self.options.batch_size
        bodies = [self._body(items[start : start + size]) for start in range(0, len(items), size)]
        self._ask(bodies[:1])  # a service that is misunderstood costs one request
        replies = self._ask(bodies, self.context.progress)
        return {
            "": [
                score
                for body, reply in zip(bodies, replies, strict=True)
                for score in _in_order(body, reply)
            ]
        }

    def _ask(
        self, bodies: Sequence[Mapping[str, Any]], progress: Progress = no_progress
    ) -> list[Reply]:
        """The replies, some of which may be refusals. Raises RemoteError for one that nobody can
        read.
        """
        replies = self.remote.ask(bodies, progress)
        reasons = [reply.reason for reply in replies if reply.reason]
        unread = [reason for reason in reasons if not reason.startswith("HTTP ")]
        if unread:
            raise RemoteError(
                f"http: {self.remote.url}: {unread[0]}\n"
                'help: the reply must be {"scores": [{"id": "0", "score": 0.7}]}; the replies received are stored; '
                "repeat the command to resume"
            )
        if len(reasons) == len(replies) >= ALL_REFUSED:
            raise RunFailed(
                f"http: {self.remote.url} refuses all of {len(replies)} requests: {reasons[0]}"
            )
        return replies

    def _fits(self, body: Mapping[str, Any], scores: Sequence[tuple[Any, float | None]]) -> str:
        """Why these scores cannot be those of a request; empty if they can. The limits are those of
        this recipe.
        """
        low, high = self.options.low, self.options.high
        for name, score in scores:
            if score is not None and (
                (low is not None and score < low) or (high is not None and score > high)
            ):
                return (
                    f"the score of item {name!r:.40} is {score:g}, outside the limits `low` and "
                    "`high`"
                )
        return _fits(body, scores)

    def _item(self, group: Group, response: Response) -> dict[str, Any]:
        said = response.messages or ({"role": "assistant", "content": response.text},)
        item = {"prompt": list(map(_plain, group.prompt)), "response": list(map(_plain, said))}
        return item | ({"columns": self._columns(group)} if self.options.columns else {})

    def _columns(self, group: Group) -> dict[str, Any]:
        return {column: column_of("http", group, column) for column in self.options.columns}

    def _body(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return self.options.server.body(
            {"items": [{"id": str(place), **item} for place, item in enumerate(items)]}
        )


def _in_order(body: Mapping[str, Any], reply: Reply) -> list[float | None]:
    """The scores of a request's items; None for all if it was refused."""
    scores = dict(reply.value or [])
    return [scores.get(item["id"]) for item in body["items"]]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": message["role"], "content": message.get("content") or ""}


def _read(text: bytes) -> list[tuple[str, float | None]]:
    """The scores of a reply with the ids of their items. Raises Malformed."""
    try:
        scores = [(row["id"], row["score"]) for row in json.loads(text)["scores"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Malformed('the reply is not {"scores": [{"id": ..., "score": ...}]}') from None
    for name, score in scores:
        if score is None:
            continue
        if isinstance(score, bool) or not isinstance(score, int | float) or not _is_finite(score):
            raise Malformed(f"the score of item {name!r:.40} is {score!r:.40}, not a finite number")
    return scores


def _is_finite(score: float) -> bool:
    try:
        return math.isfinite(score)
    except OverflowError:  # an integer beyond the floats
        return False


def _fits(body: Mapping[str, Any], scores: Sequence[tuple[Any, float | None]]) -> str:
    """Why these scores cannot be those of a request; empty if they can."""
    asked, given = [item["id"] for item in body["items"]], [name for name, _ in scores]
    if len(given) != len(asked):
        return f"the reply has {len(given)} scores for {len(asked)} responses"
    return (
        ""
        if set(map(repr, given)) == set(map(repr, asked))
        else "the ids of the scores are not those of the items"
    )
