"""Engines that sample from another model than the one that learns: each is caught in its first
iteration.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alignkit import Group, Response
from alignkit.cli import main
from alignkit.models.packing import Examples
from alignkit.training.prompts import ANOTHER_MODEL, engine_mismatch
from alignkit_plugins.vllm.engine import Importance
from tests.rows import TINY, Said, read_rows, with_plugin, write_recipe, write_rows

HEADER = """
from dataclasses import replace
from pathlib import Path
from alignkit import *
from alignkit.contract.engine import EngineOptions
from alignkit_plugins.vllm.engine import Importance
from tests.processes.local_engine import LocalEngine

class Planted(LocalEngine):
    class Options(EngineOptions):
        importance: Importance | None = None
"""
FOOTER = """

@hookimpl
def register(add):
    add("engine", "planted", Planted)
"""
STAGES = """
sft: {algorithm: sft, data: rows.jsonl, epochs: 4, learning_rate: 0.02, keep_versions: true}
align:
  algorithm: rloo
  engine: planted
  from: sft
  prompts: rows.jsonl
  reward: {length: {unit: characters}}
  rollout: {samples_per_prompt: 4, max_new_tokens: 8}
  iterations: 2
  prompts_per_iteration: 3
  learning_rate: 0.01
"""
# What an engine does wrong.
PLANTED = {
    "an adapter that is never loaded": """
    def publish(self, policy, adapter, version):
        super().publish(policy, None, version)
    """,
    "another dtype": """
    def prepare(self, context):
        super().prepare(replace(context, model=context.model.model_copy(update={"dtype": "bfloat16"})))
    """,
}
KEEPS_THE_FIRST = """
    kept = None
    def publish(self, policy, adapter, version):
        if self.kept is None:
            super().publish(policy, adapter, version)
        self.kept = role, _ = self._policies[policy]
        self._policies[policy] = role, version
"""

pytestmark = pytest.mark.usefixtures("one_thread")


def train(folder: Path, methods: str, *words: str) -> int:
    """Run SFT with the local engine, then an online stage with a planted one; returns the exit
    code.
    """
    body = textwrap.indent(textwrap.dedent(methods), "    ")
    rows = [{"prompt": f"is it {n}?", "completion": "yes, it is bread"} for n in range(3)]
    write_rows(folder / "rows.jsonl", rows)
    recipe = str(write_recipe(folder, STAGES, {**TINY, "lora": {"r": 4}}))
    plugin = with_plugin(folder / "planted.py", HEADER + body + FOOTER)
    return main(["run", recipe, *words, *plugin, "--out", str(folder / "out")])


def metrics(folder: Path) -> list[dict[str, Any]]:
    return read_rows(folder / "out" / "align" / "metrics.jsonl")


def warnings(err: str) -> list[str]:
    return re.findall("warning: (the engine.*)", err)


def test_the_samplers_gap_is_per_token_of_the_policy() -> None:
    """Tokens of others have no log-probability, and do not count as perfect agreement."""
    response = Response(
        tokens=(1, 2, 3, 4), logprobs=(-1.0, 0.0, 0.0, -2.0), action_mask=(True, False, False, True)
    )
    group = Group(({"role": "user", "content": "?"},), (response,))
    measured = torch.tensor([-1.5, 0.0, 0.0, -2.1])
    assert engine_mismatch([group], [measured]) == pytest.approx(0.3)
    # A response that was cut counts neither its difference nor its tokens.
    assert engine_mismatch([group, group], [measured, measured[:2]]) == pytest.approx(0.3)
    short = replace(response, tokens=(1,), logprobs=(-1.0,), action_mask=None)
    both = [replace(group, responses=(response, short))]
    assert engine_mismatch(both, [measured, torch.tensor([-1.9])]) == pytest.approx(0.5)
    # Nothing is told apart from agreement.
    assert (
        engine_mismatch([replace(group, responses=(replace(response, logprobs=None),))], [measured])
        is None
    )


@pytest.mark.parametrize("name", PLANTED)
def test_another_model_is_caught_in_the_first_iteration(
    tmp_path: Path, said: Said, name: str
) -> None:
    code = train(tmp_path, PLANTED[name])
    err = said()
    (gap,) = map(float, re.findall(r"differ by (\S+) nats per token, of which rounding", err))
    assert "Traceback" not in err
    assert (gap > ANOTHER_MODEL) == (name == "an adapter that is never loaded")
    if gap > ANOTHER_MODEL:  # nothing was learned from it
        assert code == 1 and "in iteration 1 of 2" in err and not metrics(tmp_path)
        assert "error: stage 'align': the engine is not the policy that learns" in err
    else:  # said once, before the first iteration is logged
        assert code == 0 and len(warnings(err)) == 1
        assert err.index("warning: the engine") < err.index("iteration 1/2")
        assert metrics(tmp_path)[0]["engine_mismatch"] == pytest.approx(gap, rel=0.1)


def test_the_policy_itself_raises_no_alarm(tmp_path: Path, said: Said) -> None:
    assert train(tmp_path, "pass") == 0
    assert not warnings(said())
    assert all(0 < row["engine_mismatch"] < 1e-5 for row in metrics(tmp_path))


def test_a_sampler_that_tells_nothing_is_not_taken_for_the_policy(
    tmp_path: Path, said: Said
) -> None:
    silent = """
    def sample(self, *given):
        return [[replace(one, logprobs=None) for one in each] for each in super().sample(*given)]
    """
    assert train(tmp_path, silent) == 0
    (warning,) = warnings(said())
    assert "gives no log-probabilities" in warning
    assert not any("engine_mismatch" in row for row in metrics(tmp_path))


def test_weights_that_are_not_replaced_are_caught_in_the_second_iteration(
    tmp_path: Path, said: Said
) -> None:
    assert train(tmp_path, KEEPS_THE_FIRST, "stages.align.iterations=3") == 0
    before, _, after = said().partition("iteration 1/3")
    assert not warnings(before) and len(warnings(after)) == 1
    first, *others = (row["engine_mismatch"] for row in metrics(tmp_path))
    assert first < 1e-5 and min(others) > 0.1


def test_a_run_weights_what_another_dtype_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And learns from these advantages."""
    weights, add = Importance.weighted, Examples.add_advantages
    made, learned = list[Any](), list[Any]()
    monkeypatch.setattr(
        Importance, "weighted", lambda *of: (made.append(weights(*of)), made[-1])[1]
    )
    monkeypatch.setattr(
        Examples, "add_advantages", lambda self, each: (learned.append(each), add(self, each))[1]
    )
    weighted = "stages.align.engine={planted: {importance: {cap: 1.0}}}"
    assert train(tmp_path, PLANTED["another dtype"], "stages.align.algorithm=ppo", weighted) == 0
    assert all(0 < row["importance_capped"] < 1 for row in metrics(tmp_path))
    assert [id(advantages) for advantages, _ in made] == list(map(id, learned)) and len(made) == 2
