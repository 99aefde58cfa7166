"""A judge on a server: what is sent, what is stored and never paid for twice, what is kept secret, and what
one wrong setting costs. Servers that fail are in tests/servers/test_remote.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from alignkit import Group, RunFailed
from alignkit.contract.reward import no_progress
from alignkit.errors import RemoteError
from alignkit_plugins.ai_feedback.judge import OpenAIJudge
from alignkit_plugins.ai_feedback.writer import PROBE, PolicyWriter, ServerWriter
from tests.ai_feedback.judge_server import (
    Reply,
    Server,
    asked_for,
    context,
    one_token,
    options_of,
    quality,
    said,
    serving,
    texts_of,
    thinking,
)
from tests.by_role import ByRole
from tests.rows import user

PROMPT = [{"role": "user", "content": "Which {first} is it?"}]
ITEM = (PROMPT, "is 2", "is 1")
MANY = [(PROMPT, f"is {n}", "is 20") for n in range(12)]
SECRET = "sk-proj-Zm9vYmFy0123456789abcdefABCDEF"
Built = Callable[..., OpenAIJudge]


def honest(request: dict[str, Any]) -> Reply:
    """Judges by the numbers in the responses, with 1 nat for the first position."""
    _, first, second = texts_of(request)
    return one_token(1 / (1 + math.exp(-(quality(first) - quality(second) + 1.0))))


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(honest) as running:
        yield running


@pytest.fixture
def judge(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Built:
    monkeypatch.setenv("JUDGE_KEY", SECRET)

    def build(progress: Any = no_progress, **options: Any) -> OpenAIJudge:
        made = OpenAIJudge(options_of(server.url, **{"api_key_env": "JUDGE_KEY"} | options))
        made.prepare(context(tmp_path, progress=progress))
        return made

    return build


def test_both_orders_are_asked_once_and_paid_for_once(
    judge: Built, server: Server, tmp_path: Path
) -> None:
    shown: list[Any] = []

    @contextlib.contextmanager
    def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
        shown.append((what, total))
        yield shown.append

    items = [ITEM, (PROMPT, "is 1", "is 2")]
    verdict, flipped = judge(progress).compare(items)
    # The flipped item asks the same two questions.
    assert shown == [("asking openai_judge", 2), 1, 2] and len(server.requests) == 2
    expected = (1 / (1 + math.exp(-2)) + 0.5) / 2
    found = (verdict.p_first, 1 - (flipped.p_first or 0), verdict.mass)
    assert found == pytest.approx((expected, expected, 0.9), abs=1e-9)
    assert set(server.authorization) == {f"Bearer {SECRET}"}
    (terms,) = {json.dumps(request | {"messages": 0}) for request in server.requests}
    assert json.loads(terms) == {
        **{"model": "m", "temperature": 0, "max_tokens": 1, "messages": 0},
        **{"logprobs": True, "top_logprobs": 20},
    }
    assert judge().compare(items) == [verdict, flipped] and len(server.requests) == 2
    judge(model="other").compare([ITEM, (PROMPT, "\ud800 is 2", "is 1")])
    assert len(server.requests) == 6  # another model is another question
    kept = [path.read_bytes() for path in (tmp_path / "cache").iterdir()]
    assert kept and not any(SECRET.encode() in content for content in kept)


def test_at_most_so_many_requests_at_a_time(judge: Built, server: Server) -> None:
    server.judge = lambda request: dataclasses.replace(
        honest(request), pause=0.03, until=lambda: server.most_open >= 3
    )
    judge(concurrency=3).compare(MANY[:11])
    assert server.most_open == 3 and len(server.requests) == 22


def test_a_killed_process_loses_no_answer(judge: Built, server: Server) -> None:
    server.judge = lambda request: dataclasses.replace(honest(request), pause=0.1)
    if (child := os.fork()) == 0:
        try:
            judge(concurrency=1).compare(MANY[:5])
        finally:
            os._exit(1)
    while len(server.requests) < 4:
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    answered = server.requests[:3]
    judge().compare(MANY[:5])
    assert [server.requests.count(request) for request in answered] == [1, 1, 1]


# The first questions


OF_NO_USE: list[tuple[Any, Reply, str]] = [  # reasons, each reply, what the error says
    (False, Reply(400, {"error": "use max_completion_tokens"}), "HTTP 400: .*\nhelp: .*`request`"),
    (False, said(None, refusal="I would rather not"), "the judge refused"),
    (False, said(" 1\n"), "no log-probabilities\nhelp: .*`reasons: true`"),
    (True, said("Let me think", "length"), "max_tokens: 8000"),
]


@pytest.mark.silent_bug(
    "judges: missing verdicts",
    "A reply that is cut off counts as a tie.",
    "It has no verdict, and the error says which `max_tokens` to set.",
    "openvang/vanguarstew#26",
)
@pytest.mark.parametrize(("reasons", "reply", "words"), OF_NO_USE)
def test_a_judge_of_no_use_is_told_by_a_few_questions(
    reasons: bool, reply: Reply, words: str, judge: Built, server: Server
) -> None:
    server.judge = lambda request: reply
    with pytest.raises(RunFailed, match=rf"no reply of use to the first questions: (.|\n)*{words}"):
        judge(reasons=reasons).compare(MANY)
    assert len(server.requests) == PROBE
    # Some of the first may be refused, all of them not.
    usual, known = thinking if reasons else honest, ["is 0", "is 20"]
    server.judge = lambda request: usual(request) if texts_of(request)[1:] == known else reply
    judge(reasons=reasons, model="of one question").compare(MANY)
    server.judge, server.script = usual, [reply] * 3
    found = judge(reasons=reasons, model="another").compare(MANY)
    # A reply is stored; a question that the server does not accept is asked again with the others.
    assert sum(verdict.p_first is None for verdict in found) == (3 if reply.status == 200 else 0)


def test_several_samples_of_a_question_have_seeds_of_their_own(
    server: Server, tmp_path: Path
) -> None:
    server.judge = lambda request: said(str(request["seed"]))
    writer = ServerWriter(context(tmp_path), "x", options_of(server.url).server, {})
    written = writer.write([Group((user("q"),))], most=9, seed=5, samples=2)
    assert [each.text for each in written] == ["5", "6"]
    full = PolicyWriter(context(tmp_path, ByRole(sample=lambda role, groups, **_: groups)), "x", {})
    assert [each.text for each in full.write([Group(())], most=9, seed=5, samples=2)] == [""] * 2


def test_a_name_that_a_model_refuses_is_left_out(judge: Built, server: Server) -> None:
    server.judge = thinking
    request = {"max_tokens": None, "max_completion_tokens": 9000, "temperature": None}
    assert judge(reasons=True, request=request).compare([ITEM])[0].p_first == 1.0
    sent = server.requests[0]
    assert sent.keys() == {"model", "messages", "max_completion_tokens"}
    assert sent["max_completion_tokens"] == 9000


def test_a_slow_server_is_given_time(judge: Built, server: Server) -> None:
    server.judge = lambda request: Reply(pause=1)
    with pytest.raises(RemoteError, match=r"no answer within 0.05 s.*\nhelp: raise 'timeout_sec"):
        judge(timeout_seconds=0.05, max_retries=0).compare(MANY)


# Secrets


def walk(error: BaseException | None) -> Iterator[str]:
    """The error and all its causes."""
    while error is not None:
        yield repr(error)
        error = error.__cause__ or error.__context__


def test_the_key_stays_in_the_environment(judge: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    options = judge().options
    assert SECRET not in repr(options) + json.dumps(options.model_dump())
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(RunFailed, match="JUDGE_KEY is not set"):
        judge()
    monkeypatch.setenv("JUDGE_KEY", SECRET + "\n\u00e9")
    with pytest.raises(RunFailed, match="non-ASCII characters") as caught:
        judge()
    assert SECRET not in "".join(walk(caught.value))


@pytest.mark.silent_bug(
    "keys: files",
    "A server repeats the key that it was asked with, and the key is stored with its reply.",
    "The key is taken out of every reply before anything reads it.",
)
def test_a_key_that_the_server_echoes_gets_into_no_file_and_no_message(
    judge: Built, server: Server, tmp_path: Path
) -> None:
    def echoes(request: dict[str, Any]) -> Reply:
        word, code = asked_for(request)
        rated = SECRET if "is 3" in texts_of(request) else 7
        return said(f"Asked with {SECRET}.\n{word} {code}: {rated}")

    server.judge = echoes
    one, other = judge(reasons=True).rate([(PROMPT, "is 7"), (PROMPT, "is 3")], "Is it right?")
    assert one.score == 7 and other.score is None and SECRET not in other.reason
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not any(SECRET.encode() in path.read_bytes() for path in files)
    server.judge = lambda request: Reply(400, {"error": f"too long, {SECRET}"})
    (verdict,) = judge().compare([(PROMPT, "is 5", "is 6")])
    assert verdict.reason.startswith("HTTP 400: ") and "too long" in verdict.reason
    assert SECRET not in verdict.reason
    server.judge = lambda request: Reply(401, {"error": SECRET})
    with pytest.raises(RemoteError, match="HTTP 401") as caught:
        judge().compare([(PROMPT, "is 7", "is 8")])
    assert SECRET not in "".join(walk(caught.value))


DANGEROUS = yaml.safe_load(
    """
- {api_key_env: SECRET}
- {base_url: "https://user:SECRET@host/v1"}
- {base_url: "https://host/v1?key=SECRET"}
- {base_url: "ftp://SECRET"}
- {concurrency: 0}
- {timeout_seconds: SECRET}
""".replace("SECRET", SECRET)
)


@pytest.mark.parametrize("options", DANGEROUS)
def test_dangerous_options_are_refused_without_repeating_them(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        OpenAIJudge.Options(server={"base_url": "http://localhost/v1", "model": "m"} | options)
    assert SECRET not in str(caught.value)


def test_a_damaged_file_of_replies_is_named(judge: Built, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "openai_judge.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(RunFailed, match=r"openai_judge\.sqlite"):
        judge()
