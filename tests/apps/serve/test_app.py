"""The OpenAI-compatible endpoint, asked over a socket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from alignkit import Message
from alignkit.cli import main
from alignkit.data.group import read_groups
from alignkit.errors import OutOfResource
from alignkit_apps.policies import work as work_module
from alignkit_plugins.people.effective_labels import labeled
from tests.apps.serve.conftest import WORDS, Server
from tests.patience import PATIENCE

CHAT = "/v1/chat/completions"
ASKED: dict[str, Any] = {"model": "run-online", "messages": [{"role": "user", "content": "bread is good"}]}


def contents(reply: Any) -> list[str]:
    return [choice["message"]["content"] for choice in reply["choices"]]


def error_of(server: Server, path: str, body: Any, **headers: str) -> tuple[int, str, Any, Any]:
    status, reply = server.ask(path, body, **headers)
    assert reply.keys() == {"error"} and reply["error"].keys() == {"message", "type", "param", "code"}
    return status, reply["error"]["message"], reply["error"]["param"], reply["error"]["code"]


# --- answers


def test_models(server: Server) -> None:
    status, reply = server.ask("/v1/models", method="GET")
    assert status == 200 and [model["id"] for model in reply["data"]] == ["run-online", "run-base", "best"]
    word = reply["data"][0]["root"]
    assert server.ask(f"/v1/models/{word}", method="GET") == (200, reply["data"][0])


def test_an_answer_is_that_of_the_models(server: Server) -> None:
    """The streams of random numbers are those of `Models.sample`, so its samples are the same."""
    reply = server.chat(seed=7, n=3, max_tokens=20, temperature=0.9, top_p=0.8)
    policy = server.opened.policies["run-online"]
    prompt = [Message(role="user", content="bread is good")]
    options = {"samples_per_prompt": 3, "max_new_tokens": 20, "temperature": 0.9, "top_p": 0.8}
    (group,) = policy.service.sample(policy.reference, [prompt], seed=7, **options)
    assert contents(reply) == [response.text for response in group.responses]
    assert len(set(contents(reply))) == 3
    assert [c["finish_reason"] for c in reply["choices"]] == [
        "length" if response.truncated else "stop" for response in group.responses
    ]
    written = sum(len(response.tokens or ()) for response in group.responses)
    read = len(policy.service.encoder.prompt(prompt))
    assert reply["usage"] == {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    assert server.chat(seed=7, n=3, max_tokens=20, temperature=0.9, top_p=0.8)["choices"] == reply["choices"]
    assert server.chat(seed=8, n=3, max_tokens=20, temperature=0.9, top_p=0.8)["choices"] != reply["choices"]


def test_the_best_of_three_is_an_answer(server: Server) -> None:
    """Each of two answers is the best of three samples by the reward, which were all paid."""
    policy = server.opened.policies["best"]
    prompt = [Message(role="user", content="bread is good")]
    (group,) = policy.service.sample(
        policy.reference, [prompt], seed=7, samples_per_prompt=6, max_new_tokens=20, temperature=0.9
    )
    scores = policy.service.scores(policy.chooser.spec.name, [group])
    places = [max(range(start, start + 3), key=lambda place: scores[place]) for start in (0, 3)]
    keys = {"model": "best", "seed": 7, "n": 2, "max_tokens": 20, "temperature": 0.9}
    reply = server.chat(**keys)
    assert contents(reply) == [group.responses[place].text for place in places]
    assert reply["usage"]["completion_tokens"] == sum(len(r.tokens or ()) for r in group.responses)
    chunks = [chunk["choices"][0] for chunk in server.stream(CHAT, {**ASKED, **keys})]
    streamed = ["".join(c["delta"].get("content", "") for c in chunks if c["index"] == index) for index in range(2)]
    assert streamed == contents(reply)


@pytest.mark.silent_bug(
    "export: sampling",
    "A server ignores the sampling settings of the model.",
    "`alignkit serve` samples as the policy's stage did.",
    "Blaizzy/mlx-vlm#1331",
)
def test_what_is_left_out_is_as_in_training(server: Server) -> None:
    assert server.chat(seed=1)["choices"] == server.chat(seed=1, temperature=0.7, max_tokens=24)["choices"]
    assert server.opened.policies["run-online"].described() == "temperature 0.7, max_new_tokens 24"
    assert server.opened.policies["run-base"].described() == "temperature 1.0, max_new_tokens 512"


def test_policies_differ_and_have_their_words_as_names(server: Server) -> None:
    word = server.opened.policies["run-base"].word
    answers = {name: contents(server.chat(model=name, temperature=0)) for name in ("run-online", "run-base", word)}
    assert answers["run-base"] == answers[word] != answers["run-online"]


@pytest.mark.parametrize("keys", [{}, {"n": 2, "logprobs": True, "top_logprobs": 2}], ids=["one", "two"])
def test_a_stream_is_the_answer(server: Server, keys: dict[str, Any]) -> None:
    asked = {**ASKED, "seed": 5, "temperature": 1.2, "max_tokens": 60, **keys}
    whole = server.ask(CHAT, asked)[1]
    chunks = server.stream(CHAT, {**asked, "stream_options": {"include_usage": True}})
    assert chunks.pop()["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == choice["index"]]
        assert own[0]["delta"] == {"role": "assistant", "content": ""} and len(own) > 5
        assert "".join(c["delta"].get("content", "") for c in own) == choice["message"]["content"]
        assert [c["finish_reason"] for c in own] == [None] * (len(own) - 1) + [choice["finish_reason"]]
        if keys:
            listed = [token for c in own for token in (c["logprobs"] or {"content": []})["content"]]
            assert listed == choice["logprobs"]["content"] and len(listed[0]["top_logprobs"]) == 2


def test_stop_strings_are_cut_off(server: Server) -> None:
    plain = contents(server.chat(seed=5, max_tokens=60))[0]
    stop = plain[8:10]
    assert "\ufffd" not in stop
    asked = {**ASKED, "seed": 5, "max_tokens": 60, "stop": ["never written", stop]}
    choice = server.ask(CHAT, asked)[1]["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (plain[: plain.index(stop)], "stop")
    pieces = [c["choices"][0]["delta"].get("content", "") for c in server.stream(CHAT, asked)]
    assert "".join(pieces) == choice["message"]["content"]


def test_logprobs_of_a_judge(server: Server) -> None:
    reply = server.chat(max_tokens=1, temperature=0, logprobs=True, top_logprobs=20)
    (token,) = reply["choices"][0]["logprobs"]["content"]
    values = [top["logprob"] for top in token["top_logprobs"]]
    assert len(values) == 20 and values == sorted(values, reverse=True) and values[0] == token["logprob"] < 0
    assert server.chat(max_tokens=1)["choices"][0]["logprobs"] is None


def test_a_long_answer_ends_at_the_context(server: Server) -> None:
    reply = server.chat("a " * 480, max_tokens=100_000, temperature=0, model="run-base")
    assert reply["usage"]["total_tokens"] <= 1024


def test_evaluate_gives_the_same_answers_and_a_judge_can_ask(server: Server, run: Path, tmp_path: Path) -> None:
    """At a temperature near 0; the judge is the server."""
    # The judge names neither answer: a run that asks about more than two pairs would stop.
    asked_about = list(WORDS)[:2]
    rows = [{"prompt": text} for text in asked_about]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = f"base_url: 'http://127.0.0.1:{server.port}/v1', model: run-base, min_mass: 0"
    words = ["--prompts", str(tmp_path / "p.jsonl"), "--judge", f"{{openai_judge: {{{asked}}}}}"]
    words += ["--temperature", "0.0001", "--max-new-tokens", "24", "--out", str(tmp_path / "run")]
    assert main(["evaluate", str(run / "base"), str(run / "online"), *words]) == 0
    groups = read_groups(tmp_path / "run" / "evaluate" / "samples.jsonl")
    assert [group.prompt[0]["content"] for group in groups] == asked_about
    for group in groups:
        texts = [contents(server.chat(group.prompt[0]["content"], temperature=0, max_tokens=24, model=name))[0]
                 for name in ("run-base", "run-online")]  # fmt: skip
        assert texts == [response.text for response in group.responses]
    summary = json.loads((tmp_path / "run" / "evaluate" / "evaluation.json").read_text(encoding="utf-8"))
    assert summary["judges"] == ["openai_judge"] and "openai_judge" in json.dumps(summary["judged"])


# --- what is kept


def consent(server: Server, who: str, granted: bool) -> None:
    status, terms = server.ask("/v1/consent", None, "GET", X_Alignkit_Annotator=who)
    assert status == 200 and terms["license"] == "CC0-1.0" and "models may be trained on them" in terms["terms"]
    said = {"granted": granted, "terms": terms["terms"]}
    status, state = server.ask("/v1/consent", said, X_Alignkit_Annotator=who)
    assert status == 200 and state["agreed"] is granted


def asks(server: Server, who: str, text: str, **keys: Any) -> tuple[str, dict[str, Any]]:
    """Whether the answer is kept, as its header says, and the answer or the first chunk of it."""
    body = {**ASKED, "messages": [{"role": "user", "content": text}], "max_tokens": 6, **keys}
    connection, reply = server.send("POST", CHAT, body, X_Alignkit_Annotator=who)
    answer = reply.read().decode().removeprefix("data: ").partition("\n\n")[0]
    connection.close()
    return str(reply.headers["X-Alignkit-Kept"]), json.loads(answer)


def items(server: Server, text: str) -> list[Any]:
    return [e for e in labeled(server.collection.store()) if e.stored.item.prompt[0]["content"] == text]


def test_only_users_who_agreed_are_kept(server: Server) -> None:
    assert asks(server, "ada", "before")[0] == "no"
    assert server.ask("/v1/consent", {"granted": True, "terms": "all"}, X_Alignkit_Annotator="ada")[0] == 400
    status, reply = server.ask("/v1/consent", {"granted": True})
    assert status == 400 and "in the header X-Alignkit-Annotator" in reply["error"]["message"]
    consent(server, "ada", True)
    kept, whole = asks(server, "ada", "whole", n=2, seed=11)
    streamed = asks(server, "ada", "stream", stream=True)[1]
    assert kept == "yes" and asks(server, "bob", "other")[0] == "no"
    server.chat("nobody's")
    assert not [text for text in ("before", "other", "nobody's") if items(server, text)]
    (entry,) = items(server, "whole")
    item = entry.stored.item
    assert (item.task, item.author, item.license, list(item.responses)) == (
        "ranking",
        "ada",
        "CC0-1.0",
        contents(whole),
    )
    assert item.meta == {"seed": 11, "temperature": 0.7} and item.origins[0].endswith("online")
    for good in (True, False):  # the last one counts
        thumb = {"id": whole["id"], "choice": 1, "good": good}
        assert server.ask("/v1/feedback", thumb, X_Alignkit_Annotator="ada") == (200, thumb)
    assert server.ask("/v1/feedback", {"id": streamed["id"], "good": True}, X_Alignkit_Annotator="ada")[0] == 200
    rated = [(e.stored.item.responses, e.final) for e in [*items(server, "whole"), *items(server, "stream")] if e.final]
    assert rated[0] == ((contents(whole)[1],), {"good": False}) and rated[1][1] == {"good": True}
    for who, wrong in (("bob", {}), ("ada", {"id": "chatcmpl-1"}), ("ada", {"choice": 2}), ("ada", {"good": 1})):
        assert server.ask("/v1/feedback", {**thumb, **wrong}, X_Alignkit_Annotator=who)[0] == 400
    consent(server, "ada", False)
    assert server.ask("/v1/feedback", thumb, X_Alignkit_Annotator="ada")[0] == 400
    assert asks(server, "ada", "after")[0] == "no" and not items(server, "after")
    assert [entry.withdrawn for entry in items(server, "whole")] == [True, True]


def test_a_store_that_fails_is_no_reason_to_answer_nobody(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OutOfResource("the disk is full")

    consent(server, "dan", True)
    monkeypatch.setattr(server.collection, "keep", full)
    assert asks(server, "dan", "whole")[0] == "no"
    monkeypatch.setattr(server.collection, "agree", full)
    status, reply = server.ask("/v1/consent", {"granted": False}, X_Alignkit_Annotator="dan")
    assert status == 503 and "the disk is full" in reply["error"]["message"]


# --- what is refused


@pytest.mark.parametrize(
    ("change", "message", "param"),
    [
        ({"temprature": 0}, "unknown key 'temprature'; did you mean 'temperature'?", "temprature"),
        ({"temperature": "0"}, "temperature: expected a number, got '0'; write 0", "temperature"),
        ({"temperature": -1}, "temperature: expected at least 0, got -1", "temperature"),
        ({"n": 0}, "n: expected at least 1, got 0", "n"),
        ({"n": True}, "n: expected an integer, got true", "n"),
        ({"top_p": 0}, "top_p: expected a number above 0, got 0", "top_p"),
        ({"max_tokens": 1.5}, "max_tokens: expected an integer, got 1.5", "max_tokens"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens and max_completion_tokens differ", "max_tokens"),
        ({"stop": ""}, "stop: expected texts of at least 1 character", "stop"),
        ({"messages": []}, "messages: expected at least 1 item, got []", "messages"),
        ({"messages": [{"role": "queen", "content": "x"}]}, "messages[0] has the unknown role 'queen'", "messages"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]", "messages"),
        ({"presence_penalty": 0.5}, "presence_penalty: 0.5 is not supported; leave it out", "presence_penalty"),
        ({"tools": [{"type": "function"}]}, "tools: ", "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format: ", "response_format"),
        ({"top_logprobs": 3}, "top_logprobs needs 'logprobs': true", "top_logprobs"),
        ({"stream_options": {}}, "stream_options needs 'stream': true", "stream_options"),
    ],
)
def test_wrong_keys_and_values(server: Server, change: dict[str, Any], message: str, param: str) -> None:
    status, said, where, _ = error_of(server, CHAT, {**ASKED, **change})
    assert status == 400 and message in said and where == param


def test_neutral_values_are_accepted(server: Server) -> None:
    neutral = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "user": "me", "tools": None}
    asked = {"seed": 1, "max_tokens": 3}
    assert server.chat(**asked, **neutral)["choices"] == server.chat(**asked)["choices"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[]", "must be a JSON object, not []"),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "'model' is missing; it is one of run-online, run-base"),
        (b'{"model": "run-online"}', "'messages' is missing"),
    ],
)
def test_bodies_that_are_no_request(server: Server, body: bytes, said: str) -> None:
    status, message, _, _ = error_of(server, CHAT, body)
    assert status == 400 and said in message


def test_a_template_that_refuses(server: Server) -> None:
    reserved = {**ASKED, "messages": [{"role": "user", "content": "\ufdd0"}]}
    for asked in (reserved, {**reserved, "stream": True}):
        status, message, _, _ = error_of(server, CHAT, asked)
        assert status == 400 and "reserves" in message


def test_other_statuses(server: Server) -> None:
    status, message, _, code = error_of(server, CHAT, {**ASKED, "model": "run-onlin"})
    assert (status, code) == (404, "model_not_found") and "did you mean 'run-online'?" in message
    status, message, _, code = error_of(server, CHAT, {**ASKED, "messages": [{"role": "user", "content": "ab" * 9999}]})
    assert (status, code) == (413, "context_length_exceeded") and "reads at most 1023" in message
    status, message, _, code = error_of(server, CHAT, b" " * (2**20 + 1))
    assert (status, code) == (413, "request_too_large")
    assert error_of(server, CHAT, ASKED, Content_Type="text/plain")[0] == 415
    assert error_of(server, "/v1/chat", ASKED)[0] == 404
    assert error_of(server, "/v1/completions", {"model": "run-base", "prompt": "bread is"})[0] == 404
    assert error_of(server, "/v1/models", ASKED)[0] == 405


def test_other_hosts_are_refused(server: Server) -> None:
    """A page of another host, whose name was made to mean this machine, sends its own name."""
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[", "@localhost"):
        status, message, _, _ = error_of(server, CHAT, ASKED, Host=host)
        assert status == 403 and "does not answer for the host" in message, host
    for host in ("localhost", "LOCALHOST:1", "[::1]:8000"):
        assert server.ask("/v1/models", method="GET", Host=host)[0] == 200
    connection, response = server.send("OPTIONS", CHAT, None, Origin="http://evil.example")
    assert response.status == 405 and "access-control-allow-origin" not in response.headers
    connection.close()


# --- the queue


@dataclass(frozen=True)
class Held:
    """The model, which waits until `go` is called. waits: whether it has a request."""

    go: Callable[[], None]
    waits: Callable[[], bool]


@pytest.fixture
def held(server: Server, monkeypatch: pytest.MonkeyPatch) -> Held:
    go, waits = threading.Event(), threading.Event()
    original = work_module.Work._answer

    def wait(self: Any, jobs: Any) -> None:
        if jobs:
            waits.set()
            assert go.wait(PATIENCE)
        original(self, jobs)

    monkeypatch.setattr(work_module.Work, "_answer", wait)
    return Held(go.set, waits.is_set)


def until(condition: Callable[[], bool]) -> None:
    """Wait for another thread."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def in_background(call: Callable[[], Any], results: list[Any]) -> threading.Thread:
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    return thread


def test_waiting_requests_are_answered_together(server: Server, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = type(server.opened.policies["run-online"]).answer

    def spy(self: Any, questions: Any, sampling: Any) -> Any:
        sizes.append(len(questions))
        return original(self, questions, sampling)

    monkeypatch.setattr(type(server.opened.policies["run-online"]), "answer", spy)
    results: list[Any] = []
    threads = []
    for seed in range(6):
        threads.append(in_background(lambda seed=seed: (seed, contents(server.chat(seed=seed))), results))
        until(held.waits)  # the first is with the model
    until(lambda: len(server.work._waiting) == 5)
    held.go()
    for thread in threads:
        thread.join(PATIENCE)
    assert sizes == [1, 5]
    alone = [(seed, contents(server.chat(seed=seed))) for seed in range(6)]
    assert sorted(results) == alone


def test_too_many_requests(server: Server, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_module, "MOST_WAITING", 1)
    results: list[Any] = []
    first = in_background(lambda: server.chat(max_tokens=1), results)
    until(held.waits)
    second = in_background(lambda: server.chat(max_tokens=1), results)
    until(lambda: bool(server.work._waiting))
    connection, response = server.send("POST", CHAT, ASKED)
    reply = json.loads(response.read())
    connection.close()
    assert (response.status, reply["error"]["code"], response.headers["Retry-After"]) == (503, "busy", "1")
    held.go()
    for thread in (first, second):
        thread.join(PATIENCE)
    assert len(results) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer(server: Server, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens that are written after it has left are few."""
    left, written = threading.Event(), []
    policy = type(server.opened.policies["run-online"])
    original = policy.answer

    def spy(self: Any, questions: Any, sampling: Any) -> Any:
        wanted = questions[0].wanted

        def slow() -> bool:
            if written and len(written) == 5:
                assert left.wait(PATIENCE)
                until(lambda: not wanted())  # the server has noticed
            written.append(1)
            return bool(wanted())

        object.__setattr__(questions[0], "wanted", slow)
        found = original(self, questions, sampling)
        written.append(len(found[0][0].tokens))
        return found

    monkeypatch.setattr(policy, "answer", spy)
    consent(server, "cid", True)
    body = {**ASKED, "max_tokens": 900, "seed": 77, "temperature": 0.7, "stream": stream}
    connection = server.begin(CHAT, body, "X-Alignkit-Annotator: cid")
    until(lambda: len(written) >= 5)
    connection.close()
    left.set()
    monkeypatch.undo()
    assert contents(server.chat(seed=5))  # the next one is answered
    assert written[-1] == 6
    assert not [stored for stored in server.collection.store().items() if stored.item.meta["seed"] == 77]
