"""A reward from a service of your own over HTTP.

A request to `BASE_URL/score` is `{"prompt": [messages], "response": [messages], "columns": {...}}`,
with `tools` if the prompt has any, and the reply is `{"score": 0.7}`, or null for a response that
cannot be scored. Replies are stored, so that no response is scored or paid for twice. A reply that
breaks these rules ends the run, which can be resumed: it never becomes a score. A response that the
service refuses, for instance because it is too long (HTTP 400, 413 or 422), has no score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

import alignkit
from alignkit import Context, Field, Group, Rating, Response, Reward
from alignkit.contract.reward import FINITE, add_answers
from alignkit.data.files import parse
from alignkit.data.group import LARGEST
from alignkit.errors import BadRow, RemoteError
from alignkit_plugins.servers.remote import Malformed, Remote, RemoteOptions, key_of
from alignkit_plugins.text.rows import column_of, plain_turns, turns_of_response


class HTTP(Reward):
    """The score that a service gives each response."""

    class Options(alignkit.Options):
        model_config = ConfigDict(hide_input_in_errors=True)  # an address may hold a password

        server: RemoteOptions = Field(description="the service, `{base_url: ...}`")
        columns: list[str] = Field([], "columns of the prompts that the service receives")

        @property
        def grader(self) -> str:
            """Another service is another reward."""
            return f"http {self.server.base_url}"

    options: Options

    def check(self, folder: Path) -> None:
        key_of("http", self.options.server)

    def check_prompts(self, groups: Sequence[Group]) -> None:
        for group in groups:
            self._columns(group)

    def prepare(self, context: Context) -> None:
        super().prepare(context)
        self.remote = Remote("http", self.options.server, "score", context.cache, _read)

    def score(self, groups: Sequence[Group]) -> Sequence[float | None]:
        bodies = []
        for group in groups:
            bodies += [self._body(group, response) for response in group.responses]
        scores: list[float | None] = []
        for reply in self.remote.ask(bodies, self.context.progress):
            if reply.reason and not reply.reason.startswith("HTTP "):  # no refusal
                raise RemoteError(
                    f"http: {self.remote.url}: {reply.reason}\nhelp: the replies received are "
                    "stored; repeat the command to resume"
                )
            scores.append(reply.value)
            add_answers([Rating(None, reply.reason)])
        return scores

    def _body(self, group: Group, response: Response) -> dict[str, Any]:
        response_turns = plain_turns(turns_of_response(response))
        body: dict[str, Any] = {"prompt": plain_turns(group.prompt), "response": response_turns}
        if group.tools:
            body["tools"] = list(group.tools)
        if self.options.columns:
            body["columns"] = self._columns(group)
        return self.options.server.body(body)

    def _columns(self, group: Group) -> Any:
        return {column: column_of("http", group, column) for column in self.options.columns}


def _read(text: bytes) -> float | None:
    """The score of a reply. Raises Malformed."""
    try:
        score = parse(text)["score"]
    except (BadRow, KeyError, TypeError):
        raise Malformed('the reply is not {"score": 0.7}') from None
    is_number = type(score) in (int, float) and abs(score) <= LARGEST  # also of endless integers
    if score is not None and not is_number:
        raise Malformed(f"the score is {score!r:.40}, not {FINITE}")
    return None if score is None else float(score)
