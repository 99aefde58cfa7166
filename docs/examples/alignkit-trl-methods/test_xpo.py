"""The pairs and the loss against the paper's formula in plain torch, the conformance kit, and a
short run.
"""

import json
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import alignkit_xpo
import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from alignkit import Batch, DataError, Group, Outputs, Pair, Pairs, Response, SelectContext
from alignkit.cli import main
from alignkit.data.group import group_to_json
from alignkit.testing import check_algorithm, check_step

HERE = Path(__file__).parent
INSTALLED = any(point.name == "alignkit_xpo" for point in entry_points(group="alignkit"))
PLUGIN = [] if INSTALLED else ["--plugin", str(HERE / "alignkit_xpo.py")]
META = alignkit_xpo.REFERENCE


def xpo(**options: float) -> alignkit_xpo.XPO:
    return alignkit_xpo.XPO(alignkit_xpo.XPO.Options(**options))


def response(reward: float, *tokens: int) -> Response:
    return Response(text=f"{tokens}", tokens=tokens, scores={"reward": reward})


def group(own: list[Response], reference: list[Response], question: str = "Why?") -> Group:
    prompt = ({"role": "user", "content": question},)
    stored = group_to_json(Group(prompt, tuple(reference)))
    return Group(prompt, tuple(own), id=question, meta={META: stored, "answer": 7})


def select(*groups: Group, seed: int = 0) -> tuple[list[Group], dict[str, float]]:
    logged: dict[str, float] = {}
    random = np.random.default_rng(seed)
    context = SelectContext(1, 0, lambda: [], lambda **metrics: logged.update(metrics), random)
    return xpo().select(groups, context), logged


def test_every_sample_is_compared_with_a_response_of_the_reference() -> None:
    """The higher reward wins; ties and equal responses form no pair."""
    reference = response(1.0, 9, 9)
    own = [response(2.0, 1), response(0.5, 2), response(1.0, 3), response(3.0, 9, 9)]
    (kept,), logged = select(
        group(own, [reference]), group([response(1.0, 5)], [reference], "What?")
    )
    assert kept.responses == (*own, replace(reference, source=META))
    assert kept.pairs == (Pair(0, 4), Pair(4, 1))
    assert logged == {"pairs": 2, "groups_tied": 1}


def test_samples_meet_different_responses_of_the_reference() -> None:
    own, reference = (
        [response(5.0, 1), response(6.0, 2)],
        [response(float(n), 10 + n) for n in range(4)],
    )
    met = {
        tuple(r.tokens for r in select(group(own, reference), seed=seed)[0][0].responses[2:])
        for seed in range(9)
    }
    assert len(met) > 1 and all(first != second for first, second in met)
    (kept,), _ = select(group(own, reference[:1]))
    assert kept.pairs == (Pair(0, 2), Pair(1, 2))  # one is enough for both


def test_prompts_need_a_response_of_the_reference() -> None:
    with pytest.raises(DataError, match="reference_responses"):
        select(Group((), (response(1.0, 5),)))


def test_plain_prompts_are_told_before_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "check",
                str(HERE / "xpo.yaml"),
                f"stages.align.prompts={HERE / 'prompts.jsonl'}",
                *PLUGIN,
            ]
        )
        == 4
    )
    assert "stage 'align': xpo: a prompt has no reference response" in capsys.readouterr().err


def test_the_loss_is_the_papers() -> None:
    """mean[-log sigma(beta h)] + alpha mean[log pi(reference's response)], h: difference of the log
    pi/pi_ref.
    """
    policy = torch.tensor([-3.0, -5.0, -4.0, -6.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-3.5, -4.0, -4.5, -3.0], dtype=torch.float64)
    ratio = policy - reference
    # Group 1: own 0 beats its reference 1. Group 2: own 2 loses to its reference 3.
    dpo = -(logsigmoid(0.4 * (ratio[0] - ratio[1])) + logsigmoid(0.4 * (ratio[3] - ratio[2]))) / 2
    expected = dpo + 0.05 * (policy[1] + policy[3]) / 2
    expected.backward()

    def tokens(logprobs: torch.Tensor, garbage: float) -> torch.Tensor:
        return torch.tensor([[x / 4, 3 * x / 4, garbage] for x in logprobs.tolist()])

    ones = torch.ones(2)
    groups = [Group((), (Response("own"), Response("reference", source=META))) for _ in range(2)]
    batch = Batch(
        groups=groups,
        tokens=torch.zeros(4, 3, dtype=torch.int64),
        mask=torch.tensor([[True, True, False]]).repeat(4, 1),
        group_index=torch.tensor([0, 0, 1, 1]),
        pairs=Pairs(
            torch.tensor([0, 3]), torch.tensor([1, 2]), ones, 0 * ones, torch.tensor([0, 1])
        ),
        truncated=torch.zeros(4, dtype=torch.bool),
        reference_logprobs=tokens(reference, -8.0),
    )
    out = Outputs(logprobs=tokens(policy, 3.0).requires_grad_())
    algorithm = xpo(beta=0.4, alpha=0.05)
    terms, weights = algorithm.loss(batch, out), algorithm.term_weights(batch)["optimism"]
    optimism = (terms["optimism"].values * weights).sum() / weights.sum()
    loss = terms["dpo"].values.mean() + terms["optimism"].coefficient * optimism
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert out.logprobs.grad is not None and policy.grad is not None
    assert torch.allclose(
        out.logprobs.grad[:, :2].double(), policy.grad[:, None].expand(-1, 2), atol=1e-7
    )
    assert not out.logprobs.grad[:, 2].any()


def test_it_conforms() -> None:
    groups = [
        group(
            [response(1.0, 5, 6, 7), response(-1.0, 8, 9)],
            [response(0.0, 10, 11), response(0.5, 12, 13, 14, 15)],
        ),
        group([response(0.3, 20, 21)], [response(0.9, 22, 23, 24)], "What?"),
    ]
    check_algorithm(alignkit_xpo.XPO, {"alpha": 0.1}, groups=groups)


def test_the_step_conforms() -> None:
    options = {
        "prompts": "data",
        "reward": {"length": {}},
        "policy": "sft",
        "sampling": {"max_new_tokens": 4},
    }
    check_step(alignkit_xpo.ReferenceResponses, options)


def test_a_run(tmp_path: Path) -> None:
    overrides = ["stages.align.iterations=2", "stages.align.algorithm.xpo.alpha=0.01"]
    assert main(["run", str(HERE / "xpo.yaml"), *overrides, "--out", str(tmp_path), *PLUGIN]) == 0
    rows = [
        json.loads(line) for line in (tmp_path / "align" / "metrics.jsonl").read_text().splitlines()
    ]
    # The policy starts as the reference
    assert rows[0]["dpo"] == pytest.approx(np.log(2), abs=1e-4)
    assert rows[0]["optimism"] < 0 and rows[0]["pairs"] > 0
    assert rows[0]["loss"] == pytest.approx(rows[0]["dpo"] + 0.01 * rows[0]["optimism"], abs=1e-4)
    assert rows[1]["kl"] != 0.0
