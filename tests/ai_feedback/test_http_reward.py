"""A reward from a service: its protocol, its scores in order, and replies that never become one."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignkit import Context, DataError, Group, Response, RunFailed
from alignkit.errors import RemoteError
from alignkit_plugins.ai_feedback.http_reward import HTTP, _read
from alignkit_plugins.ai_feedback.remote import Malformed
from tests.faults.scripted_server import ScriptedServer, reply

ASK = ({"role": "user", "content": "Which?"},)


def by_number(body: Mapping[str, Any]) -> dict[str, Any]:
    """The number that a response ends with."""
    return {"score": float(body["response"][-1]["content"].split()[-1])}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    running = ScriptedServer(by_number, healthy=0)
    yield running
    running.close()


Made = Callable[..., HTTP]


@pytest.fixture
def made(server: ScriptedServer, tmp_path: Path) -> Made:
    def make(request: Any = None, **options: Any) -> HTTP:
        where = {
            "base_url": f"http://127.0.0.1:{server.port}/v1",
            "max_retries": 0,
            "request": request or {},
        }
        reward = HTTP(HTTP.Options(server=where, **options))
        reward.prepare(Context(models=None, cache=tmp_path, folder=tmp_path, seed=0, load=list))  # type: ignore[arg-type]
        return reward

    return make


def group(*numbers: float, **meta: Any) -> Group:
    return Group(ASK, tuple(Response(f"it is {number}") for number in numbers), meta=meta)


def test_scores_come_in_the_order_of_the_responses(made: Made, server: ScriptedServer) -> None:
    groups = [group(-1, 2, 0.5), group(), group(4, 5)]
    assert made().score(groups) == {"": [-1.0, 2.0, 0.5, 4.0, 5.0]}
    assert made().score(groups) == {"": [-1.0, 2.0, 0.5, 4.0, 5.0]}
    assert server.requests == 5  # stored
    assert made().score([]) == {"": []}


def test_the_service_receives_prompt_response_and_columns(
    made: Made, server: ScriptedServer
) -> None:
    seen: list[Any] = []
    server.good = lambda body: seen.append(body) or by_number(body)  # type: ignore[func-returns-value]
    turns: Any = (
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "content": "so 3"},
    )
    one = replace(group(1, domain="law", key="secret"), responses=(Response(messages=turns),))
    made(columns=["domain"], request={"model": "big"}).score([one])
    plain = [{"role": "assistant", "content": ""}, {"role": "assistant", "content": "so 3"}]
    item = {"prompt": list(ASK), "response": plain, "columns": {"domain": "law"}}
    assert seen == [{"model": "big", **item}]


def test_a_column_that_is_missing_is_named(made: Made) -> None:
    with pytest.raises(
        DataError, match=r"the prompt 'Which\?' has no column 'domain' \(its columns: id\)"
    ):
        made(columns=["domain"]).check_prompts([group(1, id=3)])


def test_null_is_no_score_and_is_kept(made: Made, server: ScriptedServer) -> None:
    server.good = lambda body: {"score": None}
    assert made().score([group(1)]) == {"": [None]}
    assert made().score([group(1)]) == {"": [None]} and server.requests == 1


def test_a_response_that_the_service_refuses_has_no_score(
    made: Made, server: ScriptedServer
) -> None:
    def act(server: ScriptedServer, connection: socket.socket, body: Any) -> None:
        said = body["response"][0]["content"]
        reply(connection, b"too long", 413) if said == "it is 2" else reply(
            connection, json.dumps(by_number(body)).encode()
        )

    server.act = act
    assert made().score([group(1, 2, 3)]) == {"": [1.0, None, 3.0]}
    assert made().score([group(2)]) == {"": [None]}  # also if it is the first one


def test_a_reply_that_is_no_score_ends_the_run(made: Made, server: ScriptedServer) -> None:
    server.good = lambda body: [0.5]
    with pytest.raises(RemoteError, match=r'the reply is not \{"score": 0.7\}') as caught:
        made().score([group(1, 2)])
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "[]",
        "{}",
        "null",
        '{"scores": 3}',
        '{"score": NaN}',
        '{"score": 1e999}',
        '{"score": "1"}',
        '{"score": true}',
        '{"score": [1]}',
        '{"score": ' + "9" * 400 + "}",
        "[" * 99_999,
    ],
)
def test_what_is_no_score_is_malformed(reply: str) -> None:
    with pytest.raises(Malformed):
        _read(reply.encode())


@pytest.mark.parametrize(
    "options",
    [
        {"server": {"base_url": "ftp://a"}},
        {"base_url": "http://a"},
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HTTP.Options(**{"server": {"base_url": "http://a"}, **options})


def test_the_key_is_looked_for_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(RunFailed, match="MY_KEY is not set"):
        HTTP(HTTP.Options(server={"base_url": "http://a", "api_key_env": "MY_KEY"})).check(tmp_path)
