"""What servers say of too many tokens, in their own words: which setting helps, and what one
question costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alignkit import Context, RunFailed
from alignkit.errors import RemoteError
from alignkit.judges import CheckedJudge
from alignkit_plugins.ai_feedback.judge import OpenAIJudge
from tests.plugins.judge_server import Reply, Server, options_of, said, serving, thinking
from tests.plugins.test_rlaif import component

ITEMS = [([{"role": "user", "content": "Which is it?"}], f"is {n}") for n in range(20)]
LIMITS = [  # vLLM 0.32, an earlier vLLM, and OpenAI
    (
        "max_tokens=2000 cannot be greater than max_model_len=1024. Please request fewer output "
        "tokens."
    ),
    (
        "'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum "
        "context length is 1024 tokens and your request has 300 input tokens (2000 > 1024 - 300)."
    ),
    (
        "max_tokens is too large: 20000. This model supports at most 16384 completion tokens, "
        "whereas you provided 20000."
    ),
]
LLAMA_CPP = {
    "code": 400,
    "message": (
        "request (4101 tokens) exceeds the available context size (4096 tokens), try increasing it"
    ),
    "type": "exceed_context_size_error",
}


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(thinking) as running:
        yield running


def judge(server: Server, folder: Path, **options: Any) -> CheckedJudge:
    around = Context(models=None, cache=folder / "cache", folder=folder, seed=0, load=list)
    return CheckedJudge(
        component(OpenAIJudge, options_of(server.url, **{"reasons": True} | options)), around
    )


@pytest.mark.parametrize("words", LIMITS, ids=["vllm", "earlier", "openai"])
def test_a_limit_beyond_the_servers_costs_one_question(
    words: str, server: Server, tmp_path: Path
) -> None:
    server.judge = lambda request: Reply(400, {"error": {"message": words}})
    with pytest.raises(RunFailed, match="'max_tokens' to a lower number") as raised:
        judge(server, tmp_path).rate(ITEMS)
    # The name was not at fault
    assert "thinks" not in str(raised.value) and len(server.requests) == 1
    server.judge = thinking
    assert judge(server, tmp_path, max_tokens=500).rate(ITEMS)[3].score == 3.0
    assert server.requests[-1]["max_tokens"] == 500


def test_questions_longer_than_the_context(server: Server, tmp_path: Path) -> None:
    server.judge = lambda request: Reply(400, {"error": LLAMA_CPP})
    with pytest.raises(
        RunFailed, match=r"no reply of use to .*\nhelp: give the server a longer context"
    ):
        judge(server, tmp_path).rate(ITEMS)


def test_a_reply_that_the_context_cuts_off(server: Server, tmp_path: Path) -> None:
    server.script = [said("Let me think", "length")]
    first, *others = judge(server, tmp_path).rate(ITEMS[:9])
    assert first.score is None and "max_tokens, or the server's context" in first.reason
    assert all(rating.score is not None for rating in others)


def test_a_slow_server_is_given_time(server: Server, tmp_path: Path) -> None:
    server.judge = lambda request: Reply(pause=1)
    with pytest.raises(
        RemoteError, match=r"no answer within 0.05 s.*\nhelp: raise 'timeout_seconds', or lower"
    ):
        judge(server, tmp_path, timeout_seconds=0.05, max_retries=0).rate(ITEMS)
