"""DPO and its family, SimPO, ORPO, CPO, KTO, CPL, HIR: golden numbers through the plugins themselves,
and what each makes of its data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit import Algorithm, Batch, DataError, Group, Message, Outputs, Pair, Response
from alignkit.contract.batch import Per
from alignkit.tokens.encoder import Encoder
from alignkit.training.learner import weighted_sum
from alignkit_plugins.algorithms.dpo import DPO
from alignkit_plugins.algorithms.hir import HIR, HIROffline, Instruct, instructed
from alignkit_plugins.algorithms.kto import KTO
from alignkit_plugins.algorithms.reference_free import CPL, CPO, ORPO, SimPO
from alignkit_plugins.bases.tiny import _tokenizer
from tests.by_hand import (
    Looking,
    alike,
    asked,
    batch,
    close,
    double,
    golden,
    gradient,
    loss_of,
    new,
    pairs_of,
    random_batch,
    scored,
)
from tests.models.tiny import encoded

LEVELS = ["Be rude.", "Be plain.", "Be polite."]


# Golden numbers


def with_nll(algorithm: Any, average: str) -> Any:
    """The algorithm with another average of its NLL."""
    algorithm.nll_aggregation = average
    return algorithm


def spread(sums: Sequence[float], lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(log-probabilities, mask) of responses with these sums, equal over their tokens; garbage
    behind the mask.
    """
    mask = torch.arange(max(lengths) + 1) < torch.tensor(lengths)[:, None]
    values = double(sums)[:, None] / torch.tensor(lengths)[:, None]
    return torch.where(mask, values, 1e30).requires_grad_(), mask


def both(values: Mapping[str, Any], name: str) -> list[Any]:
    """Of the chosen responses, then of the rejected ones."""
    return [*values[name.format("chosen")], *values[name.format("rejected")]]


def chosen_and_rejected(inputs: Mapping[str, Any], name: str) -> tuple[Tensor, Batch]:
    sums = both(inputs, name)
    count, reference = len(sums) // 2, None
    lengths = both(inputs, "{}_len") if "chosen_len" in inputs else [2] * count + [3] * count
    logprobs, mask = spread(sums, lengths)
    if "ref_chosen_logp" in inputs:
        reference = spread(both(inputs, "ref_{}_logp"), lengths)[0].detach()
    rows = [(i, count + i, 1.0) for i in range(count)]
    return logprobs, batch(mask, rows, reference_logprobs=reference)


@pytest.mark.silent_bug(
    "losses: masks",
    "The mask of preference losses is inverted, or the mean includes padding.",
    "Only the answer's tokens count.",
    "QwenAudio/CosyVoice#1449",
)
@pytest.mark.parametrize("case", golden("dpo", "policy_chosen_logp"))
@pytest.mark.parametrize(
    "key", ["sigmoid", "cdpo", "robust", "ipo", "ipo_avg", "hinge", "sigmoid_norm"]
)
def test_dpo_gives_the_golden_numbers(case: dict[str, Any], key: str) -> None:
    p, expected = case["params"], case["expected"]
    loss = {"cdpo": "sigmoid", "ipo_avg": "ipo_norm"}.get(key, key)
    logprobs, given = chosen_and_rejected(case["inputs"], "policy_{}_logp")
    smoothing = p["label_smoothing"] if key in ("cdpo", "robust") else 0
    algorithm = new(DPO, beta=p["beta"], loss=loss, label_smoothing=smoothing)
    out = Outputs(logprobs=logprobs)
    close(algorithm.loss(given, out)[loss].values, expected[key]["per_pair"])
    found = loss_of(algorithm, given, logprobs=logprobs)
    close(found, expected[key]["loss"])
    moved = gradient(found, logprobs)
    close(moved[:, 0], both(expected[key], "grad_policy_{}"))
    assert not moved[~given.mask].any()
    report = algorithm.report_metrics(given, out)
    for side in ("chosen", "rejected"):
        close(report[f"rewards/{side}"].values, expected[f"{side}_rewards"])
    close(report["accuracy"].values.double().mean(), expected["accuracy_strict"])


@pytest.mark.silent_bug(
    "losses: length",
    "A sum over some tokens is divided by the number of others.",
    "Sum and count have the same mask.",
    "PaddlePaddle/PaddleFormers#4908",
)
@pytest.mark.parametrize("case", golden("orpo_simpo_cpo"))
def test_reference_free_methods_give_the_golden_numbers(case: dict[str, Any]) -> None:
    p, expected = case["params"], case["expected"]
    logprobs, given = chosen_and_rejected(case["inputs"], "{}_sum_logp")
    simpo = new(SimPO, beta=p["simpo_beta"], target_margin=p["simpo_gamma"])
    orpo = new(ORPO, odds_ratio_coefficient=p["orpo_lambda"])
    cpo = new(CPO, beta=p["cpo_beta"])
    out = Outputs(logprobs=logprobs)
    for algorithm, wanted in (
        (simpo, expected["simpo"]["per_pair"]),
        (orpo, expected["orpo"]["or_loss_per_pair"]),
        (cpo, expected["cpo"]["prefer_per_pair"]),
    ):
        close(algorithm.loss(given, out)["preference"].values, wanted)
    found = loss_of(simpo, given, logprobs=logprobs)
    close(found, expected["simpo"]["loss"])
    close(gradient(found, logprobs)[:, 0], both(expected["simpo"], "grad_{}_sum_logp"))
    for algorithm, nll, wanted in (
        (orpo, "token_mean", expected["orpo"]["loss_token_mean_nll"]),
        (orpo, "sequence_mean", expected["orpo"]["loss_sequence_mean_nll"]),
        (cpo, "token_mean", expected["cpo"]["loss_nll_token_mean"]),
        (cpo, "sequence_sum", expected["cpo"]["loss_nll_sequence_sum"]),
    ):
        close(loss_of(with_nll(algorithm, nll), given, logprobs=logprobs), wanted)


def labeled(*labels: bool | None) -> list[Group]:
    """A group of one response for each label."""
    return [Group((), (Response(label=label),)) for label in labels]


@pytest.mark.silent_bug(
    "losses: KTO",
    "The weights of desirable and undesirable answers have no effect.",
    "They weigh the loss.",
    "modelscope/ms-swift#2167",
)
@pytest.mark.parametrize("case", golden("kto"))
def test_kto_gives_the_golden_numbers(case: dict[str, Any]) -> None:
    p, inputs, expected = case["params"], case["inputs"], case["expected"]
    count, others = len(inputs["policy_logp"]), len(inputs["kl_policy_logp"])
    lengths = [1 + i % 4 for i in range(count + others)]
    logprobs, mask = spread([*inputs["policy_logp"], *inputs["kl_policy_logp"]], lengths)
    reference, _ = spread([*inputs["ref_logp"], *inputs["kl_ref_logp"]], lengths)
    groups = labeled(*map(bool, inputs["desirable"]), *[None] * others)
    given = batch(mask, groups=groups, reference_logprobs=reference.detach())
    weights = {"desirable_weight": p["lambda_d"], "undesirable_weight": p["lambda_u"]}
    algorithm, out = new(KTO, beta=p["beta"], **weights), Outputs(logprobs=logprobs)
    algorithm.state |= algorithm.before_step(given, out)
    close(algorithm.state["z0"], expected["z0"])
    close(algorithm.loss(given, out)["kto"].values[:count], expected["per_example"])
    found = loss_of(algorithm, given, logprobs=logprobs)
    close(found, expected["loss"])
    moved = gradient(found, logprobs)
    close(moved[:count, 0], expected["grad_policy"])
    assert not moved[count:].any() and not moved[~mask].any()
    report = algorithm.report_metrics(given, out)
    sides = (report[f"rewards/{side}"].values[:count] for side in ("chosen", "rejected"))
    ratios = double(inputs["policy_logp"]) - double(inputs["ref_logp"])
    close(sum(x.nan_to_num(0.0) for x in sides), p["beta"] * ratios)


def test_the_weight_of_a_row_counts_in_z0() -> None:
    """1.0, 0.2 and twice 0.4 nats of mismatched responses, of rows that weigh 0.5, 0.5 and 1."""
    groups, ratios = labeled(None, None, None), double([[1.0], [0.2], [0.4]])
    weighted = [replace(g, weight=w) for g, w in zip(groups, (0.5, 0.5, 1.0), strict=True)]
    given = batch(ratios + 1, groups=weighted, reference_logprobs=0 * ratios)
    close(new(KTO).before_step(given, Outputs(logprobs=ratios))["z0"], (1.0 + 0.2 + 2 * 0.4) / 4)


@pytest.mark.parametrize("case", golden("cpl"))
def test_cpl_gives_the_golden_numbers(case: dict[str, Any]) -> None:
    p, inputs, expected = case["params"], case["inputs"], case["expected"]
    options = {"alpha": p["alpha"], "gamma": p["gamma"], "conservative_weight": p["lam"]}
    if case["id"] == "dpo_special_case":
        logprobs, given = chosen_and_rejected(inputs, "policy_{}_logp")
        algorithm = new(CPL, **options, reference=True)
        assert algorithm.needs.reference_logprobs and not new(CPL).needs.reference_logprobs
        term = algorithm.loss(given, Outputs(logprobs=logprobs))["cpl"]
        close(term.values, expected["per_pair"])
        return
    logprobs = double([*inputs["logp_1"], *inputs["logp_2"]]).requires_grad_()
    labels = inputs["label_1_preferred"]
    rows = [(i, len(labels) + i, label) for i, label in enumerate(labels)]
    given = batch([*inputs["mask_1"], *inputs["mask_2"]], rows)
    algorithm, out = new(CPL, **options), Outputs(logprobs=logprobs)
    close(algorithm.loss(given, out)["cpl"].values, expected["per_pair"])
    found = loss_of(algorithm, given, logprobs=logprobs)
    close(found, expected["loss"])
    close(gradient(found, logprobs)[: len(labels)], expected["grad_logp_1"])
    report = algorithm.report_metrics(given, out)
    close(report["rewards/chosen"].values, expected["segment_advantage_1"])
    close(report["rewards/rejected"].values, expected["segment_advantage_2"])


def hir_batch(count: int, mask: Any = None) -> Batch:
    """N outputs behind each of N instructions; output i fulfils instruction i."""
    groups = [
        replace(group, bundle="b", meta={"hir": k})
        for k, group in enumerate(scored([range(count)] * count))
    ]
    mask = torch.ones(count * count, 1) if mask is None else mask
    owner = torch.arange(count).repeat_interleave(count)[: len(mask)]
    return batch(mask, groups=groups[: int(owner.max()) + 1], group=owner)


def hir(levels: int, **options: Any) -> Any:
    names, thresholds = [f"level {k}" for k in range(levels)], [k + 0.5 for k in range(levels - 1)]
    return new(HIR, instructions=names, thresholds=thresholds, **options)


def outputs(logprobs: Tensor) -> Outputs:
    return Outputs(logprobs=logprobs, entropy=torch.zeros_like(logprobs))


GOLDEN_HIR = {case.id: case.values[0] for case in golden("hir")}


@pytest.mark.parametrize("name", [n for n in GOLDEN_HIR if "contrastive" in n and n[-3:] != "_n1"])
def test_hir_gives_the_golden_contrast(name: str) -> None:
    inputs, expected = GOLDEN_HIR[name]["inputs"], GOLDEN_HIR[name]["expected"]
    table = double(inputs["logp_output_given_instruction"]).requires_grad_()
    given, out = hir_batch(len(table)), outputs(table.T.reshape(-1, 1))
    algorithm = hir(len(table), entropy_coefficient=0.0)
    values = algorithm.loss(given, out)["contrast"].values
    weights = algorithm.term_weights(given)["contrast"]
    close(values.sum(), expected["contrastive_sum"])
    mean = weighted_sum(values, weights) / weights.sum()
    close(mean, expected["contrastive_mean"])
    close(gradient(mean, table), expected["grad_contrastive_mean"])


# Soft labels, and what else has no golden number


SOFT = [(0, 4, 0.8), (1, 5, 0.3), (2, 3, 1.0), (0, 1, 0.5), (4, 3, 0.0)]


def with_pairs(seed: int, rows: Sequence[tuple[int, int, float]] = SOFT) -> tuple[Batch, Tensor]:
    """Ragged responses, random log-probabilities, and these pairs."""
    given, logprobs = random_batch(seed)
    return given.replace(pairs=pairs_of(rows, given.group_index)), logprobs


@pytest.mark.parametrize(
    "algorithm",
    [
        *(new(DPO, loss=name) for name in ("sigmoid_norm", "ipo", "hinge")),
        new(DPO, loss="robust", label_smoothing=0.1),
        new(DPO, loss={"sigmoid": 0.8, "ipo_norm": 0.2}, label_smoothing=0.1),
        new(SimPO),
        new(ORPO),
        new(CPO),
        new(CPL, reference=True, gamma=0.9),
    ],
    ids=lambda algorithm: f"{type(algorithm).__name__} {getattr(algorithm.options, 'loss', '')}",
)
def test_a_soft_label_is_the_expectation_over_hard_ones(algorithm: Algorithm) -> None:
    given, logprobs = with_pairs(3)
    losses = []
    for better, worse, p in SOFT:
        for row, share in (((better, worse, 1.0), p), ((worse, better, 1.0), 1 - p)):
            losses.append(share * loss_of(algorithm, with_pairs(3, [row])[0], logprobs=logprobs))
    found = loss_of(algorithm, given, logprobs=logprobs)
    alike(found, torch.stack(losses).sum() / len(SOFT), logprobs)


def test_losses_add_up_by_their_weights() -> None:
    given, logprobs = with_pairs(2)
    weights = {"hinge": 0.5, "ipo": 0.3}
    parts = [w * loss_of(new(DPO, loss=x), given, logprobs=logprobs) for x, w in weights.items()]
    alike(loss_of(new(DPO, loss=weights), given, logprobs=logprobs), sum(parts), logprobs)


@pytest.mark.parametrize(
    "algorithm",
    [new(DPO, nll_coefficient=0.6), with_nll(new(CPO, nll_coefficient=0.6), "token_mean")],
    ids=["dpo", "cpo"],
)
def test_a_token_mean_counts_responses_as_often_as_they_are_better(algorithm: Algorithm) -> None:
    """A response that is better in no pair is not learned: 5. 3 wins surely."""
    given, logprobs = with_pairs(4)
    weights = algorithm.term_weights(given)["nll"]
    close(weights, double([0.8 + 0.5, 0.3 + 0.5, 1.0, 1.0, 0.2, 0.7])[:, None] * given.mask)
    term = algorithm.loss(given, Outputs(logprobs=logprobs))["nll"]
    assert torch.equal(term.values, -logprobs) and (term.per, term.coefficient) == (Per.TOKEN, 0.6)


def test_cpl_clones_segments_that_stand_in_a_pair() -> None:
    given = batch([[1, 1], [1, 1], [1, 0]], [(2, 0, 1.0)], group=[0, 0, 0])
    cpl = new(CPL, nll_coefficient=0.5)
    assert cpl.term_weights(given)["nll"].tolist() == [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    logprobs = -double([[1, 2], [3, 4], [5, 6]])
    term = cpl.loss(given, Outputs(logprobs=logprobs))["nll"]
    assert torch.equal(term.values, -logprobs) and term.coefficient == 0.5
    assert new(CPL).term_weights(given) == {}


# KTO's data


def thumbs(question: str, *labels: bool | None) -> Group:
    responses = [Response(text=f"{question}{i}", label=label) for i, label in enumerate(labels)]
    return Group(asked(question), tuple(responses), id=question)


def kto_select(groups: Sequence[Group], seed: int = 0) -> tuple[list[Group], dict[str, Any]]:
    looking = Looking(seed=seed)
    return new(KTO).select(groups, looking), looking.logged


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
def test_every_response_is_a_stranger_once_and_never_behind_its_own_prompt() -> None:
    """Behind which other prompt is drawn."""
    groups = [
        thumbs("a", True, False),
        thumbs("b", True),
        thumbs("a", False),
        thumbs("c", False, True, True),
        thumbs("d", True),
    ]
    everybody = sorted(response.text for group in groups for response in group.responses)
    drawn = set()
    for seed in range(5):
        chosen, logged = kto_select(groups, seed)
        for group, before in zip(chosen, groups, strict=True):
            count = len(before.responses)
            assert (group.id, group.prompt, group.pairs) == (before.id, before.prompt, ())
            assert group.responses[:count] == before.responses
            assert len(strangers(group)) == count == len(group.responses) - count
            assert not any(text.startswith(before.id) for text in strangers(group))
        order = [text for group in chosen for text in strangers(group)]
        assert sorted(order) == everybody
        counts = {"desirable": 5, "undesirable": 3, "without_label": 0}
        assert logged == {**counts, "without_other_prompt": 0}
        drawn.add(tuple(order))
    assert len(drawn) > 1


def test_a_prompt_with_most_of_the_responses_has_too_few_strangers() -> None:
    chosen, logged = kto_select([thumbs("a", True, False, True), thumbs("b", True)])
    assert sorted(map(len, map(strangers, chosen))) == [1, 1]
    assert not any(text.startswith(group.id) for group in chosen for text in strangers(group))
    assert logged["without_other_prompt"] == 2
    # The same words with other tools are another prompt
    tools = replace(thumbs("b", False), tools=({"type": "function"},))
    assert kto_select([thumbs("b", True), tools])[1]["without_other_prompt"] == 0


def test_pairs_become_thumbs() -> None:
    """Who wins as often as they lose has no label: two of the ranking, and both of a tie."""

    def two(name: str, pair: Pair, label: bool | None = None) -> Group:
        return replace(thumbs(name, label, None), pairs=(pair,))

    ranked = [Response(text=f"r{i}", rank=rank) for i, rank in enumerate((2, 1, 3, 2))]
    chosen, logged = kto_select(
        [
            Group(asked("r"), tuple(ranked), id="r"),
            two("s", Pair(0, 1, p=0.2)),
            two("t", Pair(0, 1, p=0.5)),
            two("k", Pair(0, 1), label=False),  # its own label counts
        ]
    )
    labels = {r.text: r.label for group in chosen for r in group.responses if r.label is not None}
    assert labels == {"r1": True, "r2": False, "s0": False, "s1": True, "k0": False, "k1": False}
    counts = {"desirable": 2, "undesirable": 4, "without_label": 4}
    assert logged == {**counts, "without_other_prompt": 0}
    assert all(response.rank is None for group in chosen for response in group.responses)


@pytest.mark.silent_bug(
    "losses: KTO",
    "All labels are of one kind, and the loss falls.",
    "The stage is refused.",
)
@pytest.mark.parametrize(
    ("groups", "named"),
    [
        ([thumbs("a", True, True), thumbs("b", True)], "all 3 labels of 2 rows are desirable"),
        ([thumbs("a", False), thumbs("b", False)], "all 2 labels of 2 rows are undesirable"),
        ([thumbs("a", None), thumbs("b", None)], "none of 2 rows"),
        ([thumbs("a", True, False), thumbs("a", True)], "two different prompts"),
    ],
)
def test_kto_says_what_its_data_lack(groups: list[Group], named: str) -> None:
    """Of held-out data nothing is demanded, and nothing is logged."""
    with pytest.raises(DataError, match=named):
        kto_select(groups)
    held_out = Looking(validation=True)
    new(KTO).select(groups, held_out)
    assert held_out.logged == {}


def test_labels_are_counted_again_when_rows_did_not_fit() -> None:
    looking, algorithm = Looking(), new(KTO)
    groups = [thumbs("a", True), thumbs("b", False), thumbs("c", True), thumbs("d")]
    chosen = algorithm.select(groups, looking)
    assert looking.said == ["1 left out (without_label): 'd'"]  # a prompt without a response
    algorithm.check_data(chosen[:2])
    assert (looking.logged["desirable"], looking.logged["undesirable"]) == (1, 1)
    with pytest.raises(DataError, match="all 1 labels of 1 rows are desirable"):
        algorithm.check_data(chosen[:1])


def test_what_is_left_out_is_named() -> None:
    looking = Looking()
    groups = [thumbs(f"question {name}", None, True) for name in "abcde"]
    new(KTO).select([*groups, thumbs("z", False)], looking)
    (said,) = looking.said
    assert "5 left out (without_label): 'question a'" in said and "2 more" in said


@pytest.mark.silent_bug(
    "losses: KTO",
    "Only the last batch's KL is kept.",
    "It is a mean over the step's whole batch.",
    "PKU-Alignment/align-anything#216",
)
def test_z0_stays_in_a_batch_without_strangers_and_is_never_negative() -> None:
    mask, reference = torch.ones(2, 2), double([[-1.0, -1.0], [-0.5, -0.5]])
    out = Outputs(logprobs=double([[-0.5, -0.5], [-1.5, -1.5]]))  # log-ratios 1 and -2

    def state(*labels: bool | None) -> Mapping[str, Any]:
        given = batch(mask, groups=labeled(*labels), reference_logprobs=reference)
        found: Mapping[str, Any] = new(KTO).before_step(given, out)
        return found

    assert state(True, False) == {}
    assert state(None, True) == {"z0": 1.0}
    assert state(None, None) == state(True, None) == {"z0": 0.0}  # clamped after the mean


@pytest.mark.parametrize("cls", [KTO, HIROffline])
def test_a_label_is_learned_at_the_last_answer_only(cls: type[Algorithm]) -> None:
    """Also in groups whose earlier answers are part of the response, as a program may write
    them.
    """
    turns = [("assistant", "first"), ("user", "more?"), ("assistant", "last")]
    messages = tuple(Message(role=role, content=text) for role, text in turns)
    encoder = Encoder(_tokenizer())
    group = Group(asked("q"), (Response(messages=messages, label=True),))
    (response,) = encoded(encoder.encode(group, 200, turns=new(cls).trained_turns())).responses
    counted = [
        token for token, counts in zip(response.tokens, response.mask, strict=True) if counts
    ]
    assert encoder.decode(counted) == "last"


# HIR's data


def polite(*rows: Sequence[float | None], **options: Any) -> tuple[list[tuple[str, str]], Looking]:
    """(prompt, responses) of the groups that HIR makes of rows of rewards: first "0", then "1"."""
    looking = Looking()
    algorithm = new(HIR, instructions=LEVELS, thresholds=[0.0, 1.0], **options)
    return behind(algorithm.select(scored(rows), looking)), looking


def behind(groups: Sequence[Group]) -> list[tuple[str, str]]:
    return [
        (group.prompt[-1]["content"], " ".join(response.text for response in group.responses))
        for group in groups
    ]


def test_all_responses_get_the_instruction_that_they_fulfil() -> None:
    """A threshold belongs to the lower level; shares are of what has a reward."""
    made, looking = polite([-1, 0, None, None, 0.5], [7, 1, math.nan], contrast_coefficient=0)
    assert made == [
        ("Be rude.\n0", "0.0 0.1"),
        ("Be plain.\n0", "0.4"),
        ("Be plain.\n1", "1.1"),
        ("Be polite.\n1", "1.0"),
    ]
    shares = {"fulfilled/0": 0.4, "fulfilled/1": 0.4, "fulfilled/2": 0.2}
    assert looking.logged == {**shares, "without_feedback": 3}
    assert "3 left out (without_feedback): '0', '1'" in looking.said
    with pytest.raises(DataError, match="none of 1 groups"):
        polite([None])


def test_with_a_contrast_all_stand_behind_all_instructions_in_one_bundle() -> None:
    """Also if a prompt was sampled twice."""
    group = scored([[-1.0, 0.5]])[0]
    algorithm = new(HIR, instructions=LEVELS, thresholds=[0.0, 1.0])
    chosen = algorithm.select([group, group], Looking())
    assert behind(chosen) == [(f"{level}\n0", "0.0 0.1") for level in LEVELS] * 2
    bundles = [group.bundle for group in chosen]
    assert bundles == [bundles[0]] * 3 + [bundles[3]] * 3 and bundles[0] != bundles[3]


def test_an_instruction_that_is_there_is_replaced_and_nothing_else() -> None:
    for before, known, after in (
        ("p", (), "Be rude.\np"),
        ("Be plain.\np", LEVELS, "Be rude.\np"),
        ("Be plain.\nBe rude.\np", LEVELS, "Be rude.\nBe rude.\np"),
        ("Be plain. Sing.", LEVELS, "Be rude.\nBe plain. Sing."),
        ("Be\nplain\np", ("Be", "Be\nplain"), "Be rude.\np"),
    ):
        assert instructed(asked(before), "Be rude.", known) == asked(after)


def test_labels_are_feedback() -> None:
    """If there is no score."""
    looking, group = Looking(), thumbs("p", True, False, None)
    both = Response("both", label=True, scores={"reward": -1.0})
    group = replace(group, responses=(*group.responses, both))
    chosen = new(HIROffline).select([group], looking)
    assert [(text.split()[2], rows) for text, rows in behind(chosen)] == [
        ("incorrect", "p1 both"),
        ("correct", "p0"),
    ]
    assert looking.logged["without_feedback"] == 1


def test_without_thresholds_samples_are_compared_with_their_mean() -> None:
    """A constant in the reward changes no label, and equal rewards tell nothing apart. Held-out
    data are compared with the mean of the training data: the loss labels those again.
    """
    for level in (-5.0, 0.0, 5.0):
        algorithm = new(HIR, instructions=["bad", "good"], contrast_coefficient=0)
        made = algorithm.select(scored([[level, level + 1, level + 0.25, level + 3]]), Looking())
        assert behind(made) == [("bad\n0", "0.0 0.1 0.2"), ("good\n0", "0.3")]
        assert algorithm.state["threshold"] == level + 4.25 / 4
        held_out = algorithm.select(scored([[level + 1, level + 90]]), Looking(validation=True))
        assert behind(held_out) == [("bad\n0", "0.0"), ("good\n0", "0.1")]
        assert algorithm.state["threshold"] == level + 4.25 / 4
        assert algorithm.select(scored([[level] * 3]), Looking()) == []


@pytest.mark.parametrize("cut", [False, True])
def test_responses_that_are_not_whole_behind_all_instructions_have_no_contrast(cut: bool) -> None:
    """Response 1 has lost a token behind instruction 0 or, not `cut`, the prompt has no room behind
    instruction 1.
    """
    mask = torch.ones(4 if cut else 2, 2)
    mask[1, 1] = 0.0 if cut else 1.0
    given = hir_batch(2, mask=mask)
    logprobs = -torch.arange(1.0, 2 * len(mask) + 1).reshape(-1, 2) * given.mask
    algorithm = hir(2)
    weights = algorithm.term_weights(given)["contrast"]
    contrast = algorithm.loss(given, outputs(logprobs))["contrast"].values
    assert weights.tolist() == ([1.0, 0.0, 0.0, 0.0] if cut else [0.0, 0.0])
    if cut:  # response 0 has the rows 0 and 2
        assert contrast[0] == pytest.approx(math.log(1 + math.exp(-5.5 - -1.5)), rel=1e-3)


def test_hir_by_hand() -> None:
    """Two responses behind instruction 0, then behind instruction 1: signs, what counts, and which
    instruction is the likelier one.
    """
    given, own = hir_batch(2), double([1.0, 0.0, 0.0, 1.0])
    out = Outputs(logprobs=double([[-1], [-2], [-3], [-4]]), entropy=torch.full((4, 1), 0.5))
    options = {"contrast_coefficient": 0.7, "entropy_coefficient": 0.01}
    algorithm = hir(2, **options, label_smoothing=0.2)
    loss, weights = algorithm.loss(given, out), algorithm.term_weights(given)
    assert torch.equal(loss["nll"].values, -out.logprobs)
    assert torch.equal(loss["entropy"].values, out.entropy)
    gaps = [-1 - -3, -4 - -2]  # of the own instruction over the other, which gets the smoothing
    wanted = [math.log(1 + math.exp(-gap)) + 0.2 * gap for gap in gaps]
    assert loss["contrast"].values[[0, 3]].tolist() == pytest.approx(wanted)
    assert [(term, loss[term].coefficient) for term in loss] == [
        ("nll", 1.0),
        ("contrast", 0.7),
        ("entropy", -0.01),
    ]
    for name in loss:
        close(weights[name].reshape(4), own)
    first, second = given.groups
    weighted = batch(given.mask, groups=[replace(first, weight=3.0), second], group=[0, 0, 1, 1])
    close(algorithm.term_weights(weighted)["contrast"], [3.0, 0.0, 0.0, 1.0])
    silent = hir_batch(2, mask=torch.zeros(4, 1))
    assert not algorithm.term_weights(silent)["contrast"].any()


def test_instruct_makes_prompts() -> None:
    first, second = scored([[1.0], []])
    groups = [first, replace(second, meta={"safety": True})]
    step, other = (
        new(Instruct, data=None, instruction=f"Be {how}.") for how in ("polite", "brief")
    )
    made, others = (
        each.run(SimpleNamespace(load=lambda data: groups)).groups for each in (step, other)
    )
    assert [(group.prompt, group.responses, group.meta) for group in made] == [
        (asked("Be polite.\n0"), (), {}),
        (asked("Be polite.\n1"), (), {"safety": True}),
    ]
    assert len({group.id for group in (*made, *others)}) == 4
