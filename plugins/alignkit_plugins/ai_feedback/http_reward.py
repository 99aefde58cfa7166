"""A reward from a service of your own over HTTP.

A request is `{"items": [{"id": "0", "prompt": [messages], "response": [messages], "columns":
{...}}]}`, and the reply is `{"scores": [{"id": "0", "score": 0.7}]}` in any order, with null for a
response that cannot be scored. Replies are stored, so that no response is scored or paid for twice.
A reply that breaks these rules ends the run, which can be resumed: it never becomes a score. A
response that the service refuses, for instance because it is too long (HTTP 400, 413 or 422), has
no score.
"""

from __future__ import annotations

import json
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
        batch_size: int = Field(1, ge=1, le=1024, description="responses per request")

        @model_validator(mode="after")
        def _no_items(self) -> HTTP.Options:
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
        options = self.options
        self.remote = Remote("http", options.server, options.path, context.cache, _read)

    def score(self, groups: Sequence[Group]) -> Mapping[str, Sequence[float | None]]:
        items = []
        for group in groups:
            items += [self._item(group, response) for response in group.responses]
        size = self.options.batch_size
        bodies = []
        for start in range(0, len(items), size):
            batch = [{"id": str(n), **item} for n, item in enumerate(items[start : start + size])]
            bodies.append(self.options.server.body({"items": batch}))
        self._ask(bodies[:1], no_progress)  # a service that is misunderstood costs one request
        scores: list[float | None] = []
        for body, reply in zip(bodies, self._ask(bodies, self.context.progress), strict=True):
            by_id = dict(reply.value or [])  # none if it was refused
            scores += [by_id.get(item["id"]) for item in body["items"]]
        return {"": scores}

    def _ask(self, bodies: Sequence[Mapping[str, Any]], progress: Progress) -> list[Reply]:
        """The replies, some of which may be refusals. Raises RemoteError for one that is no
        answer.
        """

        def wrong(place: int, reply: Reply) -> str:
            """Why a reply is no answer; empty for a refusal."""
            if reply.reason:
                return "" if reply.reason.startswith("HTTP ") else reply.reason
            return _unfit(bodies[place], reply.value)

        replies = self.remote.ask(bodies, progress, wrong)
        for place, reply in enumerate(replies):
            if problem := wrong(place, reply):
                raise RemoteError(
                    f"http: {self.remote.url}: {problem}\n"
                    'help: the reply must be {"scores": [{"id": "0", "score": 0.7}]}; the replies '
                    "received are stored; repeat the command to resume"
                )
        reasons = [reply.reason for reply in replies if reply.reason]
        if len(reasons) == len(replies) >= ALL_REFUSED:
            refused = f"refuses all of {len(replies)} requests: {reasons[0]}"
            raise RunFailed(f"http: {self.remote.url} {refused}")
        return replies

    def _item(self, group: Group, response: Response) -> dict[str, Any]:
        turns = response.messages or ({"role": "assistant", "content": response.text},)
        item = {"prompt": list(map(_plain, group.prompt)), "response": list(map(_plain, turns))}
        if self.options.columns:
            item["columns"] = self._columns(group)
        return item

    def _columns(self, group: Group) -> Any:
        return {column: column_of("http", group, column) for column in self.options.columns}


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    return {"role": message["role"], "content": message.get("content") or ""}


def _read(text: bytes) -> list[tuple[str, float | None]]:
    """The scores of a reply with the ids of their items. Raises Malformed."""
    try:
        scores = [(row["id"], row["score"]) for row in json.loads(text)["scores"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        problem = 'the reply is not {"scores": [{"id": ..., "score": ...}]}'
        raise Malformed(problem) from None
    for name, score in scores:
        # An integer may lie beyond the floats.
        number = type(score) in (int, float) and abs(score) < 1e308
        if score is not None and not number:
            raise Malformed(f"the score of item {name!r:.40} is {score!r:.40}, not a finite number")
    return scores


def _unfit(body: Mapping[str, Any], scores: Sequence[Sequence[Any]]) -> str:
    """Why these scores cannot be those of a request; empty if they can."""
    ids, names = [item["id"] for item in body["items"]], [name for name, _ in scores]
    if len(names) != len(ids):
        return f"the reply has {len(names)} scores for {len(ids)} responses"
    same = set(map(repr, names)) == set(map(repr, ids))
    return "" if same else "the ids of the scores are not those of the items"
