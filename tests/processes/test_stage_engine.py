"""The engine of a stage through the command line: what it is asked, what it is blamed for, and what
a hang costs.
"""

from __future__ import annotations

import re
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import PATIENCE

from alignkit import EngineContext, RecipeError
from alignkit.data.group import Group
from alignkit.errors import PluginError
from alignkit.io.digest import digest
from alignkit.models.generate import Continuation, Generation, generate
from alignkit.models.models import LoadedBase
from alignkit.models.packing import measure
from alignkit.models.shared_model import BASE, SharedModel
from alignkit.plugins import load_plugins
from alignkit.recipe.load import load_recipe
from alignkit.registry import Component, Registration
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit.sampling import Sampling
from alignkit.testing.tiny import add_noise
from alignkit.tokens.encoder import Encoded, ResponseTokens
from alignkit_plugins.processes.engine import EngineThread, NoProgress, StageEngine, version_of
from tests.models.tiny import tiny_model
from tests.processes.local_engine import LocalEngine
from tests.rows import prompts, run, write_recipe

BROKEN = """
import time
from dataclasses import replace
from alignkit import *
from tests.processes.local_engine import LocalEngine

class Broken(LocalEngine):
    calls = 0
METHODS

@hookimpl
def register(add):
    add("engine", "broken", Broken)
"""
STAGE: dict[str, Any] = yaml.safe_load("""
algorithm: rloo
prompts: demos.jsonl
reward: {length: {unit: characters}}
rollout: {samples_per_prompt: 2, max_new_tokens: 5}
iterations: 2
prompts_per_iteration: 3
""")
EVALUATE = {"step": "evaluate", "policies": ["align"], "prompts": "demos.jsonl"}
EVALUATE["rewards"] = ["length"]
SECOND = """
def sample(self, *arguments):
    found = super().sample(*arguments)
    Broken.calls += bool(arguments[1])  # not of the start
    return self.second(found) if Broken.calls == 2 else found

def second(self, found):
    """

pytestmark = pytest.mark.usefixtures("one_thread")


def broken(folder: Path, methods: str, timeout: float = 900.0, code: int = 3) -> None:
    """Run an online stage with an engine of these methods from the command line."""
    plugin = folder / "broken.py"
    plugin.write_text(BROKEN.replace("METHODS", textwrap.indent(methods, "    ")))
    recipe = write_recipe(folder, {"align": STAGE}, engine={"broken": {"timeout": timeout}})
    try:
        run(recipe, "--plugin", str(plugin), code=code)
    finally:
        load_plugins()


MISTAKES = [
    ("return found[:-1]", "return a list of 3, each a list of Completions, not "),
    ("raise KeyError('x')", r"KeyError: 'x' \(broken.py:\d+\)"),
    ("exit(0)", "SystemExit: 0"),
    (
        "return [*found[:2], [found[2][0], replace(found[2][1], version=3)]]",
        r"for prompt 2 \(\S*demos.jsonl:\d\), sample 1 it used version 3 of the weights",
    ),
]


@pytest.mark.parametrize(("second", "message"), MISTAKES)
def test_a_mistake_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: str, message: str
) -> None:
    """In the second iteration."""
    broken(tmp_path, SECOND + second)
    err = capsys.readouterr().err
    start = "^error: plugin 'broken.py', stage 'align', in `Broken.sample`: "
    assert re.search(start + message, err, re.MULTILINE), err
    assert "in iteration 2 of 2" in err and "Traceback" not in err


HANGS = """
def prepare(self, context):
    self.options.timeout < 1 or super().prepare(context)
def publish(self, *arguments):
    self.options.timeout < 1 or super().publish(*arguments)
def sample(self, *arguments):
    time.sleep(10**6) if self.options.timeout < 1 else None
    return super().sample(*arguments)
"""


def test_a_call_that_hangs_is_given_up_and_the_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another timeout it is the same stage."""
    broken(tmp_path, HANGS, 0.2)
    err = capsys.readouterr().err
    assert "in `Broken.sample`: it made no progress for 0.2 seconds and was given up" in err
    assert err.count("in `Broken.close`: a call is still running") == 1
    assert "the same command continues the run" in err
    broken(tmp_path, HANGS, code=0)
    assert "starting over" not in capsys.readouterr().err


# The thread of an engine


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The engine's clock: it moves only when a test moves it."""
    moved = [0.0]
    monkeypatch.setattr("alignkit_plugins.processes.engine.now", lambda: moved[0])
    return moved


def test_progress_keeps_a_slow_call_alive(clock: list[float]) -> None:
    """Five parts take three times as long as the timeout."""
    thread, ended = EngineThread(10.0, lambda: None), threading.Event()

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


def test_closing_ends_what_it_can(clock: list[float]) -> None:
    """A call that was given up ends with the engine, if closing it lets the call go."""
    released = threading.Event()
    thread = EngineThread(10.0, lambda: None)

    def held() -> None:
        clock[0] += 11
        released.wait(PATIENCE)

    with pytest.raises(NoProgress):
        thread.wait(thread.begin(held))
    assert thread.busy and thread.runs and thread.close(released.set) is None and not thread.runs


def test_progress_does_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an engine that closes part by part."""
    monkeypatch.setattr("alignkit_plugins.processes.engine.CLOSING", 0.2)
    thread, ended = EngineThread(1e6), threading.Event()

    def close() -> None:
        for part in range(1, 1000):
            thread.progress(part)
            if ended.wait(0.05):
                return

    thread.wait(thread.begin(lambda: None))
    assert isinstance(thread.close(close), NoProgress) and thread.runs
    ended.set()


# What an engine is asked


class Asked:
    """An engine of this class, the model whose roles it samples for, and what is said of it."""

    def __init__(self, folder: Path, kind: type[LocalEngine] = LocalEngine):
        self.said: list[str] = []
        self.model: SharedModel = tiny_model(folder)
        self.model.add_role("one")
        component = Component("engine", "e", Registration("e", kind), kind.Options())
        self.engine = StageEngine(
            component, folder / "engine", stage="s", seed=0, say=self.said.append
        )

    def request(self, role: str = "one", count: int = 3) -> Generation:
        sampling = Sampling(max_new_tokens=count)
        return Generation(self.model, role, self.model.encoder(), ((1, 30, 31),), [[1]], sampling)

    def sample(self, role: str = "one", count: int = 3) -> list[list[Continuation]]:
        found: list[list[Continuation]] = self.engine.request(self.request(role, count)).result()
        return found


def test_an_engine_that_does_not_close_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit_plugins.processes.engine.CLOSING", 0.2)
    ended = threading.Event()

    class Endless(LocalEngine):
        def close(self) -> None:
            ended.wait(PATIENCE)

    asked = Asked(tmp_path, Endless)
    asked.sample()
    asked.engine.close()
    ended.set()
    assert "in `Endless.close`: NoProgress: not done after 0.2 seconds" in asked.said[0]
    assert "in `Endless.close`: a call is still running" in asked.said[1]


def test_a_call_that_ends_when_the_engine_is_closed_is_not_reported(
    tmp_path: Path, clock: list[float]
) -> None:
    class Held(LocalEngine):
        released = threading.Event()

        def prepare(self, context: EngineContext) -> None:
            clock[0] += 601
            self.released.wait(PATIENCE)

        def close(self) -> None:
            self.released.set()

    asked = Asked(tmp_path, Held)
    with pytest.raises(PluginError, match=r"[.]prepare`: it made no progress for 600 seconds"):
        asked.sample()
    asked.engine.close()
    assert asked.said == []


def test_weights_are_published_when_they_change_and_an_engine_idles_between_calls(
    tmp_path: Path,
) -> None:
    heard: list[Any] = []

    class Watched(LocalEngine):
        def idle(self) -> None:
            heard.append("idle")

        def wake(self) -> None:
            heard.append("wake")

        def publish(self, policy: str, adapter: Path | None, version: int) -> None:
            assert adapter is None or (adapter / "adapter_model.safetensors").is_file()
            heard.append(("publish", policy, adapter is not None, version))
            super().publish(policy, adapter, version)

        def sample(self, policy: str, *arguments: Any) -> Any:
            heard.append(f"sample {policy}")
            return super().sample(policy, *arguments)

    def since() -> list[Any]:
        told = heard[:]
        heard.clear()
        return told

    asked = Asked(tmp_path, Watched)
    first, version = asked.sample(), version_of(asked.model, "one")
    assert since() == [("publish", "one", True, version), "sample one", "idle"]
    asked.sample(BASE)
    assert since() == ["wake", ("publish", BASE, False, 0), f"sample {BASE}", "idle"]
    asked.model.drop_role("one")
    asked.model.add_role("one")
    assert asked.sample() == first and since() == ["wake", "sample one", "idle"]  # the same weights
    add_noise(asked.model, "one", 0.1, 1)
    asked.sample()
    changed = version_of(asked.model, "one")
    assert since() == ["wake", ("publish", "one", True, changed), "sample one", "idle"]
    assert changed != version
    asked.engine.request(asked.request(BASE)).drop()
    assert since() == ["wake", f"sample {BASE}", "idle"], "also after samples that nobody wants"
    assert [path.name for path in (tmp_path / "engine" / "weights").iterdir()] == ["2"]
    asked.engine.close()
    assert not (tmp_path / "engine").exists()


def test_steps_and_rewards_sample_with_the_engine(tmp_path: Path) -> None:
    """The same answers as alignkit's own."""
    asked = Asked(tmp_path)
    models = LoadedBase(asked.model, artifact=Path)
    groups = prompts(["hello", "what is it?"])
    options: dict[str, Any] = {"seed": 3, "samples_per_prompt": 2, "max_new_tokens": 6}
    wanted = models[BASE].sample(groups, **options)
    asked.model.engine = asked.engine
    assert models[BASE].sample(groups, **options) == wanted
    assert "files" in {path.name for path in (tmp_path / "engine").iterdir()}
    asked.engine.close()


def test_prompts_have_rooms_of_their_own(tmp_path: Path) -> None:
    """A prompt may be a conversation, which leaves less room; the log-probabilities are those of
    training.
    """
    asked = Asked(tmp_path)
    model, ids = asked.model, [(1, 30, 31), (1, 40, 41, 42, 43, 44)]
    add_noise(model, "one", 0.1, 1)
    sampling = Sampling(max_new_tokens=10)
    request = Generation(model, "one", model.encoder(), ids, [[1, 2], [3]], sampling, rooms=(9, 3))
    plain, model.engine = generate(request), asked.engine
    counts: list[int] = []
    found = generate(request, done=counts.append)
    for samples in (found, plain):
        assert [[len(one.tokens) for one in each] for each in samples] == [[9, 9], [3]]
    assert counts[-1] == 3
    for prompt, each in zip(ids, found, strict=True):
        for one in each:
            tokens = ResponseTokens(one.tokens, (True,) * len(one.tokens))
            (measured,) = measure(model, "one", [Encoded(Group(()), prompt, (tokens,))])["logprobs"]
            assert one.logprobs == pytest.approx(measured.tolist(), abs=1e-4)
    asked.engine.close()


def test_what_was_begun_is_from_the_weights_of_then(tmp_path: Path) -> None:
    """The engine is held until the weights have changed, and whoever asks next waits for it."""
    released, heard = threading.Event(), []

    class Held(LocalEngine):
        def sample(self, *arguments: Any) -> Any:
            heard.append(arguments[0])
            assert released.wait(PATIENCE)
            return super().sample(*arguments)

    asked, other = Asked(tmp_path, Held), Asked(tmp_path)
    begun = asked.engine.request(asked.request(count=8))
    add_noise(asked.model, "one", 0.5, 1)
    assert not begun.seconds
    released.set()
    later, first = asked.sample(count=8), begun.result()
    assert heard == ["one"] * 2 and first != later == asked.sample(count=8) and begun.seconds > 0
    asked.engine.close()
    assert generate(other.request(count=8)) == first


def test_what_was_begun_may_be_dropped(tmp_path: Path) -> None:
    """Its call ends, as it likes, before the engine is closed."""
    ended: list[str] = []

    class Fails(LocalEngine):
        def sample(self, *arguments: Any) -> Any:
            ended.append("sample")
            raise ValueError("nobody hears this")

        def close(self) -> None:
            ended.append("close")

    asked = Asked(tmp_path, Fails)
    asked.engine.request(asked.request()).drop()
    asked.engine.close()
    assert ended == ["sample", "close"] and not asked.said


# Recipes


def test_which_stages_an_engine_samples_for(tmp_path: Path) -> None:
    stages = {
        "sft": {"algorithm": "sft", "data": "demos.jsonl"},
        "align": {**STAGE, "from": "sft"},
        "plays": {**STAGE, "environment": "calculator", "reward": "environment"},
        "ours": {**STAGE, "engine": "local"},
        "slow": {**STAGE, "engine": {"vllm": {"timeout": 9}}},
        "shown": {**EVALUATE, "engine": "local"},
        "judged": EVALUATE,
    }

    def engines(**top: Any) -> dict[str, float]:
        recipe = load_recipe(write_recipe(tmp_path, stages, **top))
        used = {name: stage.engine for name, stage in recipe.stages.items()}
        return {name: engine.options.timeout for name, engine in used.items() if engine}

    assert engines() == engines(engine="local") == {"slow": 9}
    assert engines(engine="vllm") == {"slow": 9, **dict.fromkeys(("align", "plays", "judged"), 600)}


JUDGE = {"step": "judge_pairs", "judge": {"local_judge": {"role": "base"}}}
IN_WORDS = {"step": "judge_pairs", "judge": {"local_judge": {"reasons": True}}}
SAMPLES: list[tuple[dict[str, Any], bool]] = [
    (STAGE, True),
    (EVALUATE, True),
    ({**JUDGE, "prompts": "demos.jsonl", "policy": "align"}, True),
    ({**JUDGE, "data": "demos.jsonl"}, False),
    ({**IN_WORDS, "data": "demos.jsonl"}, True),
]


@pytest.mark.parametrize(("step", "samples"), SAMPLES)
def test_an_engine_is_in_the_hash_of_what_samples_and_its_timeout_is_not(
    step: dict[str, Any], samples: bool, tmp_path: Path
) -> None:
    """Unless a step names the engine itself: a step of someone else's may sample in ways that
    options do not say.
    """

    def hashed(own: Any = None, **top: Any) -> str:
        named = {"engine": own} if own else {}
        stages = {"align": STAGE, "after": {**step, **named}}
        recipe = load_recipe(write_recipe(tmp_path, stages, **top))
        return digest(stage_parts(recipe.stages["after"], recipe, "base", {}, RunData(Path, 0)))

    ours, theirs = hashed(), hashed("vllm")
    assert ours == hashed(engine="local") == hashed("local", engine="vllm") != theirs
    assert theirs == hashed({"vllm": {"timeout": 5, "url": "http://127.0.0.1:9"}})
    assert (hashed(engine="vllm") != ours) == samples


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"engine": "vlm"}, "no engine 'vlm'.*did you mean 'vllm'"),
        ({"engine": {"vllm": {"timeout": 0}}}, "timeout.*0"),
        ({"engine": "vllm", "model": {"base": "tiny", "lora": "none"}}, "'vllm' takes adapters"),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as raised:
        load_recipe(write_recipe(tmp_path, {"align": STAGE}, **keys))
    assert re.search(message, str(raised.value), re.DOTALL)


def test_a_stage_that_does_not_sample_has_no_engine(tmp_path: Path) -> None:
    sft = {"algorithm": "sft", "data": "demos.jsonl", "engine": "vllm"}
    with pytest.raises(RecipeError, match="sft does not use 'engin"):
        load_recipe(write_recipe(tmp_path, {"sft": sft}))
