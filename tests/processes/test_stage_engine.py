"""The engine of a stage through the command line: what it is asked, what it is blamed for, and what
a hang costs.
"""

from __future__ import annotations

import json
import re
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from patience import PATIENCE

from alignkit import EngineContext, RecipeError
from alignkit.cli import main
from alignkit.data.group import Group
from alignkit.errors import PluginError
from alignkit.io.digest import digest
from alignkit.models.generate import Continuation, Generation, generate
from alignkit.models.models import LoadedBase
from alignkit.models.packing import measure
from alignkit.models.shared_model import BASE
from alignkit.recipe.load import load_recipe
from alignkit.registry import Component, Registration
from alignkit.runs.fingerprint import RunData, stage_parts
from alignkit.sampling import Sampling
from alignkit.testing.tiny import add_noise
from alignkit.tokens.encoder import Encoded, ResponseTokens
from alignkit_plugins.processes.engine import EngineThread, NoProgress, StageEngine, version_of
from tests.models.tiny import tiny_model
from tests.processes.local_engine import LocalEngine

HEADER = """
import time
from dataclasses import replace
from alignkit import *
from tests.processes.local_engine import LocalEngine

class Broken(LocalEngine):
    calls = 0

"""
FOOTER = """

@hookimpl
def register(add):
    add("engine", "broken", Broken)
"""
STAGE: dict[str, Any] = {
    "algorithm": "rloo",
    "prompts": "rows.jsonl",
    "reward": {"length": {"unit": "characters"}},
    "rollout": {"samples_per_prompt": 2, "max_new_tokens": 5},
    "iterations": 2,
    "prompts_per_iteration": 3,
}
EVALUATE = {
    "step": "evaluate",
    "policies": ["align"],
    "prompts": "rows.jsonl",
    "rewards": ["length"],
}
SECOND = """
def sample(self, *arguments):
    found = super().sample(*arguments)
    Broken.calls += bool(arguments[1])  # not of the start
    return self.second(found) if Broken.calls == 2 else found
"""

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_CACHE", str(tmp_path_factory.mktemp("models")))
        yield


def written(folder: Path, stages: dict[str, Any], **top: Any) -> Path:
    rows = [{"prompt": f"is it {n}?", "completion": "yes"} for n in range(3)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = folder / "recipe.yaml"
    model = {"base": "tiny", "dtype": "float32", "lora": {"r": 2}}
    path.write_text(yaml.safe_dump({"model": model, "stages": stages, **top}))
    return path


def run(folder: Path, methods: str, timeout: float = 900.0) -> int:
    """Run an online stage with a broken engine from the command line; returns the exit code."""
    (folder / "broken.py").write_text(
        HEADER + textwrap.indent(textwrap.dedent(methods), "    ") + FOOTER
    )
    path = written(folder, {"align": STAGE}, engine={"broken": {"timeout": timeout}})
    return main(
        ["run", str(path), "--plugin", str(folder / "broken.py"), "--out", str(folder / "out")]
    )


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            "return found[:-1]",
            "in `Broken.sample`: return a list of 3, each a list of Completions, not ",
        ),
        ("raise KeyError('x')", r"in `Broken.sample`: KeyError: 'x' \(broken.py:\d+\)"),
        (
            "return [*found[:2], [found[2][0], replace(found[2][1], version=3)]]",
            r"in `Broken.sample`: for prompt 2 \(\S*rows.jsonl:\d\), sample 1 it used version 3 of the weights",
        ),
        ("exit(0)", r"in `Broken.sample`: SystemExit: 0"),
    ],
)
def test_a_mistake_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: str, message: str
) -> None:
    """In the second iteration."""
    assert run(tmp_path, f"{SECOND}\ndef second(self, found): {second}") == 3
    err = capsys.readouterr().err
    assert re.search(rf"^error: plugin 'broken.py', stage 'align', {message}", err, re.M), err
    assert "in iteration 2 of 2" in err and "Traceback" not in err


def test_a_call_that_hangs_is_given_up_and_the_run_continues(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another timeout it is the same stage."""
    methods = """
    def prepare(self, context):
        self.options.timeout < 1 or super().prepare(context)
    def publish(self, *arguments):
        self.options.timeout < 1 or super().publish(*arguments)
    def sample(self, *arguments):
        time.sleep(10**6) if self.options.timeout < 1 else None
        return super().sample(*arguments)
    """
    assert run(tmp_path, methods, 0.2) == 3
    err = capsys.readouterr().err
    assert "in `Broken.sample`: it made no progress for 0.2 seconds and was given up" in err
    running = (
        "warning: plugin 'broken.py', stage 'align', in `Broken.close`: a call is still running"
    )
    assert err.count(running) == 1
    assert "the same command continues the run" in err
    assert run(tmp_path, methods) == 0
    assert "starting over" not in capsys.readouterr().err


def test_progress_keeps_a_slow_call_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five parts take three times as long as the timeout, by a clock that only the call moves."""
    clock, ended = [0.0], threading.Event()
    monkeypatch.setattr("alignkit_plugins.processes.engine.now", lambda: clock[0])
    thread = EngineThread(10.0, lambda: None)

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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The engine's clock: it moves only when a test moves it."""
    moved = [0.0]
    monkeypatch.setattr("alignkit_plugins.processes.engine.now", lambda: moved[0])
    return moved


def test_progress_does_not_delay_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an engine that closes part by part."""
    monkeypatch.setattr("alignkit_plugins.processes.engine.CLOSING", 0.2)
    ended = threading.Event()
    thread = EngineThread(1e6)

    def close() -> None:
        for part in range(1, 1000):
            thread.progress(part)
            if ended.wait(0.05):
                return

    thread.wait(thread.begin(lambda: None))
    assert isinstance(thread.close(close), NoProgress) and thread.runs
    ended.set()


def asking(folder: Path, cls: type[LocalEngine], said: list[str]) -> StageEngine:
    component = Component("engine", "e", Registration("e", cls), cls.Options())
    return StageEngine(component, folder / "engine", stage="s", seed=0, say=said.append)


def test_an_engine_that_does_not_close_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alignkit_plugins.processes.engine.CLOSING", 0.2)
    ended = threading.Event()

    class Endless(LocalEngine):
        def close(self) -> None:
            ended.wait(PATIENCE)

    said: list[str] = []
    model, asked = tiny_model(tmp_path), asking(tmp_path, Endless, said)
    asked.request(
        Generation(model, BASE, model.encoder(), ((1, 30),), [[1]], Sampling(max_new_tokens=3))
    ).result()
    asked.close()
    ended.set()
    assert "in `Endless.close`: NoProgress: not done after 0.2 seconds" in said[0]
    assert (
        "in `Endless.close`: a call is still running; its thread ends with this process" in said[1]
    )


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

    said: list[str] = []
    model, asked = tiny_model(tmp_path), asking(tmp_path, Held, said)
    with pytest.raises(PluginError, match=r"[.]prepare`: it made no progress for 600 seconds"):
        asked.request(
            Generation(model, BASE, model.encoder(), ((1, 30),), [[1]], Sampling(max_new_tokens=3))
        ).result()
    asked.close()
    assert said == []


def engine(folder: Path, cls: type[LocalEngine] = LocalEngine, **options: Any) -> StageEngine:
    component = Component("engine", "e", Registration("e", cls), cls.Options(**options))
    return StageEngine(component, folder / "engine", stage="s", seed=0, say=lambda text: None)


def test_policies_are_published_when_their_weights_change(tmp_path: Path) -> None:
    published: list[tuple[str, bool, int]] = []

    class Watched(LocalEngine):
        def publish(self, policy: str, adapter: Path | None, version: int) -> None:
            published.append((policy, adapter is not None, version))
            super().publish(policy, adapter, version)
            assert adapter is None or (adapter / "adapter_model.safetensors").is_file()

    model = tiny_model(tmp_path)
    model.add_role("one")
    asked, prompt = engine(tmp_path, Watched), ((1, 30, 31),)

    def sample(role: str) -> None:
        asked.request(
            Generation(model, role, model.encoder(), prompt, [[1]], Sampling(max_new_tokens=3))
        ).result()

    for role in (BASE, "one", "one", BASE):
        sample(role)
    first = version_of(model, "one")
    add_noise(model, "one", 0.1, 1)
    sample("one")
    second = version_of(model, "one")
    assert (
        published == [(BASE, False, 0), ("one", True, first), ("one", True, second)]
        and first != second
    )
    assert [path.name for path in (tmp_path / "engine" / "weights").iterdir()] == ["2"]
    asked.close()
    assert not (tmp_path / "engine").exists()


def test_an_engine_idles_between_calls(tmp_path: Path) -> None:
    heard: list[str] = []

    class Watched(LocalEngine):
        def idle(self) -> None:
            heard.append("idle")

        def wake(self) -> None:
            heard.append("wake")

        def publish(self, policy: str, adapter: Path | None, version: int) -> None:
            heard.append(f"publish {policy}")
            super().publish(policy, adapter, version)

        def sample(self, policy: str, *arguments: Any) -> Any:
            heard.append(f"sample {policy}")
            return super().sample(policy, *arguments)

    model = tiny_model(tmp_path)
    model.add_role("one")
    model.engine = asked = engine(tmp_path, Watched)

    def sample(role: str) -> list[list[Continuation]]:
        request = Generation(
            model, role, model.encoder(), [(1, 30, 31)], [[1]], Sampling(max_new_tokens=3)
        )
        return generate(request)

    first = sample("one")
    assert heard == ["publish one", "sample one", "idle"]
    sample(BASE)
    assert heard[3:] == ["wake", f"publish {BASE}", f"sample {BASE}", "idle"]
    model.drop_role("one")
    model.add_role("one")
    assert sample("one") == first and heard[7:] == ["wake", "sample one", "idle"], (
        "with the same weights"
    )
    asked.request(
        Generation(model, BASE, model.encoder(), [(1, 30)], [[1]], Sampling(max_new_tokens=3))
    ).drop()
    assert heard[10:] == ["wake", f"sample {BASE}", "idle"], "also after samples that nobody wants"
    asked.close()


def test_steps_and_rewards_sample_with_the_engine(tmp_path: Path) -> None:
    """The same answers as alignkit's own."""
    model = tiny_model(tmp_path)
    models = LoadedBase(model, artifact=Path)
    prompts = [Group(({"role": "user", "content": text},)) for text in ("hello", "what is it?")]
    options: dict[str, Any] = {"seed": 3, "samples_per_prompt": 2, "max_new_tokens": 6}
    wanted = models[BASE].sample(prompts, **options)
    model.engine = asked = engine(tmp_path)
    found = models[BASE].sample(prompts, **options)
    assert found == wanted and "files" in {path.name for path in (tmp_path / "engine").iterdir()}
    asked.close()


def test_which_stages_an_engine_samples_for(tmp_path: Path) -> None:
    stages = {
        "sft": {"algorithm": "sft", "data": "rows.jsonl"},
        "align": {**STAGE, "from": "sft"},
        "ours": {**STAGE, "engine": "local"},
        "slow": {**STAGE, "engine": {"vllm": {"timeout": 9}}},
        "shown": {**EVALUATE, "engine": "local"},
        "judged": EVALUATE,
    }

    def engines(**top: Any) -> dict[str, str | None]:
        recipe = load_recipe(written(tmp_path, stages, **top))
        return {
            name: stage.engine and f"{stage.engine.options.timeout:g}"
            for name, stage in recipe.stages.items()
        }

    own = {"sft": None, "align": None, "ours": None, "slow": "9", "shown": None, "judged": None}
    assert engines() == engines(engine="local") == own
    assert engines(engine="vllm") == own | {"align": "600", "judged": "600"}


SAMPLING_STEPS: dict[str, tuple[dict[str, Any], bool]] = {
    "evaluate": (EVALUATE, True),
    "judge": (
        {
            "step": "judge_pairs",
            "judge": {"local_judge": {"role": "base"}},
            "prompts": "rows.jsonl",
        },
        True,
    ),
    "judge data": (
        {"step": "judge_pairs", "judge": {"local_judge": {"role": "base"}}, "data": "rows.jsonl"},
        False,
    ),
    "judge data in words": (
        {"step": "judge_pairs", "judge": {"local_judge": {"reasons": True}}, "data": "rows.jsonl"},
        True,
    ),
}


@pytest.mark.parametrize("name", SAMPLING_STEPS)
def test_an_engine_changes_the_hash_of_a_step_only_if_it_samples(name: str, tmp_path: Path) -> None:
    """Unless the step names the engine itself: a step of someone else's may sample in ways that
    options do not say.
    """
    step, samples = SAMPLING_STEPS[name]
    if step.get("judge") and "prompts" in step:
        step = step | {"policy": "align"}

    def hashed(step: dict[str, Any], **top: Any) -> str:
        recipe = load_recipe(written(tmp_path, {"align": STAGE, "after": step}, **top))
        return digest(stage_parts(recipe.stages["after"], recipe, "base", {}, RunData(Path, 0)))

    ours = hashed(step)
    assert (hashed(step, engine="vllm") != ours) == samples
    assert (
        hashed({**step, "engine": "vllm"})
        != ours
        == hashed({**step, "engine": "local"}, engine="vllm")
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"engine": "vlm"}, "no engine 'vlm'.*did you mean 'vllm'"),
        ({"engine": {"vllm": {"timeout": 0}}}, "timeout.*0"),
        (
            {"stages": {"s": {"algorithm": "sft", "data": "rows.jsonl", "engine": "vllm"}}},
            "sft does not use 'engin",
        ),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = written(
        tmp_path, {"align": STAGE}, **{key: value for key, value in keys.items() if key == "engine"}
    )
    document = yaml.safe_load(path.read_text()) | keys
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(RecipeError) as raised:
        load_recipe(path)
    assert re.search(message, str(raised.value), re.S)


def test_an_engine_that_takes_adapters_only_needs_some(tmp_path: Path) -> None:
    path = written(tmp_path, {"align": STAGE}, engine="vllm")
    assert load_recipe(path).stages["align"].engine.name == "vllm"
    path.write_text(
        yaml.safe_dump(
            yaml.safe_load(path.read_text()) | {"model": {"base": "tiny", "lora": "none"}}
        )
    )
    with pytest.raises(RecipeError, match="engine 'vllm' takes adapters, but with "):
        load_recipe(path)


def test_prompts_have_rooms_of_their_own(tmp_path: Path) -> None:
    """A prompt may be a conversation, which leaves less room; the log-probabilities are those of
    training.
    """
    model, asked = tiny_model(tmp_path), engine(tmp_path)
    model.add_role("one")
    add_noise(model, "one", 0.1, 1)
    encoder, prompts, rooms = model.encoder(), [(1, 30, 31), (1, 40, 41, 42, 43, 44)], (9, 3)
    request = Generation(
        model, "one", encoder, prompts, [[1, 2], [3]], Sampling(max_new_tokens=10), rooms=rooms
    )
    plain, model.engine = generate(request), asked
    counts: list[int] = []
    found = generate(request, done=counts.append)
    assert [[len(one.tokens) for one in each] for each in found] == [[9, 9], [3]] and counts[
        -1
    ] == 3
    for prompt, each, others in zip(prompts, found, plain, strict=True):
        for one, other in zip(each, others, strict=True):
            row = Encoded(
                Group(()), prompt, (ResponseTokens(one.tokens, (True,) * len(one.tokens)),)
            )
            (measured,) = measure(model, "one", [row])["logprobs"]
            assert one.logprobs == pytest.approx(measured.tolist(), abs=1e-4) and len(
                other.tokens
            ) == len(one.tokens)
    asked.close()


# While the caller does something else


def test_what_was_begun_is_from_the_weights_of_then(tmp_path: Path) -> None:
    """The engine is held until the weights have changed, and whoever asks next waits for it."""
    released, asked = threading.Event(), []

    class Held(LocalEngine):
        def sample(self, *arguments: Any) -> Any:
            asked.append(arguments[0])
            assert released.wait(PATIENCE)
            return super().sample(*arguments)

    model, prompt = tiny_model(tmp_path), ((1, 30, 31),)
    model.add_role("one")
    held, rest = (
        engine(tmp_path, Held),
        (model.encoder(), prompt, [[1]], Sampling(max_new_tokens=8)),
    )
    request = Generation(model, "one", *rest)
    begun = held.request(request)
    add_noise(model, "one", 0.5, 1)
    assert not begun.seconds
    released.set()
    later = held.request(request).result()
    first = begun.result()
    assert (
        asked == ["one"] * 2
        and first != later == held.request(request).result()
        and begun.seconds > 0
    )
    held.close()
    same = tiny_model(tmp_path)
    same.add_role("one")
    assert generate(Generation(same, "one", *rest)) == first


def test_what_was_begun_may_be_dropped(tmp_path: Path) -> None:
    """Its call ends, as it likes, before the engine is closed."""
    ended: list[str] = []

    class Fails(LocalEngine):
        def sample(self, *arguments: Any) -> Any:
            ended.append("sample")
            raise ValueError("nobody hears this")

        def close(self) -> None:
            ended.append("close")

    said: list[str] = []
    model, asked = tiny_model(tmp_path), asking(tmp_path, Fails, said)
    asked.request(
        Generation(model, BASE, model.encoder(), ((1, 30),), [[1]], Sampling(max_new_tokens=3))
    ).drop()
    asked.close()
    assert ended == ["sample", "close"] and not said


def test_an_engine_plays_an_environment(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        {"align": {**STAGE, "environment": "calculator", "reward": "environment"}},
        engine="vllm",
    )
    assert load_recipe(path).stages["align"].engine is not None


def test_what_samples_is_in_the_hash_and_the_timeout_is_not(tmp_path: Path) -> None:
    def hashed(stage: dict[str, Any], **top: Any) -> str:
        recipe = load_recipe(written(tmp_path, {"align": {**STAGE, **stage}}, **top))
        return digest(stage_parts(recipe.stages["align"], recipe, "base", {}, RunData(Path, 0)))

    ours = hashed({})
    assert ours == hashed({}, engine="local") == hashed({"engine": "local"}, engine="vllm")
    theirs = hashed({}, engine="vllm")
    assert (
        ours != theirs == hashed({"engine": {"vllm": {"timeout": 5, "url": "http://127.0.0.1:9"}}})
    )
