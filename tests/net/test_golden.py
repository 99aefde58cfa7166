"""`alignkit.functional` against known answers: every key of every case, gradients included, in
float64 and float32.

`alignkit_plugins.people.agreement` and `dialogues` compute with plain numbers, so their cases run once.

`--golden DIR` runs another folder with the same schema (tests/golden/README.md). A function
`check_NAME` below maps the file NAME.json to our functions; a file without one is reported as not
covered.
"""

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alignkit import Group, Response
from alignkit import functional as F
from alignkit.data.group import ranking_pairs
from alignkit.evaluation import statistics
from alignkit.kernels.lm_head import HeadSpec, logprobs_and_entropy
from alignkit.reward import REWARD_KEY
from alignkit_plugins.algorithms.rejection_sampling import best_samples
from alignkit_plugins.formats import text
from alignkit_plugins.people import agreement

WITHOUT_TENSORS = {"agreement", "ranking", "gopher_dialogue"}
AGGREGATIONS = {
    "token_mean": "token_mean",
    "seq_mean_token_mean": "sequence_mean",
    "seq_mean_token_sum_norm": "constant_length",
}


class Case:
    """One golden case in one dtype: provides inputs, compares results, and tracks the keys not
    compared yet.
    """

    def __init__(self, data: dict[str, Any], tolerance: dict[str, float], dtype: torch.dtype):
        self.id, self.params, self.inputs, self.dtype = (
            data["id"],
            data["params"],
            data["inputs"],
            dtype,
        )
        self.tolerance = tolerance if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
        self.expected: dict[str, Any] = {}
        self.flatten(data["expected"], "")
        self.left = set(self.expected)

    def flatten(self, tree: dict[str, Any], prefix: str) -> None:
        for key, value in tree.items():
            if isinstance(value, dict):
                self.flatten(value, f"{prefix}{key}.")
            else:
                self.expected[prefix + key] = value

    def __contains__(self, name: str) -> bool:
        return name in self.inputs

    def tensor(self, name: str, grad: bool = False) -> Tensor:
        return torch.tensor(self.inputs[name], dtype=self.dtype, requires_grad=grad)

    def tensors(self, *names: str) -> list[Tensor]:
        return [self.tensor(name) for name in names]

    def mask(self, name: str = "mask") -> Tensor:
        return torch.tensor(self.inputs[name], dtype=torch.bool)

    def ids(self, name: str) -> Tensor:
        return torch.tensor(self.inputs[name], dtype=torch.long)

    def same(self, key: str, result: Any) -> None:
        """Exactly equal: booleans, text, null."""
        self.left.discard(key)
        result = result.tolist() if isinstance(result, Tensor) else result
        assert result == self.expected[key], key

    def close(self, key: str, result: Any, tolerance: dict[str, float] | None = None) -> None:
        self.left.discard(key)
        tolerance = tolerance or self.tolerance
        if key.endswith("_fd"):
            tolerance = {"rtol": max(tolerance["rtol"], 1e-5), "atol": max(tolerance["atol"], 1e-7)}
        if self.expected[key] is None:
            # Undefined, such as the accuracy of no pairs: any single number will do.
            assert torch.as_tensor(result).dim() == 0, key
            return
        expected = torch.tensor(self.expected[key], dtype=torch.float64)
        result = torch.as_tensor(result, dtype=torch.float64).detach()
        torch.testing.assert_close(result, expected, **tolerance, msg=lambda text: f"{key}: {text}")

    def defined(self, key: str, result: float | None) -> None:
        """Close, or None if the value is undefined."""
        if self.expected[key] is None:
            self.same(key, result)
        else:
            self.close(key, result)

    def gradient(self, key: str, loss: Tensor, *inputs: Tensor) -> None:
        """The gradient of `loss` with respect to an input, or to the rows of a ragged one."""
        gradients = torch.autograd.grad(loss, inputs, retain_graph=True)
        if isinstance(self.expected[key][0], list) and gradients[0].dim() == 1:
            ragged = [len(row) for row in self.expected[key]]
            assert ragged == [len(gradient) for gradient in gradients], key
            self.expected[f"{key}, rows joined"] = [x for row in self.expected[key] for x in row]
            self.close(f"{key}, rows joined", torch.cat(gradients))
            self.left.discard(key)
        else:
            self.close(key, gradients[0])

    def trap(self, key: str, right: str, result: Any) -> None:
        """Compare `result` with a common mistake, unless the mistake equals the right answer in
        this case.
        """
        self.left.discard(key)
        if self.expected[key] is None:
            return
        wrong = torch.tensor(self.expected[key], dtype=torch.float64)
        truth = torch.tensor(self.expected[right], dtype=torch.float64)
        if not torch.allclose(wrong, truth, rtol=1e-3, atol=1e-4):
            result = torch.as_tensor(result, dtype=torch.float64).detach()
            assert not torch.allclose(result, wrong, rtol=1e-4, atol=1e-5), (
                f"{key}: the common mistake"
            )


def identity_head(
    case: Case, logits: Tensor, tokens: Tensor, temperature: float = 1.0
) -> list[tuple[Tensor, Tensor]]:
    """(log-probabilities, entropies) by the language head of the engine, whose hidden states are
    the logits here.
    """
    shape, vocabulary = tokens.shape, logits.shape[-1]
    rows, targets = logits.reshape(-1, vocabulary), tokens.reshape(-1)
    results = []
    for learned, chunk in ((False, 2), (False, 128), (True, 3)):
        weight = torch.eye(vocabulary, dtype=case.dtype, requires_grad=learned)
        head = HeadSpec(weight, temperature=temperature)
        logprobs, entropy = logprobs_and_entropy(rows, targets, head, entropy=True, chunk=chunk)
        assert entropy is not None
        results.append((logprobs.view(shape), entropy.view(shape)))
    return results


def next_tokens(labels: Tensor) -> tuple[Tensor, Tensor]:
    """(targets of `logits[:, :-1]`, mask), both [B, T-1], from labels [B, T]; -100 marks tokens
    without a loss.
    """
    mask = labels[:, 1:] != -100
    return labels[:, 1:].masked_fill(~mask, 0), mask


def accuracy(better: Tensor, worse: Tensor, ties: str = "strict") -> Tensor:
    """The share of pairs scored in the right order."""
    return F.right_order(better, worse, ties).mean()


# --- log-probabilities
# --------------------------------------------------------------------------------------------


def check_sft_ce(case: Case) -> None:
    logits = case.tensor("logits", grad=True)
    tokens, mask = next_tokens(case.ids("labels"))
    case.close("n_tokens", mask.sum())
    case.close("mask_shifted", mask)
    predicted = logits[:, :-1]
    for logprobs in [
        F.token_logprobs(predicted, tokens),
        *(x for x, _ in identity_head(case, predicted, tokens)),
    ]:
        case.close("token_logprob_shifted", torch.where(mask, logprobs, 0.0))
        total = F.masked_sum(-logprobs, mask)
        case.close("sum_nll", total)
        loss = F.aggregate(-logprobs, mask, "token_mean")
        case.close("loss", loss)
        case.gradient("grad_logits", loss, logits)
        shares = [F.masked_sum(-logprobs[rows], mask[rows]) for rows in case.inputs["microbatches"]]
        case.close("microbatch_contributions", torch.stack(shares) / mask.sum().clamp(min=1))
        case.trap("trap_mean_of_microbatch_means", "loss", loss)
        case.trap("trap_mean_of_sequence_means", "loss", loss)


def check_logprob_entropy(case: Case) -> None:
    logits, tokens, mask = case.tensor("logits", grad=True), case.ids("token_ids"), case.mask()
    temperature = case.params["temperature"]
    plain = F.token_logprobs(logits, tokens, temperature), F.token_entropy(logits, temperature)
    for logprobs, entropy in [plain, *identity_head(case, logits, tokens, temperature=temperature)]:
        case.close("token_logprob", logprobs)
        case.close("entropy", entropy)
        mean = F.masked_mean(entropy, mask)
        case.close("entropy_token_mean", mean)
        case.gradient("grad_entropy_token_mean_wrt_logits", mean, logits)
        case.close("sequence_logprob", F.sum_tokens(logprobs, mask))


def check_response_mask(case: Case) -> None:
    if "attention_mask" in case:
        attention = case.ids("attention_mask")
        found = F.position_ids(attention)
        case.close("position_ids", found)
        return
    mask, has_eos, lengths = F.response_mask(case.ids("tokens"), case.params["eos_ids"])
    case.close("mask", mask)
    case.same("has_eos", has_eos)
    case.close("length", lengths)
    case.close("last_index", F.last_index(mask))
    case.close("n_truncated", (~has_eos).sum())
    scores = case.tensor("scores")
    penalized = F.missing_eos_penalty(scores, has_eos, penalty=case.params["penalty"])
    case.close("score_missing_eos_subtract", penalized)
    replaced = F.missing_eos_penalty(scores, has_eos, replace=case.params["replace_value"])
    case.close("score_missing_eos_replace", replaced)


# --- KL and rewards
# -----------------------------------------------------------------------------------------------


def check_kl_estimators(case: Case) -> None:
    if "policy_logits" in case:
        check_exact_kl(case)
        return
    (logprobs, reference), mask = case.tensors("logprob", "ref_logprob"), case.mask()
    for name, estimator in F.KL_ESTIMATORS.items():
        kl = estimator(logprobs, reference, mask)
        case.close(name, kl)
        case.close(f"{name}_sequence_sum", F.sum_tokens(kl, mask))
        if name != "k2":
            case.close(f"{name}_token_mean", F.masked_mean(kl, mask))
        if name == "k1":
            case.close("k1_mean_over_sequences_of_sum", F.sum_tokens(kl, mask).mean())


def check_exact_kl(case: Case) -> None:
    """The KL divergence itself is the expectation of k1 over all tokens."""
    logits, reference = case.tensor("policy_logits", grad=True), case.tensor("ref_logits")
    tokens = torch.arange(len(logits))
    logprobs = F.token_logprobs(logits.expand(len(logits), -1), tokens)
    reference_logprobs = F.token_logprobs(reference.expand(len(reference), -1), tokens)
    forward = (logprobs.exp() * F.kl_k1(logprobs, reference_logprobs)).sum()
    case.close("kl_policy_ref", forward)
    case.close(
        "kl_ref_policy", (reference_logprobs.exp() * F.kl_k1(reference_logprobs, logprobs)).sum()
    )
    case.gradient("grad_kl_wrt_policy_logits", forward, logits)
    weights = logprobs.detach().exp()
    for name, estimator in F.KL_ESTIMATORS.items():
        expectation = (weights * estimator(logprobs, reference_logprobs, None)).sum()
        case.close(f"E_{name}", expectation)
        case.gradient(f"E_grad_{name}_as_loss", expectation, logits)


def check_kl_controller(case: Case) -> None:
    p, betas = case.params, []
    beta = p["init_beta"]
    for kl in case.inputs["observed_kl"]:
        beta = F.adaptive_kl(beta, kl, target=p["target"], horizon=p["horizon"], n=p["n_steps"])
        betas.append(beta)
    case.close("beta_after_each", betas)


def check_reward_shaping(case: Case) -> None:
    p, mask = case.params, case.mask()
    scores, logprobs, reference = case.tensors("scores", "logprob", "ref_logprob")
    clip, estimator = p["score_clip"], p["kl_estimator"]
    rewards = F.shape_rewards(
        scores, logprobs, reference, mask, p["beta"], score_clip=clip, estimator=estimator
    )
    case.close("rewards", rewards)
    case.close("sequence_return", F.sum_tokens(rewards, mask))
    case.close(
        "sequence_kl", F.sum_tokens(F.KL_ESTIMATORS[estimator](logprobs, reference, mask), mask)
    )


def check_gae(case: Case) -> None:
    p, mask = case.params, case.mask()
    rewards, values, bootstrap = case.tensors("rewards", "values", "bootstrap_value")
    after = torch.where(case.mask("terminated"), 0.0, bootstrap)
    for name, end in (("terminal", None), ("bootstrapped", after)):
        advantages, returns = F.gae(rewards, values, mask, p["gamma"], p["lam"], bootstrap=end)
        case.close(f"{name}.advantages", advantages)
        case.close(f"{name}.returns", returns)
        case.close(f"{name}.whitened_ddof1", F.masked_whiten(advantages, mask))
        case.close(f"{name}.whitened_ddof0", F.masked_whiten(advantages, mask, unbiased=False))
    case.close("rewards_whitened_no_shift_ddof1", F.masked_whiten(rewards, mask, shift_mean=False))


# --- PPO
# ----------------------------------------------------------------------------------------------------------


def check_ppo_policy_loss(case: Case) -> None:
    p, mask = case.params, case.mask()
    logprobs = case.tensor("logprob", grad=True)
    old, advantages = case.tensors("old_logprob", "advantages")
    low, high = p["clip_low"], p["clip_high"]
    per_token = F.ppo_policy_loss(logprobs, old, advantages, low, high, p["dual_clip"], mask=mask)
    losses = {key: F.aggregate(per_token, mask, mode) for key, mode in AGGREGATIONS.items()}
    losses["seq_mean_token_sum"] = F.masked_mean(F.sum_tokens(per_token, mask), mask.any(-1))
    for key, loss in losses.items():
        case.close(f"{key}.loss", loss)
        case.gradient(f"{key}.grad_logprob", loss, logprobs)
    case.close(
        "clip_fraction_active",
        F.masked_mean(F.clipped(logprobs, old, advantages, low, high, mask), mask),
    )
    ratios = F.ratio(logprobs, old, mask)
    case.close(
        "clip_fraction_ratio",
        F.masked_mean(((ratios < 1 - low) | (ratios > 1 + high)).double(), mask),
    )
    case.close("approx_kl_k1_old_new", F.masked_mean(F.kl_k1(old, logprobs, mask), mask))
    case.close("approx_kl_k2", F.masked_mean(F.kl_k2(old, logprobs, mask), mask))
    case.close("approx_kl_k3", F.masked_mean(F.kl_k3(old, logprobs, mask), mask))
    case.close("mean_ratio", F.masked_mean(ratios, mask))


def check_ppo_value_loss(case: Case) -> None:
    clip, mask = case.params["clip_value"], case.mask()
    values = case.tensor("values", grad=True)
    old, returns = case.tensors("old_values", "returns")
    loss = F.masked_mean(F.ppo_value_loss(values, old, returns, clip, mask=mask), mask)
    case.close("loss", loss)
    case.gradient("grad_values", loss, values)
    case.close(
        "clip_fraction", F.masked_mean(F.value_clipped(values, old, returns, clip, mask), mask)
    )


def check_ppo_total(case: Case) -> None:
    p, mask = case.params, case.mask()
    logits, values, ptx_logits = (
        case.tensor(name, grad=True) for name in ("logits", "values", "ptx_logits")
    )
    old, advantages, old_values, returns = case.tensors(
        "old_logprob", "advantages", "old_values", "returns"
    )
    logprobs = F.token_logprobs(logits, case.ids("actions"))
    policy = F.masked_mean(
        F.ppo_policy_loss(logprobs, old, advantages, p["clip"], p["clip"], mask=mask), mask
    )
    value = F.masked_mean(
        F.ppo_value_loss(values, old_values, returns, p["clip_value"], mask=mask), mask
    )
    entropy = F.masked_mean(F.token_entropy(logits), mask)
    ptx = -F.masked_mean(*ptx_logprobs(ptx_logits, case.ids("ptx_labels")))
    total = policy + p["value_coef"] * value - p["entropy_coef"] * entropy + p["ptx_coef"] * ptx
    case.close("policy_loss", policy)
    case.close("value_loss", value)
    case.close("entropy", entropy)
    case.close("ptx_nll", ptx)
    case.close("total", total)
    case.gradient("grad_logits_fd", total, logits)
    case.gradient("grad_values_fd", total, values)
    case.gradient("grad_ptx_logits_fd", total, ptx_logits)


def ptx_logprobs(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    tokens, mask = next_tokens(labels)
    return F.token_logprobs(logits[:, :-1], tokens), mask


# --- groups
# -------------------------------------------------------------------------------------------------------


def check_group_advantage(case: Case) -> None:
    if "length" in case:
        penalty = F.overlong_penalty(
            case.ids("length"), case.params["l_max"], case.params["l_cache"]
        )
        case.close("penalty", penalty)
        return
    if "kl_k1" in case:
        mask, (kl, scores) = case.mask(), case.tensors("kl_k1", "scores")
        returns = F.reinforce_returns(scores, kl, mask, case.params["beta"])
        case.close("returns", returns)
        case.close("advantages_ddof1", F.masked_whiten(returns, mask))
        case.close("advantages_ddof0", F.masked_whiten(returns, mask, unbiased=False))
        return
    table = case.tensor("rewards")
    rewards, group = table.flatten(), torch.arange(len(table)).repeat_interleave(table.shape[1])
    for unbiased, eps, name in (
        (True, 1e-4, "ddof1_eps1e-4"),
        (False, 1e-4, "ddof0_eps1e-4"),
        (True, 1e-6, "ddof1_eps1e-6"),
    ):
        case.close(f"grpo_{name}", F.grpo_advantages(rewards, group, unbiased, eps).view_as(table))
    centered = F.centered_advantages(rewards, group)
    case.close("dr_grpo", centered.view_as(table))
    case.close("rloo", F.rloo_advantages(rewards, group).view_as(table))
    case.close("reinforce_pp_baseline_ddof1", F.whiten(centered).view_as(table))
    case.same("dapo_keep_group", F.group_has_spread(rewards, group).view_as(table)[:, 0])


def check_group_policy_loss(case: Case) -> None:
    logprobs, mask = case.tensor("logprob", grad=True), case.mask()
    old, reference, advantages = case.tensors("old_logprob", "ref_logprob", "advantages")
    modes = {"grpo": "sequence_mean", "dr_grpo": "constant_length", "dapo": "token_mean"}
    for name in ("grpo", "dr_grpo", "dapo", "gspo", "gspo_wide"):
        options = {key: case.expected[f"{name}.params.{key}"] for key in PARAMS_OF_GROUP_LOSSES}
        case.left -= {f"{name}.params.{key}" for key in PARAMS_OF_GROUP_LOSSES}
        low, high, beta, length = options.values()
        if name in modes:
            per_token = advantages[:, None].expand_as(logprobs)
            losses = F.ppo_policy_loss(logprobs, old, per_token, low, high, mask=mask)
            losses = losses + beta * F.kl_k3(logprobs, reference, mask)
            loss = F.aggregate(losses, mask, modes[name], length)
            clipped = F.masked_mean(F.clipped(logprobs, old, per_token, low, high, mask), mask)
        else:
            ratios, rows = F.sequence_log_ratio(logprobs, old, mask), mask.any(-1)
            start = torch.zeros_like(ratios)
            loss = F.masked_mean(
                F.ppo_policy_loss(ratios, start, advantages, low, high, mask=rows), rows
            )
            clipped = F.masked_mean(F.clipped(ratios, start, advantages, low, high, rows), rows)
        case.close(f"{name}.loss", loss)
        case.gradient(f"{name}.grad_logprob", loss, logprobs)
        case.close(f"{name}.clip_fraction", clipped)


PARAMS_OF_GROUP_LOSSES = ("clip_low", "clip_high", "beta_kl_k3", "max_completion_length")


# --- preferences
# --------------------------------------------------------------------------------------------------


def check_dpo(case: Case) -> None:
    if "policy_chosen_logits" in case:
        check_dpo_from_logits(case)
        return
    beta, smoothing = case.params["beta"], case.params["label_smoothing"]
    chosen, rejected = (
        case.tensor(f"policy_{side}_logp", grad=True) for side in ("chosen", "rejected")
    )
    ref_chosen, ref_rejected = case.tensors("ref_chosen_logp", "ref_rejected_logp")
    chosen_length, rejected_length = case.tensors("chosen_len", "rejected_len")
    better, worse = (
        F.implicit_reward(chosen, ref_chosen, beta),
        F.implicit_reward(rejected, ref_rejected, beta),
    )
    margin, mean_margin = better - worse, better / chosen_length - worse / rejected_length
    variants = {
        "sigmoid": F.preference_loss(margin),
        "ipo": F.ipo_loss(margin / beta, beta),
        "ipo_avg": F.ipo_loss(mean_margin / beta, beta),
        "hinge": F.hinge_loss(margin),
        "cdpo": F.preference_loss(margin, smoothing),
        "robust": F.robust_loss(margin, smoothing),
        "sigmoid_norm": F.preference_loss(mean_margin),
    }
    for name, losses in variants.items():
        case.close(f"{name}.per_pair", losses)
        case.close(f"{name}.loss", losses.mean())
        case.gradient(f"{name}.grad_policy_chosen", losses.mean(), chosen)
        case.gradient(f"{name}.grad_policy_rejected", losses.mean(), rejected)
    case.close("chosen_rewards", better)
    case.close("rejected_rewards", worse)
    case.close("margins", margin)
    case.close("accuracy_strict", accuracy(better, worse))


def check_dpo_from_logits(case: Case) -> None:
    logits = case.tensor("policy_chosen_logits", grad=True)
    sums = {}
    for side in ("chosen", "rejected"):
        tokens, mask = next_tokens(case.ids(f"{side}_labels"))
        for who in ("policy", "ref"):
            name = f"{who}_{side}"
            source = logits if name == "policy_chosen" else case.tensor(f"{name}_logits")
            sums[name] = F.sum_tokens(F.token_logprobs(source[:, :-1], tokens), mask)
            case.close(f"{name}_logp", sums[name])
    h = (sums["policy_chosen"] - sums["ref_chosen"]) - (
        sums["policy_rejected"] - sums["ref_rejected"]
    )
    loss = F.preference_loss(case.params["beta"] * h).mean()
    case.close("loss", loss)
    case.gradient("grad_policy_chosen_logits_fd", loss, logits)


def check_kto(case: Case) -> None:
    p, logprobs = case.params, case.tensor("policy_logp", grad=True)
    reference, kl, kl_reference = case.tensors("ref_logp", "kl_policy_logp", "kl_ref_logp")
    z0 = F.kto_reference_point(kl - kl_reference)
    case.close("z0", z0)
    losses = F.kto_loss(
        logprobs - reference, z0, case.mask("desirable"), p["beta"], p["lambda_d"], p["lambda_u"]
    )
    case.close("per_example", losses)
    case.close("loss", losses.mean())
    case.gradient("grad_policy", losses.mean(), logprobs)


def check_orpo_simpo_cpo(case: Case) -> None:
    p = case.params
    chosen, rejected = (
        case.tensor(f"{side}_sum_logp", grad=True) for side in ("chosen", "rejected")
    )
    chosen_length, rejected_length = case.tensors("chosen_len", "rejected_len")
    mean_chosen, mean_rejected = chosen / chosen_length, rejected / rejected_length
    token_nll, sequence_nll = -chosen.sum() / chosen_length.sum(), -mean_chosen.mean()

    odds = F.log_odds(mean_chosen) - F.log_odds(mean_rejected)
    losses = F.preference_loss(odds)
    case.close("orpo.log_odds_ratio", odds)
    case.close("orpo.or_loss_per_pair", losses)
    case.close("orpo.nll_token_mean", token_nll)
    case.close("orpo.nll_mean_of_sequence_means", sequence_nll)
    case.close("orpo.loss_token_mean_nll", token_nll + p["orpo_lambda"] * losses.mean())
    case.close("orpo.loss_sequence_mean_nll", sequence_nll + p["orpo_lambda"] * losses.mean())
    case.gradient("orpo.grad_or_loss_wrt_chosen_avg_logp", losses.mean(), mean_chosen)

    losses = F.preference_loss(p["simpo_beta"] * (mean_chosen - mean_rejected) - p["simpo_gamma"])
    case.close("simpo.per_pair", losses)
    case.close("simpo.loss", losses.mean())
    case.gradient("simpo.grad_chosen_sum_logp", losses.mean(), chosen)
    case.gradient("simpo.grad_rejected_sum_logp", losses.mean(), rejected)

    losses = F.preference_loss(p["cpo_beta"] * (chosen - rejected))
    case.close("cpo.prefer_per_pair", losses)
    case.close("cpo.loss_nll_sequence_sum", losses.mean() - chosen.mean())
    case.close("cpo.loss_nll_token_mean", losses.mean() + token_nll)


def check_cpl(case: Case) -> None:
    p = case.params
    if "policy_chosen_logp" in case:
        better = F.implicit_reward(
            *case.tensors("policy_chosen_logp", "ref_chosen_logp"), p["alpha"]
        )
        worse = F.implicit_reward(
            *case.tensors("policy_rejected_logp", "ref_rejected_logp"), p["alpha"]
        )
        for losses in (F.cpl_loss(better, worse, lam=p["lam"]), F.preference_loss(better - worse)):
            case.close("per_pair", losses)
            case.close("loss", losses.mean())
        return
    logprobs, label = case.tensor("logp_1", grad=True), case.tensor("label_1_preferred")
    first = F.segment_advantage(logprobs, case.mask("mask_1"), p["alpha"], p["gamma"])
    second = F.segment_advantage(case.tensor("logp_2"), case.mask("mask_2"), p["alpha"], p["gamma"])
    case.close("segment_advantage_1", first)
    case.close("segment_advantage_2", second)
    losses = F.cpl_loss(first, second, label, p["lam"])
    case.close("per_pair", losses)
    case.close("loss", losses.mean())
    case.gradient("grad_logp_1", losses.mean(), logprobs)
    decided = (label != 0.5) & (first != second)
    sign = torch.where(label > 0.5, 1.0, -1.0)[decided]
    case.close("accuracy_strict_pairs", accuracy(sign * first[decided], sign * second[decided]))


def check_hir(case: Case) -> None:
    if "samples" in case:
        outcomes = [int(sample["feedback"] > 0) for sample in case.inputs["samples"]]
        relabeled = [case.inputs["instructions_by_outcome"][str(outcome)] for outcome in outcomes]
        case.same("relabelled_instruction", relabeled)
        originals = [sample["instruction"] for sample in case.inputs["samples"]]
        case.same("changed", [old != new for old, new in zip(originals, relabeled, strict=True)])
        return
    if "avg_logp_right_instruction" in case:
        right, wrong = case.tensors("avg_logp_right_instruction", "avg_logp_wrong_instruction")
        own = torch.zeros(len(right), dtype=torch.long)
        smoothed = F.instruction_contrast(
            torch.stack([right, wrong], dim=1), own, case.params["eps"]
        )
        for losses in (F.preference_loss(right - wrong, case.params["eps"]), smoothed):
            case.close("per_sample", losses)
            case.close("loss", losses.mean())
        return
    logprobs = case.tensor("logp_output_given_instruction", grad=True)
    contrast = F.instruction_contrast(logprobs)
    case.close("contrastive_sum", contrast.sum())
    case.close("contrastive_mean", contrast.mean())
    case.gradient("grad_contrastive_mean", contrast.mean(), logprobs)
    entropy = F.token_entropy(case.tensor("token_logits")).mean()
    case.close("mean_token_entropy", entropy)
    case.close("loss_entropy_term", -entropy)
    supervised = case.tensor("supervised_nll_per_sample").mean()
    alpha, beta = case.params["alpha"], case.params["beta"]
    case.close("final_mean", supervised + alpha * contrast.mean() - beta * entropy)


# --- reward models
# ------------------------------------------------------------------------------------------------


def check_rm_pairwise(case: Case) -> None:
    if "p_a" in case:
        a, b = case.tensor("a", grad=True), case.tensor("b", grad=True)
        loss = F.pairwise_loss(a, b, p=case.tensor("p_a")).mean()
        case.close("loss", loss)
        case.gradient("grad_a", loss, a)
        case.gradient("grad_b", loss, b)
        return
    chosen, rejected = case.tensor("chosen", grad=True), case.tensor("rejected", grad=True)
    losses = F.pairwise_loss(chosen, rejected)
    loss = losses.mean() + case.params["center_coef"] * F.centering_loss(chosen, rejected).mean()
    case.close("loss", loss)
    case.close("per_pair", losses)
    case.gradient("grad_chosen", loss, chosen)
    case.gradient("grad_rejected", loss, rejected)
    case.close("accuracy_strict", accuracy(chosen, rejected))
    case.close("accuracy_ties_half", accuracy(chosen, rejected, ties="half"))
    case.close("mean_margin", (chosen - rejected).mean())


def check_rm_kwise(case: Case) -> None:
    rewards = [
        torch.tensor(r, dtype=case.dtype, requires_grad=True) for r in case.inputs["rewards"]
    ]
    pairs = [ranking_pairs(ranks) for ranks in case.inputs["ranks"]]
    case.close("n_pairs", [len(p) for p in pairs])
    flat = [(prompt, i, j) for prompt, p in enumerate(pairs) for i, j in p]
    scores, starts = torch.cat(rewards), [0, *accumulate(len(r) for r in rewards)]
    better = scores[torch.tensor([starts[prompt] + i for prompt, i, _ in flat], dtype=torch.long)]
    worse = scores[torch.tensor([starts[prompt] + j for prompt, _, j in flat], dtype=torch.long)]
    group = torch.tensor([prompt for prompt, _, _ in flat], dtype=torch.long)
    sizes = torch.tensor([len(rewards[prompt]) for prompt, _, _ in flat], dtype=torch.long)
    losses = F.pairwise_loss(better, worse)
    for name, responses in (("valid_pairs", None), ("choose2", sizes)):
        weighted = F.kwise_weights(group, responses, case.dtype) * losses
        case.close(
            f"{name}.per_prompt", weighted.new_zeros(len(rewards)).index_add(0, group, weighted)
        )
        loss = weighted.sum() / max(len(group.unique()), 1)
        case.close(f"{name}.loss", loss)
        case.gradient(f"{name}.grad", loss, *rewards)
        if name == "valid_pairs":
            case.trap("trap_flat_mean_over_all_pairs", "valid_pairs.loss", loss)


def check_llama2_margin(case: Case) -> None:
    chosen, rejected = case.tensor("chosen", grad=True), case.tensor("rejected", grad=True)
    margins = [F.llama2_margin(label, case.params["table"]) for label in case.inputs["label"]]
    case.close("margin", margins)
    losses = F.pairwise_loss(chosen, rejected, margin=torch.tensor(margins, dtype=case.dtype))
    case.close("per_pair", losses)
    case.close("loss", losses.mean())
    case.gradient("grad_chosen", losses.mean(), chosen)
    case.gradient("grad_rejected", losses.mean(), rejected)
    case.close("accuracy", accuracy(chosen, rejected))


def check_rm_normalize(case: Case) -> None:
    demos, new = case.tensors("demo_rewards", "new_rewards")
    bias, gain = F.reward_normalizer(demos)
    case.close("bias", bias)
    case.close("demo_mean_after", (demos + bias).mean())
    case.close("new_bias_only", new + bias)
    case.close("gain_unit_variance", gain)
    case.close("new_mean0_var1", (new + bias) * gain)
    case.close("pair_difference_unchanged", (new + bias)[0] - (new + bias)[1])


def check_llama2_reward(case: Case) -> None:
    p, is_safety = case.params, case.mask("is_safety")
    helpful, safety, kl = case.tensors("R_h", "R_s", "sequence_kl")
    exact = torch.tensor(case.inputs["R_s"], dtype=torch.float64)
    if not torch.equal(safety < p["threshold"], exact < p["threshold"]):
        pytest.skip("float32 cannot hold a probability this close to the threshold")
    selected, uses_safety = F.llama2_select(helpful, safety, is_safety, p["threshold"])
    case.same("uses_safety", uses_safety)
    case.close("R_c", selected)
    logit = torch.logit(selected, p["logit_eps"])
    # Close to 1 float32 has steps of 6e-8, and logit(1 - 1e-6) magnifies them.
    near_one = {"rtol": 5e-3, "atol": 1e-5} if case.dtype == torch.float32 else None
    case.close("logit_clamped", logit, near_one)
    if "identity_raw_score_of_selected_rm" in case.expected:
        case.close("identity_raw_score_of_selected_rm", torch.logit(selected))
    raw = [torch.logit(x.double()) for x in (helpful, safety)]
    combined, switched = F.llama2_combine(*raw, is_safety, p["threshold"], p["logit_eps"])
    # sigma(logit(p)) may be a rounding step away from p, which decides at the threshold itself.
    decided = (safety - p["threshold"]).abs() > 1e-12
    assert torch.equal(switched[decided], uses_safety[decided])
    torch.testing.assert_close(
        combined[decided], logit.double()[decided], rtol=5e-3 if near_one else 1e-9, atol=1e-6
    )
    for ddof in (0, 1):
        white = F.whiten(logit, unbiased=bool(ddof))
        case.close(f"R_tilde_ddof{ddof}", white, near_one)
        shaped = F.shape_rewards(
            white,
            kl[:, None],
            torch.zeros_like(kl)[:, None],
            torch.ones_like(kl)[:, None],
            p["beta"],
        )
        case.close(f"R_final_ddof{ddof}_beta{p['beta']:g}", shaped[:, 0], near_one)


# --- best-of-n and judge
# ------------------------------------------------------------------------------------------


def check_best_of_n(case: Case) -> None:
    if "n" in case:
        case.close("kl", [F.best_of_n_kl(n) for n in case.inputs["n"]])
        return
    if "base_policy" in case:
        base, reward = case.tensors("base_policy", "reward")
        for n in sorted({int(key.split(".")[0]) for key in case.expected}):
            policy = F.best_of_n_distribution(base, reward, n)
            case.close(f"{n}.policy", policy)
            case.close(
                f"{n}.kl_exact",
                F.masked_sum(policy * F.kl_k1(policy.log(), base.log()), policy > 0),
            )
            case.close(f"{n}.kl_bound", F.best_of_n_kl(n))
            case.close(f"{n}.expected_reward", (policy * reward).sum())
        return
    iterations = list(case.tensor("rewards_per_iteration"))
    for rewards, expected in zip(iterations, case.expected["per_iteration"], strict=True):
        best = list(best_samples([one_group_a_prompt(rewards)]).values())
        assert [int(sample.response.text) for sample in best] == expected["index"]
        assert [sample.response.reward for sample in best] == pytest.approx(expected["reward"])
    groups = [one_group_a_prompt(rewards) for rewards in iterations]
    for last, expected in enumerate(case.expected["carry_over_best"]):
        best = list(best_samples(groups[: last + 1]).values())
        assert [sample.iteration for sample in best] == expected["iteration"]
        assert [int(sample.response.text) for sample in best] == expected["index"]
        assert [sample.response.reward for sample in best] == pytest.approx(expected["reward"])
    case.left -= {"per_iteration", "carry_over_best"}
    case.close("mean_best_of_k", [rewards.amax(dim=1).mean() for rewards in iterations])
    case.close("raft_global_top_1_over_k_flat_index", F.raft_top(iterations[0]))
    estimates = [F.expected_best_of_n(iterations[0], n + 1) for n in range(iterations[0].shape[1])]
    case.close("unbiased_expected_best_of_n", torch.stack(estimates))


def one_group_a_prompt(rewards: Tensor) -> list[Group]:
    """Responses named by their index."""
    return [
        Group(
            ({"role": "user", "content": str(prompt)},),
            tuple(
                Response(text=str(index), scores={REWARD_KEY: reward})
                for index, reward in enumerate(row)
            ),
        )
        for prompt, row in enumerate(rewards.tolist())
    ]


def check_rest(case: Case) -> None:
    rewards, nll, n_tokens = case.tensors("rewards", "sequence_nll", "n_tokens")
    for step in case.expected["improve_steps"]:
        keep = torch.tensor(case.inputs["rewards"], dtype=torch.float64) > step["threshold"]
        assert keep.nonzero().flatten().tolist() == step["selected"]
        kept = F.masked_sum(nll, keep)
        found = {
            "fraction": keep.double().mean(),
            "loss_sequence_mean_selected": F.masked_mean(nll, keep),
            "loss_paper_mean_over_dataset": kept / len(nll),
            "loss_token_mean_selected": kept / F.masked_sum(n_tokens, keep).clamp(min=1),
        }
        assert set(step) == {"threshold", "selected", *found}
        for key, value in found.items():
            assert value.item() == pytest.approx(
                step[key], rel=case.tolerance["rtol"], abs=case.tolerance["atol"]
            ), key
    case.left.discard("improve_steps")
    quantiles = torch.tensor([0.0, 0.5, 0.9], dtype=case.dtype)
    case.close("quantile_thresholds_0_50_90_linear", torch.quantile(rewards, quantiles))


def check_rlaif(case: Case) -> None:
    if "p_a_by_principle" in case:
        p_a = case.tensor("p_a_by_principle").mean(-1)
        case.close("p_a", p_a)
        case.close("clamped", F.clamp_cai(p_a))
        return
    if "scores" in case:
        case.same("chosen", F.preferred(case.inputs["scores"]))
        return
    ab, ba = case.tensors("logp_first_second_order_AB", "logp_first_second_order_BA")
    in_ab, in_ba = F.order_probabilities(ab, ba)
    case.close("p_a_order_AB", in_ab)
    case.close("p_a_order_BA", in_ba)
    p_a = F.judge_probability(ab, ba)
    case.close("p_a", p_a)
    case.trap("trap_p_without_swapping", "p_a", p_a)
    case.close("hard_label_a", F.hard_label(p_a))
    inconsistent = F.position_inconsistent(ab, ba)
    case.same("position_inconsistent", inconsistent)
    case.close("position_inconsistent_rate", inconsistent.double().mean())
    case.close("cai_clamped_40_60", F.clamp_cai(p_a))
    reward_a, reward_b = case.tensor("reward_a", grad=True), case.tensor("reward_b")
    loss = F.pairwise_loss(reward_a, reward_b, p=p_a).mean()
    case.close("rm_loss_soft", loss)
    case.gradient("grad_reward_a", loss, reward_a)


# --- comparing labelers and policies
# ---------------------------------------------------------------------------------


def check_agreement(case: Case) -> None:
    inputs = case.inputs
    if "choices" in case:
        units = list(zip(*inputs["choices"], strict=True))
        case.defined("mean_pairwise_agreement", agreement.agreement_of(units)["same"]["mean"])
    elif "data" in case:
        units = list(zip(*inputs["data"], strict=True))
        case.defined("nominal", agreement.agreement_of(units)["alpha"]["mean"])
    elif "a" in case:
        units = list(zip(inputs["a"], inputs["b"], strict=True))
        case.defined("agreement", agreement.agreement_of(units)["same"]["mean"])
    # Cohen's and Fleiss' coefficients, and distances of alpha: nobody reports them.
    case.left -= {"kappa", "kappa_linear", "kappa_quadratic", "ordinal", "interval"}


def check_ranking(case: Case) -> None:
    inputs = case.inputs
    if "outcomes" in case:
        n, wins, ties = (
            len(inputs["outcomes"]),
            inputs["outcomes"].count(1),
            inputs["outcomes"].count(0.5),
        )
        for key, count in (("wins", wins), ("losses", n - wins - ties), ("ties", ties)):
            if key in case.left:
                case.same(key, count)
        half = statistics.share(wins + ties / 2, n)
        for key, rate in (
            ("ties_half", half),
            ("excluding_ties", statistics.share(wins, n - ties)),
        ):
            case.defined(f"win_rate_{key}", rate and rate["mean"])
        lost = statistics.share(wins, n)
        case.defined("win_rate_ties_lose", lost and lost["mean"])
        for bound in ("low", "high"):
            if f"wilson95_{bound}" in case.expected:
                case.close(f"wilson95_{bound}", half[bound])
    else:
        case.left.clear()  # Elo points and Bradley-Terry strengths are not here


def check_gopher_dialogue(case: Case) -> None:
    found = text.find_dialogues(case.inputs["text"], min_paragraphs=case.params["min_paragraphs"])
    summaries = [
        {"start": d.start, "n_paragraphs": len(d.turns), "prefixes": list(d.prefixes)}
        for d in found
    ]
    case.same("dialogues", summaries)


# --- running them
# -------------------------------------------------------------------------------------------------

CHECKS: dict[str, Callable[[Case], None]] = {
    name.removeprefix("check_"): function
    for name, function in globals().items()
    if name.startswith("check_")
}


def in_float32(case_id: str) -> bool:
    return "extreme" not in case_id and not case_id.startswith("near_zero_std")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder: Path = metafunc.config.getoption("--golden")
    files = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    if "golden" in metafunc.fixturenames:
        cases = []
        for name, file in files.items():
            for data in file["cases"] if name in CHECKS else []:
                for dtype in (torch.float64, torch.float32):
                    if dtype == torch.float64 or (
                        name not in WITHOUT_TENSORS and in_float32(data["id"])
                    ):
                        label = f"{name}-{data['id']}-{str(dtype).removeprefix('torch.')}"
                        cases.append(pytest.param((name, data, file["tolerance"], dtype), id=label))
        metafunc.parametrize("golden", cases)
    if "unmapped" in metafunc.fixturenames:
        metafunc.parametrize("unmapped", [name for name in files if name not in CHECKS])


def test_golden(golden: tuple[str, dict[str, Any], dict[str, float], torch.dtype]) -> None:
    name, data, tolerance, dtype = golden
    case = Case(data, tolerance, dtype)
    CHECKS[name](case)
    assert not case.left, f"not compared: {sorted(case.left)}"


def test_file_is_covered(unmapped: str) -> None:
    pytest.skip(f"not covered: {unmapped}")


def test_folder_holds_cases(request: pytest.FixtureRequest) -> None:
    folder: Path = request.config.getoption("--golden")
    # Cases of test_unseen_golden.py, without files
    computed = {"bradley_terry", "dpo_from_logits", "exact_kl"}
    missing = sorted(CHECKS.keys() - computed - {path.stem for path in folder.glob("*.json")})
    assert not missing, f"golden files that are not in {folder}: {missing}"
