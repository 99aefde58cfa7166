"""`rollout: {async_level: 1}`: what is sampled by which weights while the stage learns, and the same
bytes after any end.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from watched import SFT

from alignkit.cli import main
from alignkit.data.group import Group, read_groups, responses_of
from alignkit.errors import RecipeError
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import Run
from tests.house_run import LORA
from tests.killed import forked
from tests.patience import PATIENCE
from tests.rows import TINY, Said, read_rows, untimed, with_plugin, write_recipe, write_rows

# An engine that notes what it is asked, and dies, fails or hangs where SABOTAGE says:
# HOW=EVENT:COUNT.
PLUGIN = f"""
import os, signal, threading, time
from alignkit import Environment, Group, Reward, RunFailed, hookimpl
from alignkit_plugins.processes import engine as clock
from tests.processes.local_engine import LocalEngine

how, _, place = os.environ.get("SABOTAGE", "").partition("=")
counts, overlap = {{}}, threading.Barrier(2, timeout={PATIENCE})

def at(event):
    for name in (event, "any"):
        counts[name] = count = counts.get(name, 0) + 1
        if place == f"{{name}}:{{count}}":
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "interrupt":
                raise KeyboardInterrupt
            elif how == "hang":  # by the engine's clock
                clock.now = lambda: time.monotonic() + 1e6
                time.sleep(1e6)
            raise ValueError("broken")
    with open(os.environ.get("EVENTS", os.devnull), "a") as file:  # hooks of a plugin stay for later tests
        file.write(event + "\\n")

class Double(LocalEngine):
    def publish(self, policy, adapter, version):
        at("publish" if adapter is not None else "base")
        super().publish(policy, adapter, version)
    def sample(self, policy, *arguments):
        if not arguments[0]:
            return []
        at("sample" if policy != "base" else "sample base")
        if how == "overlap" and counts["sample"] == 2:
            overlap.wait()
        return super().sample(policy, *arguments)
    def close(self):
        at("close")

class Asks(Reward):
    def score(self, groups):
        prompts = [Group(({{"role": "user", "content": "and you?"}},))]
        (group,) = self.context.models["base"].sample(prompts, seed=1, samples_per_prompt=1, max_new_tokens=3)
        value = group.responses[0].tokens[0] % 5
        return [float(len(r.text) + value) for g in groups for r in g.responses]

class Talks(Environment):
    def respond(self, turn):
        more = {{"role": "user", "content": f"more {{self.random.integers(9)}}"}}
        return [more] if len(self.turns) < 4 else None
    def get_reward(self):
        return float(sum(len(turn["content"]) for turn in self.turns) % 7)

@hookimpl
def register(add):
    add("engine", "double", Double)
    add("reward", "asks", Asks)
    add("environment", "talks", Talks)
@hookimpl
def rollouts_scored(run, stage, iteration, groups):
    at("scored")
    if how == "overlap" and iteration == 1:
        overlap.wait()
@hookimpl
def metrics_logged(run, stage, step, metrics): at("logged")
@hookimpl
def checkpoint_saved(run, stage, path): at("saved")
"""
ITERATIONS = 4
STAGE: dict[str, Any] = yaml.safe_load(f"""
algorithm: {{ppo: {{kl_target: 0.05, kl_horizon: 20}}}}
prompts: rows.jsonl
reward: {{length: {{unit: characters, target: 5}}}}
rollout: {{samples_per_prompt: 2, max_new_tokens: 8, async_level: 1}}
iterations: {ITERATIONS}
prompts_per_iteration: 3
batch_size: 2
learning_rate: 0.01
keep_versions: true
""")
TALK: dict[str, Any] = yaml.safe_load("""
algorithm: grpo
environment: talks
reward: environment
rollout:
  samples_per_prompt: 2
  max_new_tokens: 12
  async_level: 1
  stop: [a, e, i, o, " "]
""")
MODEL = {**TINY, "lora": LORA, "chat_template": "hermes"}

pytestmark = pytest.mark.usefixtures("one_thread")


class Place:
    """A recipe with its plugin, and where its runs are."""

    def __init__(self, folder: Path, before: Any = None, **keys: Any):
        folder.mkdir(exist_ok=True)
        write_rows(folder / "rows.jsonl", [{"prompt": f"is it {n}?"} for n in range(5)])
        stages = {**(before or {}), "align": STAGE | keys}
        self.recipe = write_recipe(folder, stages, MODEL, engine="double")
        self.out, self.log = folder / "out", folder / "events"
        plugin = with_plugin(folder / "double.py", PLUGIN)
        self.command = ["run", str(self.recipe), *plugin, "--out", str(self.out)]
        self.stage = self.out / "align"

    def run(self, sabotage: str = "") -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SABOTAGE", sabotage)
            patch.setenv("EVENTS", str(self.log))
            return main(self.command)

    def killed(self, event: str) -> None:
        assert forked(*self.command, SABOTAGE=f"kill={event}") == -9

    @property
    def events(self) -> list[str]:
        return self.log.read_text().split("\n")[:-1]

    def rollouts(self, number: int, kind: str = "rollouts") -> list[Group]:
        return read_groups(self.stage / kind / f"{number:04d}.jsonl")

    def metrics(self) -> list[dict[str, Any]]:
        return read_rows(self.stage / "metrics.jsonl")

    def result(self) -> Any:
        """What must not depend on how often a run was stopped."""
        files = [*self.stage.glob("adapter/*.safetensors"), *self.stage.glob("rollouts/*")]
        return {file.name: file.read_bytes() for file in files}, untimed(
            self.stage / "metrics.jsonl"
        )

    def gap(self, groups: list[Group], updates: int) -> float:
        """The largest difference of the samples' log-probabilities from those of the policy after
        some updates.
        """
        models = Run(load_recipe(self.recipe), self.out).models
        measured = models[f"align@{updates}" if updates else "base"].logprobs(groups)
        sampled = [response.logprobs for response in responses_of(groups)]
        gaps = zip(map(torch.tensor, sampled), measured, strict=True)
        return max(float((a - b).abs().max()) for a, b in gaps)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A run that nobody stopped."""
    place = Place(tmp_path_factory.mktemp("whole"))
    assert place.run() == 0
    yield place


@pytest.fixture(scope="module")
def talked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The same with an environment."""
    place = Place(tmp_path_factory.mktemp("talked"), **TALK)
    assert place.run() == 0
    yield place


# What is sampled, by which weights


def test_samples_are_one_update_old_and_say_so(whole: Place) -> None:
    """Nothing is sampled beyond the last iteration, nor waited for."""
    for number, (updates, async_level) in enumerate([(0, 0), (0, 1), (1, 1), (2, 1)], 1):
        groups = whole.rollouts(number)
        assert {response.async_level or 0 for response in responses_of(groups)} == {async_level}
        assert whole.gap(groups, updates) < 1e-4
        assert async_level == 0 or whole.gap(groups, updates + 1) > 1e-3
    rows = whole.metrics()
    assert [row["async_level"] for row in rows] == [0, 1, 1, 1]
    assert all(row["engine_mismatch"] > 1e-3 for row in rows[1:])
    assert all(row["seconds/sampling"] > 0 for row in rows) and rows[-1]["seconds/waiting"] < 0.1
    assert whole.events.count("sample") == ITERATIONS and whole.events.count("close") == 1
    assert whole.events.count("publish") == ITERATIONS - 1  # the first one writes two iterations
    assert not list((whole.out / "cache").glob("engine-*"))


def test_the_ratio_is_that_to_the_policy_that_learns(tmp_path: Path, said: Said) -> None:
    """One step in each iteration: it is 1, although other weights have written the samples, which
    is no alarm.
    """
    place = Place(tmp_path, epochs=1, batch_size=3)
    assert place.run() == 0 and "warning: the sampler" not in said()
    assert [row["ratio"] for row in place.metrics()] == pytest.approx([1.0] * ITERATIONS, abs=1e-4)
    assert place.metrics()[2]["engine_mismatch"] > 1e-3


def test_the_engine_samples_while_the_stage_works(tmp_path: Path, whole: Place) -> None:
    """Each waits for the other one to be there: the second call of the engine, and the first
    iteration's scores.
    """
    place = Place(tmp_path)
    assert place.run("overlap") == 0
    assert place.result() == whole.result()


def test_whoever_samples_next_to_it_waits(tmp_path: Path) -> None:
    """A reward that asks the same engine, and answers of the current policy to held-out prompts."""
    gold = {"gold": {"reward": "length", "prompts": "rows.jsonl"}}
    place = Place(tmp_path, reward="asks", monitors=[gold, {"kl_budget": {"max": 1e6}}])
    assert place.run() == 0
    assert place.events.count("sample") == place.events.count("sample base") == 2 * ITERATIONS
    for number in (2, 3):
        assert place.gap(place.rollouts(number, "gold"), number - 1) < 1e-4
        assert place.gap(place.rollouts(number), number - 2) < 1e-4


def test_turns_are_played_in_the_stages_own_thread(talked: Place) -> None:
    for number in range(1, ITERATIONS + 1):
        groups = talked.rollouts(number)
        assert talked.gap(groups, max(0, number - 2)) < 1e-4
        assert any(len(response.messages or ()) > 2 for response in responses_of(groups))


# However it ends, it continues


# How often checkpoints are made -> where runs are killed; `make test` has two of them.
ENDS: dict[str, tuple[dict[str, Any], str]] = {
    "every iteration": ({}, "sample:3 logged:2 publish:2 scored:1 saved:2 saved:4 close:1"),
    "every second": ({"checkpoint_every": 2}, "sample:4 any:9"),
    "episodes": (TALK, "sample:9 scored:3"),
}


@pytest.mark.parametrize(
    ("name", "event"),
    [
        pytest.param(
            name, event, marks=[pytest.mark.slow] if n or "checkpoint_every" in more else []
        )
        for name, (more, events) in ENDS.items()
        for n, event in enumerate(events.split())
    ],
)
def test_a_run_that_is_killed_ends_in_the_same_bytes(
    tmp_path: Path, whole: Place, talked: Place, name: str, event: str
) -> None:
    keys = ENDS[name][0]
    place = Place(tmp_path, **keys)
    place.killed(event)
    assert place.run() == 0
    assert place.result() == (talked if keys is TALK else whole).result()


def test_what_a_checkpoint_has_is_not_sampled_again(tmp_path: Path, whole: Place) -> None:
    """Killed in the third iteration, it continues after the second with the third's samples: one
    was under way.
    """
    place = Place(tmp_path)
    place.killed("scored:3")
    assert place.run() == 0 and place.result() == whole.result()
    assert place.events.count("sample") == 1


@pytest.mark.parametrize(
    ("sabotage", "code", "told"),
    [
        ("fail=sample:3", 3, "'double.py', stage 'align', in `Double.sample`: ValueError: broken"),
        ("interrupt=scored:2", 130, "in iteration 2 of 4"),
    ],
)
def test_an_error_in_the_background_and_ctrl_c_close_the_engine(
    tmp_path: Path, whole: Place, said: Said, sabotage: str, code: int, told: str
) -> None:
    place = Place(tmp_path)
    assert place.run(sabotage) == code
    err = said()
    assert told in err and "Traceback" not in err
    assert place.events[-1] == "close" and place.events.count("close") == 1
    assert place.run() == 0 and place.result() == whole.result()


def test_a_stage_that_ends_early_drops_what_is_under_way(tmp_path: Path, said: Said) -> None:
    """The budget is beyond what the first policy has: the result is the one that the second
    iteration began with.
    """
    keys = {"monitors": [{"kl_budget": {"max": 1e-9}}], "from": "sft", "reference": "base"}
    place = Place(tmp_path, before={"sft": SFT}, **keys)
    assert place.run() == 0
    assert "stopped in iteration 1 of 4" in " ".join(said().split())
    assert place.events.count("sample") == 2 and place.events[-1] == "close"
    assert [file.name for file in (place.stage / "rollouts").iterdir()] == ["0001.jsonl"]


def test_an_engine_that_cannot_sample_ahead_is_refused(tmp_path: Path) -> None:
    recipe = Place(tmp_path).recipe
    with pytest.raises(RecipeError, match="cannot sample while the stage learns"):
        load_recipe(recipe, ["engine=local"])
