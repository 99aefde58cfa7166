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
from tests.ai_feedback.judge_server import Reply, Server, options_of, said, serving, thinking
from tests.ai_feedback.test_rlaif import component

ITEMS = [([{"role": "user", "content": "Which is it?"}], f"is {n}") for n in range(20)]
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


def test_questions_longer_than_the_context(server: Server, tmp_path: Path) -> None:
    server.judge = lambda request: Reply(400, {"error": LLAMA_CPP})
    with pytest.raises(RunFailed, match=r"no reply of use to .*exceeds the available context size"):
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
