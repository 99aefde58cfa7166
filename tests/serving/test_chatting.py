"""`alignkit chat`: conversations with policies of a run."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignkit import Group, Message
from alignkit.cli import main
from alignkit.contract.settings import Sampling
from alignkit.data.group import responses_of
from alignkit.io.console import Reporter
from alignkit_plugins.command_line.words import read_words
from alignkit_plugins.serving.policy import Opened, opened
from alignkit_plugins.serving.talk import Talk
from tests.patience import PATIENCE
from tests.rows import Said, assistant, cells, user


@pytest.fixture(scope="module")
def models(house_run: Path) -> Iterator[Opened]:
    policies = [f"{house_run}/sft", f"{house_run}/online"]
    named = read_words(policies, [f"{house_run}/liked", "length"])
    with opened(named, (), Reporter(), lambda: None, "alignkit chat") as found:
        yield found


def sampled(
    models: Opened, name: str, messages: Sequence[Message], seed: int, most: int = 16
) -> Any:
    """What `alignkit.Policy.sample` gives: the prompt with one response."""
    options = {"max_new_tokens": most, "temperature": 0.8, "samples_per_prompt": 1}
    role = models.policies[name].role
    (group,) = role.sample([Group(tuple(messages))], seed=seed, **options)
    return group


def text_of(*asked: Any) -> str:
    return str(sampled(*asked).responses[0].text)


def session(models: Opened, most: int = 16, **more: Any) -> Talk:
    sampling = Sampling(max_new_tokens=most, temperature=0.8)
    return Talk(replace(models, sampling=sampling), console=Console(file=io.StringIO()), **more)


def entered(*lines: str) -> Callable[[str], str]:
    """Lines as a person enters them, and then the end."""
    waiting = iter(lines)

    def read(prompt: str) -> str:
        for line in waiting:
            return line
        raise EOFError

    return read


def said(talk: Talk, *lines: str) -> str:
    """What is shown of a chat in a pipe."""
    out = io.StringIO()
    talk.console = Console(file=out, highlight=False)
    talk.run(entered(*lines))
    return out.getvalue()


def test_each_policy_has_its_own_conversation_with_its_rewards(models: Opened) -> None:
    """Those that a step's scorer gives the samples."""
    talks, first, second = session(models, seed=3), user("my old friend"), user("bread is good")
    lines = said(talks, first["content"], "", second["content"]).splitlines()
    scored, later = [], []
    for name in models.policies:
        scored.append(sampled(models, name, [first], 3))
        turns = [first, assistant(scored[-1].responses[0].text), second]
        later.append(sampled(models, name, turns, 4))
        assert talks.turns[name] == [*turns, assistant(later[-1].responses[0].text)]
    rewards = [responses_of(each.score([*scored, *later])) for each in models.scorers]
    remarks = [
        f"[liked {liked.scores['reward']:.3g}, length {length.scores['reward']:.3g}]"
        for liked, length in zip(*rewards, strict=True)
    ]
    assert [line for line in lines if line.endswith(":")] == ["run-sft:", "run-online:"] * 2
    assert [line for line in lines if line in remarks] == remarks and len(set(remarks)) == 4


def test_a_new_conversation(models: Opened) -> None:
    talks = session(models, seed=0, system="Be kind.")
    said(talks, "bread is good", "/help", "/reset", "my old friend")
    system, asked = Message(role="system", content="Be kind."), user("my old friend")
    answer = assistant(text_of(models, "run-sft", [system, asked], 1))
    assert talks.turns["run-sft"] == [asked, answer]


def test_a_question_that_is_too_long(models: Opened) -> None:
    talks = session(models)
    shown = said(talks, "ab" * 3000, "a")
    assert shown.count("reads at most 1023") == 2 and "/reset begins a new conversation" in shown
    assert [turns[0]["content"] for turns in talks.turns.values()] == ["a", "a"]


def test_control_characters_do_not_reach_the_terminal(models: Opened) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", errors="replace", newline="")
    talk = Talk(models, console=Console(file=out, highlight=False))
    for piece in ("\x1b[31mred", "\x07", "日本 é"):
        talk.write(piece)
    out.flush()
    written = out.buffer.getvalue().decode("latin-1")  # type: ignore[attr-defined]
    assert written == "?[31mred??? é"


def test_ctrl_c_stops_the_answers(models: Opened) -> None:
    talks = session(models, 300, seed=3)
    heard: list[str] = []

    def more(text: str) -> None:
        heard.append(text)
        if len(heard) == 3:
            signal.raise_signal(signal.SIGINT)

    talks.write = more  # type: ignore[method-assign]
    talks.run(entered("my old friend"))
    whole = text_of(models, "run-sft", [user("my old friend")], 3, 300)
    text = talks.turns["run-sft"][1]["content"]
    assert 0 < len(text) < len(whole) and whole.startswith(text[:-1])
    assert talks.turns["run-online"] == []  # it has not begun

    def leave(text: str) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    talks.write = leave  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        talks.run(entered("bread is good"))


def test_in_a_pipe(house_run: Path) -> None:
    """In Latin-1, with bytes that no encoding has. Both sample as the first that learned from its
    own samples, so that temperature decides no comparison.
    """
    words = ["chat", f"{house_run}/sft", f"{house_run}/online", "sampling.temperature=0.2"]
    done = subprocess.run(
        [sys.executable, "-m", "alignkit", *words],
        input=b"bread is good\n/reset\nbread is g\xe9\xff\n\x1b[A\n",
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1", "COLUMNS": "200"},
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr.decode()
    out = done.stdout.decode("latin-1")
    assert "\x1b" not in out and "the conversation is forgotten" in out
    assert "> " not in out.splitlines()[0]
    assert b"run-sft and run-online: max_new_tokens 6, temperature 0.2" in done.stderr


def test_the_page_is_that_of_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def start(*given: Any, **more: Any) -> None:
        started.append((given, more))

    monkeypatch.setattr("alignkit_plugins.serving.command.start", start)
    assert main(["chat", "x/sft", "--page", "--system", "Be kind", "sampling.top_k=1"]) == 0
    ((words, port, address), more) = started[0]
    assert (words, port, address.host) == (["x/sft", "sampling.top_k=1"], None, "127.0.0.1")
    assert more["page"] == "/#system=Be+kind"


USAGE = """
    sft --collect a.feedback   | a chat in the terminal is not collected
    sft --prompts a --out b --system c | --prompts and --out answer a file
    sft --out b.jsonl          | --prompts and --out answer a file
    sft --page --reward length | the page shows no rewards
    liked                      | is a reward model, but a policy is needed
    sft --reward online        | is a policy, but a reward is needed
    sft --reward lenght        | did you mean 'length'
    nothing                    | stage
"""


@pytest.mark.parametrize(("words", "why"), cells(USAGE))
def test_usage(words: str, why: str, house_run: Path, said: Said) -> None:
    words = re.sub(r"\b(sft|online|liked|nothing)\b", rf"{house_run}/\1", words)
    assert main(["chat", *words.split()]) in (1, 2)
    assert why in said()
