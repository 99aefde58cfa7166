"""A plugin author's mistakes through the command line: the message, exit code 3, and no
traceback.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import re
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignkit import (
    Algorithm,
    Batch,
    Group,
    Loss,
    Outputs,
    per_group,
    per_pair,
    per_response,
    per_token,
)
from alignkit.contract.algorithm import Phase
from alignkit.contract.kinds import MonitorReport
from alignkit.contract.options import Options
from alignkit.contract.reward import CombinedReward, Rating
from alignkit.errors import DataError, PluginError
from alignkit.host import returns
from alignkit.host.calls import call, create
from alignkit.host.registry import Component, Registration
from alignkit.models.packing import Examples
from alignkit.tokens.encoder import Encoded
from tests.rows import cells, run, user, with_plugin, write_recipe

HEADER = """
import torch
from alignkit import *
from alignkit import functional as F

class Broken(Algorithm):
    source = Source.ROLLOUTS
    needs = Needs(old_logprobs=True)

    def signal(self, rollouts):
        return {"advantages": rollouts.rewards}

    def loss(self, batch, out):
        return Loss(policy_loss=per_token(-out.logprobs * batch["advantages"][:, None]))

"""
FOOTER = """

@hookimpl
def register(add):
    add("algorithm", "broken", Broken)
"""
ONLINE = """
align:
  algorithm: broken
  prompts: prompts.jsonl
  reward: {length: {unit: characters}}
  rollout: {samples_per_prompt: 2, max_new_tokens: 5}
  iterations: 1
  prompts_per_iteration: 2
"""
OFFLINE = "align: {algorithm: broken, data: demos.jsonl, epochs: 1}"
OF_DATA = "source = Source.DATASET; needs = Needs()\n"


def failed(folder: Path, methods: str, stages: str = ONLINE, code: int = 3) -> str:
    """Run a stage of the broken plugin, which must end with this code; returns the last error."""
    body = textwrap.indent(textwrap.dedent(methods), "    ")
    plugin = with_plugin(folder / "broken.py", HEADER + body + FOOTER)
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        run(write_recipe(folder, stages), *plugin, code=code)
    assert "Traceback" not in err.getvalue()
    return err.getvalue()


# A method, what it returns, and a pattern of what is said of it
MISTAKES = r"""
signal(self, b) | {'advantages': b.rewards.long()} | return tensors .* in floating point.*, as 'advantages', not \[4\]
signal(self, b) | {'advantages': b.rewards[:, None]} | return tensors .* = \[4, 5\] or .*, as 'advantages', not \[4, 1\]
signal(self, b) | {'rewards': b.rewards} | return tensors .*, not named as a field of Batch, .* as 'rewards', not
signal(self, b) | None | return a dict of tensors .*, or Skip
signal(self, b) | b.reference_logprobs | Batch.* was not computed: add reference_logprobs=True to .* \(broken.py:\d+\)
signal(self, b) | self.metrics.update(a=b) or {'a': b.rewards} | `metrics` must be JSON; use float
signal(self, b) | self.state.update(a=b) or {'a': b.rewards} | `state` must be JSON; use float
loss(self, b, out) | b['advantage'] | no signal 'advantage'; .*did you mean 'advantages'
loss(self, b, out) | Loss(n=per_token(-out.logprobs.detach())) | return terms with gradients, computed from `out`
loss(self, b, out) | -out.logprobs.mean() | return a dict of unreduced terms, .*, not \[\]
loss(self, b, out) | Loss(d=per_token(out.logprobs.sum(1))) | return unreduced terms, .* of \[4, 5\], as 'd', not \[4\]
term_weights(self, b) | {'policy_loss': torch.ones(4)} | return tensors in the shapes of their loss terms, .* not \[4\]
before_step(self, b, out) | {'mean': out.logprobs.mean()} | `state` must be JSON; use float
report_metrics(self, b, out) | {'r': per_response(out.logprobs)} | return unreduced terms, .*, as 'r', not \[4, 5\]
report_metrics(self, *given) | 1 / 0 | ZeroDivisionError
select(self, *given) | 1 / 0 | ZeroDivisionError: .* \(broken.py:\d+\)
keep_group(self, *given) | 1 / 0 | ZeroDivisionError
term_weights(self, *given) | 1 / 0 | ZeroDivisionError
before_step(self, *given) | 1 / 0 | ZeroDivisionError
"""


@pytest.mark.parametrize(("method", "returned", "said"), cells(MISTAKES))
def test_a_mistake_is_reported_as_the_plugins(
    tmp_path: Path, method: str, returned: str, said: str
) -> None:
    err, (name, _) = failed(tmp_path, f"def {method}: return {returned}"), method.split("(")
    message = f"^error: plugin 'broken.py', stage 'align', in `Broken.{name}`: {said}"
    assert re.search(message, err, re.M), err


def rewards(*values: float) -> CombinedReward:
    return CombinedReward(torch.tensor(values))


ASKED, PHASE, NAN = Group((user("q"),)), Phase([]), float("nan")
BATCH = Examples([Encoded.of((1,), (5,), (5,))]).batch()
ONE, TWO, TABLE = torch.ones(1), torch.ones(2), torch.ones(2, 1)
LEARNED = TABLE.clone().requires_grad_()
# A check, what it lets pass, and what it refuses
CHECKS: list[tuple[Any, list[Any], list[Any]]] = [
    (partial(returns.mask, 2), [[True, False], np.array([True, False])], [[True], [1, 0], None]),
    (returns.selection, [[], [ASKED], [PHASE]], [[ASKED, PHASE], "ab"]),
    (
        partial(returns.scores, 2),
        [[1, None], np.ones(2), torch.ones(2)],
        [[1], [1, 1, 1], [1, math.inf], "ab", {0: 1, 1: 1}, {"": [1, 1]}, np.ones((2, 1))],
    ),
    (
        partial(returns.prompt, ASKED),
        [[user("a")]],
        [[], [user("\ud800")], [{"role": "user", "content": 1}]],
    ),
    (partial(returns.prompt, Group(())), [[]], [[user("a")]]),
    (returns.numbers, [None, 1.5, {"a": None}], [math.inf, {"a": NAN}, 1e308]),
    (partial(returns.combined, 2), [rewards(1.0, NAN)], [rewards(1.0), rewards(1.0, math.inf)]),
    (
        partial(returns.ratings, 2, (1, 5)),
        [[Rating(1), Rating(None)], [Rating(5), Rating(2)]],
        [[Rating(0), Rating(1)], [Rating(1), Rating(6)], [Rating(1)], [1, 2]],
    ),
    (
        partial(returns.ratings, 1, None),
        [[Rating(-9)]],
        [[Rating(1)] * 2, [Rating(1e308)]],
    ),
    (
        partial(returns.monitor_report, 3),
        [MonitorReport(best=3)],
        [MonitorReport(best=4), MonitorReport(best=-1), MonitorReport(summary={"a": TWO})],
    ),
    (
        partial(returns.loss, BATCH),
        [Loss(a=per_token(LEARNED)), Loss(a=per_token(LEARNED), b=per_token(TABLE, 0))],
        [Loss(a=per_token(LEARNED), b=per_token(TABLE)), Loss(b=per_token(TABLE, 0)), Loss()],
    ),
    (
        partial(returns.terms, BATCH),
        [Loss(a=per_pair(ONE[1:]), b=per_group(ONE), c=per_response(TWO))],
        [Loss(a=per_group(TWO)), Loss(a=per_pair(ONE)), Loss(a=per_response(ONE)), {"a": TABLE}],
    ),
    (
        partial(returns.weights, Loss(a=per_pair(ONE), b=per_pair(TWO))),
        [{"a": ONE, "b": TWO}, {"c": TABLE}],
        [{"b": ONE}],
    ),
]


@pytest.mark.parametrize(("check", "right", "wrong"), CHECKS)
def test_what_a_plugin_may_return(check: Any, right: list[Any], wrong: list[Any]) -> None:
    for value in right:
        check(value)
    for value in wrong:
        with pytest.raises((PluginError, ValueError, TypeError)):
            check(value)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            "def loss(self, batch, out): return Loss(n=per_token(batch.rewards))",
            "loss`: Batch.rewards was not computed: only rollouts with a reward have it",
        ),
        ("def check_data(self, groups): groups.x", "check_data`: AttributeError"),
    ],
)
def test_a_mistake_in_an_offline_stage(tmp_path: Path, methods: str, message: str) -> None:
    err = failed(tmp_path, OF_DATA + methods, OFFLINE)
    assert f"error: plugin 'broken.py', stage 'align', in `Broken.{message}" in err


def test_data_errors_and_skips_stay_what_they_are(tmp_path: Path) -> None:
    raises = "def select(self, groups, context): raise DataError('no thumbs')"
    assert "error: stage 'align': no thumbs" in failed(tmp_path, OF_DATA + raises, OFFLINE, 4)
    skips = "def signal(self, rollouts): return Skip('nobody disagreed')"
    assert "Last reason: nobody disagreed" in failed(tmp_path, skips, code=1)


def test_an_algorithm_may_keep_tensors(tmp_path: Path) -> None:
    """Of a precision that numpy does not know, and large ones, which no call copies or compares."""
    keeps = """
    def loss(self, batch, out):
        self.seen = torch.ones(3, dtype=torch.bfloat16)
        self.table = getattr(self, "table", torch.zeros(2**25))
        self.table += 1
        return Loss(policy_loss=per_token(-out.logprobs * batch["advantages"][:, None]))
    """
    failed(tmp_path, keeps, code=0)


def test_the_distribution_is_named() -> None:
    registration = Registration("w", Fails, plugin="x", distribution="dist", version="0.1")
    wrong = create(Component("algorithm", "w", registration, Options()), "align")
    wrong.error = KeyError("advantage")
    whose = r"^plugin 'x' \(dist 0.1\), stage 'align', in `Fails.loss`: KeyError: 'advantage' \("
    with pytest.raises(PluginError, match=whose + re.escape(f"{Path(__file__).name}:")):
        call(wrong, "loss", None, None)


class Fails(Algorithm):
    error: BaseException

    def loss(self, batch: Batch, out: Outputs) -> Loss:
        raise self.error


@pytest.mark.parametrize("text", ["no rows", "stage 'align': no rows"])
def test_a_data_error_names_its_stage_once_and_keeps_its_option(text: str) -> None:
    wrong = create(Component("algorithm", "w", Registration("w", Fails), Options()), "align")
    wrong.error = DataError(text, option=("data",))
    with pytest.raises(DataError, match=r"^stage 'align': no rows$") as caught:
        call(wrong, "loss", None, None)
    assert caught.value.option == ("data",)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        OSError(errno.ENOSPC, "No space left on device"),
        KeyboardInterrupt(),
    ],
)
def test_exhausted_memory_and_interrupts_pass(error: BaseException) -> None:
    fails = Fails(None)
    fails.error = error
    with pytest.raises(type(error)):
        call(fails, "loss", None, None)
