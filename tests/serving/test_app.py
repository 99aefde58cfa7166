"""The OpenAI-compatible endpoint, asked over a socket."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from alignkit import Group
from alignkit.errors import OutOfResource
from alignkit_plugins.people.votes import labeled
from alignkit_plugins.serving.policy import Policy, bytes_of
from tests.patience import PATIENCE
from tests.rows import cells, user
from tests.serving.conftest import Server

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "run-online", "messages": [user("bread is good")]}


def contents(reply: Any) -> list[str]:
    return [choice["message"]["content"] for choice in reply["choices"]]


def end_of(reply: Any) -> str:
    return str(reply["choices"][0]["finish_reason"])


def error_of(server: Server, path: str, body: Any, **headers: str) -> tuple[int, str]:
    status, reply = server.ask(path, body, **headers)
    assert reply.keys() == {"error"}
    kind = "invalid_request_error" if status < 500 else "server_error"
    said = reply["error"]["message"]
    assert reply["error"] == {"message": said, "type": kind, "param": None, "code": None}
    return status, said


# --- answers


def test_an_answer_is_that_of_the_models(server: Server) -> None:
    """The streams of random numbers are those of `alignkit.Policy.sample`, so its samples are the
    same.
    """
    listed = server.ask("/v1/models", method="GET")[1]["data"]
    assert [model["id"] for model in listed] == ["run-online", "run-base"]
    assert "/run" not in json.dumps(listed)  # where they are on this machine
    sampling = {"temperature": 0.9, "top_p": 0.8}
    reply = server.chat(seed=7, max_tokens=20, **sampling)
    policy, prompt = server.opened.policies["run-online"], (user("bread is good"),)
    own = {"seed": 7, "max_new_tokens": 20, "samples_per_prompt": 1, **sampling}
    (group,) = policy.role.sample([Group(prompt)], **own)
    (response,) = group.responses
    end = "length" if response.truncated else "stop"
    assert (contents(reply), end_of(reply)) == ([response.text], end)
    written, read = len(response.tokens or ()), len(policy.role.encoder.prompt(prompt))
    usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    assert reply["usage"] == usage
    again, other = (server.chat(seed=n, max_tokens=20, **sampling) for n in (7, 8))
    assert again["choices"] == reply["choices"] != other["choices"]
    base, online = (server.chat(model=one["id"], temperature=0) for one in listed)
    assert contents(base) != contents(online)


@pytest.mark.silent_bug(
    "export: sampling",
    "A server ignores the sampling settings of the model.",
    "`alignkit serve` samples as the policy's stage did, but at temperature 0.7 and to the model's "
    "own length.",
    "Blaizzy/mlx-vlm#1331",
)
def test_what_is_left_out_is_as_in_training_or_the_models_own(server: Server) -> None:
    told = server.chat(seed=1, temperature=0.7, max_tokens=1000)
    assert server.chat(seed=1)["choices"] == told["choices"]
    sampled = [policy.sampling for policy in server.opened.policies.values()]
    assert [(one.temperature, one.max_new_tokens) for one in sampled] == [(0.7, 1024)] * 2


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def test_a_stream_is_the_answer_without_the_text_that_stops_it(server: Server) -> None:
    asked = {**ASKED, "seed": 5, "temperature": 1.2, "max_tokens": 60}
    whole = server.ask(CHAT, asked)[1]
    (text,) = contents(whole)
    chunks = server.stream(CHAT, {**asked, "stream_options": {"include_usage": True}})
    assert chunks.pop()["usage"] == whole["usage"] and text_of(chunks) == text
    own = [chunk["choices"][0] for chunk in chunks]
    assert own[0]["delta"] == {"role": "assistant", "content": ""} and len(own) > 10
    assert [each["finish_reason"] for each in own] == [None] * (len(own) - 1) + [end_of(whole)]
    stop = text[14:16]  # two tokens
    reply, start = server.ask(CHAT, {**asked, "stop": [stop]})[1], text[: text.index(stop)]
    assert (contents(reply), end_of(reply)) == ([start], "stop")
    assert text_of(server.stream(CHAT, {**asked, "stop": stop})) == start


def test_log_probabilities_are_those_of_a_forward_pass(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the model itself, however it sampled: temperature 1, and no filter."""
    sampling = {"seed": 5, "temperature": 1.5, "top_p": 0.9}
    asked = {**ASKED, **sampling, "max_tokens": 24, "top_logprobs": 2}
    whole = server.ask(CHAT, asked)[1]
    told = whole["choices"][0]["logprobs"]["content"]
    text = b"".join(bytes(one["bytes"]) for one in told)
    assert [text.decode(errors="replace")] == contents(whole)
    role = server.opened.policies["run-online"].role
    assert bytes_of(role.encoder.tokenizer, 10**6) == b""  # as in a padded vocabulary
    groups = role.sample([Group((user("bread is good"),))], max_new_tokens=24, **sampling)
    ((expected, likeliest),) = role.predictions(groups)
    for one, value, is_best in zip(told, expected.tolist(), likeliest.tolist(), strict=False):
        best, second = (other["logprob"] for other in one["top_logprobs"])
        assert one["logprob"] == pytest.approx(value, abs=1e-4)
        assert best >= second and is_best == (one["logprob"] == best)
    chunks = [chunk["choices"][0]["logprobs"] for chunk in server.stream(CHAT, asked)]
    parts = [chunk["content"] for chunk in chunks if chunk]
    assert [*chain(*parts)] == told and len(parts) > 5  # each with its words
    monkeypatch.setattr(role.loaded, "engine", object())
    assert "alignkit's own decoder" in error_of(server, CHAT, asked)[1]


def test_a_long_answer_ends_at_the_context(server: Server) -> None:
    reply = server.chat("a " * 480, max_tokens=100_000, temperature=0, model="run-base")
    assert reply["usage"]["total_tokens"] <= 1024


# --- what is kept


def consent(server: Server, who: str, granted: bool) -> None:
    status, terms = server.ask("/v1/consent", None, "GET", X_Alignkit_Annotator=who)
    assert (status, terms["license"]) == (200, "CC0-1.0")
    assert "models may be trained on them" in terms["terms"]
    said = {"granted": granted, "terms": terms["terms"]}
    status, state = server.ask("/v1/consent", said, X_Alignkit_Annotator=who)
    assert status == 200 and state["agreed"] is granted


def asks(server: Server, who: str, text: str, **keys: Any) -> dict[str, Any]:
    """The answer or the first chunk of it."""
    body = {**ASKED, "messages": [user(text)], "max_tokens": 6, **keys}
    connection, reply = server.send("POST", CHAT, body, X_Alignkit_Annotator=who)
    answer = reply.read().decode().removeprefix("data: ").partition("\n\n")[0]
    connection.close()
    return dict(json.loads(answer))


def kept(server: Server) -> dict[str, Any]:
    """What the store has, by the words of the prompt."""
    entries = labeled(server.collection.store())
    return {entry.item.prompt[0]["content"]: entry for entry in entries}


def thumb(server: Server, who: str, **body: Any) -> int:
    """The status of a thumb of a person."""
    return server.ask("/v1/feedback", body, X_Alignkit_Annotator=who)[0]


def test_only_users_who_agreed_are_kept(server: Server) -> None:
    asks(server, "ada", "before")
    wrong = {"granted": True, "terms": "all"}
    assert server.ask("/v1/consent", wrong, X_Alignkit_Annotator="ada")[0] == 400
    status, reply = server.ask("/v1/consent", {"granted": True})
    assert status == 400 and "X-Alignkit-Annotator" in reply["error"]["message"]
    consent(server, "ada", True)
    whole = asks(server, "ada", "whole", seed=11, temperature=0.5)
    streamed = asks(server, "ada", "stream", stream=True)
    asks(server, "bob", "other")
    server.chat("nobody's")
    until(lambda: "stream" in kept(server))  # it is kept once its last word is sent
    assert not {"before", "other", "nobody's"} & kept(server).keys()
    item = kept(server)["whole"].item
    assert (item.task, item.author, item.license) == ("thumb", "ada", "CC0-1.0")
    assert list(item.responses) == contents(whole)
    assert item.meta == {"seed": 11, "temperature": 0.5} and item.origins[0].endswith("online")
    assert kept(server)["stream"].item.meta["temperature"] == 0.7
    given = [(whole, True), (whole, False), (streamed, True)]  # the last one counts
    assert [thumb(server, "ada", id=one["id"], good=good) for one, good in given] == [200] * 3
    labels = [kept(server)[text].labels for text in ("whole", "stream")]
    assert labels == [[{"good": False}], [{"good": True}]]
    right = {"id": whole["id"], "good": True}
    refused = [("bob", right), ("ada", right | {"id": "chatcmpl-1"}), ("ada", right | {"good": 1})]
    assert [thumb(server, who, **body) for who, body in refused] == [400] * 3
    consent(server, "bob", True)
    assert thumb(server, "bob", **right) == 400  # the answer is Ada's
    consent(server, "bob", False)
    consent(server, "ada", False)
    asks(server, "ada", "after")
    assert thumb(server, "ada", **right) == 400 and "after" not in kept(server)
    assert kept(server)["whole"].withdrawn


def test_a_store_that_fails(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OutOfResource("the disk is full")

    consent(server, "dan", True)
    monkeypatch.setattr(server.collection, "agree", full)
    status, reply = server.ask("/v1/consent", {"granted": False}, X_Alignkit_Annotator="dan")
    assert status == 503 and "the disk is full" in reply["error"]["message"]


# --- what is refused


# What differs from a right request; the status, and what is said
CHANGED = """
    {"temprature": 0}                                   | 400 | 'temperature'?
    {"temperature": "0"}                                | 400 | number,
    {"n": 2}                                            | 400 | n:
    {"top_logprobs": 21}                               | 400 | top_logprobs:
    {"tools": [{"name": "f"}]}                          | 400 | tools:
    {"presence_penalty": 0.5}                           | 400 | presence_penalty:
    {"top_p": 0}                                        | 400 | top_p:
    {"max_tokens": 0}                                   | 400 | max_tokens:
    {"max_tokens": 1.5}                                 | 400 | max_tokens:
    {"stop": ""}                                        | 400 | stop:
    {"messages": []}                                    | 400 | messages:
    {"messages": [{"role": "user", "content": ""}, {"role": "queen"}]} | 400 | messages[1] has the unknown role
    {"messages": [{"role": "user", "content": "\ufdd0"}]} | 400 | reserves
    {"stream": true, "messages": [{"role": "user", "content": "\ufdd0"}]} | 400 | reserves
    {"response_format": {"type": "json_object"}}        | 400 | response_format:
    {"messages": [{"role": "user", "content": "\ud800"}]} | 400 | surrogate
    {"\ud800": 1}                                       | 400 | surrogate
    {"model": "run-onlin"}                              | 404 | there is run-online, run-base
"""
BYTES: list[tuple[bytes, int, str]] = [
    (b"{", 400, "not valid JSON"),
    (b'{"model": "a", "model": "b"}', 400, "has the key 'model' twice"),
    (b"[" * 100_000, 400, "not valid JSON"),
    (b"\xff", 400, "not valid UTF-8"),
    (b"[]", 400, "must be an object, got []"),
    (b'{"model": "run-online"}', 400, "'messages' is missing"),
    (b'{"messages": [{"role": "user", "content": "x"}]}', 404, "there is run-online"),
    (b" " * (2**20 + 1), 413, ""),
]


@pytest.mark.parametrize(("change", "status", "said"), [*cells(CHANGED), *BYTES])
def test_wrong_requests_are_refused_by_name(
    change: Any, status: Any, said: str, server: Server
) -> None:
    body = change if isinstance(change, bytes) else {**ASKED, **json.loads(change)}
    found, message = error_of(server, CHAT, body)
    assert found == int(status) and said in message
    assert not re.search(r"should|Input|codec|validation", message)  # pydantic's and Python's


def test_a_conversation_that_is_too_long_is_refused(server: Server) -> None:
    status, message = error_of(server, CHAT, {**ASKED, "messages": [user("ab" * 508)]})
    assert status == 400 and "has 1024 tokens, but run-online reads at most 1023" in message


def test_wrong_places_are_refused(server: Server) -> None:
    places = [("/v1/chat", {}), ("/v1/completions", {}), ("/v1/models", {})]
    places += [(CHAT, {"Content_Type": "text/plain"})]
    found = [error_of(server, path, ASKED, **headers) for path, headers in places]
    assert [status for status, _ in found] == [404, 404, 405, 415]
    assert found[0][1].startswith(
        "no address /v1/chat; there is /, /v1/models, /v1/chat/completions,"
    )
    assert error_of(server, CHAT, ASKED, Host="evil.example")[0] == 400


NEUTRAL = """
{"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "user": "me", "tools": null,
 "stop": null, "n": 1, "logprobs": false, "functions": [], "metadata": {"a": "b"}, "store": true,
 "audio": null, "web_search_options": {}, "stream_options": null,
 "prompt_cache_retention": "24h", "top_logprobs": 0,
 "service_tier": "auto", "parallel_tool_calls": true, "prompt_cache_key": "k", "safety_identifier": "s",
 "response_format": {"type": "text"}, "tool_choice": "none", "function_call": "auto", "modalities": ["text"],
 "reasoning_effort": "low", "verbosity": "low"}
"""


def test_neutral_values_are_accepted(server: Server) -> None:
    """The page lists those that may have any value. And the limit has two names."""
    from alignkit_plugins.serving.serve_app import IGNORED

    page = (Path(__file__).parents[2] / "docs/policies.md").read_text("utf-8")
    assert all(f"`{key}`" in page for key in IGNORED)
    told = server.chat(seed=1, max_completion_tokens=3, **json.loads(NEUTRAL))
    assert told["choices"] == server.chat(seed=1, max_tokens=3)["choices"]
    hot = {"temperature": 2, "max_tokens": 6}
    assert contents(server.chat(**hot)) != contents(server.chat(**hot))  # a seed of its own
    for one, other in ((1, 9), (9, 1)):  # both are limits
        reply = server.chat(max_tokens=one, max_completion_tokens=other)
        assert reply["usage"]["completion_tokens"] == 1


# --- one after the other


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_requests_wait_for_each_other(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    go, waits, original = threading.Event(), threading.Event(), Policy.answer

    def wait(self: Any, *given: Any) -> Any:
        waits.set()
        assert go.wait(PATIENCE)
        return original(self, *given)

    monkeypatch.setattr(Policy, "answer", wait)
    with ThreadPoolExecutor() as pool:
        replies = pool.map(lambda seed: contents(server.chat(seed=seed)), range(3))
        assert waits.wait(PATIENCE)
        go.set()
    assert list(replies) == [contents(server.chat(seed=seed)) for seed in range(3)]


def test_a_client_that_leaves_ends_its_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is written after the server has noticed, and nothing is kept."""
    left, written = threading.Event(), []
    original = Policy.answer

    def spy(
        self: Any, prompt: Any, sampling: Any, seed: int, heard: Any, wanted: Any, *more: Any
    ) -> Any:
        def slow() -> bool:
            if len(written) == 5:
                assert left.wait(PATIENCE)
                # The server notices when it sends something
                until(lambda: heard("more") or not wanted())
            written.append(1)
            return wanted()

        found = original(self, prompt, sampling, seed, heard, slow, *more)
        written.append(len(found.response.tokens or ()))
        return found

    monkeypatch.setattr(Policy, "answer", spy)
    consent(server, "cid", True)
    body = {**ASKED, "max_tokens": 900, "seed": 77, "temperature": 0.7, "stream": True}
    connection, response = server.send("POST", CHAT, body, X_Alignkit_Annotator="cid")
    until(lambda: len(written) >= 5)
    response.close()
    connection.close()
    left.set()
    until(lambda: len(written) >= 7)
    monkeypatch.undo()
    assert contents(server.chat(seed=5))  # the next one is answered
    assert written[-1] == 6
    seeds = [stored.item.meta["seed"] for stored in server.collection.store().items()]
    assert 77 not in seeds


def test_whatever_fails_is_said_to_whoever_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any, *given: Any) -> Any:
        raise KeyError("melted")

    monkeypatch.setattr(Policy, "answer", fail)
    assert error_of(server, CHAT, ASKED) == (500, "'melted'")
    connection, response = server.send("POST", CHAT, {**ASKED, "stream": True})
    assert response.status == 200 and "'melted'" in response.read().decode()
    connection.close()


# --- the page


def test_the_page_runs_its_own_script_only(server: Server) -> None:
    connection, response = server.send("GET", "/")
    text, policy = response.read().decode(), response.headers["Content-Security-Policy"]
    connection.close()
    assert response.status == 200 and len(text.splitlines()) <= 320
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag in ("script", "style"):
        own = text.partition(f"<{tag}>")[2].partition(f"</{tag}>")[0]
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not re.search(r"<[^>]+ (on\w+|style|src|href)=|innerHTML", text)
