"""A reward from a service: its protocol, its scores in order, and replies that never become one. Services
that fail are in tests/servers/test_remote.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit import DataError, Group, Response, RunFailed
from alignkit.contract.reward import spending
from alignkit.errors import RemoteError
from alignkit_plugins.rewards.http import HTTP, _read
from alignkit_plugins.servers.remote import Malformed
from tests.ai_feedback.judge_server import Reply, Server, context, serving
from tests.rows import assistant, user

ASK = (user("Which?"),)


def by_number(request: dict[str, Any]) -> Reply:
    """The number that a response ends with."""
    number = float(request["response"][-1]["content"].split()[-1])
    return Reply(body={"score": None if number < 0 else number})


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(by_number) as running:
        yield running


@pytest.fixture
def made(server: Server, tmp_path: Path) -> Callable[..., HTTP]:
    def make(request: Any = None, **options: Any) -> HTTP:
        where = {"base_url": server.url, "max_retries": 0, "request": request or {}}
        reward = HTTP(HTTP.Options(server=where, **options))
        reward.prepare(context(tmp_path))
        return reward

    return make


def group(*numbers: float, **meta: Any) -> Group:
    return Group(ASK, tuple(Response(f"it is {number}") for number in numbers), meta=meta)


def test_scores_come_in_the_order_of_the_responses_and_are_stored(
    made: Callable[..., HTTP], server: Server
) -> None:
    groups = [group(-1, 2, 0.5), group(), group(4, 5)]  # null is no score, and is kept
    for _ in range(2):
        assert made().score(groups) == [None, 2.0, 0.5, 4.0, 5.0]
    assert len(server.requests) == 5 and made().score([]) == []


def test_the_service_receives_prompt_response_and_columns(
    made: Callable[..., HTTP], server: Server
) -> None:
    turns: Any = (
        {"role": "assistant", "content": None, "tool_calls": []},
        assistant("so 3"),
    )
    one = Group(ASK, (Response(messages=turns),), meta={"domain": "law", "key": "secret"})
    reward = made(columns=["domain"], request={"model": "big"})
    reward.score([one])
    plain = [assistant(""), assistant("so 3")]
    item = {"prompt": list(ASK), "response": plain, "columns": {"domain": "law"}}
    assert server.requests == [{"model": "big", **item}]
    with pytest.raises(DataError, match=r"'Which\?' has no column 'domain' \(its columns: id\)"):
        reward.check_prompts([group(1, id=3)])


def test_a_response_that_the_service_refuses_has_no_score(
    made: Callable[..., HTTP], server: Server
) -> None:
    server.judge = lambda request: (
        Reply(413, b"too long") if "is 2" in str(request) else by_number(request)
    )
    with spending() as told:
        assert made().score([group(1, 2, 3)]) == [1.0, None, 3.0]
    assert [each.reason for each in told] == ["", "HTTP 413: too long", ""]
    assert made().score([group(2)]) == [None]  # also if it is the first one


def test_a_reply_that_is_no_score_ends_the_run(made: Callable[..., HTTP], server: Server) -> None:
    server.judge = lambda request: Reply(body=[0.5])
    with pytest.raises(RemoteError, match=r'the reply is not \{"score": 0.7\}'):
        made().score([group(1, 2)])


NO_SCORES = """

[]
{}
null
{"scores": 3}
{"score": NaN}
{"score": 1e999}
{"score": "1"}
{"score": true}
{"score": [1]}
{"score": -1e307}
{"score": 1, "score": 2}
"""


@pytest.mark.parametrize(
    "reply", [*NO_SCORES.splitlines(), "[" * 99_999, '{"score": ' + "9" * 400 + "}"]
)
def test_what_is_no_score_is_malformed(reply: str) -> None:
    with pytest.raises(Malformed):
        _read(reply.encode())


def test_the_key_is_checked_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(RunFailed, match="MY_KEY is not set"):
        HTTP(HTTP.Options(server={"base_url": "http://a", "api_key_env": "MY_KEY"})).check(tmp_path)
