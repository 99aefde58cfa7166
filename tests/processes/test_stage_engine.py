"""The engine of a stage: what it is asked, what it is blamed for, and what a hang costs."""

from __future__ import annotations

import contextlib
import itertools
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from alignkit import Completion, EngineSetup, RecipeError
from alignkit.cli import main
from alignkit.errors import PluginError
from alignkit.io.digest import digest
from alignkit.models.generate import generate
from alignkit.models.shared_model import UNMODIFIED
from alignkit.recipe.load import load_recipe
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit.testing.tiny import add_noise
from alignkit_plugins.processes.engine import EngineThread, NoProgress, version_of
from tests.models.tiny import tiny_model
from tests.processes.local_engine import LocalEngine, asked, measured, stage_engine
from tests.rows import Said, cells, with_plugin, write_recipe

BROKEN = """
import os, time
from dataclasses import replace
from alignkit import *
from tests.processes.local_engine import LocalEngine

class Broken(LocalEngine):
    calls = 0

    def sample(self, policy, prompts, *arguments):
        how, found = os.environ.get("SABOTAGE"), super().sample(policy, prompts, *arguments)
        Broken.calls += bool(prompts)  # not of the start
        if Broken.calls and how == "hang":
            time.sleep(10**6)
        if Broken.calls == 2 and how == "version":
            found[2][1] = replace(found[2][1], version=3)
        return found

@hookimpl
def register(add):
    add("engine", "broken", Broken)
"""
ALIGN = """
align:
  algorithm: rloo
  prompts: prompts.jsonl
  reward: {length: {unit: characters}}
  rollout: {samples_per_prompt: 2, max_new_tokens: 5}
  iterations: 2
  prompts_per_iteration: 3
"""

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_mistake_is_named_a_call_that_hangs_is_given_up_and_the_run_continues(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another timeout it is the same stage."""
    recipe, plugin = write_recipe(tmp_path, ALIGN), with_plugin(tmp_path / "broken.py", BROKEN)

    def run(sabotage: str, timeout: float = PATIENCE) -> tuple[int, str]:
        monkeypatch.setenv("SABOTAGE", sabotage)
        words = [str(recipe), f"engine.broken.timeout={timeout:g}", *plugin]
        code = main(["run", *words, "--out", str(tmp_path / "out")])
        return code, said()

    code, err = run("version")
    version = (
        r"in `Broken.sample`: for prompt 2 \(\S*prompts.jsonl:\d\), sample 1 it used version 3"
    )
    assert code == 3 and re.search(
        f"^error: plugin 'broken.py', stage 'align', {version}", err, re.M
    )
    assert "in iteration 2 of 2" in err and "Traceback" not in err
    code, err = run("hang", 2)
    assert code == 3 and "it made no progress for 2 seconds and was given up" in err
    running = "'align', in `Broken.close`: a call is still running"
    assert err.count(running) == 1 and "the same command continues the run" in err
    code, err = run("")
    assert code == 0 and "starting over" not in err


# Calls


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The engine's clock: it moves only when a test moves it."""
    moved = [0.0]
    monkeypatch.setattr("alignkit_plugins.processes.engine.now", lambda: moved[0])
    return moved


def test_progress_keeps_a_slow_call_alive(clock: list[float]) -> None:
    """Five parts take three times as long as the timeout."""
    ended, thread = threading.Event(), EngineThread(10.0, lambda: None)

    def slow(progress: bool) -> str:
        for part in range(1, 6):
            clock[0] += 6
            thread.progress(part if progress else 0)
        ended.wait(0 if progress else PATIENCE)
        return "done"

    assert thread.wait(thread.begin(lambda: slow(True))) == "done"
    with pytest.raises(NoProgress):
        thread.wait(thread.begin(lambda: slow(False)))
    assert thread.close(lambda: None) is None
    ended.set()
    thread._thread.join(PATIENCE)
    assert not thread.runs  # although its last call was given up


def test_an_engine_that_does_not_close_is_reported_and_what_was_dropped_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it closes part by part."""
    monkeypatch.setattr("alignkit_plugins.processes.engine.CLOSING", 0.2)
    ended = threading.Event()

    class Endless(LocalEngine):
        def sample(self, *arguments: Any) -> Any:
            raise ValueError("nobody hears this")

        def close(self) -> None:
            for part in itertools.count(1):
                self.setup.progress(part)
                if ended.wait(0.05):
                    return

    said: list[str] = []
    engine = stage_engine(tmp_path, Endless, said.append)
    engine.request(asked(tiny_model())).drop()
    engine.close()
    ended.set()
    assert [line.partition("`: ")[2] for line in said] == [
        "NoProgress: not done after 0.2 seconds",
        "a call is still running; its thread ends with this process",
    ]


def test_a_call_that_ends_when_the_engine_is_closed_is_not_reported(
    tmp_path: Path, clock: list[float]
) -> None:
    class Held(LocalEngine):
        released = threading.Event()

        def prepare(self, setup: EngineSetup) -> None:
            clock[0] += 601
            self.released.wait(PATIENCE)

        def close(self) -> None:
            self.released.set()

    said: list[str] = []
    engine = stage_engine(tmp_path, Held, said.append)
    with pytest.raises(PluginError, match=r"[.]prepare`: it made no progress for 600 seconds"):
        engine.request(asked(tiny_model()))
    engine.close()
    assert said == []


# What it is asked


def test_an_engine_idles_between_calls_and_gets_weights_that_have_changed(tmp_path: Path) -> None:
    heard: list[Any] = []

    class Watched(LocalEngine):
        def idle(self) -> None:
            heard.append("idle")

        def wake(self) -> None:
            heard.append("wake")

        def publish(self, policy: str, adapter: Path | None, version: int) -> None:
            assert adapter is None or (adapter / "adapter_model.safetensors").is_file()
            heard.append(version)
            super().publish(policy, adapter, version)

        def sample(self, policy: str, *arguments: Any) -> Any:
            heard.append(policy)
            return super().sample(policy, *arguments)

    model = tiny_model()
    model.add_role("one")
    engine = stage_engine(tmp_path, Watched)

    def ask(role: str = UNMODIFIED) -> Any:
        return engine.request(asked(model, role)).result()

    first = ask("one")
    ask()
    before = version_of(model, "one")
    model.drop_role("one")
    model.add_role("one")
    assert ask("one") == first, "the same weights"
    add_noise(model, "one", 0.1, 1)
    ask("one")
    after = version_of(model, "one")
    engine.request(asked(model)).drop()
    assert before != after and heard == [
        *(before, "one", "idle"),
        *("wake", 0, UNMODIFIED, "idle"),
        *("wake", "one", "idle"),
        *("wake", after, "one", "idle"),
        *("wake", UNMODIFIED, "idle"),  # also after samples that nobody wants
    ]
    assert [path.name for path in (tmp_path / "engine" / "weights").iterdir()] == ["2"]
    engine.close()
    assert not (tmp_path / "engine").exists()


def test_what_was_begun_is_from_the_weights_of_then(tmp_path: Path) -> None:
    """The engine is held until the weights have changed, and whoever asks next waits for it."""
    released = threading.Event()

    class Held(LocalEngine):
        def sample(self, *arguments: Any) -> Any:
            assert released.wait(PATIENCE)
            return super().sample(*arguments)

    model = tiny_model()
    model.add_role("one")
    request = asked(model, "one", max_new_tokens=8)
    ((expected,),), engine = generate(request), stage_engine(tmp_path, Held)
    begun = engine.request(request)
    add_noise(model, "one", 0.5, 1)
    assert not begun.seconds
    released.set()
    ((later,),), ((first,),) = engine.request(request).result(), begun.result()
    assert later.tokens != expected.tokens == first.tokens and begun.seconds > 0
    engine.close()


def test_prompts_have_rooms_of_their_own(tmp_path: Path) -> None:
    """A prompt may be a conversation, which leaves less room; the log-probabilities are those of
    training.
    """
    model, engine = tiny_model(), stage_engine(tmp_path, LocalEngine)
    model.add_role("one")
    add_noise(model, "one", 0.1, 1)
    prompts, seeds = [(1, 30, 31), (1, 40, 41, 42, 43, 44)], [[1, 2], [3]]
    request = asked(model, "one", seeds, prompts=prompts, rooms=(9, 3), max_new_tokens=10)
    counts: list[int] = []
    found = engine.request(request).result(counts.append)
    for each in (found, generate(request)):
        assert [[len(one.tokens) for one in row] for row in each] == [[9, 9], [3]]
    assert counts[-1] == 3
    for prompt, row in zip(prompts, found, strict=True):
        for one in row:
            expected = measured(model, "one", prompt, one.tokens)
            assert one.logprobs == pytest.approx(expected, abs=1e-4)
    engine.close()


def test_a_completion_is_checked_to_the_last_token(tmp_path: Path) -> None:
    """Rounding may lift a log-probability above 0."""
    model, given = tiny_model(), list[int]()
    size, end = model.model.config.vocab_size, model.end_ids[0]

    class Fixed(LocalEngine):
        def sample(self, policy: str, prompts: Any, *more: Any) -> Any:
            version = self._policies[policy][1]
            return [[Completion(given, [5e-4] * len(given), version)] for _ in prompts]

    engine = stage_engine(tmp_path, Fixed)
    for given, wrong in (
        ([30, 31, end], ""),
        ([30, 31, 32], ""),
        ([30, end], "a response ends before min_new_tokens 2"),
        ([30, 31, size], f"token {size} is not in the vocabulary of {size}"),
    ):
        context = pytest.raises(PluginError, match=wrong) if wrong else contextlib.nullcontext()
        with context:
            ((one,),) = engine.request(asked(model, min_new_tokens=2)).result()
            assert list(one.tokens) == given
    engine.close()


# Recipes


STAGES = f"""
sft: {{algorithm: sft, data: demos.jsonl}}
{ALIGN.strip()}
played: {{algorithm: rloo, prompts: prompts.jsonl, environment: calculator, reward: environment}}
ours: {{algorithm: rloo, prompts: prompts.jsonl, reward: length, engine: local}}
theirs: {{algorithm: rloo, prompts: prompts.jsonl, reward: length, engine: {{vllm: {{timeout: 9}}}}}}
evaluated: {{step: evaluate, policies: [align], prompts: prompts.jsonl, rewards: [length]}}
shown: {{step: evaluate, policies: [align], prompts: prompts.jsonl, rewards: [length], engine: local}}
judged: {{step: judge_pairs, judge: {{local_judge: {{role: base}}}}, prompts: prompts.jsonl, policy: align}}
read: {{step: judge_pairs, judge: {{local_judge: {{role: base}}}}, data: pairs.jsonl}}
asked: {{step: judge_pairs, judge: {{local_judge: {{role: base}}}}, data: pairs.jsonl, engine: vllm}}
said: {{step: judge_pairs, judge: {{local_judge: {{reasons: true}}}}, data: pairs.jsonl}}
"""


def test_an_engine_changes_the_hash_of_stages_that_it_samples_for(tmp_path: Path) -> None:
    """Of steps that sample, unless one names an engine itself: a step of someone else's may sample
    in ways that options do not say. How long is waited, and for which server, changes no result.
    """

    def hashes(**top: Any) -> dict[str, str]:
        recipe = load_recipe(write_recipe(tmp_path, STAGES, **top))
        data = RunData(Path)
        return {
            name: digest(stage_parts(stage, recipe, "base", {}, data))
            for name, stage in recipe.stages.items()
        }

    ours = hashes()
    assert ours == hashes(engine="local")
    changed = hashes(engine="vllm")
    assert changed == hashes(engine={"vllm": {"timeout": 5, "url": "http://127.0.0.1:9"}})
    sampled = {name for name in ours if ours[name] != changed[name]}
    assert sampled == {"align", "played", "evaluated", "judged", "said"}
    assert ours["asked"] != ours["read"] and ours["theirs"] != ours["ours"]


MISTAKES = """
engine.vllm={timeout: 0} | greater than 0
stages.sft.engine=vllm   | sft does not use 'engine'
model.lora=none          | engine 'vllm' takes adapters, but with 'model.lora: none' there are
model.quantization=nf4   | the whole weights, and the quantized ones are trained
"""


@pytest.mark.parametrize(("override", "message"), cells(MISTAKES))
def test_mistakes_in_a_recipe(tmp_path: Path, override: str, message: str) -> None:
    sft = "sft: {algorithm: sft, data: demos.jsonl}"
    path = write_recipe(tmp_path, sft + ALIGN, engine="vllm")
    with pytest.raises(RecipeError, match=message):
        load_recipe(path, [override])
    quantized = "engine.vllm.command=serve --quantization bitsandbytes"
    if "nf4" in override:
        load_recipe(path, [override, quantized])
