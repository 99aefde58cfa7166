"""A plugin author's mistakes through the command line: the message, exit code 3, and no
traceback.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alignkit import Algorithm, Batch, DataError, Loss, Outputs, per_token
from alignkit.calls import call, create
from alignkit.cli import main
from alignkit.options import Options
from alignkit.registry import Component, Registration
from alignkit.training.context import select

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
ONLINE = {
    "algorithm": "broken",
    "prompts": "rows.jsonl",
    "reward": {"length": {"unit": "characters"}},
    "rollout": {"samples_per_prompt": 2, "max_new_tokens": 5},
    "iterations": 1,
    "prompts_per_iteration": 2,
}
OFFLINE = {"algorithm": "broken", "data": "rows.jsonl", "epochs": 1}


@pytest.fixture(scope="module", autouse=True)
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_CACHE", str(tmp_path_factory.mktemp("models")))
        yield


def run(folder: Path, methods: str, stage: dict[str, Any]) -> int:
    """Run a stage of the broken plugin from the command line; returns the exit code."""
    body = textwrap.indent(textwrap.dedent(methods), "    ")
    (folder / "broken.py").write_text(HEADER + body + FOOTER)
    rows = [{"prompt": f"is it {n}?", "completion": "yes, it is " * (n + 1)} for n in range(3)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = {
        "model": {"base": "tiny", "dtype": "float32", "lora": {"r": 2}},
        "stages": {"align": stage},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return main(
        [
            "run",
            str(folder / "recipe.yaml"),
            "--plugin",
            str(folder / "broken.py"),
            "--out",
            str(folder / "out"),
        ]
    )


MISTAKES = {
    "signal of integers": (
        "def signal(self, rollouts): return {'advantages': rollouts.rewards.long()}",
        r"in `Broken.signal`: return tensors .* in floating point.*, as 'advantages', not \[4\]",
    ),
    "shape of a term": (
        "def loss(self, batch, out): return Loss(dpo=per_token(F.sum_tokens(out.logprobs, "
        "batch.mask)))",
        r"in `Broken.loss`: return unreduced terms, .* of \[4, 5\], as 'dpo', not \[4\]",
    ),
    "missing Needs": (
        "def loss(self, batch, out): return Loss(kl=per_token(out.logprobs - "
        "batch.reference_logprobs))",
        r"in `Broken.loss`: Batch.reference_logprobs was not computed: add reference_logprobs=True to "
        r"`needs = Needs\(...\)` \(broken.py:\d+\)",
    ),
    "misspelled signal": (
        "def loss(self, batch, out): return Loss(policy=per_token(out.logprobs * "
        "batch['advantage'][:, None]))",
        r"in `Broken.loss`: no signal 'advantage'; .*'advantages'.*did you mean 'advantages'\? \(broken.py:\d+\)",
    ),
    "shape of a signal": (
        "def signal(self, rollouts): return {'advantages': rollouts.rewards[:, None]}",
        r"in `Broken.signal`: return tensors \[responses, tokens\] = \[4, 5\] or \[responses\] in floating point, .*"
        r"as 'advantages', not \[4, 1\]",
    ),
    "a signal named like a field": (
        "def signal(self, rollouts): return {'rewards': rollouts.rewards}",
        r"in `Broken.signal`: return tensors .*, not named as a field of Batch, .* as 'rewards', not",
    ),
    "no signals": (
        "def signal(self, rollouts): return None",
        r"in `Broken.signal`: return a dict of tensors .*, or Skip\(\"reason\"\), not None",
    ),
    "no gradient": (
        "def loss(self, batch, out): return Loss(nll=per_token(-out.logprobs.detach()))",
        r"in `Broken.loss`: return terms with gradients, computed from `out` without detach\(\)",
    ),
    "a reduced loss": (
        "def loss(self, batch, out): return -out.logprobs.mean()",
        r"in `Broken.loss`: return a dict of unreduced terms, such as Loss\(name=per_token\(\.\.\.\)\) of .*, not \[\]",
    ),
    "a reduced term": (
        "def loss(self, batch, out): return Loss(nll=per_token(-out.logprobs.mean()))",
        r"return unreduced terms, .* of \[4, 5\], as 'nll', not \[\]",
    ),
    "an exception in loss": (
        "def loss(self, batch, out): return {}['nll']",
        r"in `Broken.loss`: KeyError: 'nll' \(broken.py:\d+\)",
    ),
    "an exception in signal": (
        "def signal(self, rollouts): return 1 / 0",
        r"in `Broken.signal`: ZeroDivisionError: .*\(broken",
    ),
    "an exception in select": (
        "def select(self, groups, context): return groups[99]",
        r"in `Broken.select`: IndexError: ",
    ),
    "no groups": (
        "def select(self, groups, context): pass",
        r"in `Broken.select`: TypeError: 'NoneType' object is not iterable",
    ),
    "an exception in keep_group": (
        "def keep_group(self, group): return group.score",
        r"in `Broken.keep_group`: AttributeError",
    ),
    "an exception in term_weights": (
        "def term_weights(self, batch): return batch.mass",
        r"in `Broken.term_weights`: Attr",
    ),
    "term weights that are no tensors": (
        "def term_weights(self, batch): return {'policy_loss': 3.0}",
        r"in `Broken.term_weights`: AttributeError: 'float' object has no attribute 'shape'",
    ),
    "shape of weights": (
        "def term_weights(self, batch): return {'policy_loss': torch.ones(4)}",
        r"in `Broken.term_weights`: return tensors in the shapes of their loss terms, as 'policy_loss', not \[4\]",
    ),
    "an exception in before_step": (
        "def before_step(self, batch, out): return out.x",
        r"in `Broken.before_step`: Attr",
    ),
    "a tensor in the state": (
        "def before_step(self, batch, out): return {'mean': out.logprobs.mean()}",
        r"in `Broken.before_step`: `state` must be JSON; use float",
    ),
    "a metric that is no number": (
        "def signal(self, rollouts): return self.metrics.update(a=rollouts) or {'advantages': "
        "rollouts.rewards}",
        r"in `Broken.signal`: `metrics` must be JSON; use float",
    ),
    "an exception in report_metrics": (
        "def report_metrics(self, batch, out): return [][0]",
        r"in `Broken.report_metrics`: Ind",
    ),
    "shape of a metric": (
        "def report_metrics(self, batch, out): return {'ratio': per_response(out.logprobs)}",
        r"in `Broken.report_metrics`: return unreduced terms, .*, as 'ratio', not \[4, 5\]",
    ),
}


@pytest.mark.parametrize(("methods", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_reported_as_the_plugins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], methods: str, message: str
) -> None:
    code = run(tmp_path, methods, ONLINE)
    err = capsys.readouterr().err
    assert code == 3, err
    assert "Traceback" not in err
    assert re.search(r"^error: plugin 'broken.py', stage 'align', " + ".*" + message, err, re.M), (
        err
    )


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (
            "source = Source.DATASET; needs = Needs()\n"
            "def loss(self, batch, out): return batch.old_logprobs",
            r"in `Broken.loss`: Batch.old_logprobs was not computed",
        ),
        (
            "source = Source.DATASET; needs = Needs()\n"
            "def loss(self, batch, out): return Loss(n=per_token(batch.rewards))",
            r"in `Broken.loss`: Batch.rewards was not computed: only rollouts with a reward have it",
        ),
        (
            "source = Source.DATASET; needs = Needs()\ndef check_data(self, groups): groups.x",
            r"in `Broken.check_data`: AttributeError",
        ),
        (
            "source = Source.DATASET; needs = Needs()\n"
            "def loss(self, batch, out): return Loss(n=per_pair(out.logprobs))",
            r"return unreduced terms, .*, as 'n', not \[3, \d+\]",
        ),
    ],
)
def test_a_mistake_in_an_offline_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], methods: str, message: str
) -> None:
    code = run(tmp_path, methods, OFFLINE)
    err = capsys.readouterr().err
    assert code == 3, err
    assert re.search(r"^error: plugin 'broken.py', stage 'align', .*" + message, err, re.M), err


def test_log_probabilities_that_were_not_requested_are_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An online stage metrics both for the KL that it logs."""
    methods = (
        "needs = Needs()\ndef signal(self, rollouts): return {'advantages': rollouts.old_logprobs}"
    )
    assert run(tmp_path, methods, ONLINE) == 3
    assert (
        "Batch.old_logprobs was not computed: add old_logprobs=True to `needs = Needs(...)`"
        in capsys.readouterr().err
    )


def test_data_errors_stay_data_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = (
        "source = Source.DATASET; needs = Needs()\n"
        "def select(self, groups, context): raise DataError('no thumbs')"
    )
    assert run(tmp_path, methods, OFFLINE) == 4
    assert "error: stage 'align': no thumbs" in capsys.readouterr().err


def test_a_skipped_iteration_gives_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "def signal(self, rollouts): return Skip('nobody disagreed')", ONLINE) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "1 of 1 iteration had nothing to learn from. Last reason: nobody disagreed" in err


def test_an_algorithm_may_keep_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a precision that numpy does not know, and large ones, which no call copies or compares."""
    keeps = """
    def loss(self, batch, out):
        self.seen = torch.ones(3, dtype=torch.bfloat16)
        self.table = getattr(self, "table", torch.zeros(2**25))
        self.table += 1
        return Loss(policy_loss=per_token(-out.logprobs * batch["advantages"][:, None]))
    """
    assert run(tmp_path, keeps, ONLINE) == 0, capsys.readouterr().err


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


def test_without_an_author_the_class_is_named() -> None:
    class Fails(Algorithm):
        def select(self, groups: Any, context: Any) -> Any:
            raise DataError("bad rows")

        def loss(self, batch: Batch, out: Outputs) -> Loss:
            return Loss(nll=per_token(torch.zeros(1, 2, 3)))

    with pytest.raises(DataError, match=r"^bad rows$"):
        select(Fails(None), [], Any)
