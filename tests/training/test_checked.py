"""A plugin author's mistakes through the command line: the message, exit code 3, and no
traceback.
"""

from __future__ import annotations

import contextlib
import io
import re
import textwrap
from pathlib import Path

import pytest
import torch

from alignkit import Algorithm, Batch, Loss, Outputs
from alignkit.calls import call, create
from alignkit.options import Options
from alignkit.registry import Component, Registration
from tests.rows import run, write_recipe

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
    (folder / "broken.py").write_text(HEADER + body + FOOTER)
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        run(write_recipe(folder, stages), "--plugin", str(folder / "broken.py"), code=code)
    assert "Traceback" not in err.getvalue()
    return err.getvalue()


MISTAKES = {
    "def signal(self, rollouts): return {'advantages': rollouts.rewards.long()}": (
        r"signal`: return tensors .* in floating point.*, as 'advantages', not \[4\]"
    ),
    "def signal(self, rollouts): return {'advantages': rollouts.rewards[:, None]}": (
        r"signal`: return tensors .* = \[4, 5\] or .*, as 'advantages', not \[4, 1\]"
    ),
    "def signal(self, rollouts): return {'rewards': rollouts.rewards}": (
        "signal`: return tensors .*, not named as a field of Batch, .* as 'rewards', not"
    ),
    "def signal(self, rollouts): return None": "signal`: return a dict of tensors .*, or Skip",
    "def signal(self, rollouts): return {'advantages': rollouts.reference_logprobs}": (
        r"signal`: Batch.reference_logprobs was not computed: add reference_logprobs=True to "
        r".* \(broken.py:\d+\)"
    ),
    "def signal(self, rollouts): self.metrics['a'] = rollouts; return {'a': rollouts.rewards}": (
        "signal`: `metrics` must be JSON; use float"
    ),
    "def loss(self, batch, out): return Loss(n=per_token(out.logprobs * batch['advantage']))": (
        "loss`: no signal 'advantage'; .*did you mean 'advantages'"
    ),
    "def loss(self, batch, out): return Loss(nll=per_token(-out.logprobs.detach()))": (
        "loss`: return terms with gradients, computed from `out`"
    ),
    "def loss(self, batch, out): return -out.logprobs.mean()": (
        r"loss`: return a dict of unreduced terms, .*, not \[\]"
    ),
    "def loss(self, batch, out): return Loss(dpo=per_token(out.logprobs.sum(1)))": (
        r"loss`: return unreduced terms, .* of \[4, 5\], as 'dpo', not \[4\]"
    ),
    "def term_weights(self, batch): return {'policy_loss': torch.ones(4)}": (
        r"term_weights`: return tensors in the shapes of their loss terms, .* not \[4\]"
    ),
    "def before_step(self, batch, out): return {'mean': out.logprobs.mean()}": (
        "before_step`: `state` must be JSON; use float"
    ),
    "def report_metrics(self, batch, out): return {'ratio': per_response(out.logprobs)}": (
        r"report_metrics`: return unreduced terms, .*, as 'ratio', not \[4, 5\]"
    ),
    **{
        f"def {method}(self, *given): return 1 / 0": (
            rf"{method}`: ZeroDivisionError: .* \(broken.py:\d+\)"
        )
        for method in ("signal", "select", "keep_group", "loss", "term_weights", "before_step")
    },
    "def report_metrics(self, *given): return 1 / 0": "report_metrics`: ZeroDivisionError",
}


@pytest.mark.parametrize("methods", MISTAKES)
def test_a_mistake_is_reported_as_the_plugins(tmp_path: Path, methods: str) -> None:
    message = f"^error: plugin 'broken.py', stage 'align', in `Broken.{MISTAKES[methods]}"
    assert re.search(message, err := failed(tmp_path, methods), re.M), err


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


def test_log_probabilities_that_were_not_requested_are_absent(tmp_path: Path) -> None:
    """An online stage measures both for the KL that it logs."""
    reads = "def signal(self, rollouts): return {'advantages': rollouts.old_logprobs}"
    err = failed(tmp_path, f"needs = Needs()\n{reads}")
    assert "Batch.old_logprobs was not computed: add old_logprobs=True" in err


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
    class Wrong(Algorithm):
        def loss(self, batch: Batch, out: Outputs) -> Loss:
            raise KeyError("advantage")

    registration = Registration("wrong", Wrong, plugin="x", distribution="dist", version="0.1")
    wrong = create(Component("algorithm", "wrong", registration, Options()), "align")
    place = re.escape(f"{Path(__file__).name}:")
    with pytest.raises(
        Exception,
        match=r"^plugin 'x' \(dist 0.1\), stage 'align', in `Wrong.loss`: KeyError: 'advantage' \("
        + place,
    ):
        call(wrong, "loss", None, None)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()]
)
def test_exhausted_memory_and_interrupts_pass(error: BaseException) -> None:
    class Fails(Algorithm):
        def loss(self, batch: Batch, out: Outputs) -> Loss:
            raise error

    with pytest.raises(type(error)):
        call(Fails(None), "loss", None, None)
