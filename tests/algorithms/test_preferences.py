"""DPO and its family, SimPO, ORPO, CPO, KTO, CPL, HIR: golden numbers and TRL's losses through the
plugins themselves, and what each makes of its data.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from alignkit import (
    Algorithm,
    Batch,
    DataError,
    Group,
    Message,
    Outputs,
    Pair,
    Pairs,
    Response,
    SelectContext,
)
from alignkit import functional as F
from alignkit.recipe.load import load_recipe
from alignkit.runs.run import run_recipe
from alignkit.testing import check_algorithm
from alignkit.tokens.encoder import Encoder
from alignkit.training.learner import weighted_sum
from alignkit_plugins.algorithms.dpo import DPO
from alignkit_plugins.algorithms.hir import HIR, HIROffline, Instruct, instructed
from alignkit_plugins.algorithms.kto import KTO
from alignkit_plugins.algorithms.reference_free import CPL, CPO, ORPO, SimPO
from alignkit_plugins.models.tiny import _tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
EXACT = {"rtol": 1e-9, "atol": 1e-10}


def with_nll(algorithm: Any, average: str) -> Any:
    """The algorithm with another average of its NLL."""
    algorithm.nll_aggregation = average
    return algorithm


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (DPO, {"loss": {"sigmoid": 0.8, "ipo": 0.2}, "nll_coefficient": 0.3}),
        (DPO, {"loss": {"robust": 1, "sigmoid_norm": 2, "ipo_norm": 1}, "label_smoothing": 0.1}),
        (DPO, {"loss": "hinge"}),
        (SimPO, {}),
        (SimPO, {"nll_coefficient": 0.5}),
        (ORPO, {}),
        (CPO, {}),
        (KTO, {"desirable_weight": 1.3}),
        (CPL, {}),
        (CPL, {"reference": True, "gamma": 0.9, "nll_coefficient": 0.1}),
        (HIR, {"thresholds": [0.25], "label_smoothing": 0.2}),
        (HIR, {"thresholds": [0, 1], "instructions": ["a", "b", "c"]}),
        (HIROffline, {}),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else None,
)
def test_conforms(cls: type[Algorithm], options: dict[str, Any]) -> None:
    check_algorithm(cls, options)


# A batch by hand


def total(algorithm: Algorithm, batch: Batch, out: Outputs) -> Tensor:
    """The loss as the loop reduces it."""
    weights = algorithm.term_weights(batch)
    loss = torch.zeros((), dtype=torch.float64)
    for name, term in algorithm.loss(batch, out).items():
        each = weights.get(name, batch.weights(term.per))
        loss = loss + term.coefficient * weighted_sum(term.values, each) / each.sum()
    return loss


def make_batch(
    mask: Tensor,
    pairs: Sequence[tuple[int, int, float]] = (),
    reference: Tensor | None = None,
    **more: Any,
) -> Batch:
    """Responses with this mask, one group each unless `groups` are given; pairs (better, worse, p)
    between any.
    """
    count = len(mask)
    groups = [Group((), (Response(),), id=str(i)) for i in range(count)]
    better, worse, p = zip(*pairs, strict=True) if pairs else ((), (), ())
    table = Pairs(
        better=torch.tensor(better, dtype=torch.long),
        worse=torch.tensor(worse, dtype=torch.long),
        p=torch.tensor(p, dtype=torch.float64),
        margin=torch.zeros(len(pairs)),
        group_index=torch.tensor(better, dtype=torch.long),
    )
    defaults = {
        "groups": groups,
        "tokens": torch.zeros(mask.shape, dtype=torch.long),
        "mask": mask,
        "group_index": torch.arange(count),
        "pairs": table,
        "truncated": torch.zeros(count, dtype=torch.bool),
    }
    return Batch(**{**defaults, **more}, reference_logprobs=reference)


def spread(
    sums: Sequence[float], lengths: Sequence[int], grad: bool = False
) -> tuple[Tensor, Tensor]:
    """(log-probabilities, mask) of responses with these sums, equal over their tokens; garbage
    behind the mask.
    """
    longest = max(lengths) + 1
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    values = torch.tensor(sums, dtype=torch.float64)[:, None] / torch.tensor(lengths)[:, None]
    return torch.where(mask, values, 1e30).requires_grad_(grad), mask


def golden(name: str) -> list[Any]:
    cases = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))["cases"]
    return [pytest.param(case, id=case["id"]) for case in cases]


def same(found: Any, wanted: Any) -> None:
    wanted = torch.tensor(wanted, dtype=torch.float64)
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64).detach(), wanted, **EXACT
    )


def chosen_and_rejected(
    case: Mapping[str, Any], chosen: str, rejected: str
) -> tuple[Tensor, Batch]:
    """Golden pairs: chosen responses first, then the rejected ones."""
    inputs = case["inputs"]
    count = len(inputs[chosen])
    lengths = [*inputs.get("chosen_len", [2] * count), *inputs.get("rejected_len", [3] * count)]
    logprobs, mask = spread([*inputs[chosen], *inputs[rejected]], lengths, grad=True)
    reference = None
    if "ref_chosen_logp" in inputs:
        reference = spread([*inputs["ref_chosen_logp"], *inputs["ref_rejected_logp"]], lengths)[0]
    return logprobs, make_batch(mask, [(i, count + i, 1.0) for i in range(count)], reference)


# Golden numbers


@pytest.mark.silent_bug(
    "losses: masks",
    "The mask of preference losses is inverted, or the mean includes padding.",
    "Only the answer's tokens count.",
    "QwenAudio/CosyVoice#1449",
)
@pytest.mark.parametrize("case", [case for case in golden("dpo") if case.id != "from_logits"])
@pytest.mark.parametrize(
    ("key", "loss", "smoothed"),
    [
        ("sigmoid", "sigmoid", False),
        ("cdpo", "sigmoid", True),
        ("robust", "robust", True),
        ("ipo", "ipo", False),
        ("ipo_avg", "ipo_norm", False),
        ("hinge", "hinge", False),
        ("sigmoid_norm", "sigmoid_norm", False),
    ],
)
def test_dpo_gives_the_golden_numbers(
    case: dict[str, Any], key: str, loss: str, smoothed: bool
) -> None:
    p = case["params"]
    logprobs, batch = chosen_and_rejected(case, "policy_chosen_logp", "policy_rejected_logp")
    algorithm = DPO(
        DPO.Options(
            beta=p["beta"], loss=loss, label_smoothing=p["label_smoothing"] if smoothed else 0
        )
    )
    out = Outputs(logprobs=logprobs)
    found, wanted = total(algorithm, batch, out), case["expected"][key]
    same(found, wanted["loss"])
    same(algorithm.loss(batch, out)[loss].values, wanted["per_pair"])
    (gradient,) = torch.autograd.grad(found, logprobs)
    assert not gradient[~batch.mask].any()
    same(gradient[:, 0], [*wanted["grad_policy_chosen"], *wanted["grad_policy_rejected"]])
    report = algorithm.report_metrics(batch, out)
    same(report["rewards/chosen"].values, case["expected"]["chosen_rewards"])
    same(report["rewards/rejected"].values, case["expected"]["rejected_rewards"])
    same(report["accuracy"].values.double().mean(), case["expected"]["accuracy_strict"])


@pytest.mark.silent_bug(
    "losses: length",
    "A sum over some tokens is divided by the number of others.",
    "Sum and count have the same mask.",
    "PaddlePaddle/PaddleFormers#4908",
)
@pytest.mark.parametrize("case", golden("orpo_simpo_cpo"))
def test_reference_free_methods_give_the_golden_numbers(case: dict[str, Any]) -> None:
    p, expected = case["params"], case["expected"]
    logprobs, batch = chosen_and_rejected(case, "chosen_sum_logp", "rejected_sum_logp")
    out = Outputs(logprobs=logprobs)
    simpo = SimPO(SimPO.Options(beta=p["simpo_beta"], target_margin=p["simpo_gamma"]))
    found = total(simpo, batch, out)
    same(found, expected["simpo"]["loss"])
    same(simpo.loss(batch, out)["preference"].values, expected["simpo"]["per_pair"])
    (gradient,) = torch.autograd.grad(found, logprobs)
    wanted = [
        *expected["simpo"]["grad_chosen_sum_logp"],
        *expected["simpo"]["grad_rejected_sum_logp"],
    ]
    same(gradient[:, 0], wanted)
    for nll, key in (
        ("token_mean", "loss_token_mean_nll"),
        ("sequence_mean", "loss_sequence_mean_nll"),
    ):
        orpo = with_nll(ORPO(ORPO.Options(odds_ratio_coefficient=p["orpo_lambda"])), nll)
        same(total(orpo, batch, out), expected["orpo"][key])
    same(orpo.loss(batch, out)["preference"].values, expected["orpo"]["or_loss_per_pair"])
    for nll, key in (
        ("token_mean", "loss_nll_token_mean"),
        ("sequence_sum", "loss_nll_sequence_sum"),
    ):
        cpo = with_nll(CPO(CPO.Options(beta=p["cpo_beta"])), nll)
        same(total(cpo, batch, out), expected["cpo"][key])


@pytest.mark.parametrize("case", golden("kto"))
def test_kto_gives_the_golden_numbers(case: dict[str, Any]) -> None:
    p, inputs, expected = case["params"], case["inputs"], case["expected"]
    count, others = len(inputs["policy_logp"]), len(inputs["kl_policy_logp"])
    lengths = [1 + i % 4 for i in range(count + others)]
    logprobs, mask = spread([*inputs["policy_logp"], *inputs["kl_policy_logp"]], lengths, grad=True)
    reference, _ = spread([*inputs["ref_logp"], *inputs["kl_ref_logp"]], lengths)
    labels = [*(bool(label) for label in inputs["desirable"]), *[None] * others]
    groups = [Group((), (Response(label=label),)) for label in labels]
    batch = make_batch(mask, reference=reference, groups=groups)
    algorithm = KTO(
        KTO.Options(
            beta=p["beta"], desirable_weight=p["lambda_d"], undesirable_weight=p["lambda_u"]
        )
    )
    out = Outputs(logprobs=logprobs)
    algorithm.state |= algorithm.before_step(batch, out)
    same(algorithm.state["z0"], expected["z0"])
    same(algorithm.loss(batch, out)["kto"].values[:count], expected["per_example"])
    found = total(algorithm, batch, out)
    same(found, expected["loss"])
    (gradient,) = torch.autograd.grad(found, logprobs)
    same(gradient[:count, 0], expected["grad_policy"])
    assert not gradient[count:].any() and not gradient[~mask].any()


@pytest.mark.parametrize("case", golden("cpl"))
def test_cpl_gives_the_golden_numbers(case: dict[str, Any]) -> None:
    p, inputs, expected = case["params"], case["inputs"], case["expected"]
    options = {"alpha": p["alpha"], "gamma": p["gamma"], "conservative_weight": p["lam"]}
    if case["id"] == "dpo_special_case":
        logprobs, batch = chosen_and_rejected(case, "policy_chosen_logp", "policy_rejected_logp")
        algorithm = CPL(CPL.Options(**options, reference=True))
        same(algorithm.loss(batch, Outputs(logprobs=logprobs))["cpl"].values, expected["per_pair"])
        return
    first, second = (torch.tensor(inputs[f"logp_{k}"], dtype=torch.float64) for k in (1, 2))
    mask = torch.cat([torch.tensor(inputs[f"mask_{k}"]) for k in (1, 2)]) > 0
    count = len(first)
    logprobs = torch.cat([first, second]).requires_grad_(True)
    batch = make_batch(
        mask, [(i, count + i, label) for i, label in enumerate(inputs["label_1_preferred"])]
    )
    algorithm, out = CPL(CPL.Options(**options)), Outputs(logprobs=logprobs)
    same(algorithm.loss(batch, out)["cpl"].values, expected["per_pair"])
    found = total(algorithm, batch, out)
    same(found, expected["loss"])
    (gradient,) = torch.autograd.grad(found, logprobs)
    same(gradient[:count], expected["grad_logp_1"])
    report = algorithm.report_metrics(batch, out)
    same(report["rewards/chosen"].values, expected["segment_advantage_1"])
    same(report["rewards/rejected"].values, expected["segment_advantage_2"])


def hir_batch(logprobs: Tensor) -> Batch:
    """N outputs of one token behind each of N instructions, log P [N, N]; output i fulfils
    instruction i.
    """
    count = len(logprobs)
    responses = tuple(Response(scores={"reward": float(i)}) for i in range(count))
    groups = [Group((), responses, bundle="b", meta={"hir": k}) for k in range(count)]
    return make_batch(
        torch.ones(count * count, 1, dtype=torch.bool),
        groups=groups,
        group_index=torch.arange(count).repeat_interleave(count),
    )


def hir(levels: int, **options: Any) -> HIR:
    thresholds = [k + 0.5 for k in range(levels - 1)]
    return HIR(
        HIR.Options(
            instructions=[f"level {k}" for k in range(levels)], thresholds=thresholds, **options
        )
    )


@pytest.mark.parametrize(
    "case", [c for c in golden("hir") if "contrastive" in c.id and c.id != "contrastive_n1"]
)
def test_hir_gives_the_golden_contrast(case: dict[str, Any]) -> None:
    table = torch.tensor(
        case["inputs"]["logp_output_given_instruction"], dtype=torch.float64, requires_grad=True
    )
    batch, rows = hir_batch(table), table.T.reshape(-1, 1)
    algorithm = hir(len(table), entropy_coefficient=0.0)
    out = Outputs(logprobs=rows, entropy=torch.zeros_like(rows))
    term, weights = (
        algorithm.loss(batch, out)["contrast"],
        algorithm.term_weights(batch)["contrast"],
    )
    same(term.values.sum(), case["expected"]["contrastive_sum"])
    contrast = weighted_sum(term.values, weights) / weights.sum()
    same(contrast, case["expected"]["contrastive_mean"])
    same(torch.autograd.grad(contrast, table)[0], case["expected"]["grad_contrastive_mean"])


def test_hir_gives_the_golden_smoothed_contrast() -> None:
    (case,) = (c.values[0] for c in golden("hir") if c.id == "two_way_smoothed")
    right, wrong = (case["inputs"][f"avg_logp_{name}_instruction"] for name in ("right", "wrong"))
    algorithm = hir(2, label_smoothing=case["params"]["eps"], entropy_coefficient=0.0)
    losses = []
    # Two outputs of one batch, the first of which is the golden one
    for high, low in zip(right, wrong, strict=True):
        rows = torch.tensor([high, 0.0, low, 0.0], dtype=torch.float64)[:, None]
        out = Outputs(logprobs=rows, entropy=torch.zeros_like(rows))
        losses.append(algorithm.loss(hir_batch(torch.zeros(2, 2)), out)["contrast"].values[0])
    same(torch.stack(losses), case["expected"]["per_sample"])


def test_hir_relabels_as_the_golden_samples() -> None:
    (case,) = (c.values[0] for c in golden("hir") if c.id == "relabel")
    by_outcome = case["inputs"]["instructions_by_outcome"]
    both = [by_outcome["0"], by_outcome["1"]]
    algorithm = HIR(HIR.Options(instructions=both, thresholds=[0.0], contrast_coefficient=0.0))
    found = []
    for sample in case["inputs"]["samples"]:
        prompt = instructed(({"role": "user", "content": "q"},), sample["instruction"])
        group = Group(prompt, (Response(text="o", scores={"reward": float(sample["feedback"])}),))
        (made,) = algorithm.select([group], context())
        instruction, _, query = made.prompt[-1]["content"].rpartition("\n")
        assert query == "q" and made.responses == group.responses
        found.append(instruction)
    assert found == case["expected"]["relabelled_instruction"]


def test_hir_compares_with_the_mean_of_the_samples() -> None:
    """Without thresholds, a constant in the reward changes no label; equal rewards tell nothing
    apart.
    """
    prompt = ({"role": "user", "content": "q"},)
    for level in (-5.0, 0.0, 5.0):
        algorithm = HIR(HIR.Options(instructions=["bad", "good"], contrast_coefficient=0.0))
        scores = [level + x for x in (0.0, 1.0, 0.25, 3.0)]
        group = Group(prompt, tuple(Response(text=str(x), scores={"reward": x}) for x in scores))
        bad, good = algorithm.select([group], context())
        assert [r.reward for r in bad.responses] == [level, level + 1, level + 0.25]
        assert [r.reward for r in good.responses] == [level + 3.0]
        same = replace(group, responses=group.responses[:1] * 3)
        assert algorithm.select([same], context()) == []
    with pytest.raises(ValidationError, match="3 instructions need 2 thresholds, not 1"):
        HIR.Options(instructions=["a", "b", "c"])


def test_validation_data_is_labeled_by_the_training_datas_mean() -> None:
    """The loss labels the training data again: another mean would contradict their instructions."""
    prompt = ({"role": "user", "content": "q"},)
    algorithm = HIROffline(
        HIROffline.Options(instructions=["bad", "good"], thresholds=None, contrast_coefficient=0.0)
    )
    training, held_out = (
        Group(prompt, tuple(Response(text=str(x), scores={"reward": x}) for x in scores))
        for scores in ((0.0, 1.0, 2.0, 3.0), (1.0, 90.0, 92.0))
    )
    algorithm.select([training], context())
    bad, good = algorithm.select([held_out], context(validation=True))
    assert ([r.text for r in bad.responses], [r.text for r in good.responses]) == (
        ["1.0"],
        ["90.0", "92.0"],
    )
    assert algorithm.state["threshold"] == 1.5


def context(validation: bool = False, seed: int = 0) -> SelectContext:
    logged: dict[str, Any] = {}
    made = SelectContext(
        1, seed, lambda: [], logged.update, np.random.default_rng(seed), validation
    )
    made.logged = logged  # type: ignore[attr-defined]
    return made


# TRL's losses on the same tensors


class Numbers:
    """Random log-probabilities of pairs [chosen; rejected] behind a prompt of one token, ragged."""

    def __init__(self, count: int = 4, longest: int = 6, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        self.count = count
        lengths = torch.randint(1, longest + 1, (2 * count,), generator=generator)
        lengths[0] = longest
        self.mask = torch.arange(longest) < lengths[:, None]
        shape = (2 * count, longest)
        draw = [
            torch.where(self.mask, torch.randn(shape, generator=generator).double() - 2, 0.0)
            for _ in range(2)
        ]
        self.logprobs, self.reference = draw[0].requires_grad_(True), draw[1]
        self.generator = generator

    @property
    def batch(self) -> Batch:
        return make_batch(
            self.mask, [(i, self.count + i, 1.0) for i in range(self.count)], self.reference
        )

    def compare(self, algorithm: Algorithm, theirs: Tensor, batch: Batch | None = None) -> None:
        """Loss and gradient, in float64."""
        ours = total(
            algorithm, self.batch if batch is None else batch, Outputs(logprobs=self.logprobs)
        )
        torch.testing.assert_close(ours, theirs.double(), rtol=1e-6, atol=1e-7)
        gradients = [
            torch.autograd.grad(loss, self.logprobs, retain_graph=True)[0]
            for loss in (ours, theirs)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
        assert gradients[0].any()


class Accelerator:
    device = "cpu"

    def gather(self, x: Any) -> Any:
        return x

    gather_for_metrics = gather


def trainer(**attributes: Any) -> SimpleNamespace:
    """What TRL's loss functions read of a trainer, without one."""
    defaults = {
        "model": SimpleNamespace(training=False),
        "accelerator": Accelerator(),
        "aux_loss_enabled": False,
        "precompute_ref_logps": True,
        "is_encoder_decoder": False,
        "_total_train_tokens": 0,
        "_metrics": defaultdict(lambda: defaultdict(list)),
    }
    return SimpleNamespace(**defaults, **attributes)


def answering(numbers: Numbers) -> Any:
    """A model whose fused head gives these log-probabilities, 0 where nothing is predicted."""
    logprobs, zeros = (
        torch.where(numbers.mask, numbers.logprobs, 0.0),
        torch.zeros_like(numbers.logprobs),
    )
    return lambda **inputs: SimpleNamespace(
        log_probs=logprobs, entropy=zeros, mean_logits=zeros, is_top1=zeros > 0
    )


def trl_dpo(
    numbers: Numbers, losses: Mapping[str, float], beta: float, label_smoothing: float = 0.0
) -> Tensor:
    from trl.trainer.dpo_trainer import DPOTrainer

    theirs = trainer(
        loss_types=list(losses),
        loss_weights=list(losses.values()),
        beta=beta,
        label_smoothing=label_smoothing,
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        use_weighting=False,
    )
    chosen, rejected = numbers.reference.sum(dim=1).chunk(2)
    completion = torch.nn.functional.pad(numbers.mask.long(), (1, 0))
    inputs = {"input_ids": completion, "attention_mask": completion, "completion_mask": completion}
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    found: Tensor = DPOTrainer._compute_loss(theirs, answering(numbers), inputs, False)
    return found


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"loss": "sigmoid"}, {"sigmoid": 1.0}),
        ({"loss": "sigmoid_norm"}, {"sigmoid_norm": 1.0}),
        ({"loss": "robust", "label_smoothing": 0.2}, {"robust": 1.0}),
        ({"loss": "hinge"}, {"hinge": 1.0}),
        ({"loss": "ipo_norm"}, {"ipo": 1.0}),
        ({"loss": {"sigmoid": 0.8, "ipo_norm": 0.2}}, {"sigmoid": 0.8, "ipo": 0.2}),
        ({"loss": {"hinge": 0.5}, "nll_coefficient": 0.3}, {"hinge": 0.5, "sft": 0.3}),
    ],
    ids=lambda value: "+".join(value) if "loss" not in value else "",
)
def test_dpo_agrees_with_trl(ours: dict[str, Any], theirs: dict[str, float]) -> None:
    numbers = Numbers()
    algorithm = DPO(DPO.Options(beta=0.3, **ours))
    numbers.compare(algorithm, trl_dpo(numbers, theirs, 0.3, algorithm.options.label_smoothing))


def test_trl_leaves_out_label_smoothing_and_sums() -> None:
    """What docs/algorithms/dpo.md says about TRL: should this fail, TRL has changed."""
    numbers = Numbers()

    def ours(**options: Any) -> float:
        return total(
            DPO(DPO.Options(beta=0.3, **options)), numbers.batch, Outputs(logprobs=numbers.logprobs)
        ).item()

    smoothed = trl_dpo(numbers, {"sigmoid": 1.0}, 0.3, label_smoothing=0.2).item()
    assert smoothed == pytest.approx(ours()) != pytest.approx(ours(label_smoothing=0.2), rel=0.01)
    assert trl_dpo(numbers, {"ipo": 1.0}, 0.3).item() != pytest.approx(ours(loss="ipo"), rel=0.01)


@pytest.mark.silent_bug(
    "losses: KTO",
    "The weights of desirable and undesirable answers have no effect.",
    "They weigh the loss.",
    "modelscope/ms-swift#2167",
)
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.7)])
def test_kto_agrees_with_trl(weights: tuple[float, float]) -> None:
    from trl.trainer.kto_trainer import KTOTrainer

    numbers, others = Numbers(seed=1), Numbers(seed=2)
    # Four nats on the first token of every stranger, or z0 would be 0.
    strangers = others.logprobs.detach() + 4 * (torch.arange(6) == 0)
    labels = [True, False, False, True, True, False, True, True]
    theirs = trainer(
        beta=0.3,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        loss_type="kto",
        calculate_KL=True,
        _compute_kl_logps=lambda model, batch: strangers.sum(dim=1),
    )
    completion = torch.nn.functional.pad(numbers.mask.long(), (1, 0))
    inputs = {"input_ids": completion, "attention_mask": completion, "completion_mask": completion}
    inputs |= {"label": torch.tensor(labels), "ref_logps": numbers.reference.sum(dim=1)}
    inputs["ref_KL_logps"] = others.reference.sum(dim=1)
    found = KTOTrainer._compute_loss(theirs, answering(numbers), inputs, False)
    groups = [Group((), (Response(label=label),)) for label in (*labels, *[None] * len(labels))]
    reference = torch.cat([numbers.reference, others.reference])
    batch = make_batch(torch.cat([numbers.mask, others.mask]), reference=reference, groups=groups)
    out = Outputs(logprobs=torch.cat([numbers.logprobs, strangers]))
    algorithm = KTO(
        KTO.Options(beta=0.3, desirable_weight=weights[0], undesirable_weight=weights[1])
    )
    algorithm.state |= algorithm.before_step(batch, out)
    assert algorithm.state["z0"] > 0.5
    ours = total(algorithm, batch, out)
    torch.testing.assert_close(ours, found, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(
        *(torch.autograd.grad(loss, numbers.logprobs)[0] for loss in (ours, found))
    )


class Logits:
    """A pair of sequences [chosen; rejected], a prompt of some tokens, and their logits."""

    def __init__(self, prompt: int):
        generator = torch.Generator().manual_seed(prompt)
        count, longest, vocabulary = 3, 5, 7
        lengths = torch.tensor([5, 2, 3, 1, 4, 5])
        self.count, self.prompt = count, prompt
        shape = (2 * count, prompt + longest)
        self.ids = torch.randint(0, vocabulary, shape, generator=generator)
        self.logits = torch.randn(
            *shape, vocabulary, generator=generator, dtype=torch.float64, requires_grad=True
        )
        self.mask = torch.arange(longest) < lengths[:, None]
        self.attention = torch.cat(
            [torch.ones(2 * count, prompt, dtype=torch.bool), self.mask], dim=1
        )
        self.labels = self.ids.masked_fill(~self.attention, -100)
        self.labels[:, :prompt] = -100

    def ours(self, algorithm: Algorithm) -> Tensor:
        logprobs = F.token_logprobs(
            self.logits[:, self.prompt - 1 : -1], self.ids[:, self.prompt :]
        )
        batch = make_batch(self.mask, [(i, self.count + i, 1.0) for i in range(self.count)])
        return total(algorithm, batch, Outputs(logprobs=logprobs))

    def theirs(self, cls: type, **attributes: Any) -> Tensor:
        """The loss of TRL's trainer, from the model's logits to its mean."""
        inputs = {
            "input_ids": self.ids,
            "attention_mask": self.attention.long(),
            "labels": self.labels,
        }
        fake = trainer(
            concatenated_inputs=lambda *args, **kwargs: {
                f"concatenated_{k}": v for k, v in inputs.items()
            },
            padding_value=0,
            pad_token_id=0,
            get_batch_logps=cls.get_batch_logps,  # type: ignore[attr-defined]
            **attributes,
        )
        for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
            if hasattr(cls, name):
                setattr(fake, name, getattr(cls, name).__get__(fake))
        batch = {"chosen_labels": self.labels[: self.count]}
        model = lambda *args, **kwargs: SimpleNamespace(logits=self.logits)  # noqa: E731
        loss: Tensor = cls.get_batch_loss_metrics(fake, model, batch)[0]  # type: ignore[attr-defined]
        return loss

    def gradients(self, *losses: Tensor) -> list[Tensor]:
        return [torch.autograd.grad(loss, self.logits, retain_graph=True)[0] for loss in losses]


@pytest.mark.parametrize(
    ("algorithm", "theirs"),
    [
        (
            SimPO(SimPO.Options(beta=2.5, target_margin=1.2)),
            {"loss_type": "simpo", "beta": 2.5, "cpo_alpha": 0.0},
        ),
        (
            SimPO(SimPO.Options(beta=2.5, nll_coefficient=0.4)),
            {"loss_type": "simpo", "beta": 2.5, "cpo_alpha": 0.4},
        ),
        (
            with_nll(CPO(CPO.Options(beta=0.3, nll_coefficient=0.6)), "token_mean"),
            {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.6},
        ),
    ],
    ids=["simpo", "cpo-simpo", "cpo"],
)
def test_simpo_and_cpo_agree_with_trl(algorithm: Algorithm, theirs: dict[str, Any]) -> None:
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    numbers = Logits(prompt=3)
    margin = getattr(algorithm.options, "target_margin", 0.0)
    ours = numbers.ours(algorithm)
    found = numbers.theirs(CPOTrainer, alpha=0.0, label_smoothing=0.0, simpo_gamma=margin, **theirs)
    torch.testing.assert_close(ours, found, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(*numbers.gradients(ours, found), rtol=1e-6, atol=1e-8)


def test_orpo_agrees_with_trl_where_the_prompt_is_one_token() -> None:
    """TRL's NLL is of the prompt as well: with one token, which nothing predicts, there is none of
    it.
    """
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    algorithm = with_nll(ORPO(ORPO.Options(odds_ratio_coefficient=0.4)), "token_mean")
    one, long = Logits(prompt=1), Logits(prompt=4)
    ours, theirs = one.ours(algorithm), one.theirs(ORPOTrainer, beta=0.4)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*one.gradients(ours, theirs), rtol=1e-4, atol=1e-6)
    assert long.ours(algorithm).item() != pytest.approx(
        long.theirs(ORPOTrainer, beta=0.4).item(), rel=0.01
    )


# The expectation over soft labels, rankings, special cases


SOFT = [(0, 4, 0.8), (1, 5, 0.3), (2, 6, 1.0), (0, 1, 0.5), (4, 3, 0.0)]


def by_label(
    algorithm: Algorithm, numbers: Numbers, pairs: Sequence[tuple[int, int, float]]
) -> Tensor:
    """The mean over pairs of what hard labels give, weighted by how likely they are."""
    out, losses = Outputs(logprobs=numbers.logprobs), []
    for better, worse, p in pairs:
        for i, j, weight in ((better, worse, p), (worse, better, 1 - p)):
            batch = make_batch(numbers.mask, [(i, j, 1.0)], numbers.reference)
            losses.append(weight * total(algorithm, batch, out))
    return sum(losses, torch.zeros(())) / len(pairs)


@pytest.mark.parametrize(
    "algorithm",
    [
        *(
            DPO(DPO.Options(loss=name))
            for name in ("sigmoid", "sigmoid_norm", "ipo", "ipo_norm", "hinge")
        ),
        DPO(DPO.Options(loss="robust", label_smoothing=0.1)),
        DPO(DPO.Options(label_smoothing=0.1)),
        SimPO(SimPO.Options()),
        ORPO(ORPO.Options()),
        with_nll(CPO(CPO.Options()), "sequence_mean"),
        CPO(CPO.Options()),
        CPL(CPL.Options(reference=True, gamma=0.9)),
    ],
    ids=lambda algorithm: f"{type(algorithm).__name__} {getattr(algorithm.options, 'loss', '')}",
)
def test_a_soft_label_is_the_expectation_over_hard_ones(algorithm: Algorithm) -> None:
    numbers = Numbers(seed=3)
    Numbers.compare(
        numbers,
        algorithm,
        by_label(algorithm, numbers, SOFT),
        make_batch(numbers.mask, SOFT, numbers.reference),
    )


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [
        (DPO(DPO.Options(nll_coefficient=1.0)), "nll"),
        (with_nll(CPO(CPO.Options()), "token_mean"), "nll"),
    ],
    ids=["dpo", "cpo"],
)
def test_a_token_mean_counts_responses_as_often_as_they_are_better(
    algorithm: Algorithm, name: str
) -> None:
    numbers = Numbers(seed=4)
    batch = make_batch(numbers.mask, SOFT, numbers.reference)
    term, weights = (
        algorithm.loss(batch, Outputs(logprobs=numbers.logprobs))[name],
        algorithm.term_weights(batch)[name],
    )
    nll, tokens = 0.0, 0.0
    for better, worse, p in SOFT:
        for row, weight in ((better, p), (worse, 1 - p)):
            nll += weight * float(-numbers.logprobs[row][numbers.mask[row]].sum())
            tokens += weight * float(numbers.mask[row].sum())
    assert float(weighted_sum(term.values, weights) / weights.sum()) == pytest.approx(
        nll / tokens, rel=1e-9
    )
    # A response that is better in no pair is not learned: 3 loses surely or with p = 0 wins surely.
    assert (
        float(weights[3].sum()) == float(numbers.mask[3].sum())
        and not weights[6].any()
        and not weights[7].any()
    )


def test_dpo_is_cpl_without_discount_and_with_a_reference() -> None:
    numbers = Numbers(seed=5)
    batch, out = (
        make_batch(numbers.mask, SOFT, numbers.reference),
        Outputs(logprobs=numbers.logprobs),
    )
    losses = [
        total(DPO(DPO.Options(beta=0.3)), batch, out),
        total(
            CPL(CPL.Options(alpha=0.3, gamma=1.0, conservative_weight=1.0, reference=True)),
            batch,
            out,
        ),
    ]
    assert float(losses[0]) == float(losses[1])
    gradients = [torch.autograd.grad(loss, numbers.logprobs)[0] for loss in losses]
    assert gradients[0].any() and torch.equal(gradients[0], gradients[1])


def test_cpl_discounts_from_the_first_token_and_favours_what_it_knows() -> None:
    """Two tokens against one, all of log-probability -1: S = -alpha (1 + gamma) and -alpha."""
    logprobs, mask = spread([-2.0, -1.0], [2, 1])
    batch, out = make_batch(mask, [(0, 1, 1.0)]), Outputs(logprobs=logprobs)
    (value,) = (
        CPL(CPL.Options(alpha=0.5, gamma=0.6, conservative_weight=0.4))
        .loss(batch, out)["cpl"]
        .values.tolist()
    )
    assert value == pytest.approx(-math.log(1 / (1 + math.exp(0.5 * 1.6 - 0.4 * 0.5))), rel=1e-9)


def test_cpl_clones_every_segment() -> None:
    logprobs, mask = spread([-2.0, -9.0], [2, 3])
    term = CPL(CPL.Options(nll_coefficient=0.5)).loss(
        make_batch(mask, [(0, 1, 1.0)]), Outputs(logprobs=logprobs)
    )["nll"]
    batch = make_batch(mask)
    weights = batch.weights(term.per)
    assert float(weighted_sum(term.values, weights) / weights.sum()) == pytest.approx(11 / 5)
    assert term.coefficient == 0.5


def test_cpl_measures_the_reference_only_where_it_counts() -> None:
    assert not CPL(CPL.Options()).needs.reference_logprobs
    assert CPL(CPL.Options(reference=True)).needs.reference_logprobs
    assert CPL(CPL.Options(reference=True)).needs.pairs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss": "ipo", "label_smoothing": 0.1},
            "label_smoothing only applies to robust, sigmoid, sigmoid_norm",
        ),
        ({"loss": "robust"}, "set label_smoothing"),
        ({"loss": {}}, "at least 1"),
        ({"loss": {"sigmoid": 0}}, "greater than 0"),
        ({"loss": {"exo": 1.0}}, "'sigmoid'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DPO.Options(**options)


# KTO's data


def asked(question: str) -> tuple[Any, ...]:
    return ({"role": "user", "content": question},)


def thumbs(question: str, *labels: bool | None) -> Group:
    responses = tuple(
        Response(text=f"{question}{i}", label=label) for i, label in enumerate(labels)
    )
    return Group(asked(question), responses, id=question)


def kto_select(groups: Sequence[Group], **more: Any) -> tuple[list[Group], dict[str, Any]]:
    looking = context(**more)
    return KTO(KTO.Options()).select(groups, looking), looking.logged  # type: ignore[attr-defined]


def strangers(group: Group) -> list[str]:
    return [response.text for response in group.responses if response.label is None]


@pytest.mark.silent_bug(
    "losses: KTO",
    "The reference point is estimated from one or two rows, and in odd batches from matched ones.",
    "Every response is measured once behind another prompt.",
    "huggingface/trl#1380",
    "huggingface/trl#1911",
    "hiyouga/LlamaFactory#7509",
)
@pytest.mark.parametrize("seed", range(5))
def test_every_response_is_a_stranger_once_and_never_behind_its_own_prompt(seed: int) -> None:
    groups = [
        thumbs("a", True, False),
        thumbs("b", True),
        thumbs("a", False),
        thumbs("c", False, True, True),
    ]
    groups.append(thumbs("d", True))
    chosen, logged = kto_select(groups, seed=seed)
    assert [group.id for group in chosen] == ["a", "b", "a", "c", "d"]
    for group, before in zip(chosen, groups, strict=True):
        count = len(before.responses)
        assert group.prompt == before.prompt and group.pairs == ()
        assert group.responses[:count] == before.responses
        assert len(strangers(group)) == count == len(group.responses) - count
        assert not any(text.startswith(before.id) for text in strangers(group))
    everybody = sorted(response.text for group in groups for response in group.responses)
    assert sorted(text for group in chosen for text in strangers(group)) == everybody
    assert logged == {
        "desirable": 5,
        "undesirable": 3,
        "without_label": 0,
        "without_other_prompt": 0,
    }


def test_who_stands_behind_whose_prompt_is_drawn() -> None:
    groups = [thumbs(letter, True, False) for letter in "abcdefgh"]
    drawn = {
        tuple(text for group in kto_select(groups, seed=seed)[0] for text in strangers(group))
        for seed in range(8)
    }
    assert len(drawn) > 1


def test_a_prompt_with_most_of_the_responses_has_too_few_strangers() -> None:
    chosen, logged = kto_select([thumbs("a", True, False, True), thumbs("b", True)])
    assert sorted(map(len, map(strangers, chosen))) == [1, 1]
    assert not any(text.startswith(group.id) for group in chosen for text in strangers(group))
    assert logged["without_other_prompt"] == 2


def test_pairs_become_thumbs() -> None:
    ranked = Group(
        asked("r"),
        tuple(Response(text=f"r{i}", rank=rank) for i, rank in enumerate((2, 1, 3, 2))),
        id="r",
    )
    soft = Group(
        asked("s"), (Response(text="s0"), Response(text="s1")), (Pair(0, 1, p=0.2),), id="s"
    )
    tie = Group(
        asked("t"), (Response(text="t0"), Response(text="t1")), (Pair(0, 1, p=0.5),), id="t"
    )
    known = Group(
        asked("k"), (Response(text="k0", label=False), Response(text="k1")), (Pair(0, 1),), id="k"
    )
    chosen, logged = kto_select([ranked, soft, tie, known])
    labels = {r.text: r.label for group in chosen for r in group.responses if r.label is not None}
    # The two in the middle of the ranking win as often as they lose.
    assert labels == {"r1": True, "r2": False, "s0": False, "s1": True, "k0": False, "k1": False}
    assert logged == {
        "desirable": 2,
        "undesirable": 4,
        "without_label": 4,
        "without_other_prompt": 0,
    }
    assert all(response.rank is None for group in chosen for response in group.responses)


@pytest.mark.silent_bug(
    "losses: KTO",
    "All labels are of one kind, and the loss falls.",
    "The stage is refused.",
)
@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([thumbs("a", True, True), thumbs("b", True)], "all 3 labels of 2 rows are desirable"),
        ([thumbs("a", False), thumbs("b", False)], "all 2 labels of 2 rows are undesirable"),
        ([thumbs("a", None), thumbs("b", None)], "none of 2 rows has a label"),
        ([thumbs("a", True, False), thumbs("a", True)], "two different prompts"),
    ],
)
def test_kto_says_what_its_data_lack(groups: list[Group], message: str) -> None:
    with pytest.raises(DataError, match=message):
        kto_select(groups)
    # Of held-out data nothing is demanded, and nothing is logged
    kto_select(groups, validation=True)
    assert kto_select(groups, validation=True)[1] == {}


@pytest.mark.silent_bug(
    "losses: KTO",
    "Only the last batch's KL is kept.",
    "It is a mean over the step's whole batch.",
    "PKU-Alignment/align-anything#216",
)
def test_z0_stays_in_a_batch_without_strangers_and_is_never_negative() -> None:
    logprobs, mask = spread([-1.0, -3.0], [2, 2])
    reference, _ = spread([-2.0, -1.0], [2, 2])
    algorithm, out = KTO(KTO.Options()), Outputs(logprobs=logprobs)

    def state(*labels: bool | None) -> Mapping[str, Any]:
        groups = [Group((), (Response(label=label),)) for label in labels]
        return algorithm.before_step(make_batch(mask, reference=reference, groups=groups), out)

    assert state(True, False) == {}
    assert state(None, True) == {"z0": 1.0}
    assert state(None, None) == state(True, None) == {"z0": 0.0}  # clamped after the mean


# HIR's data


LEVELS = ["Be rude.", "Be plain.", "Be polite."]


def polite(**options: Any) -> HIR:
    return HIR(HIR.Options(instructions=LEVELS, thresholds=[0.0, 1.0], **options))


def scored(question: str, *scores: float | None) -> Group:
    responses = tuple(
        Response(text=f"{question}{i}", scores={"reward": s}) for i, s in enumerate(scores)
    )
    return Group(asked(question), responses, id=question)


def behind(group: Group) -> tuple[str, list[str]]:
    return group.prompt[-1]["content"], [response.text for response in group.responses]


def test_all_responses_get_the_instruction_that_they_fulfil() -> None:
    # A threshold belongs to the lower level.
    looking = context()
    chosen = polite(contrast_coefficient=0.0).select(
        [scored("p", -1.0, 0.0, 0.5), scored("q", 7.0, 1.0)], looking
    )
    assert [behind(group) for group in chosen] == [
        ("Be rude.\np", ["p0", "p1"]),
        ("Be plain.\np", ["p2"]),
        ("Be plain.\nq", ["q1"]),
        ("Be polite.\nq", ["q0"]),
    ]
    expected = {"fulfilled/0": 0.4, "fulfilled/1": 0.4, "fulfilled/2": 0.2, "without_feedback": 0}
    assert looking.logged == expected  # type: ignore[attr-defined]


def test_with_a_contrast_all_stand_behind_all_instructions_in_one_bundle() -> None:
    chosen = polite().select([scored("p", -1.0, 0.5), scored("p", 2.0)], context())
    assert [behind(group)[1] for group in chosen] == [["p0", "p1"]] * 3 + [["p0"]] * 3
    assert [behind(group)[0] for group in chosen] == [f"{level}\np" for level in LEVELS] * 2
    bundles = [group.bundle for group in chosen]
    assert len(set(bundles[:3])) == len(set(bundles[3:])) == 1 and len(set(bundles)) == 2


def test_an_instruction_that_is_there_is_replaced_and_nothing_else() -> None:
    assert instructed(asked("p"), "Be rude.") == asked("Be rude.\np")
    assert instructed(asked("Be plain.\np"), "Be rude.", LEVELS) == asked("Be rude.\np")
    assert instructed(asked("Be plain.\nBe rude.\np"), "Be rude.", LEVELS) == asked(
        "Be rude.\nBe rude.\np"
    )
    assert instructed(asked("Be plain. Sing."), "Be rude.", LEVELS) == asked(
        "Be rude.\nBe plain. Sing."
    )


def test_what_has_no_feedback_is_counted_and_labels_are_feedback() -> None:
    group = Group(
        asked("p"),
        (Response(text="up", label=True), Response(text="down", label=False), Response(text="?")),
    )
    looking = context()
    chosen = HIROffline(HIROffline.Options()).select([group], looking)
    assert [(behind(g)[0].split()[2], behind(g)[1]) for g in chosen] == [
        ("incorrect", ["down"]),
        ("correct", ["up"]),
    ]
    assert looking.logged["without_feedback"] == 1  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="none of 1 groups has one"):
        polite().select([scored("p", None)], context())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": [0.0, 1.0]}, "2 instructions need 1 threshold"),
        ({"instructions": ["a"], "thresholds": []}, "at least 2"),
        ({"instructions": LEVELS, "thresholds": [1.0, 0.0]}, "thresholds must increase"),
        ({"instructions": ["a", "a"]}, "instructions must differ"),
    ],
)
def test_hir_refuses_levels_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HIR.Options(**options)


@pytest.mark.parametrize("cut", [False, True])
def test_responses_that_are_not_whole_behind_all_instructions_have_no_contrast(cut: bool) -> None:
    """Response 1 has lost a token behind instruction 0 or, not `cut`, the prompt has no room behind
    instruction 1.
    """
    batch, mask = hir_batch(torch.zeros(2, 2)), torch.ones(4, 2, dtype=torch.bool)
    if cut:
        mask[1, 1] = False
        batch = make_batch(mask, groups=batch.groups, group_index=batch.group_index)
    else:
        batch = make_batch(mask[:2], groups=batch.groups[:1], group_index=batch.group_index[:2])
    count = len(batch.mask)
    logprobs = -torch.arange(1.0, 2 * count + 1).reshape(count, 2) * batch.mask
    out = Outputs(logprobs=logprobs, entropy=torch.zeros(count, 2))
    algorithm = hir(2)
    weights, contrast = (
        algorithm.term_weights(batch)["contrast"],
        algorithm.loss(batch, out)["contrast"].values,
    )
    assert weights.tolist() == ([1.0, 0.0, 0.0, 0.0] if cut else [0.0, 0.0])
    if cut:  # response 0 has the rows 0 and 2
        assert contrast[0] == pytest.approx(math.log(1 + math.exp(-5.5 - -1.5)), rel=1e-3)


def test_hir_by_hand() -> None:
    """Two responses behind two instructions: signs, what counts, and which instruction is the
    likelier one.
    """
    # Rows: responses 0 and 1 behind instruction 0, then behind instruction 1
    batch = hir_batch(torch.zeros(2, 2))
    out = Outputs(
        logprobs=torch.tensor([[-1.0], [-2.0], [-3.0], [-4.0]]), entropy=torch.full((4, 1), 0.5)
    )
    algorithm = hir(2, contrast_coefficient=0.7, entropy_coefficient=0.01)
    loss, weights = algorithm.loss(batch, out), algorithm.term_weights(batch)
    own = torch.tensor([1.0, 0.0, 0.0, 1.0])
    assert torch.equal(loss["nll"].values, -out.logprobs) and torch.equal(weights["nll"][:, 0], own)  # type: ignore[operator]
    assert torch.equal(loss["entropy"].values, torch.full((4, 1), 0.5))
    assert torch.equal(weights["contrast"], own) and torch.equal(weights["entropy"][:, 0], own)
    assert (loss["contrast"].coefficient, loss["entropy"].coefficient) == (0.7, -0.01)
    wanted = [math.log(1 + math.exp(-3 - -1)), math.log(1 + math.exp(-2 - -4))]
    assert loss["contrast"].values[[0, 3]].tolist() == pytest.approx(wanted)
    silent = make_batch(
        torch.zeros(4, 1, dtype=torch.bool), groups=batch.groups, group_index=batch.group_index
    )
    assert not algorithm.term_weights(silent)["contrast"].any()


def test_shares_are_of_what_has_feedback() -> None:
    looking = context()
    polite().select([scored("p", 2.0, None, -1.0, None, 0.5, 3.0)], looking)
    logged = looking.logged  # type: ignore[attr-defined]
    assert (
        logged["fulfilled/0"] == 0.25
        and logged["fulfilled/1"] == 0.25
        and logged["fulfilled/2"] == 0.5
    )
    assert logged["without_feedback"] == 2


def test_a_score_that_is_not_a_number_is_no_feedback() -> None:
    looking = context()
    chosen = HIROffline(HIROffline.Options()).select([scored("p", float("nan"), 1.0)], looking)
    assert [behind(group)[1] for group in chosen] == [["p1"]]
    assert looking.logged["without_feedback"] == 1  # type: ignore[attr-defined]


def test_smoothing_that_would_change_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="only applies to the contrast"):
        HIROffline.Options(label_smoothing=0.1)


def test_rows_that_do_not_fit_may_leave_one_class_of_labels() -> None:
    chosen = kto_select([thumbs("a", True), thumbs("b", False)])[0]
    KTO(KTO.Options()).check_data(chosen)
    with pytest.raises(DataError, match="all 1 labels of 1 rows are desirable"):
        KTO(KTO.Options()).check_data(chosen[:1])


def test_the_labels_that_remain_are_counted() -> None:
    looking, algorithm = context(), KTO(KTO.Options())
    chosen = algorithm.select([thumbs("a", True), thumbs("b", False), thumbs("c", True)], looking)
    algorithm.check_data(chosen[:2])  # the third did not fit
    assert (looking.logged["desirable"], looking.logged["undesirable"]) == (1, 1)  # type: ignore[attr-defined]


def test_a_prompt_without_a_response_is_a_row_without_a_label() -> None:
    _, logged = kto_select([thumbs("a", True), thumbs("b", False), thumbs("c")])
    assert logged["without_label"] == 1


@pytest.mark.parametrize("cls", [KTO, HIROffline])
def test_a_label_is_learned_at_the_last_answer_only(cls: type[Algorithm]) -> None:
    """Also in groups whose earlier answers are part of the response, as a program may write
    them.
    """
    turns = tuple(
        Message(role=role, content=text)
        for role, text in (("assistant", "first"), ("user", "more?"), ("assistant", "last"))
    )
    encoder = Encoder(_tokenizer())
    group = Group(asked("q"), (Response(messages=turns, label=True),))
    encoded = encoder.encode(group, 200, turns=cls(cls.Options()).trained_turns())
    assert encoded is not None
    (row,) = encoded.rows
    counted = [token for token, counts in zip(row.tokens, row.mask, strict=True) if counts]
    assert encoder.decode(counted) == "last"


def test_what_is_left_out_is_named() -> None:
    said: list[str] = []
    looking = context()
    looking.say = said.append
    groups = [thumbs(f"question {name}", None, True) for name in "abcde"]
    KTO(KTO.Options()).select([*groups, thumbs("z", False)], looking)
    assert said == [
        "5 left out (without_label): 'question a', 'question b', 'question c' and 2 more"
    ]


def test_cloning_is_of_segments_that_stand_in_a_pair() -> None:
    group = Group((), tuple(Response(text=t) for t in "abc"), (Pair(2, 0),), id="g")
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    batch = make_batch(
        mask, [(2, 0, 1.0)], groups=[group], group_index=torch.zeros(3, dtype=torch.long)
    )
    found = CPL(CPL.Options(nll_coefficient=1.0)).term_weights(batch)["nll"]
    assert found.tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    assert CPL(CPL.Options()).term_weights(batch) == {}


def test_hir_gives_the_gradient_of_the_whole_batch() -> None:
    """The engine's, in as many micro-batches as there are prompts, against the paper's loss in one
    graph.
    """
    from alignkit.models.packing import Examples
    from alignkit.settings import Settings
    from alignkit.testing import algorithm_kit, example_groups, tiny
    from alignkit.testing.examples import encode_all
    from alignkit.tokens.encoder import Encoder

    policy = tiny.tiny_model()
    policy.add_role("hir", start=None, head="language")
    tiny.add_noise(policy, "hir", 0.05, seed=0)
    try:
        groups = example_groups(3, Encoder(policy.tokenizer))
        options = {
            "instructions": LEVELS,
            "thresholds": [0.0, 1.0],
            "contrast_coefficient": 0.7,
            "entropy_coefficient": 0.1,
        }
        algorithm = HIR(HIR.Options(**options))
        encoded = encode_all(Encoder(policy.tokenizer), algorithm.select(groups, context()), 256)
        learner = algorithm_kit.Probe(policy, algorithm, Settings(), "hir")
        policy.budget = 1
        found = learner.gradient(Examples(encoded))["the gradient"]
        policy.budget = tiny.ONE_BATCH
        learner.optimizer.zero_grad()
        whole_loss(learner, Examples(encoded), groups).backward()
        wanted = torch.cat([parameter.grad.flatten() for parameter in learner.parameters.values()])  # type: ignore[union-attr]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    finally:
        policy.budget = tiny.ONE_BATCH
        policy.drop_role("hir")


def whole_loss(learner: Any, examples: Any, groups: Sequence[Group]) -> Tensor:
    """-log P and -0.1 entropy of a token, and mean_i of -0.7 log(e^P_ii / sum_k e^P_ik) with P the
    mean log-probability of a token, for four prompts of three responses behind three instructions
    each.
    """
    out, mask = learner._forward(examples), examples.batch().mask
    shape = len(groups), len(LEVELS), 3
    sums, entropy, tokens = (
        (x * mask).sum(dim=1).reshape(shape) for x in (out.logprobs, out.entropy, mask.float())
    )
    p = sums / tokens
    rewards = [[r.scores["reward"] for r in group.responses] for group in groups]
    terms, per_token, counted = [], [], 0.0
    for g, row in enumerate(rewards):
        for i, reward in enumerate(row):
            k = 0 if reward <= 0 else 1 if reward <= 1 else 2
            terms.append(-0.7 * (p[g, k, i] - torch.logsumexp(p[g, :, i], 0)))
            per_token.append(-sums[g, k, i] - 0.1 * entropy[g, k, i])
            counted += float(tokens[g, k, i])
    return torch.stack(terms).mean() + torch.stack(per_token).sum() / counted


def test_instruct_makes_prompts() -> None:
    groups = [scored("p", 1.0), replace(scored("q"), meta={"safety": True})]
    step = Instruct(Instruct.Options(data=None, instruction="Be polite."))
    made = step.run(SimpleNamespace(load=lambda data: groups)).groups  # type: ignore[arg-type]
    assert made is not None
    assert [(group.prompt, group.responses, group.meta) for group in made] == [
        (asked("Be polite.\np"), (), {}),
        (asked("Be polite.\nq"), (), {"safety": True}),
    ]
    assert len({group.id for group in made}) == 2


# Through recipes


def test_every_method_learns_from_the_formats_that_people_have(tmp_path: Path) -> None:
    """From TRL's preference and unpaired rows, on the tiny model: a whole recipe, whose losses
    fall.
    """
    rows = [
        {"prompt": f"tell me {i} times", "chosen": "yes, gladly", "rejected": "no"}
        for i in range(12)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    unpaired = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in rows
        for side in ("chosen", "rejected")
    ]
    (tmp_path / "thumbs.jsonl").write_text("\n".join(map(json.dumps, unpaired)), encoding="utf-8")
    algorithms: dict[str, Any] = {
        "dpo": {"loss": {"sigmoid": 0.8, "ipo": 0.2}, "nll_coefficient": 0.1},
        "simpo": {},
        "orpo": {},
        "cpo": {},
        "cpl": {"reference": True},
        "kto": {},
        "hir_offline": {"contrast_coefficient": 0.5},
    }
    stages = {
        f"by-{name}": {
            "algorithm": {name: options},
            "data": "thumbs.jsonl" if name in ("kto", "hir_offline") else "pairs.jsonl",
            # Of hir bundles, which no minibatch may cut: the contrast would be another one
            "batch_size": 6,
            "epochs": 4,
            "learning_rate": 0.02,
            "checkpoint_every": 1000,
        }
        for name, options in algorithms.items()
    }
    recipe = {
        "name": "r",
        "model": {"base": "tiny", "dtype": "float32", "lora": {"r": 4, "lora_alpha": 8}},
    }
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({**recipe, "stages": stages}), encoding="utf-8"
    )
    run_recipe(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "run")
    for name in stages:
        lines = (tmp_path / "run" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        metrics = [json.loads(line) for line in lines]
        losses = [line["loss"] for line in metrics]
        assert all(line["grad_norm"] > 0 for line in metrics), name
        assert losses[-1] < 0.95 * losses[0], (name, losses)
