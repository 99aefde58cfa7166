"""Whatever a stranger's plugin does, the error names plugin, class, method, line and stage, and the
exit code is 3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from alignkit.cli import main
from alignkit.errors import LONGEST, DataError
from alignkit.host.calls import CallError, call
from alignkit.host.plugins import load_plugins
from tests.rows import Said, cells

PLUGIN = """
import os, sys
import torch
from alignkit import *

def fault(place):
    wanted, _, what = os.environ.get("FAULT", "").partition("=")
    return what if wanted == place else None

def act(place, result):
    what = fault(place)
    return result if what is None else eval(compile(what, __file__, "eval"))

class R(Reward):
    def __init__(self, options):
        super().__init__(options)
        act("R.__init__", None)
    def check(self, folder):
        act("R.check", None)
    def prepare(self, context):
        act("R.prepare", None)
    def score(self, groups):
        return act("R.score", [1.0 for group in groups for _ in group.responses])

class C(RewardCombination):
    class Options(Options):
        part: RewardRef
    def parts(self):
        return act("C.parts", {"part": self.options.part})
    def combine(self, groups, components):
        (values,) = components.values()
        return act("C.combine", CombinedReward(values))

class J(Judge):
    def prepare(self, context):
        act("J.prepare", None)
    def compare(self, items):
        return act("J.compare", [Verdict(0.9) for _ in items])

class S(Step):
    def run(self, context):
        return act("S.run", Artifact(text="done"))

class A(Algorithm):
    source = Source.ROLLOUTS
    def __init__(self, options):
        super().__init__(options)
        act("A.__init__", None)
    def loss(self, batch, out):
        return act("A.loss", Loss(loss=per_token(-out.logprobs * batch.rewards[:, None])))

def source(cache):
    return act("source", "nowhere")

@hookimpl
def metrics_logged(run, stage, step, metrics):
    act("metrics_logged", None)

@hookimpl
def register(add):
    add("reward", "r", R)
    add("reward", "c", C)
    add("judge", "j", J)
    add("step", "s", S)
    add("algorithm", "a", A)
    add("model", "stranger", source)
"""
STAGES = yaml.safe_load("""\
R: &align
  algorithm: a
  prompts: rows.jsonl
  reward: {c: {part: r}}
  rollout: {samples_per_prompt: 2, max_new_tokens: 4}
  iterations: 1
  prompts_per_iteration: 2
C: *align
A: *align
metrics_logged: *align
source: {algorithm: sft, data: demos.jsonl}
J: {step: judge_pairs, judge: j, data: pairs.jsonl}
S: {step: s}
""")
FILES = """
pairs.jsonl | {"prompt": "how are you", "chosen": "fine", "rejected": "bad"}
rows.jsonl  | {"prompt": "how are you"}
demos.jsonl | {"prompt": "how are you", "completion": "fine"}
"""
# A place, what it does, and what is said of it
FAULTS = """
R.__init__ | {}['advantage']                       | KeyError: 'advantage'
R.check    | {}['advantage']                       | KeyError: 'advantage'
R.prepare  | {}['advantage']                       | KeyError: 'advantage'
C.combine  | {}['advantage']                       | KeyError: 'advantage'
J.compare  | {}['advantage']                       | KeyError: 'advantage'
S.run      | {}['advantage']                       | KeyError: 'advantage'
A.__init__ | {}['advantage']                       | KeyError: 'advantage'
A.loss     | {}['advantage']                       | KeyError: 'advantage'
source     | {}['advantage']                       | KeyError: 'advantage'
R.score    | sys.exit(0)                           | SystemExit: 0
J.compare  | sys.exit(0)                           | SystemExit: 0
S.run      | sys.exit(0)                           | SystemExit: 0
R.score    | {'': [0.5] * 4}                       | return the list itself, such as [0.5, 1.0], not {'': [0.5, 0.5
R.score    | None                                  | return a list of 4, each a finite number
R.score    | ['high'] * 4                          | or None if it cannot be scored, not 'high'
C.combine  | CombinedReward(values[:1])            | return `reward` as [responses] = [
C.parts    | {'part': 1}                           | return rewards, as 'part', not 1
J.compare  | [Verdict(1.5)]                        | Input should be less than or equal to 1
S.run      | Artifact(summary={'t': float('nan')}) | ValueError: Out of range float values are not JSON compliant
"""


@pytest.fixture(autouse=True)
def strange(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.setenv("ALIGNKIT_CACHE", str(tmp_path_factory.getbasetemp() / "author"))
    monkeypatch.delenv("ALIGNKIT_DEBUG", raising=False)
    for name, text in [("strange.py", PLUGIN), *cells(FILES)]:
        (tmp_path / name).write_text(f"{text}\n", encoding="utf-8")
    yield
    load_plugins()  # without this one, for the tests of other modules


def run(folder: Path, fault: str) -> int:
    kind = fault.partition(".")[0]
    base = "stranger" if kind == "source" else "tiny"
    recipe = {"model": {"base": base}, "stages": {"only": STAGES[kind]}}
    (folder / "r.json").write_text(json.dumps(recipe), encoding="utf-8")
    command = ["run", str(folder / "r.json"), "--plugin", str(folder / "strange.py")]
    return main([*command, "--out", str(folder / "run")])


@pytest.mark.parametrize(("place", "what", "message"), cells(FAULTS))
def test_the_error_names_the_plugin(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
    place: str,
    what: str,
    message: str,
) -> None:
    # `act` evaluates the fault, so that a result may be made of the method's own variables.
    monkeypatch.setenv("FAULT", f"{place}={what.replace('values', 'result.reward')}")
    code = run(tmp_path, place)
    err = said()
    of_recipe = place in ("C.parts", "A.__init__")  # which reading the recipe calls
    assert (
        code == (2 if of_recipe else 3)
        and message in err
        and "Traceback" not in err
        and "unexpected" not in err
    ), err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "plugin 'strange.py'" in line and f"`{place}`" in line, line
    assert "(strange.py:" in line, line
    # The recipe is read before its stages run, and its own lines say which stage is meant.
    assert "stage 'only'" in line or of_recipe or place == "source", line


def test_an_observer_that_exits_stops_the_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: Said,
) -> None:
    monkeypatch.setenv("FAULT", "metrics_logged=sys.exit(0)")
    assert run(tmp_path, "metrics_logged") == 3
    assert "plugin 'strange.py', in `metrics_logged`: SystemExit: 0" in said()


class Odd(RuntimeError):
    def __str__(self) -> str:
        raise RuntimeError


class Strange:
    def long(self) -> None:
        raise ValueError("x" * 10_000_000)

    def silent(self) -> None:
        raise Odd

    def rows(self) -> None:
        raise DataError("no tokens")


def test_a_message_is_bounded_and_names_the_line() -> None:
    strange = Strange()
    with pytest.raises(CallError, match=r"^in `Strange.long`: ValueError: x+") as long:
        call(strange, "long")
    assert len(str(long.value)) < LONGEST + 100
    with pytest.raises(CallError, match=r"in `Strange.silent`: Odd \(test_author.py:"):
        call(strange, "silent")
    strange.called_in = ("plugin 'mine', stage 'labels'", "labels")  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"^stage 'labels': no tokens$"):
        call(strange, "rows")
