"""Chats, servers and evaluations whose answers an engine samples."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignkit.cli import main
from alignkit.contract.settings import Sampling
from alignkit.errors import RecipeError, RunFailed, Stopped
from alignkit.io.console import Reporter
from alignkit_plugins.command_line.words import read_words, split_overrides
from alignkit_plugins.serving.policy import Answer, Opened, opened
from tests.processes.vllm_server import FakeVllm, Serve, serve
from tests.rows import Said, cells

__all__ = ["serve"]

GREEDY = Sampling(max_new_tokens=12, temperature=0.0)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def server(serve: Serve) -> FakeVllm:
    return serve(alpha=32)


def models(finished: Path, *overrides: str, should_stop: Callable[[], None] = lambda: None) -> Any:
    words, found = split_overrides([f"{finished}/sft", *overrides, f"{finished}/online"])
    assert found == list(overrides)
    return opened(read_words(words), found, Reporter(), should_stop, "alignkit chat")


def answers(found: Opened) -> tuple[list[Answer], list[str]]:
    heard: list[str] = []
    each = []
    for policy in found.policies.values():
        prompt = policy.prompt([{"role": "user", "content": "bread is good"}])
        each.append(policy.answer(prompt, GREEDY, 7, heard.append))
    return each, heard


def test_a_path_is_no_override(here: Path) -> None:
    Path("a=b").mkdir()
    Path("c=d").touch()
    assert split_overrides(["a=b", "c=d", "e=f"]) == (["a=b", "c=d"], ["e=f"])


def test_policies_answer_with_an_engine_as_without(house_run: Path, server: FakeVllm) -> None:
    with models(house_run) as found:
        local, _ = answers(found)
    with models(house_run, f"engine.vllm.url={server.url}/v1") as found:
        # Both adapters are there before anybody asks.
        assert len({body["lora_name"] for body in server.paths("/v1/load_lora_adapter")}) == 2
        theirs, heard = answers(found)
    assert theirs == local and heard == [answer.text for answer in theirs]
    assert len(server.paths("/v1/completions")) == 1 + 2  # with the probe
    assert not server.adapters


def test_a_failure_is_of_no_run(house_run: Path, server: FakeVllm) -> None:
    server.change = lambda choice: (
        choice if "prompt_logprobs" in choice else choice | {"logprobs": None}
    )
    said = r"engine 'vllm': http://\S+ cannot be used: .*\nhelp: the same command starts it again$"
    with pytest.raises(RunFailed, match=said):
        with models(house_run, f"engine.vllm.url={server.url}") as found:
            answers(found)


def test_whoever_gives_up_leaves_no_adapter_behind(house_run: Path, server: FakeVllm) -> None:
    """On a server that others use, too, which has not answered yet."""
    asked, ended = threading.Event(), threading.Event()

    def fault(path: str, body: Any) -> None:
        if path == "/v1/completions" and "prompt_logprobs" not in body:
            asked.set()
            ended.wait()

    def should_stop() -> None:
        if asked.is_set():
            raise Stopped("enough")

    server.fault = fault
    with (
        pytest.raises(Stopped),
        models(house_run, f"engine.vllm.url={server.url}", should_stop=should_stop) as found,
    ):
        assert server.adapters
        answers(found)
    ended.set()
    assert not server.adapters


OVERRIDES = """
    engine.vlm.url=http://127.0.0.1:9 | did you mean 'vllm'
    seed=2                            | unknown key 'seed'
    engine.vllm.ulr=x                 | did you mean 'url'
"""


def test_overrides_that_mean_nothing_are_refused(house_run: Path) -> None:
    for override, said in cells(OVERRIDES):
        with pytest.raises(RecipeError, match=said), models(house_run, override):
            pass


def test_evaluate_samples_with_an_engine(
    house_run: Path, server: FakeVllm, tmp_path: Path, said: Said
) -> None:
    words = [f"{house_run}/sft", f"{house_run}/online", f"engine.vllm.url={server.url}"]
    words += ["--reward", "length", "--prompts", str(house_run.parent / "prompts.jsonl")]
    assert main(["evaluate", *words, "--out", str(tmp_path / "out")]) == 0
    assert "samples: vllm; local: log-probabilities" in said()
    # Of the base, too, and with the probe
    asked = [body["model"] for body in server.paths("/v1/completions")]
    assert len(asked) == 1 + 3 * 3 and len(set(asked)) == 3
