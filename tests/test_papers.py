"""Claims of papers: exact quantities against values by hand, what a rule makes of intervals, and
rows that a changed rule voids.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from alignkit import functional as F
from alignkit.data.group import read_groups
from alignkit.testing import check_algorithm
from alignkit_plugins.rewards.honesty import Honesty
from benchmarks.papers import (
    best_of_k,
    claim,
    dont_know,
    dpo_frontier,
    heads,
    kwise,
    page,
    sft_epochs,
    sycophancy,
    turns,
)
from benchmarks.papers.claim import CONTRADICTS, FAILED, OPPOSITE, SHOWN, UNCLEAR, Claim, judged
from benchmarks.papers.enumerable import best_of, kl, make
from tests.by_hand import batch, double, loss_of, new
from tests.rows import read_rows

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "docs"))
import method_table  # noqa: E402

sys.path.remove(str(ROOT / "docs"))


# Exact quantities


def test_kl_of_best_of_two_by_hand() -> None:
    """The other direction of KL would be 0.0759."""
    reference, rewards = double([0.75, 0.25]), double([0.0, 1.0])
    best = best_of(reference, rewards, 2)
    assert best.tolist() == pytest.approx([0.5625, 0.4375])
    assert kl(best, reference) == pytest.approx(0.08301, abs=1e-5)
    ties = best_of(double([0.5, 0.25, 0.25]), double([0.0, 1.0, 1.0]), 2)
    assert ties.tolist() == pytest.approx([0.25, 0.375, 0.375])


@pytest.mark.parametrize("k", [2, 8, 64])
def test_the_bound_is_met_where_no_answer_has_mass(k: int) -> None:
    count = 1_000_000
    even = torch.full((count,), 1 / count, dtype=torch.float64)
    found = kl(best_of(even, torch.arange(count, dtype=torch.float64), k), even)
    assert found == pytest.approx(F.best_of_n_kl(k), abs=1e-6)


@pytest.mark.parametrize("k", [1, 3, 4, 6])
@pytest.mark.parametrize("quantile", best_of_k.QUANTILES.values())
def test_the_mean_quantile_of_all_choices(k: int, quantile: float) -> None:
    scores = np.random.default_rng(0).normal(size=(1, 6))
    choices = [np.quantile(one, quantile) for one in itertools.combinations(scores[0], k)]
    found = best_of_k.expected_quantile(scores, k, quantile)
    assert found == pytest.approx(np.mean(choices))
    if quantile == 1:
        assert found == pytest.approx(float(F.expected_best_of_n(torch.tensor(scores), k)[0]))


@pytest.mark.parametrize(
    ("points", "wanted"),
    [
        ([(1.0, 0.5), (2.0, 0.4)], [0.0, 0.25, 0.5, 0.5, 0.5]),  # mixtures with the reference
        ([(1.0, 0.1), (2.0, 0.8)], [0.0, 0.2, 0.4, 0.6, 0.8]),  # a policy below a mixture of others
        ([(1.0, 0.8), (2.0, 1.0)], [0.0, 0.4, 0.8, 0.9, 1.0]),
        ([(0.5, -0.3)], [0.0, 0.0, 0.0, 0.0, 0.0]),  # worse than the reference
    ],
)
def test_a_frontier_is_the_upper_hull(
    points: list[tuple[float, float]], wanted: list[float]
) -> None:
    found = dpo_frontier.frontier(points, 0.0, np.linspace(0, 2, 5))
    assert found.tolist() == pytest.approx(wanted)


def test_areas_end_where_the_first_frontier_does_and_a_fall_is_from_the_own_peak() -> None:
    optimum = [[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]]  # from the reference's reward, 1
    values = {"optimum": optimum, "dpo": [[2.0, 2.0]], "ppo": [[0.1, 1.1], [1.0, 1.25]]}
    rows = [{"method": name, "seed": 3, "values": points} for name, points in values.items()]
    rule = {"most_kl": 4.0}
    assert dpo_frontier.shared(rows, rule, "dpo", "dpo")[3] == pytest.approx((0.5, 0.5))
    dpo, ppo = dpo_frontier.shared(rows, rule, "dpo", "ppo")[3]
    # Up to 1 nat; the optimum's area is 0.5, and PPO's hull bends at 0.1
    assert (dpo, ppo) == pytest.approx((0.5, (0.005 + 0.9 * 0.175) / 0.5), abs=2e-3)
    points = {"best": [[0, 0.0, 0], [1, 2.0, 1], [2, 0.5, 3]], "ppo": [[0, 0.0, 0], [3, 1.0, 1]]}
    found = turns.measures([{"method": "few", "seed": 4, "values": points}], {})
    assert found == {"few best": {4: 1.5}, "few ppo": {4: 0.0}}


def test_pairs_are_of_the_reference_and_the_better_one_tends_to_win(tmp_path: Path) -> None:
    problem = make(tmp_path, "abc", 2, 0.5, seed=1)
    dpo_frontier.write_data(problem, 2000)
    gap, won = [], []
    first, *others = read_groups(tmp_path / "pairs.jsonl")
    assert all(one.pairs == first.pairs for one in others)
    assert [one.text for one in first.responses] == problem.answers
    for pair in first.pairs:
        difference = float(problem.rewards[pair.better] - problem.rewards[pair.worse])
        gap.append(1 / (1 + np.exp(-abs(difference))))
        won.append(difference > 0)
    assert np.mean(won) == pytest.approx(np.mean(gap), abs=0.03)
    chosen = [group.responses[0].text for group in read_groups(tmp_path / "chosen.jsonl")]
    assert len(chosen) == 2000
    mean = np.mean([float(problem.rewards[problem.answers.index(one)]) for one in chosen])
    start = float((problem.reference * problem.rewards).sum())
    assert mean > start + 0.1
    dpo_frontier.write_data(problem, 2000, coins=True)
    coins = [group.responses[0].text for group in read_groups(tmp_path / "chosen.jsonl")]
    mean = np.mean([float(problem.rewards[problem.answers.index(one)]) for one in coins])
    assert mean == pytest.approx(start, abs=0.05)


def test_outcomes_of_questions_that_look_alike() -> None:
    """The best answer is right once in 16, 3 times, and so on; a reward can be wrong about that."""
    known = dont_know.right_answers(seed=5)
    counts = [max(map(answers.count, answers)) for answers in known.values()]
    assert counts == [1, 3, 5, 7, 9, 11, 13, 15]
    common, other = known["C"][0], known["C"][-1]
    chance = {common: 0.5, other: 0.2, dont_know.UNKNOWN: 0.25}
    policy = [chance.get(answer, 0.05 / 14) for answer in dont_know.ANSWERS]
    found = dont_know.outcomes(policy, known["C"])
    right = (5 * 0.5 + 0.2 + 10 * 0.05 / 14) / 16
    assert found == pytest.approx({"right": right, "abstains": 0.25, "wrong": 0.75 - right})
    for abstain in (-0.5, 0.0, 0.5):
        reward = Honesty(Honesty.Options(abstain=abstain))
        gains = [dont_know.gain_above_threshold(reward, answers) for answers in known.values()]
        assert gains == [0] * 8
    generous = SimpleNamespace(
        options=Honesty.Options(), grade=lambda answer, right: answer == "idk"
    )
    assert dont_know.gain_above_threshold(generous, known["H"]) == 1  # no threshold of this reward


def test_unlikelihood_raises_the_better_and_lowers_the_worse() -> None:
    file = ROOT / "recipes" / "papers" / "unlikelihood.py"
    spec = importlib.util.spec_from_file_location("unlikelihood", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    logprobs = double([[-1.0, -2.0], [-3.0, 9.0]]).requires_grad_()
    given = batch([[1, 1], [1, 0]], [(0, 1, 1.0)], group=[0, 0])
    loss = loss_of(new(module.Unlikelihood, alpha=0.25), given, logprobs=logprobs)
    assert loss.item() == pytest.approx(3.0 - 0.25 * 3.0)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[-1.0, -1.0], [0.25, 0.0]]
    check_algorithm(module.Unlikelihood)


@pytest.mark.parametrize(
    ("docstring", "wanted"),
    [
        ("As in GRPO (Shao et al. 2024,\narXiv:2402.03300, eq. 3).", "[Shao et al. 2024] eq. 3"),
        ("A. Ng 1999 and others. Two\nsums (McCullagh 1980).", "Ng 1999; McCullagh 1980"),
        ("Hu 2025 (arXiv:2501.03262); Hu 2025, section 3", "[Hu 2025]"),
        (
            'Sharma et al. 2023, "On It: 2nd", arXiv:2310.13548, sections 3.2 and 3.3; of 2024',
            "[Sharma et al. 2023] sections 3.2 and 3.3",
        ),
        (
            "Lu and Big Lab 2025; Agarwal et al. 2023, arXiv:2306.13649",
            "Lu and Big Lab 2025; [Agarwal et al. 2023]",
        ),
        ("Llama 2 of 2023 has 70 billion.", ""),
    ],
)
def test_papers_that_a_docstring_cites(docstring: str, wanted: str) -> None:
    found = method_table.papers(docstring)
    assert re.sub(r"\(https://arxiv.org/abs/[\d.]+\),?", "", found) == wanted


def test_rewards_of_prompts_share_a_part(tmp_path: Path) -> None:
    problem, prompts = make(tmp_path, "ab", 2), [(0, 0), (0, 1), (1, 0), (1, 1)]
    for own, apart in ((0.0, 0.0), (0.5, 1.0)):
        draw = torch.Generator().manual_seed(0)
        found = sft_epochs.rewards_of(problem, prompts, own, draw)
        assert found.shape == (4, 4) and found.mean(-1).abs().max() < 1e-12
        assert (found[0] - found[3]).abs().max() >= apart * 0.1
        # No part belongs to a pair of words
        assert (found[0] - found[1] - found[2] + found[3]).abs().max() < 1e-12
        assert own or (found[0] - found[3]).abs().max() == 0
    # Of several prompts at once, as of each
    tokens = [(5, 2), (6, 2)]
    both = make(tmp_path, "ab", 2, 0.5, "uv").distributions(tmp_path / "base", tokens)
    each = [problem.distribution(tmp_path / "base", one) for one in tokens]
    assert torch.equal(both, torch.stack(each)) and not torch.equal(*each)


# Heads on hidden states


def test_order_by_hand() -> None:
    """Three answers, of which gold ties two: two pairs count."""
    gold, scores = np.array([[1.0, 0.0, 0.0]]), np.array([[0.5, 1.5, 0.5 - np.log(3)]])
    assert heads.accuracy(scores, gold).tolist() == [0.5]
    wanted = (np.log(3 / 4) - np.log(1 + np.e)) / 2
    assert heads.nats(scores, gold).tolist() == pytest.approx([wanted])


@pytest.mark.parametrize(
    ("method", "steps", "weights"),
    [({"prompts": 2}, 2, [1 / 3] * 6), ({"pairs": 4}, 3, [1.0] * 4)],
)
def test_a_pass_has_each_comparison_once(
    method: Mapping[str, int], steps: int, weights: list[float]
) -> None:
    pool = heads.Answers(torch.zeros(9, 4, 1), np.arange(36.0).reshape(9, 4))
    draw, rule = np.random.default_rng(0), {"k": 3, "prompts": {"training": [2, 5]}}
    rankings = kwise.ranked(pool, rule, draw)
    every = sorted(one for own in rankings for one in own)
    assert len({*every}) == 9 and all(8 <= worse < better < 20 for _, better, worse in every)
    found = list(kwise.in_steps(rankings, method, draw))
    assert len(found) == steps and found[0].weights == pytest.approx(weights)
    seen = [pair for step in found for pair in zip(step.better, step.worse, strict=True)]
    assert sorted(seen) == sorted(pair[1:] for pair in every)


def test_a_head_learns_the_better_of_pairs_and_best_of_n_follows() -> None:
    inputs = torch.eye(4)
    head = heads.Head(4, seed=0)
    heads.learn(head, inputs, [heads.Step([0, 0, 2], [1, 3, 3], [1.0, 0.0, 1.0])] * 200, 0.05)
    scores = head(inputs).tolist()
    assert scores[0] > scores[1] + 3 and scores[2] > scores[3] + 3
    found = sycophancy.best_of(np.array([0.25, 0.25]), np.array([True, False]), 2)
    assert found.tolist() == [0.4375, 0.0625]
    steps = sycophancy.preferences(1000, 0.7, {"batch": 300}, seed=1)
    better = [one for step in steps for one in step.better]
    assert sorted(one // 2 for one in better) == list(range(1000))
    assert np.mean([one % 2 == 0 for one in better]) == pytest.approx(0.7, abs=0.04)


# Rules

MARGIN, WITHIN, EXACT = {"margin": 0.1}, {"within": 0.1}, {"tolerance": 1e-6}


@pytest.mark.parametrize(
    ("test", "values", "result"),
    [
        (MARGIN, [0.30, 0.31, 0.29, 0.32], SHOWN),
        (MARGIN, [0.08, 0.09, 0.08, 0.07], UNCLEAR),  # above 0, and not above the margin
        (MARGIN, [-0.30, -0.31, -0.29, -0.32], OPPOSITE),
        (MARGIN, [0.9, -0.2, 0.5, 0.1], UNCLEAR),
        (WITHIN, [0.01, -0.01, 0.02, 0.0], SHOWN),
        (WITHIN, [0.30, 0.31, 0.29, 0.32], OPPOSITE),
        (WITHIN, [0.3, -0.3, 0.2, -0.1], UNCLEAR),  # a wide interval is no equality
        (EXACT, [-0.5, 0.0, 9e-7], SHOWN),
        (EXACT, [-0.5, 2e-6, -0.1], CONTRADICTS),
    ],
)
def test_results_follow_from_intervals(
    test: Mapping[str, float], values: list[float], result: str
) -> None:
    found = judged("", test, np.array([values]), 0.05)
    assert found.result == result
    if "tolerance" not in test:
        # The t interval of the seeds
        error = np.std(values, ddof=1) / 2 * (2.353 if "within" in test else 3.182)
        assert found.low is not None and found.high is not None
        assert found.high - found.low == pytest.approx(2 * error, rel=1e-3)
    if "margin" in test:
        least, likely, most = found.seen
        assert 0.1 < least < likely < most and likely > 0.1 + error


RULE = """
seeds: {tuning: [0, 1], shown: [2, 3, 4]}
methods:
  start: {}
  ours: {rates: [1, 5, 2]}
control: {of: ours, minus: start, margin: MARGIN}
tests:
  good: {of: ours, margin: 0.5}
  exact: {of: start, tolerance: 0}
"""


class Fake(SimpleNamespace):
    """A claim's module; the best rate is 2. A row fails once."""

    failed = False

    def compute(self, row: claim.Row, rule: Any, folder: Path) -> Any:
        if row.seed == 4 and not self.failed:
            self.failed = True
            raise KeyboardInterrupt
        return 0.0 if row.rate is None else 1 + row.seed / 100 - abs(row.rate - 2)

    def measures(self, rows: Any, rule: Any) -> dict[str, dict[int, float]]:
        found = dict[str, dict[int, float]]()
        for row in rows:
            found.setdefault(row["method"], {})[row["seed"]] = row["values"]
        return found


def test_rows_know_their_rule_and_a_changed_rule_voids_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "HERE", tmp_path)
    monkeypatch.setattr(claim.Claim, "module", Fake())
    folder = tmp_path / "fake"
    folder.mkdir()
    (folder / "rule.yaml").write_text(RULE.replace("MARGIN", "0.5"), encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        Claim("fake").compute(tmp_path, 1, 1)
    begun = json.loads((folder / "rows" / "start-4.json").read_text(encoding="utf-8"))
    assert begun["rule"] == Claim("fake").digest and "values" not in begun
    with pytest.raises(SystemExit, match="2 rows are missing"):
        _ = Claim("fake").rows
    assert Claim("fake").done() == (12, 14)
    Claim("fake").compute(tmp_path, 1, 1)
    assert Claim("fake").done() == (14, 14)
    assert Claim("fake").rates() == {"ours": 2}
    assert {row["seed"] for row in Claim("fake").rows} == {2, 3, 4}
    results = {one.name: one.result for one in Claim("fake").findings()}
    assert results == {"control": SHOWN, "good": SHOWN, "exact": SHOWN}
    count = len(read_rows(folder / "runs.jsonl"))
    assert count == 2 * 4 + 3 * 2 + 1  # of tuning, shown, and the one that failed
    # One is computed again
    assert "start-3 has equal bytes; computed on" in Claim("fake").verify("start-3", tmp_path)
    changed = json.loads((folder / "rows" / "start-3.json").read_text(encoding="utf-8"))
    with pytest.raises(SystemExit, match="no row 'ours-5-3'; they are start-0, ours-1-0"):
        Claim("fake").verify("ours-5-3", tmp_path)
    (tmp_path / "start-3" / "run").mkdir(parents=True)
    (tmp_path / "start-3" / "run" / "adapter.safetensors").touch()
    with pytest.raises(SystemExit, match="start-3 has other weights; computed on"):
        Claim("fake").verify("start-3", tmp_path)
    changed["values"] = 0.5
    (folder / "rows" / "start-3.json").write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(SystemExit, match="has other weights and values;"):
        Claim("fake").verify("start-3", tmp_path)
    changed["values"] = 0.0
    (folder / "rows" / "start-3.json").write_text(json.dumps(changed), encoding="utf-8")
    # Other code voids rows, but for those from before rows had its digest
    with monkeypatch.context() as patch:
        patch.setattr(claim.Claim, "code", "other")
        assert Claim("fake").stored([claim.Row("start", 3), claim.Row("start", 2)]) == []
        older = {key: value for key, value in changed.items() if key != "code"}
        (folder / "rows" / "start-3.json").write_text(json.dumps(older), encoding="utf-8")
        assert Claim("fake").stored([claim.Row("start", 3), claim.Row("start", 2)]) == [older]
    # A control that cannot be seen
    (folder / "rule.yaml").write_text(RULE.replace("MARGIN", "3"), encoding="utf-8")
    with pytest.raises(SystemExit, match="rows of tuning are missing"):
        Claim("fake").rates()
    assert Claim("fake").done() == (0, 14)
    Claim("fake").compute(tmp_path, 1, 1)
    results = {one.name: one.result for one in Claim("fake").findings()}
    assert results == {"control": UNCLEAR, "good": FAILED, "exact": SHOWN}
    void = [row for row in Claim("fake").log() if row["rule"] != Claim("fake").digest]
    assert len(void) == count


WIDTH = 8


def helper() -> int:
    return WIDTH


def computes() -> int:
    return helper()


def test_the_code_of_a_row_has_what_it_calls_and_their_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claim, "CODE", (__name__,))
    found = [claim.code_of(computes), claim.code_of(helper)]
    monkeypatch.setattr(sys.modules[__name__], "WIDTH", 9)
    found += [claim.code_of(computes)]
    monkeypatch.setattr(sys.modules[__name__], "helper", test_order_by_hand)
    found += [claim.code_of(computes)]
    assert len({*found}) == 4
    monkeypatch.setattr(claim, "CODE", ("elsewhere",))  # code that is no claim's
    assert claim.code_of(computes) not in found


@pytest.mark.parametrize("one", page.claims(), ids=lambda one: str(one.name))
def test_few_words_by_hand(one: Claim) -> None:
    texts = [str(text) for key, text in page.words(one).items() if key != "quotes"]
    assert sum(len(text.split()) for text in texts) <= 200


def test_a_page_quotes_some_of_what_was_computed_later() -> None:
    one = Claim("sycophancy")
    every, few = page.afterwards(one), page.afterwards(one, ["the base agrees, share of answers"])
    assert (every.count("\n| "), few.count("\n| "), page.afterwards(one, [])) == (9, 1, "")
    assert few.splitlines()[-1] in every and few.splitlines()[-1] in page.page("sycophancy")


def test_a_peak_is_chosen_by_the_other_seeds() -> None:
    from benchmarks.papers import overoptimization

    def row(seed: int, *true: float) -> dict[str, Any]:
        return {"seed": seed, "method": "few", "values": {"best": [[0, x, 0] for x in true]}}

    rule = {"methods": {"few": {}}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overoptimization, "OPTIMIZERS", {"best": ""})
        found = overoptimization.measures([row(3, 9, 1, 0), row(4, 0, 2, 1)], rule)
    assert found == {"few best, peak": {3: 1, 4: 0}, "few best, end": {3: 0, 4: 1}}


def test_parts_of_an_axis_have_its_value_as_mean_and_only_distances_within_metrics() -> None:
    from benchmarks.papers import reports

    values = {"good": {"sft": [1.0, 0.0, 1.0, 0.0]}, "bad": {"sft": [0.0, 1.0]}}
    rule = {"axes": {"J": {"good": 1, "bad": -0.5}}}
    (parts,) = reports.measures([{"seed": 3, "values": values}], rule)["sft, J"].values()
    assert parts.mean() == pytest.approx(0.5 - 0.5 * 0.5)
    assert (parts - parts.mean()).tolist() == pytest.approx([0.75, -0.75, 0.75, -0.75, 0.75, -0.75])


# Claims without rows


def test_what_seeds_could_show_follows_from_stored_runs() -> None:
    """Two stored seeds, of which prompts vary by more than their seeds; the gain is 0.5."""
    from benchmarks.papers import reports

    gain = np.array([[0.0, 0.1], [1.0, 0.9], [0.5, 0.5]])
    found = reports.crossed.parts(gain)
    assert reports.with_seeds(found, 2)._replace(seed_free=found.seed_free) == found
    more = reports.with_seeds(found, 200)
    error = claim.crossed.spread(more)
    # Seeds no longer matter, and the variance of three prompts is left
    assert error.variance == pytest.approx(np.var([0.05, 0.95, 0.5], ddof=1) / 3, rel=0.02)
    assert claim.power(0, error, 0.025) == pytest.approx(0.025)


def test_a_claim_without_rows_says_what_they_could_show_and_one_without_a_rule_why_not() -> None:
    versions, tax = Claim("versions"), Claim("tax")
    if not page.complete(versions):
        lines = {line[0]: line[1:] for line in page.planned(versions, 5)}
        assert lines["positive control"] == ["above 0.1", "", "", ""]  # not in stored runs
        five, ten = (float(chance.strip("%")) for chance in lines["PPO above the rounds"][-2:])
        assert 5 < five < ten < 100
    assert not page.complete(tax) and "base minus PPO" in page.page("tax")
    with pytest.raises(SystemExit, match="tax: this claim has no rule"):
        tax.verify("ppo-3", ROOT)
